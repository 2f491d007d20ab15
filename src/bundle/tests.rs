//! The configuration against the rules of `conversion.md` and containerd, as tables.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn image() -> BundleImage {
    BundleImage { cmd: texts(&["sh"]), ..BundleImage::default() }
}

fn config(image: &BundleImage, options: &BundleOptions) -> Result<Value, String> {
    let spec = config_json(image, None, None, options).map_err(|e| e.to_string())?;
    let text = to_json(&spec).expect("JSON");
    Ok(serde_json::from_str(&text).expect("JSON"))
}

/// The value at a JSON pointer of the configuration.
fn field(image: &BundleImage, options: &BundleOptions, pointer: &str) -> Result<Value, String> {
    config(image, options).map(|c| c.pointer(pointer).cloned().unwrap_or(Value::Null))
}

#[test]
fn args_are_entrypoint_and_cmd() {
    const NONE: &str = "no command to run: the image has neither entrypoint nor cmd";
    type Row = (
        &'static [&'static str],
        &'static [&'static str],
        Option<&'static [&'static str]>,
        &'static [&'static str],
        Result<&'static [&'static str], &'static str>,
    );
    // Entrypoint and cmd of the image, entrypoint and args of the caller
    let table: &[Row] = &[
        (&["e", "1"], &["c"], None, &[], Ok(&["e", "1", "c"])),
        (&["e"], &["c"], None, &["a", "b"], Ok(&["e", "a", "b"])),
        (&[], &["c"], None, &[], Ok(&["c"])),
        (&[], &["c"], None, &["a"], Ok(&["a"])),
        (&["e"], &[], None, &[], Ok(&["e"])),
        (&["e"], &["c"], Some(&["x"]), &[], Ok(&["x"])),
        (&["e"], &["c"], Some(&["x"]), &["a"], Ok(&["x", "a"])),
        (&["e"], &["c"], Some(&[]), &["a"], Ok(&["a"])),
        (&["e"], &["c"], Some(&[]), &[], Err(NONE)),
        (&[], &[], None, &[], Err(NONE)),
        (&[""], &["c"], None, &[], Err(NONE)),
        (&["e"], &[""], None, &[], Ok(&["e", ""])),
        (&["e"], &["a\0b"], None, &[], Err("argument holds a zero byte: \"a\\0b\"")),
    ];
    for (entrypoint, cmd, given, args, expected) in table {
        let image = BundleImage {
            entrypoint: texts(entrypoint),
            cmd: texts(cmd),
            ..BundleImage::default()
        };
        let options = BundleOptions {
            entrypoint: given.map(texts),
            args: texts(args),
            ..BundleOptions::default()
        };
        let found = field(&image, &options, "/process/args");
        let expected = expected.map(|args| json!(args)).map_err(str::to_owned);
        assert_eq!(found, expected, "{entrypoint:?} {cmd:?} {given:?} {args:?}");
    }
    assert!(BundleError::NoCommand.hint().is_some());
}

#[test]
fn env_of_the_image_is_the_base() {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    type Row = (&'static [&'static str], &'static [&'static str], bool, &'static [&'static str]);
    // Env of the image, of the caller, whether there is a terminal
    let table: &[Row] = &[
        (&[], &[], false, &[PATH]),
        (&[], &["A=1"], false, &[PATH, "A=1"]),
        (&[], &["PATH=/x"], false, &["PATH=/x"]),
        (&[], &["PATH"], false, &[]),
        (&["A=1"], &[], false, &["A=1"]),
        (&["A=1", "B=2"], &["A=3", "C="], false, &["A=3", "B=2", "C="]),
        (&["A=1", "B=2"], &["A", "C"], false, &["B=2"]),
        (&["A=1", "B=2", "A=3"], &[], false, &["A=3", "B=2"]),
        (&["A=x=y"], &["B==z"], false, &["A=x=y", "B==z"]),
        // What is no variable is passed over
        (&["A", "=b", "", "C=1"], &[], false, &["C=1"]),
        (&["A=1"], &[], true, &["A=1", "TERM=xterm"]),
        (&["TERM=vt100"], &[], true, &["TERM=vt100"]),
        (&["A=1"], &["TERM=dumb"], true, &["A=1", "TERM=dumb"]),
        (&[], &[], true, &[PATH, "TERM=xterm"]),
    ];
    for (image_env, env, terminal, expected) in table {
        let image = BundleImage { env: texts(image_env), ..image() };
        let options =
            BundleOptions { env: texts(env), terminal: *terminal, ..BundleOptions::default() };
        let found = field(&image, &options, "/process/env");
        assert_eq!(found, Ok(json!(expected)), "{image_env:?} {env:?}");
        assert_eq!(field(&image, &options, "/process/terminal"), Ok(json!(terminal)));
    }
    for bad in ["=x", "", "A=\0"] {
        let options = BundleOptions { env: texts(&[bad]), ..BundleOptions::default() };
        assert!(config(&image(), &options).is_err(), "{bad:?}");
    }
    let bad = BundleImage { env: texts(&["A=\0"]), ..image() };
    assert!(config(&bad, &BundleOptions::default()).is_err());
}

