//! The snapshotter, under Debian's containerd.

mod support;

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::json;
use support::{
    Peel,
    containerd::{Containerd, Snapshots, can_run_containerd},
    cri::Cri,
    drop_caches, eventually,
    image::{Layout, busybox},
    pushed::Pushed,
    registry::Registry,
    run,
};
use tonic::Code;

fn directories(peel: &Peel) -> usize {
    fs::read_dir(peel.root().join("snapshots")).expect("snapshots").count()
}

/// A daemon, its image in a registry, and a containerd that has peel as its snapshotter.
fn started() -> (Peel, Registry, Pushed, Containerd) {
    let peel = Peel::new();
    let registry = Registry::start();
    let image = Pushed::of_three(&peel, &registry);
    peel.peel(["images"]).ok();
    let containerd = Containerd::start(&peel);
    (peel, registry, image, containerd)
}

fn kill_worker(peel: &Peel) {
    let pid = peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[test]
fn ctr_pulls_runs_commits_and_removes() {
    if !can_run_containerd() {
        return;
    }
    let (peel, _registry, image, containerd) = started();
    let name = image.name.as_str();
    let ctr = |args: &[&str]| containerd.ctr(args).ok();
    ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", name]);
    let ran = ctr(&["run", "--rm", "--snapshotter", "peel", name, "first"]);
    assert_eq!(ran, "onetwo");

    // A container that lives through the death of the worker and writes on both sides of it
    let wait = ["/bin/sh", "-c", "echo before > /data/three; sleep 1000"];
    let mut start = vec!["run", "-d", "--snapshotter", "peel", name, "second"];
    start.extend(wait);
    ctr(&start);
    let exec = |command: &str| {
        ctr(&["tasks", "exec", "--exec-id", "e", "second", "/bin/sh", "-c", command])
    };
    eventually("the container has written", || exec("cat /data/*").contains("before"));
    for round in 0..3 {
        kill_worker(&peel);
        fs::write("/proc/sys/vm/drop_caches", "3").expect("drop caches");
        assert_eq!(exec("cat /data/one /data/three"), "onebefore\n", "round {round}");
    }
    exec("echo after > /data/four; rm /data/one");
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let changes =
        ctr(&["snapshots", "--snapshotter", "peel", "diff", "--media-type", plain, "second"]);
    for (path, is_changed) in
        [("data/four", true), ("data/.wh.one", true), ("data/two", false), ("bin/busybox", false)]
    {
        assert_eq!(changes.contains(path), is_changed, "{path}: containerd compares the mounts");
    }

    let listed = ctr(&["snapshots", "--snapshotter", "peel", "ls"]);
    assert!(listed.lines().any(|l| l.starts_with("second") && l.contains("Active")), "{listed}");
    let tree = ctr(&["snapshots", "--snapshotter", "peel", "tree"]);
    assert!(tree.contains("second") && tree.contains(&image.chains[2]), "{tree}");
    let usage = ctr(&["snapshots", "--snapshotter", "peel", "usage", "-b", "second"]);
    let inodes = usage.lines().nth(1).and_then(|l| l.split_whitespace().last());
    let uppers = fs::read_dir(peel.root().join("snapshots")).expect("snapshots");
    let mut uppers = uppers.map(|entry| entry.expect("entry").path().join("fs"));
    let upper = uppers.find(|upper| upper.join("data/three").exists()).expect("the upper");
    let du = run(Command::new("du").args(["--inodes", "-s"]).arg(&upper)).ok();
    assert_eq!(inodes, du.split_whitespace().next(), "{usage}");

    // What the container has changed becomes a snapshot of its own
    ctr(&["tasks", "kill", "-s", "KILL", "second"]);
    eventually("the container ends", || !ctr(&["tasks", "ls"]).contains("RUNNING"));
    ctr(&["tasks", "rm", "second"]);
    ctr(&["snapshots", "--snapshotter", "peel", "commit", "changed", "second"]);
    let view = peel.path("view");
    fs::create_dir(&view).expect("directory");
    let target = view.to_str().expect("UTF-8");
    let mount = ctr(&[
        "snapshots",
        "--snapshotter",
        "peel",
        "view",
        "--mounts",
        "-t",
        target,
        "look",
        "changed",
    ]);
    let view_command = mount.lines().next().expect("a mount command");
    run(Command::new("sh").args(["-c", view_command])).ok();
    let read = |file: &str| fs::read_to_string(view.join("data").join(file));
    assert_eq!(read("four").expect("four"), "after\n");
    assert_eq!(read("two").expect("two"), "two");
    read("one").expect_err("removed in the container");
    run(Command::new("umount").arg(&view)).ok();

    for key in ["look", "changed"] {
        ctr(&["snapshots", "--snapshotter", "peel", "rm", key]);
    }
    ctr(&["containers", "rm", "second"]);
    ctr(&["images", "rm", "--sync", name]);
    eventually("containerd has removed everything", || {
        ctr(&["snapshots", "--snapshotter", "peel", "ls"]).lines().count() == 1
            && directories(&peel) == 0
    });
}

/// What a container does without end: reads a file of its image, and writes down that it is as it
/// was, or what went wrong.
const READ_AND_WRITE: &str = "first=$(sha256sum /bin/busybox /data/one) || exit 1; round=0
while :; do
    next=$(sha256sum /bin/busybox /data/one) || echo a read failed >> /data/wrong
    [ \"$next\" = \"$first\" ] || echo other bytes >> /data/wrong
    round=$((round + 1)); echo $round > /data/round || echo a write failed >> /data/wrong
done";

#[test]
fn a_container_goes_on_while_peel_is_upgraded() {
    if !can_run_containerd() {
        return;
    }
    let (peel, _registry, image, containerd) = started();
    let name = image.name.as_str();
    let ctr = |args: &[&str]| containerd.ctr(args).ok();
    ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", name]);
    let shell = ["/bin/sh", "-c"];
    let start = ["run", "-d", "--snapshotter", "peel", name, "busy"];
    ctr(&[&start[..], &shell, &[READ_AND_WRITE]].concat());
    let exec = ["tasks", "exec", "--exec-id", "e", "busy"];
    let in_it = |command: &str| containerd.ctr(&[&exec[..], &shell, &[command]].concat());
    let round = || in_it("cat /data/round").stdout.trim().parse::<u64>().unwrap_or(0);
    let goes_on = || {
        let before = round();
        drop_caches();
        eventually("the container goes on", || round() > before + 2);
    };
    goes_on();
    let worker = |peel: &Peel| peel.json(["status", "--json"])["worker"]["pid"].clone();
    let old = worker(&peel);
    for upgrade in 0..3 {
        drop_caches();
        peel.peel(["daemon", "reload"]).ok();
        goes_on();
        assert_eq!(in_it("cat /data/two").ok(), "two", "upgrade {upgrade}");
    }
    assert_ne!(worker(&peel), old, "another process serves");
    assert_eq!(in_it("cat /data/wrong 2>/dev/null; true").ok(), "", "nothing went wrong");

    // What containerd has of peel is good with the new one: containers and snapshots old and new
    let ran = ctr(&["run", "--rm", "--snapshotter", "peel", name, "after"]);
    assert_eq!(ran, "onetwo");
    let listed = ctr(&["snapshots", "--snapshotter", "peel", "ls"]);
    assert!(listed.lines().any(|l| l.starts_with("busy") && l.contains("Active")), "{listed}");
    ctr(&["tasks", "rm", "-f", "busy"]);
    ctr(&["containers", "rm", "busy"]);
    ctr(&["images", "rm", "--sync", name]);
    eventually("containerd has removed everything", || directories(&peel) == 0);
}

/// A call that succeeds; made again where the new worker took more than a second, which is all that
/// containerd gives a connection to be taken.
async fn go_through(mut call: impl AsyncFnMut() -> Result<(), tonic::Status>) {
    while let Err(error) = call().await {
        let is_slow = error.code() == Code::Unavailable && error.message().contains("handshake");
        assert!(is_slow, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_containerd_go_through_upgrades() {
    if !can_run_containerd() {
        return;
    }
    let peel = Peel::new();
    peel.peel(["images"]).ok();
    let containerd = Containerd::start(&peel);
    let mut snapshots = Snapshots::connect(&containerd.socket(), "default").await;
    // Or containerd's own GC takes it
    let root = [("containerd.io/gc.root", "now")];
    snapshots.prepare("base", "", &root).await.expect("prepare");
    let done = AtomicBool::new(false);
    let (mut rounds, mut after) = (0, 0);
    let reload = || {
        for _ in 0..5 {
            peel.peel(["daemon", "reload"]).ok();
        }
        done.store(true, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        scope.spawn(reload);
        let calls = async {
            while after < 3 {
                after += u32::from(done.load(Ordering::SeqCst));
                let key = format!("round {rounds}");
                go_through(async || snapshots.prepare(&key, "", &root).await.map(drop)).await;
                go_through(async || snapshots.stat("base").await.map(drop)).await;
                go_through(async || snapshots.mounts(&key).await.map(drop)).await;
                go_through(async || snapshots.remove(&key).await).await;
                rounds += 1;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(calls));
    });
    assert!(rounds > 4, "only {rounds} rounds of calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_peel_fetches_itself() {
    if !can_run_containerd() {
        return;
    }
    let (peel, _registry, image, containerd) = started();
    let mut parents = Vec::new();
    // Two namespaces ask one after the other, as CRI does it, through containerd's own metadata
    for namespace in ["k8s.io", "other"] {
        let mut snapshots = Snapshots::connect(&containerd.socket(), namespace).await;
        let mut parent = String::new();
        for ((layer, _), chain) in image.layers.iter().zip(&image.chains) {
            let labels = [
                ("containerd.io/snapshot.ref", chain.as_str()),
                ("containerd.io/snapshot/cri.image-ref", image.name.as_str()),
                ("containerd.io/snapshot/cri.manifest-digest", image.manifest.as_str()),
                ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
                ("containerd.io/snapshot/cri.image-layers", layer.as_str()),
                // CRI holds a lease meanwhile
                ("containerd.io/gc.root", "now"),
            ];
            let key = format!("extract-1-x {chain}");
            let error = snapshots.prepare(&key, &parent, &labels).await.expect_err("a layer");
            assert_eq!(error.code(), Code::AlreadyExists, "{error}: {}", containerd.log());
            let info = snapshots.stat(chain).await.expect("containerd has taken it over");
            assert_eq!(info.parent, parent);
            parent.clone_from(chain);
        }
        parents.push(parent);
    }
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let all = own.list(&[]).await.expect("list");
    assert_eq!(all.len(), 3, "the second namespace has the same: {all:?}");
    let (bytes, inodes) = own.usage(&all[0].name).await.expect("usage");
    assert!(bytes > 0 && inodes == 2);
    assert_eq!(directories(&peel), 0, "nothing was unpacked");

    // A container's snapshot on the top one
    let mut snapshots = Snapshots::connect(&containerd.socket(), "k8s.io").await;
    let mounts = snapshots.prepare("container", &parents[0], &[]).await.expect("prepare");
    assert_eq!((mounts.len(), mounts[0].r#type.as_str()), (1, "overlay"));
    let target = peel.path("rootfs");
    fs::create_dir(&target).expect("directory");
    let options = mounts[0].options.join(",");
    run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&target)).ok();
    assert_eq!(fs::read_to_string(target.join("data/two")).expect("two"), "two");
    assert!(!target.join("data/gone").exists());
    fs::write(target.join("data/new"), "new").expect("write");
    let stop = peel.peel(["daemon", "stop"]).fails(4);
    assert!(stop.contains("is not peel's mount"), "{stop}");
    run(Command::new("umount").arg(&target)).ok();

    snapshots.remove("container").await.expect("remove");
    for namespace in ["k8s.io", "other"] {
        let mut snapshots = Snapshots::connect(&containerd.socket(), namespace).await;
        for chain in image.chains.iter().rev() {
            // Nothing holds them there: containerd's GC may have been faster
            if let Err(error) = snapshots.remove(chain).await {
                assert_eq!(error.code(), Code::NotFound, "{error}");
            }
        }
    }
    containerd.ctr(&["content", "prune", "references"]);
    eventually("peel has forgotten the layers", || {
        let listed = containerd.ctr(&["-n", "k8s.io", "snapshots", "--snapshotter", "peel", "ls"]);
        listed.stdout.lines().count() == 1
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_by_cri() {
    if !can_run_containerd() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    let image = Pushed::of_three(&peel, &registry);
    let mut pause = Layout::new(peel.path("pause"));
    pause.image("pause", vec![busybox()], json!({ "Cmd": ["/bin/sleep", "1000"] }));
    registry.push(&pause.reference("pause"), "team/pause:1", &[]);
    peel.peel(["images"]).ok();
    let sandbox = format!("{}/team/pause:1", registry.host);
    let containerd = Containerd::with_sandbox(&peel, &sandbox);
    let mut cri = Cri::connect(&containerd.socket()).await;
    cri.pull(&image.name).await.unwrap_or_else(|e| panic!("{e}: {}", containerd.log()));
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let all = own.list(&["kind==committed"]).await.expect("list");
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(directories(&peel), 0, "nothing was unpacked: {}", containerd.log());
    for (layer, _) in &image.layers {
        let blob = layer.replacen(':', "/", 1);
        let blobs = "containerd/root/io.containerd.content.v1.content/blobs";
        assert!(!peel.path(blobs).join(&blob).exists(), "containerd has not fetched it");
        assert!(peel.root().join("content/blobs").join(&blob).exists(), "peel has");
    }
    let logs = peel.path("logs");
    fs::create_dir(&logs).expect("directory");
    let pod = cri.run(&image.name, &logs).await;
    let pod = pod.unwrap_or_else(|e| panic!("{e}: {}", containerd.log()));
    let log = || fs::read_to_string(logs.join("log")).unwrap_or_default();
    eventually("the container has spoken", || log().contains("onetwo"));
    cri.remove_pod(&pod).await.expect("remove");
    for image in [&image.name, &sandbox] {
        cri.remove_image(image).await.expect("remove");
    }
    let mut left = Vec::new();
    for _ in 0..600 {
        left = own.list(&[]).await.expect("list");
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(left.is_empty(), "containerd's GC has removed all: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_had_is_left_to_containerd() {
    if !can_run_containerd() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    let image = Pushed::of_three(&peel, &registry);
    peel.peel(["images"]).ok();
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let labels = |chain: &str, layer: &str, name: &str| {
        [
            ("containerd.io/snapshot.ref", chain.to_owned()),
            ("containerd.io/snapshot/cri.image-ref", name.to_owned()),
            ("containerd.io/snapshot/cri.layer-digest", layer.to_owned()),
        ]
    };
    let gone = format!("{}/team/missing:1", registry.host);
    let cases = [
        // No such image, another layer's blob, a chain that is not the image's, labels of no use
        labels(&image.chains[0], &image.layers[0].0, &gone),
        labels(&image.chains[0], &image.layers[1].0, &image.name),
        labels(&image.layers[0].0, &image.layers[0].0, &image.name),
        labels("nonsense", &image.layers[0].0, &image.name),
        // The second layer on nothing
        labels(&image.chains[1], &image.layers[1].0, &image.name),
    ];
    for (n, case) in cases.iter().enumerate() {
        let labels: Vec<_> = case.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let mounts = own.prepare(&format!("case {n}"), "", &labels).await.expect("a directory");
        assert_eq!(mounts[0].r#type, "bind", "case {n}");
    }
    let log = fs::read_to_string(peel.state().join("peel.log")).expect("log");
    assert_eq!(log.matches("containerd unpacks it").count(), cases.len(), "{log}");

    // Many at once: one download
    let before = own.list(&[]).await.expect("list").len();
    let socket = peel.state().join("peel.sock");
    let racers = (0..8).map(|n| {
        let (socket, chain) = (socket.clone(), image.chains[0].clone());
        let labels = labels(&chain, &image.layers[0].0, &image.name);
        tokio::spawn(async move {
            let mut own = Snapshots::connect(&socket, "").await;
            let labels: Vec<_> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
            own.prepare(&format!("racer {n}"), "", &labels).await.expect_err("a layer").code()
        })
    });
    for racer in racers.collect::<Vec<_>>() {
        assert_eq!(racer.await.expect("racer"), Code::AlreadyExists);
    }
    let all = own.list(&[]).await.expect("list");
    assert_eq!(all.len(), before + 1, "{all:?}");
}
