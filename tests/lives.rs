//! What the daemon lives through: reloads, the death of either process or of both, signals, a
//! worker that hangs, a service manager.

mod support;

use std::{
    fs,
    os::fd::AsRawFd as _,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use support::{
    Peel, can_mount, eventually, kill_process,
    load::{checksum, drop_caches, image, under_load},
    run,
};

fn pid(status: &Value, process: &str) -> i64 {
    status[process]["pid"].as_i64().unwrap_or_else(|| panic!("no {process} in {status}"))
}

/// The status, once the daemon answers and this holds.
fn status_when(peel: &Peel, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    eventually(what, || {
        let status = peel.peel(["status", "--json"]);
        last = serde_json::from_str(&status.stdout).unwrap_or_default();
        last["running"] == true && holds(&last)
    });
    last
}

fn is_mounted(peel: &Peel, mount: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mounts.contains(&format!(" {} ", peel.path(mount).display()))
}

#[test]
fn reloads_go_unnoticed() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", &reference, "rw"]).ok();
    let before = peel.json(["status", "--json"]);
    under_load(&peel, &["m", "rw"], |rounds| {
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    peel.peel(["pull", "--quiet", &reference]).ok();
                    peel.peel(["mounts", "--json"]).ok();
                }
            });
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(100));
                let reloaded = peel.peel(["daemon", "reload"]);
                assert!(reloaded.stderr.contains("reloaded: peel "), "{reloaded:?}");
                reloaded.ok();
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        rounds.go_on();
    });
    let after = peel.json(["status", "--json"]);
    assert_eq!(pid(&after, "keeper"), pid(&before, "keeper"), "it is the same process");
    assert_ne!(pid(&after, "worker"), pid(&before, "worker"));
    assert_eq!((&after["keeper"]["reloads"], &after["mounts"]), (&4.into(), &2.into()));
    assert_eq!(after["keeper"]["keepers"], 0);
    let log = peel.peel(["logs", "-n", "1000"]).ok();
    assert!(!log.contains("died"), "{log}");
}

#[test]
fn only_peel_is_put_in_place_of_peel() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let program = peel.path("peel");
    fs::copy(env!("CARGO_BIN_EXE_peel"), &program).expect("copy");
    let mut daemon = Command::new(&program)
        .args(["--root", "root", "--state", "state", "daemon"])
        .current_dir(peel.dir())
        .spawn()
        .expect("daemon");
    let before = status_when(&peel, "it answers", |_| true);
    fs::remove_file(&program).expect("unlink");
    fs::write(&program, "#!/bin/sh\necho something else\n").expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("chmod");
    let refused = peel.peel(["daemon", "reload"]).fails(4);
    assert!(refused.contains("is not peel"), "{refused}");
    let after = peel.json(["status", "--json"]);
    assert_eq!(pid(&after, "worker"), pid(&before, "worker"), "nothing happened");
    // And what was installed anew is what runs then
    fs::remove_file(&program).expect("unlink");
    fs::copy(env!("CARGO_BIN_EXE_peel"), &program).expect("copy");
    peel.peel(["daemon", "reload"]).ok();
    for process in ["keeper", "worker"] {
        let pid = pid(&peel.json(["status", "--json"]), process);
        let runs = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
        assert_eq!(runs, program, "{process}");
    }
    peel.peel(["daemon", "stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
}

#[test]
fn a_keeper_that_dies_is_replaced_by_the_worker() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", &reference, "rw"]).ok();
    under_load(&peel, &["m", "rw"], |rounds| {
        let mut status = peel.json(["status", "--json"]);
        for death in 1..=2 {
            let (keeper, worker) = (pid(&status, "keeper"), pid(&status, "worker"));
            kill_process(keeper, Signal::KILL);
            status = status_when(&peel, "another keeper answers", |status| {
                status["keeper"]["pid"].as_i64().is_some_and(|pid| pid != keeper)
            });
            assert_eq!(pid(&status, "worker"), worker, "the worker serves on");
            assert_eq!(status["keeper"]["keepers"], death);
            rounds.go_on();
        }
        // The new keeper does all that the first one did
        let (keeper, worker) = (pid(&status, "keeper"), pid(&status, "worker"));
        kill_process(worker, Signal::KILL);
        let status = status_when(&peel, "another worker", |now| pid(now, "worker") != worker);
        assert_eq!(pid(&status, "keeper"), keeper);
        rounds.go_on();
        peel.peel(["daemon", "reload"]).ok();
        rounds.go_on();
    });
    let second = run(peel.command().args(["daemon"]));
    assert!(second.fails(4).contains("runs already"), "locks went along");
    peel.peel(["umount", "m", "rw"]).ok();
    peel.peel(["daemon", "stop"]).ok();
    assert!(!is_mounted(&peel, "state/lower"));
}

