//! Rough use: odd paths, full disks, things done behind peel's back, readers that go away.

mod support;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;
use support::{
    Peel, can_mount, eventually, has_tool,
    image::{Layer, Layout, busybox, noise},
    run,
};

fn sample(peel: &Peel) -> String {
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("v1", vec![Layer::new().dir("d", 0o755).file("f", 0o644, "content")], json!({}));
    layout.reference("v1")
}

fn tmpfs(dir: &Path, options: &std::ffi::CStr) {
    fs::create_dir_all(dir).expect("directory");
    mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options).expect("tmpfs");
}

#[test]
fn directories_however_they_are_spelled() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = sample(&peel);
    fs::create_dir(peel.path("real")).expect("directory");
    symlink("real", peel.path("link")).expect("symlink");
    let raw = peel.dir().join(OsStr::from_bytes(b"b\xff\xfe d"));
    let pairs: [(&OsStr, &OsStr); 5] = [
        ("real/".as_ref(), "link".as_ref()),
        ("link/new/".as_ref(), "./real/../link/new".as_ref()),
        ("with space\tand\\back".as_ref(), "with space\tand\\back/".as_ref()),
        (raw.as_os_str(), raw.as_os_str()),
        ("real".as_ref(), "link/.".as_ref()),
    ];
    for (made, taken) in pairs {
        for rw in [&["mount"][..], &["mount", "--rw", "--name", "s"][..]] {
            run(peel.command().args(rw).arg(&reference).arg(made)).ok();
            assert_eq!(fs::read(peel.dir().join(made).join("f")).expect("read"), b"content");
            assert_eq!(peel.json(["mounts", "--json"]).as_array().expect("list").len(), 1);
            peel.peel(["mounts"]).ok();
            run(peel.command().args(["umount", "--rm"]).arg(taken)).ok();
            assert!(!peel.dir().join(made).join("f").exists(), "{made:?}");
        }
    }
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    peel.peel(["mount", &reference, "m/d"]).ok();
    assert!(peel.path("m/d/f").exists());
    let busy = peel.peel(["umount", "m"]).fails(4);
    assert!(busy.contains("--lazy"), "{busy}");
    peel.peel(["umount", "m/d", "m"]).ok();

    fs::write(peel.path("file"), "").expect("write");
    assert_ne!(peel.peel(["mount", &reference, "file"]).code, Some(0));
    peel.peel(["mount", &reference, "no/such/dir"]).fails(3);
    assert_eq!(fs::read(peel.path("file")).expect("read"), b"");
}

/// A namespace that another test has made meanwhile may have a copy of the mount.
fn removed(peel: &Peel) {
    eventually("nothing uses it", || peel.peel(["snapshots", "rm", "m"]).code == Some(0));
}

#[test]
fn what_was_done_behind_peels_back() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = sample(&peel);
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    fs::write(peel.path("m/mine"), "x").expect("write");
    unmount(peel.path("m"), UnmountFlags::empty()).expect("umount");
    peel.peel(["umount", "m"]).fails(3);
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    assert_eq!(fs::read(peel.path("m/mine")).expect("kept"), b"x");

    tmpfs(&peel.path("m"), c"size=1m");
    let error = peel.peel(["umount", "m"]).fails(4);
    assert!(error.contains("covered") && error.contains("tmpfs"), "{error}");
    unmount(peel.path("m"), UnmountFlags::empty()).expect("umount");

    // A copy in another mount namespace keeps the upper, whatever the record says
    let mut other = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sleep", "60"])
        .spawn()
        .expect("unshare");
    eventually("another namespace", || {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        of(&other.id().to_string()) != of("self")
    });
    let kept = peel.peel(["umount", "--rm", "m"]).fails(4);
    assert!(kept.contains("hint: "), "{kept}");
    assert_eq!(peel.json(["snapshots", "ls", "--json"])[0]["name"], "m");
    other.kill().expect("kill");
    other.wait().expect("wait");
    removed(&peel);
}

