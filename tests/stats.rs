//! `peel stats`, and what it counts while images are used.

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually,
    image::{Layer, Layout, noise},
    run,
};

/// Sixty directories of twenty small files and a symlink each, in two layers.
fn image(peel: &Peel) -> String {
    let mut layout = Layout::new(peel.path("layout"));
    let layer = |from: u64| {
        (from..from + 30).fold(Layer::new(), |layer, dir| {
            let layer = layer.dir(&format!("d{dir}"), 0o755);
            let layer = layer.symlink(&format!("d{dir}/link"), "f0");
            (0..20).fold(layer, |layer, n| {
                layer.file(&format!("d{dir}/f{n}"), 0o644, noise(100 * dir + n, 3000))
            })
        })
    };
    layout.image("v1", vec![layer(0), layer(30)], json!({}));
    layout.reference("v1")
}

/// Lists every directory, and asks for every attribute and target.
fn walk(dir: &Path) {
    for path in support::walk(dir) {
        let found = path.symlink_metadata().expect("attributes");
        if found.is_symlink() {
            fs::read_link(&path).expect("target");
        }
    }
}

/// What is counted while `work` runs, by a file kept from before.
fn counted(peel: &Peel, work: impl FnOnce()) -> Value {
    let before = peel.path("before.json");
    fs::write(&before, peel.peel(["stats", "--json"]).ok()).expect("write");
    work();
    peel.json(["stats", "--json", "--since", "before.json"])
}

fn requests(stats: &Value) -> Vec<(&str, u64)> {
    let all = stats["requests"].as_object().expect("by kind").iter();
    let all = all.map(|(kind, count)| (kind.as_str(), count.as_u64().expect("a number")));
    all.filter(|(_, count)| *count > 0).collect()
}

/// Requests of one kind.
fn of(stats: &Value, kind: &str) -> u64 {
    stats["requests"][kind].as_u64().expect("a number")
}

#[test]
fn what_is_done_is_counted() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let none = peel.peel(["stats"]).fails(3);
    assert!(none.contains("no daemon runs"), "{none}");
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();

    // At least: other tests drop caches, after which the kernel asks again
    let walked = counted(&peel, || walk(&peel.path("m")));
    assert!(of(&walked, "readdirplus") + of(&walked, "readdir") >= 61, "{walked:#}");
    assert!(of(&walked, "readlink") >= 60, "{walked:#}");
    assert_eq!(of(&walked, "read"), 0, "{walked:#}");

    let missed = counted(&peel, || assert!(!peel.path("m/d7/missing").exists()));
    assert!(missed["negative_lookups"].as_u64() >= Some(1), "{missed:#}");
    assert!(Some(of(&missed, "lookup")) >= missed["negative_lookups"].as_u64(), "{missed:#}");

    let read = counted(&peel, || {
        assert_eq!(fs::read(peel.path("m/d7/f3")).expect("read"), noise(703, 3000));
    });
    assert!(of(&read, "read") >= 1, "{read:#}");
    assert_eq!(read["served_bytes"], 3000 * of(&read, "read"));
    assert_eq!(read["cache_requests"]["miss"], 1);
    let latency = &read["request_latency_ns"]["read"];
    assert_eq!(latency["count"], of(&read, "read"));
    assert!(
        latency["p50"].as_u64() > Some(0) && latency["p50"].as_u64() <= latency["p99"].as_u64()
    );
    assert!(latency["max"].as_u64() >= latency["p99"].as_u64(), "{latency}");

    let looked_up = counted(&peel, || {
        for n in 0..2000 {
            assert!(!peel.path(&format!("m/d7/missing-{n}")).exists());
        }
    });
    let polls: u64 = ["found", "missed"]
        .map(|result| looked_up["busy_polls"][result].as_u64().expect("a number"))
        .iter()
        .sum();
    let cores = std::thread::available_parallelism().expect("cores").get();
    assert!(polls <= of(&looked_up, "lookup") + 1, "{looked_up:#}");
    assert_eq!(polls == 0, looked_up["busy_poll_ns"] == 0, "{looked_up:#}");
    assert!(polls > 0 || cores < 2, "{looked_up:#}");

    let all = peel.json(["stats", "--json"]);
    assert_eq!(
        (&all["mounts"], &all["images"], &all["layers"]["open"]),
        (&json!(1), &json!(1), &json!(2))
    );
    assert_eq!(all["requests_under_way"], 0);
    assert!(all["faults"].as_object().expect("by cause").values().all(|n| *n == 0), "{all:#}");
    for process in ["worker", "keeper"] {
        assert!(all["memory_bytes"][process]["anon"].as_u64() > Some(0), "{all:#}");
        assert!(all["descriptors"][process].as_u64() > Some(3), "{all:#}");
    }

    let text = peel.peel(["stats"]).ok();
    for part in ["worker ", "keeper ", "cache ", "faults     none", "REQUEST", "readlink"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn counts_of_another_worker_are_no_difference() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    walk(&peel.path("m"));
    fs::write(peel.path("before.json"), peel.peel(["stats", "--json"]).ok()).expect("write");
    let worker = peel.json(["stats", "--json"])["worker_pid"].as_i64().expect("pid");
    let pid = Pid::from_raw(worker.try_into().expect("pid")).expect("pid");
    kill_process(pid, Signal::KILL).expect("kill");
    eventually("another worker answers", || {
        let stats = peel.peel(["stats", "--json"]);
        let stats: Value = serde_json::from_str(&stats.stdout).unwrap_or_default();
        stats["worker_restarts"] == 1 && stats["worker_pid"] != worker
    });
    let since = peel.peel(["stats", "--json", "--since", "before.json"]);
    assert!(since.stderr.contains("started again"), "{since:?}");
    let since: Value = serde_json::from_str(&since.ok()).expect("JSON");
    assert_eq!(of(&since, "readlink"), 0, "{since:#}");

    for (name, text) in [("empty", ""), ("other", "{\"requests\": 3}")] {
        fs::write(peel.path(name), text).expect("write");
        let told = peel.peel(["stats", "--since", name]).fails(5);
        assert!(told.contains("no statistics in"), "{told}");
    }
    peel.peel(["stats", "--since", "missing"]).fails(3);
}