#[test]
fn what_a_daemon_leaves_that_died_as_a_whole_is_cleaned_up() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", "--name", "w", &reference, "rw"]).ok();
    fs::write(peel.path("rw/written"), "by hand").expect("write");
    let status = peel.json(["status", "--json"]);
    let (keeper, worker) = (pid(&status, "keeper"), pid(&status, "worker"));
    // Both before either can do anything about it
    kill_process(keeper, Signal::STOP);
    kill_process(worker, Signal::STOP);
    kill_process(worker, Signal::KILL);
    kill_process(keeper, Signal::KILL);
    eventually("the mount is dead", || {
        let error = fs::read_dir(peel.path("m")).map(drop).err();
        error.and_then(|e| e.raw_os_error()) == Some(libc::ENOTCONN)
    });

    let images = peel.json(["images", "--json"]);
    assert_eq!(images[0]["name"], reference);
    let after = peel.json(["status", "--json"]);
    assert_eq!(after["keeper"]["cleaned"], 3, "{after}");
    let told = peel.peel(["status"]).ok();
    assert!(told.contains("3 mounts of a daemon that had died"), "{told}");
    assert!(!is_mounted(&peel, "m") && !is_mounted(&peel, "rw"));
    assert_eq!(peel.json(["mounts", "--json"]).as_array().map(Vec::len), Some(0));
    let resumed = peel.peel(["mount", "--rw", "--name", "w", &reference, "rw"]);
    assert!(resumed.stderr.contains("snapshot w resumed"), "{resumed:?}");
    assert_eq!(fs::read(peel.path("rw/written")).expect("read"), b"by hand");
}

#[test]
fn signals_take_no_mount_away() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let before = peel.json(["status", "--json"]);
    let (keeper, worker) = (pid(&before, "keeper"), pid(&before, "worker"));
    under_load(&peel, &["m"], |rounds| {
        kill_process(keeper, Signal::TERM);
        rounds.go_on();
        kill_process(worker, Signal::TERM);
        let status = status_when(&peel, "another worker", |now| pid(now, "worker") != worker);
        assert_eq!(pid(&status, "keeper"), keeper, "it stays as long as there are mounts");
        assert_eq!(status["keeper"]["quick_deaths"], 0, "nothing died");
        rounds.go_on();
        let worker = pid(&status, "worker");
        kill_process(worker, Signal::STOP);
        thread::sleep(Duration::from_secs(3));
        kill_process(worker, Signal::CONT);
        rounds.go_on();
        assert_eq!(pid(&peel.json(["status", "--json"]), "worker"), worker);
    });
    peel.peel(["umount", "m"]).ok();
    kill_process(keeper, Signal::TERM);
    eventually("the daemon ends", || peel.peel(["status"]).code == Some(3));
}

#[test]
fn a_worker_that_dies_again_and_again_is_no_secret() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let mut last = 0;
    let mut backed_off = false;
    let started = Instant::now();
    while !backed_off && started.elapsed() < Duration::from_secs(30) {
        let status = peel.peel(["status", "--json"]);
        let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
        if status["keeper"]["state"] == "backing off" {
            backed_off = true;
            let told = peel.peel(["status"]);
            let told = told.stdout + &told.stderr;
            assert!(told.contains("SIGABRT") || told.contains("signal: 6"), "{told}");
        }
        match status["worker"]["pid"].as_i64() {
            Some(worker) if worker != last => {
                last = worker;
                // A fault of its own: one that is killed by hand is started again at once
                kill_process(worker, Signal::ABORT);
            }
            _ => {}
        }
    }
    assert!(backed_off, "quick deaths slow restarts down, and status says so");
    let status = status_when(&peel, "a worker answers in the end", |_| true);
    assert!(status["keeper"]["last_exit"]["at_ns"].as_i64() > Some(0), "{status}");
    assert!(!checksum(&peel, "m").is_empty());
}