#[test]
fn roots_however_they_are_spelled_and_daemons_that_share_one() {
    if !can_mount() {
        return;
    }
    // A space in the root: mountinfo shows it escaped
    let peel = Peel::named("peel test,");
    let reference = sample(&peel);
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    symlink("root", peel.path("link")).expect("symlink");
    for spelled in ["root/", "link", "./link//"] {
        let mut command = peel.command();
        command.env("PEEL_ROOT", spelled).env("PEEL_STATE", "state/");
        assert!(run(command.args(["images"])).ok().contains("layout"), "{spelled}");
    }
    let other = run(peel.command().env("PEEL_STATE", peel.path("state2")).arg("images")).fails(6);
    assert!(other.contains("owns the root") && other.contains("hint: "), "{other}");

    // Still mounted elsewhere: the option of the mount has to be found as the kernel shows it
    let child =
        Command::new("unshare").args(["-m", "--propagation", "private", "sleep", "60"]).spawn();
    let mut child = child.expect("unshare");
    eventually("another namespace", || {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        of(&child.id().to_string()) != of("self")
    });
    unmount(peel.path("m"), UnmountFlags::empty()).expect("umount");
    peel.peel(["snapshots", "rm", "m"]).fails(4);
    child.kill().expect("kill");
    child.wait().expect("wait");
    removed(&peel);
    peel.peel(["rm", &reference]).ok();
}

#[test]
fn a_full_disk() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("big", vec![Layer::new().file("f", 0o644, noise(1, 30 << 20))], json!({}));
    layout.image("small", vec![Layer::new().file("f", 0o644, noise(2, 4 << 20))], json!({}));
    tmpfs(&peel.root(), c"size=24m");
    let (big, small) = (layout.reference("big"), layout.reference("small"));
    let full = |error: &str| {
        assert!(error.contains("space") && error.contains("hint: "), "{error}");
    };
    full(&peel.peel(["pull", &big]).fails(7));
    assert_eq!(peel.json(["images", "--json"]), json!([]));
    let blobs = fs::read_dir(peel.root().join("content/blobs/sha256")).expect("blobs").count();
    assert_eq!(blobs, 0);
    peel.peel(["pull", &small]).ok();

    // To the last block
    let mut filler = fs::File::create(peel.root().join("filler")).expect("create");
    let filled = std::io::copy(&mut std::io::repeat(7), &mut filler).expect_err("full");
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    full(&peel.peel(["pull", &big]).fails(7));
    full(&peel.peel(["mount", "--rw", &small, "m"]).fails(7));
    assert!(!peel.path("m").exists());
    peel.peel(["images"]).ok();
    peel.peel(["rm", &small]).ok();
    assert_eq!(peel.json(["images", "--json"]), json!([]));
    drop(filler);
    fs::remove_file(peel.root().join("filler")).expect("remove");
    peel.peel(["pull", &small]).ok();
    peel.peel(["mount", "--rw", &small, "m"]).ok();
    assert_eq!(fs::read(peel.path("m/f")).expect("read"), noise(2, 4 << 20));
    peel.peel(["umount", "--rm", "m"]).ok();
    assert_eq!(peel.json(["status", "--json"])["restarts"], 0);
}

#[test]
fn readers_that_go_away() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = sample(&peel);
    let commands = [
        &["version"][..],
        &["pull", &reference],
        &["images"],
        &["status", "--json"],
        &["mount", &reference, "m"],
        &["umount", "m"],
        &["logs"],
        &["logs", "-f"],
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let mut command = peel.command();
        command.args(args).stdin(Stdio::null());
        command.stdout(writer.try_clone().expect("clone")).stderr(writer);
        let mut child = command.spawn().expect("start");
        let mut status = None;
        eventually(&format!("{args:?} ends"), || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        assert!(status.expect("ended").success(), "{args:?}: {status:?}");
    }
    let plain = peel.peel(["images"]).ok() + &peel.peel(["umount", "m"]).fails(3);
    assert!(!plain.contains('\x1b'));
}

