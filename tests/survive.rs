//! A worker that is killed, and a daemon that is stopped and started.

mod support;

use std::{fs, path::Path, thread, time::Duration};

use peel_index::Digest;
use rustix::process::Signal;
use serde_json::json;
use support::{
    Peel, can_mount, eventually,
    image::noise,
    kill_process,
    load::{drop_caches, image, under_load},
    run, walk,
};

/// A digest over names and contents.
fn digest(dir: &Path) -> Result<Digest, std::io::Error> {
    let mut files: Vec<_> = walk(dir).collect();
    files.sort();
    let mut hasher = peel_index::Hasher::new(peel_index::Algorithm::Sha256);
    for file in files {
        hasher.update(file.as_os_str().as_encoded_bytes());
        if file.symlink_metadata()?.is_file() {
            hasher.update(&fs::read(file)?);
        }
    }
    Ok(hasher.finish())
}

#[test]
fn a_killed_worker_is_a_pause_and_not_an_error() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", &reference, "rw"]).ok();
    let expected = digest(&peel.path("m")).expect("read");
    let keeper = peel.json(["status", "--json"])["keeper"]["pid"].clone();

    under_load(&peel, &["m", "rw"], |rounds| {
        for kill in 1..=5_u64 {
            thread::sleep(Duration::from_millis(150));
            let worker = peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
            drop_caches();
            kill_process(worker, Signal::KILL);
            eventually("another worker answers", || {
                let status = peel.peel(["status", "--json"]);
                let text: serde_json::Value =
                    serde_json::from_str(&status.stdout).unwrap_or_default();
                text["restarts"].as_u64() >= Some(kill) && text["worker"]["pid"] != json!(worker)
            });
        }
        rounds.go_on();
    });
    drop_caches();
    assert_eq!(digest(&peel.path("m")).expect("read"), expected);
    let status = peel.json(["status", "--json"]);
    assert_eq!(status["keeper"]["pid"], keeper);
    assert_eq!(status["mounts"], 2);
}

#[test]
fn stop_refuses_what_is_in_use_and_a_new_daemon_goes_on_from_disk() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    fs::write(peel.path("m/written"), "by hand").expect("write");
    let held = fs::File::open(peel.path("m/big")).expect("open");
    let refused = peel.peel(["daemon", "stop"]).fails(4);
    assert!(refused.contains("--force"), "{refused}");
    drop(held);
    peel.peel(["daemon", "stop"]).ok();
    assert!(!peel.path("m/big").exists());
    let down = peel.peel(["status"]).fails(3);
    assert!(down.contains("no daemon runs"), "{down}");
    peel.peel(["daemon", "stop"]).ok();
    let lower = peel.state().join("lower");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(lower.to_str().expect("text")), "the lower is unmounted");

    let images = peel.json(["images", "--json"]);
    assert_eq!(images[0]["name"], reference);
    let resumed = peel.peel(["mount", "--rw", &reference, "m"]);
    assert!(resumed.stderr.contains("snapshot m resumed"), "{resumed:?}");
    assert_eq!(fs::read(peel.path("m/written")).expect("read"), b"by hand");
}

#[test]
fn a_foreground_daemon_serves_on_its_own_socket_until_it_is_told_to_end() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let socket = peel.path("own.sock");
    let socket = socket.to_str().expect("text");
    let mut daemon = peel.command().args(["daemon", "--socket", socket]).spawn().expect("daemon");
    eventually("it answers", || peel.peel(["--socket", socket, "status"]).code == Some(0));
    let status = peel.json(["--socket", socket, "status", "--json"]);
    assert_eq!(status["keeper"]["pid"], daemon.id());
    let second = run(peel.command().args(["daemon"]));
    assert!(second.fails(4).contains("runs already"));
    peel.peel(["--socket", socket, "daemon", "stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
}

#[test]
fn a_flipped_bit_that_cannot_be_mended_is_an_error_and_one_line_in_the_log() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let inspected = peel.json(["inspect", &reference]);
    let layer = &inspected["layers"][0];
    let digest = layer["digest"].as_str().expect("digest").replacen(':', "/", 1);
    let blob = peel.root().join("content/blobs").join(digest);
    fs::remove_dir_all(peel.path("layout")).expect("where it came from");
    let bytes = fs::read(&blob).expect("read");
    let file = fs::File::options().write(true).open(&blob).expect("open");
    let middle = bytes.len() / 2;
    std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[middle] ^ 4], middle as u64)
        .expect("write");

    let mut failed = 0;
    for path in walk(&peel.path("m")).filter(|path| path.is_file()) {
        match fs::read(&path) {
            Ok(found) => {
                let name = path.file_name().expect("name").to_str().expect("text");
                let seed = name.strip_prefix('f').map_or(99, |n| n.parse().expect("number"));
                assert!(found == noise(seed, found.len()), "wrong bytes in {name}");
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "the damaged span is in some file");
    let log = peel.peel(["logs"]).ok();
    let told: Vec<_> =
        log.lines().filter(|line| line.contains("ERROR") && line.contains("blake3")).collect();
    // However often it is read: the kernel alone tries again page by page
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains(layer["diff_id"].as_str().expect("digest")), "{told:?}");
}

#[test]
fn the_span_cache_is_as_large_as_was_said_also_in_the_next_worker() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut daemon = peel.command().args(["daemon", "--span-cache", "5M"]).spawn().expect("daemon");
    eventually("it answers", || peel.peel(["status"]).code == Some(0));
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    for restarts in 0..2 {
        drop_caches();
        digest(&peel.path("m")).expect("read");
        let stats = peel.json(["stats", "--json"]);
        assert_eq!(stats["cache_capacity_bytes"], 5 << 20, "{restarts}");
        assert!(stats["cache_bytes"].as_u64().is_some_and(|held| held <= 5 << 20), "{stats}");
        assert!(stats["cache_evictions"].as_u64() > Some(0), "{stats}");
        let status = peel.json(["status", "--json"]);
        let worker = status["worker"]["pid"].as_i64().expect("pid");
        let pid = rustix::process::Pid::from_raw(worker.try_into().expect("pid")).expect("pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("kill");
        eventually("another worker answers", || {
            let status = peel.peel(["status", "--json"]);
            let text: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
            text["worker"]["pid"].as_i64().is_some_and(|pid| pid != worker)
        });
    }
    peel.peel(["umount", "m"]).ok();
    peel.peel(["daemon", "stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
    assert!(peel.peel(["daemon", "--span-cache", "5 apples"]).fails(2).contains("5 apples"));
}
