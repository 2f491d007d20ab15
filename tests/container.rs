//! `peel bundle` and `peel run`, with the real runc.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use support::{
    Peel, Ran, can_mount, has_tool,
    image::{Layer, Layout, busybox},
    run, walk,
};

fn able() -> bool {
    can_mount() && has_tool("runc") && has_tool("busybox")
}

fn image(peel: &Peel) -> String {
    let mut layout = Layout::new(peel.path("layout"));
    let upper = Layer::new().file("data/one", 0o644, "one").file("data/two", 0o644, "two");
    let config = json!({
        "Env": ["PATH=/bin", "COLOUR=blue"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["id -u; pwd"],
        "WorkingDir": "/data",
        "User": "ann",
        "Labels": { "kind": "test" },
    });
    layout.image("box", vec![busybox(), upper], config);
    layout.reference("box")
}

/// runc with a state directory of its own.
fn runc(peel: &Peel, args: &[&str]) -> Ran {
    run(Command::new("runc")
        .arg("--root")
        .arg(peel.path("runc"))
        .args(args)
        .current_dir(peel.dir()))
}

fn find(dir: &Path, name: &str) -> std::path::PathBuf {
    let mut all = walk(dir).filter(|p| p.file_name().is_some_and(|n| n == name));
    all.next().unwrap_or_else(|| panic!("no {name} below {}", dir.display()))
}

#[test]
fn runc_runs_a_bundle_and_writes_to_its_upper() {
    if !able() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["bundle", &reference, "web"]).ok();
    let config = fs::read_to_string(peel.path("web/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["root"]["path"], "rootfs");
    assert_eq!(config["process"]["args"], json!(["/bin/sh", "-c", "id -u; pwd"]));
    assert_eq!(config["process"]["user"]["uid"], 1000);
    assert_eq!(config["annotations"]["kind"], "test");
    assert_eq!(runc(&peel, &["run", "-b", "web", "peel-test-a"]).ok(), "1000\n/data\n");

    peel.peel(["bundle", "rm", "web"]).ok();
    assert!(!peel.path("web").exists());

    let script = "echo written > /data/new; rm /data/one; cat /data/two";
    peel.peel(["bundle", "--user", "0", &reference, "web", "--", script]).ok();
    assert_eq!(runc(&peel, &["run", "-b", "web", "peel-test-b"]).ok(), "two");
    let snapshots = peel.root().join("snapshots");
    assert_eq!(fs::read_to_string(find(&snapshots, "new")).expect("in the upper"), "written\n");
    let whiteout = fs::symlink_metadata(find(&snapshots, "one")).expect("whiteout");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    peel.peel(["mount", &reference, "m"]).ok();
    assert_eq!(fs::read(peel.path("m/data/one")).expect("the image is unchanged"), b"one");
    assert!(!peel.path("m/data/new").exists());

    let filled = peel.peel(["bundle", &reference, "web"]);
    assert!(filled.stderr.contains("peel bundle rm"), "{filled:?}");
    assert_ne!(filled.code, Some(0));
    let misplaced = peel.peel(["umount", "web/rootfs"]).fails(4);
    assert!(misplaced.contains("peel bundle rm"), "{misplaced}");
    peel.peel(["bundle", "rm", "web"]).ok();
    assert_eq!(walk(&snapshots).count(), 0);
    peel.peel(["bundle", "rm", "web"]).fails(3);
}

#[test]
fn a_bundle_that_cannot_be_made_leaves_nothing() {
    if !able() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    let unknown = peel.peel(["bundle", "--user", "nobody-here", &reference, "web"]);
    assert_ne!(unknown.code, Some(0));
    assert!(unknown.stderr.contains("nobody-here"), "{unknown:?}");
    assert!(!peel.path("web").exists());
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
}

#[test]
fn run_passes_output_input_and_the_exit_code_on() {
    if !able() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    assert_eq!(peel.peel(["run", "--rm", &reference]).ok(), "1000\n/data\n");
    let given = peel.peel(["run", "--rm", "-e", "COLOUR=red", &reference, "env; exit 7"]);
    assert_eq!(given.code, Some(7), "{given:?}");
    assert!(given.stdout.lines().any(|line| line == "COLOUR=red"), "{given:?}");
    assert!(given.stdout.lines().any(|line| line == "PATH=/bin"), "{given:?}");
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));

    let piped = format!(
        "echo hello | {} run -i --rm --entrypoint /bin/cat {reference}",
        env!("CARGO_BIN_EXE_peel")
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &piped]).env("PEEL_ROOT", peel.root()).env("PEEL_STATE", peel.state());
    let piped = run(&mut shell);
    // The image's Cmd is dropped with its entrypoint
    assert_eq!(piped.ok(), "hello\n");

    let kept = peel.peel(["run", "--name", "job", "--user", "0", &reference, "echo x > /kept"]);
    assert!(kept.stderr.contains("snapshot job kept"), "{kept:?}");
    let resumed = peel.peel(["run", "--rm", "--name", "job", &reference, "cat /kept"]);
    assert_eq!(resumed.ok(), "x\n");
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    let failed = peel.peel(["run", "--rm", "--entrypoint", "/no/such", &reference]);
    assert_ne!(failed.code, Some(0));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
}

