//! Generated configurations against the real runc: it reads them, and a process in the container
//! sees what was asked for.
//!
//! Needs root, runc and a static busybox (Debian: `runc`, `busybox-static`). Without them a test
//! says so and passes, unless PEEL_REQUIRE_TOOLS=1.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use oci_spec::runtime::Spec;
use peel::bundle::{
    BundleImage, BundleMount, BundleOptions, Network, config_json, rootfs_file, to_json,
};
use serde_json::Value;
use tempfile::TempDir;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:app\nstaff:x:50:app\napp:x:1001:\n";

fn found(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs = env::split_paths(&path).chain(sbin).map(|dir| dir.join(program));
    dirs.into_iter().find(|file| file.is_file())
}

/// runc and busybox, or `None` with a loud word where the test cannot run here.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let missing = match (found("runc"), found("busybox")) {
        _ if !rustix::process::geteuid().is_root() => "root",
        (None, _) => "runc",
        (_, None) => "busybox",
        (Some(runc), Some(busybox)) => return Some((runc, busybox)),
    };
    let required = env::var_os("PEEL_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "{missing} is missing, and PEEL_REQUIRE_TOOLS=1");
    eprintln!("SKIPPED: {missing} is missing");
    None
}

/// A bundle whose rootfs is a busybox, in a directory of its own.
struct Bundle {
    dir: TempDir,
    runc: PathBuf,
    name: String,
}