#[test]
fn working_directory() {
    let relative = "working directory is not absolute: \"a\"".to_owned();
    let table = [
        (None, None, Ok("/")),
        (some("/srv"), None, Ok("/srv")),
        (some(""), None, Ok("/")),
        (some("srv/x"), None, Ok("/srv/x")),
        (some("/srv"), some("/tmp"), Ok("/tmp")),
        (some("/srv"), some(""), Ok("/srv")),
        (some("/srv"), some("a"), Err(relative)),
    ];
    for (working_dir, cwd, expected) in table {
        let image = BundleImage { working_dir: working_dir.clone(), ..image() };
        let options = BundleOptions { cwd: cwd.clone(), ..BundleOptions::default() };
        let found = field(&image, &options, "/process/cwd");
        assert_eq!(found, expected.map(|dir| json!(dir)), "{working_dir:?} {cwd:?}");
    }
}

#[test]
fn the_caller_s_user_wins() {
    let passwd = b"root:x:0:0\napp:x:5:6\n".as_slice();
    let group = b"extra:x:7:app\n".as_slice();
    let user = |image_user: Option<&str>, user: Option<&str>| {
        let image = BundleImage { user: image_user.map(str::to_owned), ..image() };
        let options = BundleOptions { user: user.map(str::to_owned), ..BundleOptions::default() };
        let spec = config_json(&image, Some(passwd), Some(group), &options)?;
        Ok::<_, BundleError>(serde_json::to_value(spec).expect("JSON")["process"]["user"].take())
    };
    let root = json!({"uid": 0, "gid": 0, "additionalGids": [0]});
    let app = json!({"uid": 5, "gid": 6, "additionalGids": [6, 7]});
    assert_eq!(user(None, None).expect("root"), root);
    assert_eq!(user(Some(""), Some("")).expect("root"), root);
    assert_eq!(user(Some("app"), None).expect("app"), app);
    assert_eq!(user(Some("none"), Some("app")).expect("app"), app);
    assert_eq!(user(Some("app"), Some("0")).expect("root"), root);
    let error = user(Some("none"), None).expect_err("unknown");
    assert_eq!(error.to_string(), "unknown user \"none\": not in the image's /etc/passwd");
    assert!(error.hint().is_some());
}

#[test]
fn annotations_by_precedence() {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labelled = BundleImage {
        labels: [
            label("maintainer", "me"),
            label("org.opencontainers.image.author", "label"),
            label("shared", "label"),
            label("", "no key"),
            label("org.systemd.property.ExecStop", "/bin/evil"),
            label("org.criu.config", "/etc/shadow"),
            label("run.oci.hooks.stdout", "x"),
            label("io.katacontainers.config.hypervisor.path", "/bin/evil"),
            label("run.ocix", "fine"),
        ]
        .into(),
        stop_signal: some("SIGQUIT"),
        exposed_ports: ["80/tcp", "443/tcp", "53/udp"].map(str::to_owned).into(),
        os: some("linux"),
        architecture: some("arm64"),
        variant: some("v8"),
        author: some("config"),
        created: some(""),
        ..image()
    };
    let options = BundleOptions {
        annotations: [label("shared", "caller"), label("run.oci.handler", "wasm")].into(),
        ..BundleOptions::default()
    };
    let expected = json!({
        "maintainer": "me",
        "org.opencontainers.image.architecture": "arm64",
        "org.opencontainers.image.author": "label",
        "org.opencontainers.image.exposedPorts": "443/tcp,53/udp,80/tcp",
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.stopSignal": "SIGQUIT",
        "org.opencontainers.image.variant": "v8",
        "run.oci.handler": "wasm",
        "run.ocix": "fine",
        "shared": "caller",
    });
    assert_eq!(field(&labelled, &options, "/annotations"), Ok(expected));
    assert_eq!(field(&image(), &BundleOptions::default(), "/annotations"), Ok(json!({})));
}