#[test]
fn a_run_that_was_killed_can_be_cleared_away() {
    if !can_mount() || !has_tool("runc") {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("v1", vec![busybox()], json!({ "Cmd": ["/bin/sleep", "60"] }));
    let reference = layout.reference("v1");
    let name = format!("killed-{}", std::process::id());
    let args = ["run", "--rm", "--name", &name, &reference];
    let start = || {
        let mut command = peel.command();
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("start")
    };
    let runc = |args: &[&str]| run(Command::new("runc").args(args));
    let running = || runc(&["state", &name]).stdout.contains("\"running\"");
    let mut killed = start();
    eventually("it runs", running);
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    let error = peel.peel(args).fails(125);
    assert!(error.contains("peel bundle rm") && error.contains("--name"), "{error}");
    let bundle = peel.state().canonicalize().expect("canonical").join("run").join(&name);
    let bundle = bundle.to_str().expect("text");
    assert!(peel.peel(["bundle", "rm", bundle]).fails(4).contains("hint: "), "it runs still");
    runc(&["kill", &name, "KILL"]).ok();
    eventually("it has ended", || !running());
    eventually("nothing uses it", || peel.peel(["bundle", "rm", bundle]).code == Some(0));
    let again = peel.peel(["run", "--rm", "--name", &name, &reference, "/bin/sh", "-c", "exit 3"]);
    assert_eq!(again.code, Some(3), "{again:?}");

    // SIGTERM goes to the container; when that has ended, nothing is left of it
    let mut asked = {
        let mut command = peel.command();
        let script = "trap 'exit 9' TERM; while :; do sleep 0.1; done";
        command.args(["run", "--rm", "--name", &name, &reference, "/bin/sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("start")
    };
    eventually("it runs", running);
    thread::sleep(Duration::from_millis(200));
    kill_process(Pid::from_child(&asked), Signal::TERM).expect("kill");
    assert_eq!(asked.wait().expect("wait").code(), Some(9));
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
}

#[test]
fn images_that_lack_what_containers_need() {
    if !can_mount() || !has_tool("runc") {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let bare = || {
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        Layer::new().dir("bin", 0o755).file("bin/sh", 0o755, busybox)
    };
    layout.image("bare", vec![bare()], json!({}));
    layout.image("numeric", vec![bare()], json!({ "User": "12:34" }));
    layout.image("named", vec![bare()], json!({ "User": "nobody" }));
    layout.image("nothing", vec![], json!({}));
    let peel_run = |tag: &str, script: &str| {
        let reference = layout.reference(tag);
        run(peel.command().args(["run", "--rm", &reference, "/bin/sh", "-c", script]))
    };
    let bare = peel_run("bare", "read x < /proc/self/stat && echo > /dev/null && echo $HOME ok");
    assert_eq!(bare.ok(), "/ ok\n");
    let script =
        "while read k u r; do case $k in Uid:|Gid:) echo $k $u;; esac; done </proc/self/status";
    assert!(peel_run("numeric", script).ok().contains("Uid: 12\nGid: 34"));
    assert!(peel_run("named", "true").fails(125).contains("nobody"));
    assert!(peel.peel(["run", &layout.reference("bare")]).fails(125).contains("hint: "));
    assert_ne!(peel_run("nothing", "true").code, Some(0));
    let terminal = peel.peel(["run", "-t", &layout.reference("bare"), "/bin/sh"]).fails(125);
    assert!(terminal.contains("terminal") && terminal.contains("hint: "), "{terminal}");
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
    peel.peel(["mount", &layout.reference("nothing"), "m"]).ok();
    assert_eq!(fs::read_dir(peel.path("m")).expect("read").count(), 0);
    peel.peel(["umount", "m"]).ok();
}