/// Walks until a walk has sent nothing but what `apart` names: caches may be dropped meanwhile by
/// other tests.
fn warm_walk_is_silent(peel: &Peel, dir: &Path, apart: &[&str]) {
    walk(dir);
    eventually("a warm walk sends no request", || {
        let walked = counted(peel, || walk(dir));
        let sent: Vec<_> =
            requests(&walked).into_iter().filter(|(kind, _)| !apart.contains(kind)).collect();
        eprintln!("a warm walk of {} sent {:?}", dir.display(), requests(&walked));
        sent.is_empty()
    });
}

#[test]
fn a_second_walk_sends_no_request() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    warm_walk_is_silent(&peel, &peel.path("m"), &[]);
}

#[test]
fn a_second_walk_below_an_overlay_sends_no_request_but_for_attributes() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    fs::write(peel.path("m/d3/new"), "in a directory that is merged by now").expect("write");
    fs::remove_file(peel.path("m/d4/f1")).expect("remove");
    warm_walk_is_silent(&peel, &peel.path("m"), &["getxattr"]);
}

#[test]
fn prometheus_over_http() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = free.local_addr().expect("address");
    drop(free);
    let start = |metrics: &str| run(peel.command().env("PEEL_METRICS", metrics).arg("images"));
    start(&address.to_string()).ok();
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    eventually("the statistics are served", || ask("GET /metrics").is_some());
    let answer = ask("GET /metrics").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("\npeel_images 0\n"), "{body}");
    let printed = peel.peel(["stats", "--prometheus"]).ok();
    let names = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with("# TYPE "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(body), names(&printed), "the same, printed");
    for (request, status) in [("GET /", "404"), ("POST /metrics", "405"), ("nonsense", "400")] {
        let answer = ask(request).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let mut daemon = peel.command();
    let failed = run(daemon.args(["daemon", "--metrics", "0.0.0.0:9750"]));
    assert_eq!(failed.code, Some(2), "{failed:?}");
    assert!(failed.stderr.contains("loopback"), "{failed:?}");
}