#[test]
fn namespaces_and_network() {
    let types = |network| {
        let options = BundleOptions { network, ..BundleOptions::default() };
        let namespaces = field(&image(), &options, "/linux/namespaces").expect("config");
        let namespaces = namespaces.as_array().expect("array").clone();
        assert!(namespaces.iter().all(|n| n.get("path").is_none()));
        namespaces.iter().map(|n| n["type"].as_str().expect("type").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(types(Network::None), ["pid", "ipc", "uts", "mount", "cgroup", "network"]);
    assert_eq!(types(Network::Host), ["pid", "ipc", "uts", "mount", "cgroup"]);
}

fn destinations(options: &BundleOptions) -> Vec<String> {
    let mounts = field(&image(), options, "/mounts").expect("config");
    let mounts = mounts.as_array().expect("array").iter();
    mounts.map(|m| m["destination"].as_str().expect("path").to_owned()).collect()
}

#[test]
fn mounts_in_order() {
    let default =
        ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    assert_eq!(destinations(&BundleOptions::default()), default);
    let mount = |source: &str, destination: &str, options: &[&str]| BundleMount {
        source: source.into(),
        destination: destination.into(),
        options: texts(options),
    };
    let options = BundleOptions {
        network: Network::Host,
        mounts: vec![
            mount("/data", "/srv", &["ro"]),
            mount("/big", "/dev/shm", &["bind"]),
            mount("/mine", "/etc/hosts", &[]),
        ],
        ..BundleOptions::default()
    };
    let expected = [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
        "/etc/resolv.conf",
        "/srv",
        "/dev/shm",
        "/etc/hosts",
    ];
    assert_eq!(destinations(&options), expected);
    let mounts = field(&image(), &options, "/mounts").expect("config");
    let tail: Vec<Value> = mounts.as_array().expect("array")[6..].to_vec();
    let bind = |source: &str, destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    assert_eq!(
        tail,
        [
            bind("/etc/resolv.conf", "/etc/resolv.conf", &["rbind", "ro"]),
            bind("/data", "/srv", &["rbind", "ro"]),
            bind("/big", "/dev/shm", &["bind"]),
            bind("/mine", "/etc/hosts", &["rbind"]),
        ]
    );
}

#[test]
fn malformed_mounts_are_refused() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let foreign = Path::new(OsStr::from_bytes(b"/\xff"));
    let table = [
        (Path::new("a"), Path::new("/b"), "mount source is not absolute: \"a\""),
        (Path::new("/a"), Path::new("b"), "mount destination is not absolute: \"b\""),
        (foreign, Path::new("/b"), "mount source is not UTF-8: \"/\u{fffd}\""),
        (Path::new("/a"), Path::new("/\0"), "mount destination holds a zero byte: \"/\\0\""),
    ];
    for (source, destination, expected) in table {
        let (source, destination) = (PathBuf::from(source), PathBuf::from(destination));
        let mounts = vec![BundleMount { source, destination, options: vec![] }];
        let options = BundleOptions { mounts, ..BundleOptions::default() };
        assert_eq!(config(&image(), &options), Err(expected.to_owned()));
    }
}

#[test]
fn what_every_container_gets() {
    let config = config(&image(), &BundleOptions::default()).expect("config");
    let at = |pointer: &str| config.pointer(pointer).cloned().unwrap_or(Value::Null);
    assert_eq!(at("/ociVersion"), "1.0.2");
    assert_eq!(at("/root"), json!({"path": "rootfs", "readonly": false}));
    assert_eq!(at("/hostname"), Value::Null);
    assert_eq!(at("/process/noNewPrivileges"), true);
    assert_eq!(
        at("/process/rlimits"),
        json!([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}])
    );
    let capabilities = at("/process/capabilities");
    let sets: Vec<&String> = capabilities.as_object().expect("object").keys().collect();
    assert_eq!(sets, ["bounding", "effective", "permitted"]);
    let expected = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE \
                    NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT";
    let expected: Vec<String> = expected.split(' ').map(|name| format!("CAP_{name}")).collect();
    for set in capabilities.as_object().expect("object").values() {
        assert_eq!(*set, json!(expected));
    }
    let devices = at("/linux/resources/devices");
    assert_eq!(devices[0], json!({"allow": false, "access": "rwm"}));
    let open = devices.as_array().expect("array").iter().filter(|d| d["access"] == "rwm");
    assert_eq!(open.filter(|d| d["allow"] == true && d["type"] == "c").count(), 9);
    for absent in ["/linux/cgroupsPath", "/linux/seccomp", "/process/apparmorProfile", "/hooks"] {
        assert_eq!(at(absent), Value::Null, "{absent}");
    }
    let options =
        BundleOptions { readonly_rootfs: true, hostname: some("box"), ..BundleOptions::default() };
    assert_eq!(field(&image(), &options, "/root/readonly"), Ok(json!(true)));
    assert_eq!(field(&image(), &options, "/hostname"), Ok(json!("box")));
}

#[test]
fn the_text_is_always_the_same() {
    let labels = (0..50).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    let image = BundleImage { labels, ..image() };
    let text = || {
        let spec = config_json(&image, None, None, &BundleOptions::default()).expect("config");
        to_json(&spec).expect("JSON")
    };
    let first = text();
    assert!(first.ends_with("}\n"));
    for _ in 0..5 {
        assert_eq!(text(), first);
    }
}