impl Bundle {
    fn new((runc, busybox): (PathBuf, PathBuf)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("temporary directory");
        let rootfs = dir.path().join("bundle/rootfs");
        for name in ["bin", "etc", "home/app", "root"] {
            fs::create_dir_all(rootfs.join(name)).expect("rootfs");
        }
        fs::copy(busybox, rootfs.join("bin/busybox")).expect("busybox");
        fs::write(rootfs.join("etc/passwd"), PASSWD).expect("passwd");
        fs::write(rootfs.join("etc/group"), GROUP).expect("group");
        // The container's users have to get through
        for path in [dir.path(), &dir.path().join("bundle")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("peel-test-{}-{count}", std::process::id());
        Self { dir, runc, name }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn runc(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(self.dir.path().join("state"));
        command
    }

    /// Runs `busybox ARGS` by a configuration made for `image` and `options`.
    fn run(&self, image: &BundleImage, options: &BundleOptions) -> Output {
        let rootfs = self.path().join("rootfs");
        let file = |path| rootfs_file(&rootfs, path, 1 << 20).expect("rootfs file");
        let (passwd, group) = (file("etc/passwd"), file("etc/group"));
        let spec = config_json(image, passwd.as_deref(), group.as_deref(), options);
        let text = to_json(&spec.expect("config")).expect("JSON");
        fs::write(self.path().join("config.json"), text).expect("config.json");
        let mut command = self.runc();
        command.args(["run", "--bundle"]).arg(self.path()).arg(&self.name);
        command.output().expect("runc")
    }

    fn stdout(&self, image: &BundleImage, options: &BundleOptions) -> String {
        let output = self.run(image, options);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", output.status);
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Only there where a test failed half-way
        let _ = self.runc().args(["delete", "--force", &self.name]).output();
    }
}

fn busybox(args: &[&str]) -> BundleImage {
    BundleImage {
        entrypoint: vec!["/bin/busybox".to_owned()],
        cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
        ..BundleImage::default()
    }
}

fn script(text: &str) -> BundleImage {
    busybox(&["sh", "-c", text])
}

#[test]
fn users_and_groups_are_the_image_s() {
    let Some(tools) = tools() else { return };
    let bundle = Bundle::new(tools);
    let table = [
        (None, None, "uid=0(root) gid=0(root) groups=0(root)"),
        (Some("app"), None, "uid=1000(app) gid=1001(app) groups=10(wheel),50(staff),1001(app)"),
        (Some("1000"), None, "uid=1000(app) gid=1001(app) groups=10(wheel),50(staff),1001(app)"),
        (Some("app:staff"), None, "uid=1000(app) gid=50(staff) groups=10(wheel),50(staff)"),
        (Some("app"), Some("4321:99"), "uid=4321 gid=99 groups=99"),
        (Some("4321"), None, "uid=4321 gid=0(root) groups=0(root)"),
    ];
    for (user, given, expected) in table {
        let image = BundleImage { user: user.map(str::to_owned), ..busybox(&["id"]) };
        let options = BundleOptions { user: given.map(str::to_owned), ..BundleOptions::default() };
        let found = bundle.stdout(&image, &options);
        // The order of groups is the kernel's
        let sorted = |line: &str| {
            let (ids, groups) = line.split_once(" groups=").expect("groups");
            (ids.to_owned(), groups.split(',').map(str::to_owned).collect::<BTreeSet<_>>())
        };
        assert_eq!(sorted(&found), sorted(expected), "{user:?} {given:?}");
    }
}

#[test]
fn the_process_sees_what_was_asked_for() {
    let Some(tools) = tools() else { return };
    let bundle = Bundle::new(tools);
    let text = "echo $A $B; pwd; hostname; echo $HOME; grep -E 'CapEff|NoNewPrivs' \
                /proc/self/status; ulimit -n; ls /sys/class/net; touch /written && echo rw";
    let text = text.replace("hostname", "busybox hostname");
    let image = BundleImage {
        env: ["A=image", "B=image", "PATH=/bin"].map(str::to_owned).into(),
        working_dir: Some("/made/for/it".to_owned()),
        user: Some("0".to_owned()),
        ..script(&text)
    };
    let options = BundleOptions {
        env: vec!["B=given".to_owned()],
        hostname: Some("box".to_owned()),
        ..BundleOptions::default()
    };
    let found = bundle.stdout(&image, &options);
    let expected = [
        "image given",
        "/made/for/it",
        "box",
        "/root",
        "CapEff:\t00000000a80425fb",
        "NoNewPrivs:\t1",
        "1024",
        "lo",
        "rw",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    assert!(bundle.path().join("rootfs/written").exists());
}

#[test]
fn read_only_and_exit_code() {
    let Some(tools) = tools() else { return };
    let bundle = Bundle::new(tools);
    // Where runc mounts, with a rootfs that it may not write to
    for name in ["proc", "dev", "sys"] {
        fs::create_dir(bundle.path().join("rootfs").join(name)).expect("mount point");
    }
    let options = BundleOptions { readonly_rootfs: true, ..BundleOptions::default() };
    let output = bundle.run(&script("echo x 2>/dev/null > /file || exit 7"), &options);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!bundle.path().join("rootfs/file").exists());
}

#[test]
fn the_host_s_network_and_mounts() {
    let Some(tools) = tools() else { return };
    let bundle = Bundle::new(tools);
    let data = bundle.dir.path().join("data");
    fs::create_dir(&data).expect("directory");
    fs::write(data.join("file"), "content").expect("file");
    let options = BundleOptions {
        network: Network::Host,
        mounts: vec![BundleMount {
            source: data,
            destination: "/srv/data".into(),
            options: vec!["ro".to_owned()],
        }],
        ..BundleOptions::default()
    };
    let text = "b=/bin/busybox; $b readlink /proc/self/ns/net; $b cat /srv/data/file; echo; \
                $b cat /etc/hosts | $b sha256sum; (echo > /srv/data/x) 2>/dev/null || echo ro";
    let found = bundle.stdout(&script(text), &options);
    let namespace = fs::read_link("/proc/self/ns/net").expect("namespace");
    let hosts = peel_index::Digest::sha256(&fs::read("/etc/hosts").expect("hosts")).hex();
    let expected = [namespace.to_str().expect("text"), "content", &format!("{hosts}  -"), "ro"];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

/// The configuration that runc itself writes, and ours, as JSON.
fn both(tools: &(PathBuf, PathBuf), dir: &Path) -> (Value, Value) {
    let output = Command::new(&tools.0).arg("spec").current_dir(dir).output().expect("runc");
    assert!(output.status.success());
    let theirs = fs::read_to_string(dir.join("config.json")).expect("config.json");
    // The types that ours is made of read theirs as well
    let parsed: Spec = serde_json::from_str(&theirs).expect("runc's configuration");
    assert_eq!(parsed.process().as_ref().map(|p| p.args().clone()), Some(Some(vec!["sh".into()])));
    let spec = config_json(&busybox(&["id"]), None, None, &BundleOptions::default());
    let ours = to_json(&spec.expect("config")).expect("JSON");
    let read: Spec = serde_json::from_str(&ours).expect("our configuration");
    assert_eq!(to_json(&read).expect("JSON"), ours);
    let value = |text: &str| serde_json::from_str(text).expect("JSON");
    (value(&theirs), value(&ours))
}

#[test]
fn fields_are_those_of_runc_spec() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().expect("temporary directory");
    let (theirs, ours) = both(&tools, dir.path());
    let keys = |value: &Value, pointer: &str| -> BTreeSet<String> {
        let object = value.pointer(pointer).and_then(Value::as_object).expect("object");
        object.keys().cloned().collect()
    };
    let more = |pointer: &str| -> Vec<String> {
        keys(&ours, pointer).difference(&keys(&theirs, pointer)).cloned().collect()
    };
    let less = |pointer: &str| -> Vec<String> {
        keys(&theirs, pointer).difference(&keys(&ours, pointer)).cloned().collect()
    };
    assert_eq!((more(""), less("")), (vec!["annotations".to_owned()], vec!["hostname".to_owned()]));
    assert_eq!((more("/process"), less("/process")), (vec![], vec![]));
    assert_eq!(
        (more("/process/user"), less("/process/user")),
        (vec!["additionalGids".into()], vec![])
    );
    assert_eq!((more("/linux"), less("/linux")), (vec![], vec![]));
    assert_eq!((more("/root"), less("/root")), (vec![], vec![]));
    assert_eq!(less("/process/capabilities"), ["ambient"]);
    assert_eq!(ours["linux"]["readonlyPaths"], theirs["linux"]["readonlyPaths"]);
    assert_eq!(ours["process"]["rlimits"], theirs["process"]["rlimits"]);
    let masked = |value: &Value| -> BTreeSet<String> {
        let paths = value["linux"]["maskedPaths"].as_array().expect("array").iter();
        paths.map(|path| path.as_str().expect("path").to_owned()).collect()
    };
    assert!(masked(&ours).is_superset(&masked(&theirs)));
    // The same mounts in the same order, and with no option less
    let mounts = |value: &Value| value["mounts"].as_array().expect("array").clone();
    assert_eq!(mounts(&ours).len(), mounts(&theirs).len());
    for (our, their) in mounts(&ours).iter().zip(mounts(&theirs)) {
        for key in ["destination", "type", "source"] {
            assert_eq!(our[key], their[key]);
        }
        let options = |mount: &Value| -> BTreeSet<String> {
            let options = mount["options"].as_array().into_iter().flatten();
            options.map(|option| option.as_str().expect("option").to_owned()).collect()
        };
        assert!(options(our).is_superset(&options(&their)), "{our} {their}");
    }
}