#[test]
fn a_worker_that_gets_nowhere_is_killed() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    let start = |peel: &Peel| -> Child {
        let daemon = peel.command().args(["daemon", "--watchdog", "2"]).spawn().expect("daemon");
        status_when(peel, "it answers", |_| true);
        daemon
    };
    let mut daemon = start(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let inspected = peel.json(["inspect", &reference]);
    let digest = inspected["layers"][0]["digest"].as_str().expect("digest").replacen(':', "/", 1);
    let blob = peel.root().join("content/blobs").join(digest);
    // A disk that hangs, for whoever opens the blob anew: nobody ever writes to the pipe
    let aside = blob.with_extension("aside");
    fs::rename(&blob, &aside).expect("rename");
    let made = run(Command::new("mkfifo").arg(&blob));
    assert_eq!(made.code, Some(0), "{made:?}");
    let worker = pid(&peel.json(["status", "--json"]), "worker");
    kill_process(worker, Signal::KILL);
    drop_caches();
    let reader = {
        let path = peel.path("m/big");
        thread::spawn(move || fs::read(path))
    };
    let mut next = Value::Null;
    eventually("it is killed for that", || {
        // The next one hangs as well, and answers nothing
        let status = peel.peel(["status", "--json"]);
        let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        next = status["worker"]["pid"].clone();
        let reason = status["keeper"]["last_exit"]["reason"].as_str().unwrap_or_default();
        reason.contains("got nowhere") && next.is_i64()
    });
    fs::rename(&aside, &blob).expect("rename");
    // By hand, which blames nobody: a second death of this kind would
    kill_process(next.as_i64().expect("pid"), Signal::KILL);
    let found = reader.join().expect("no panic");
    assert_eq!(found.expect("one death bars nothing").len(), 8 << 20);
    peel.peel(["umount", "m"]).ok();
    peel.peel(["daemon", "stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
}

/// Plays the service manager: takes what is to be kept, and starts the daemon with it.
mod manager {
    use std::{collections::BTreeMap, io::IoSliceMut, mem::MaybeUninit, os::fd::OwnedFd};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    pub(super) struct Manager {
        socket: std::os::unix::net::UnixDatagram,
        pub(super) kept: BTreeMap<String, OwnedFd>,
        pub(super) said: Vec<String>,
    }

    /// A copy for a child, numbered 100 or more.
    fn above(fd: &OwnedFd) -> OwnedFd {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, 100).expect("dup");
        rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).expect("open");
        copy
    }

    impl Manager {
        pub(super) fn new(peel: &Peel) -> Self {
            let socket = std::os::unix::net::UnixDatagram::bind(peel.path("notify"));
            let socket = socket.expect("bind");
            Self { socket, kept: BTreeMap::new(), said: Vec::new() }
        }

        /// Takes what was sent until now.
        pub(super) fn listen(&mut self) {
            loop {
                let mut text = [0; 512];
                let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = RecvAncillaryBuffer::new(&mut room);
                let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
                let mut into = [IoSliceMut::new(&mut text)];
                let got = rustix::net::recvmsg(&self.socket, &mut into, &mut control, flags);
                let Ok(got) = got else { break };
                let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                let name = name.unwrap_or_default().to_owned();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(fds) = message {
                        assert!(text.starts_with("FDSTORE=1"), "{text}");
                        self.kept.extend(fds.map(|fd| (name.clone(), fd)));
                    }
                }
                if text.starts_with("FDSTOREREMOVE=1") {
                    self.kept.remove(&name);
                }
                self.said.push(text);
            }
        }

        /// Starts the daemon as a service, with all that is kept.
        pub(super) fn start(&self, peel: &Peel) -> Child {
            let (mut names, mut redirections) = (Vec::new(), String::new());
            // Above all numbers that are redirected to, and inherited by the shell alone
            let passed: Vec<_> = self.kept.iter().map(|(name, fd)| (name, above(fd))).collect();
            for (number, (name, fd)) in passed.iter().enumerate() {
                names.push(name.as_str());
                redirections += &format!(" {}<&{}", 3 + number, fd.as_raw_fd());
            }
            let line = format!(
                "exec env LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={} \"$0\" daemon{redirections}",
                names.len(),
                names.join(":"),
            );
            let peels = peel.command();
            let mut command = Command::new("bash");
            command.args(["-c", &line]).arg(peels.get_program()).current_dir(peel.dir());
            for (name, value) in peels.get_envs() {
                value.map(|value| command.env(name, value));
            }
            command.env("NOTIFY_SOCKET", peel.path("notify")).env("INVOCATION_ID", "0123");
            command.spawn().expect("bash")
        }
    }
}

#[test]
fn a_service_manager_keeps_the_mount_while_nobody_runs() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    let mut manager = manager::Manager::new(&peel);
    let mut daemon = manager.start(&peel);
    eventually("it is ready", || {
        manager.listen();
        manager.said.iter().any(|text| text.contains("READY=1"))
    });
    let names: Vec<_> = manager.kept.keys().map(String::as_str).collect();
    assert_eq!(names, ["control", "facts", "flights", "fuse", "listen", "lock", "owner"]);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", &reference, "rw"]).ok();

    under_load(&peel, &["m", "rw"], |rounds| {
        // As systemd does it: the main process dies, the rest of the service is killed
        let worker = pid(&peel.json(["status", "--json"]), "worker");
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
        kill_process(worker, Signal::KILL);
        thread::sleep(Duration::from_millis(300));
        daemon = manager.start(&peel);
        let status = status_when(&peel, "it goes on", |now| pid(now, "worker") != worker);
        assert_eq!((pid(&status, "keeper"), &status["mounts"]), (daemon.id().into(), &2.into()));
        rounds.go_on();
        // A restart: nobody is asked to unmount anything
        kill_process(daemon.id().into(), Signal::TERM);
        assert!(daemon.wait().expect("wait").success());
        manager.listen();
        daemon = manager.start(&peel);
        rounds.go_on();
        // A worker left behind by a manager that only watches the main process
        let worker = pid(&status_when(&peel, "it answers", |_| true), "worker");
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
        daemon = manager.start(&peel);
        status_when(&peel, "it takes its place", |now| pid(now, "worker") != worker);
        rounds.go_on();
        peel.peel(["daemon", "reload"]).ok();
        rounds.go_on();
    });

    peel.peel(["umount", "m", "rw"]).ok();
    manager.listen();
    kill_process(daemon.id().into(), Signal::TERM);
    assert!(daemon.wait().expect("wait").success());
    manager.listen();
    assert!(manager.kept.is_empty(), "nothing is left to be kept");
    assert!(manager.said.iter().any(|text| text.contains("STOPPING=1")));
}