#[test]
fn run_gives_a_terminal_where_it_is_asked_to() {
    if !able() || !has_tool("script") {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    let line = format!(
        "{} run -it --rm --user 0 {reference} 'test -t 0 && test -t 1 && echo a terminal'",
        env!("CARGO_BIN_EXE_peel")
    );
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]);
    script.env("PEEL_ROOT", peel.root()).env("PEEL_STATE", peel.state());
    let ran = run(&mut script);
    assert!(ran.stdout.contains("a terminal"), "{ran:?}");
    let refused = peel.peel(["run", "-t", "--rm", &reference]).fails(125);
    assert!(refused.contains("terminal"), "{refused}");
}

/// Runs a bundle's container, and gives what it prints.
fn prints(peel: &Peel, bundle: &str) -> Vec<String> {
    let out = runc(peel, &["run", "-b", bundle, &format!("peel-test-{bundle}")]).ok();
    out.lines().map(str::to_owned).collect()
}

#[test]
fn a_container_has_files_of_its_own() {
    if !able() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    // /etc is the image's, with what it has of these files; /proc, /dev and /sys are there
    let etc = Layer::new().dir("etc", 0o751).file("etc/hosts", 0o600, "the image's\n");
    layout.image("box", vec![busybox(), etc], json!({}));
    // Nothing but a shell
    let shell = fs::read("/bin/busybox").expect("busybox");
    let bare = Layer::new().dir("bin", 0o755).file("bin/sh", 0o755, shell);
    layout.image("bare", vec![bare], json!({}));
    let host = fs::read_to_string("/etc/resolv.conf").expect("resolv.conf");

    for tag in ["box", "bare"] {
        let reference = layout.reference(tag);
        let script = "while read -r l; do echo \"hosts $l\"; done </etc/hosts; \
                      while read -r l; do echo \"name $l\"; done </etc/hostname; \
                      while read -r l; do echo \"resolv $l\"; done </etc/resolv.conf; \
                      while read -r a b c; do echo \"mtab $b\"; done </etc/mtab; \
                      [ -h /etc/mtab ] && [ -c /dev/null ] && echo links; echo more >>/etc/hosts";
        let make = ["bundle", "--hostname", "box", &reference, tag, "--", "/bin/sh", "-c", script];
        peel.peel(make).ok();
        let lines = prints(&peel, tag);
        for line in ["name box", "hosts 127.0.0.1\tbox", "mtab /etc/hosts", "mtab /proc", "links"] {
            assert!(lines.iter().any(|found| found == line), "{tag}: {line:?} in {lines:?}");
        }
        let resolv: Vec<_> =
            lines.iter().filter_map(|line| line.strip_prefix("resolv ")).map(str::trim).collect();
        assert_eq!(resolv, host.lines().map(str::trim).collect::<Vec<_>>());
        let hosts = fs::read_to_string(peel.path(tag).join("hosts")).expect("its own");
        assert!(hosts.ends_with("\tbox\nmore\n"), "{hosts}");

        // None of it is the image's: neither shown nor kept
        assert_eq!(peel.peel(["diff", tag]).ok(), "", "{tag}");
        let made = format!("localhost/{tag}:1");
        peel.peel(["commit", tag, &made]).ok();
        peel.peel(["mount", &made, "m"]).ok();
        let names = |dir: &str| {
            let mut names: Vec<_> = walk(&peel.path(dir))
                .map(|p| p.strip_prefix(peel.path(dir)).unwrap().to_owned())
                .collect();
            names.sort();
            names
        };
        peel.peel(["mount", &reference, "plain"]).ok();
        assert_eq!(names("m"), names("plain"));
        peel.peel(["umount", "m", "plain"]).ok();

        let view = peel.json(["inspect", "--format", "docker", &reference]);
        let snapshot = &view[0]["Snapshots"][0];
        for (key, name) in [
            ("HostsPath", "hosts"),
            ("HostnamePath", "hostname"),
            ("ResolvConfPath", "resolv.conf"),
        ] {
            assert_eq!(snapshot[key], peel.path(tag).join(name).display().to_string());
        }
        let lowers = snapshot["GraphDriver"]["Data"]["LowerDir"].as_str().expect("text");
        assert_eq!(lowers.split(':').count(), 2, "{lowers}");
        // What the container writes is, and beside it the directory that it is in
        let bundle = peel.path(tag).join("rootfs/etc");
        let mode = fs::metadata(&bundle).expect("etc").mode() & 0o7777;
        assert_eq!(mode, if tag == "box" { 0o751 } else { 0o755 });
        fs::write(bundle.join("new"), "new").expect("write");
        fs::remove_file(bundle.join("mtab")).expect("remove");
        let kind = if tag == "box" { "C" } else { "A" };
        assert_eq!(peel.peel(["diff", tag]).ok(), format!("{kind} /etc\nA /etc/new\n"));
        peel.peel(["bundle", "rm", tag]).ok();
        assert!(!peel.path(tag).exists());
    }

    // The host's network with its files, read-only where the rootfs is
    let reference = layout.reference("box");
    let script = "cat /etc/hosts; cat /etc/hostname; echo x >>/etc/hosts || echo refused";
    let args = ["--net", "host", "--read-only", &reference, "/bin/sh", "-c", script];
    let ran = run(peel.command().args(["run", "--rm"]).args(args));
    let hosts = fs::read_to_string("/etc/hosts").expect("hosts");
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("name");
    assert_eq!(ran.ok(), format!("{hosts}{name}refused\n"));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
}
