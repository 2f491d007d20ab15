//! Commands at the same moment, and commands and workers that are killed half-way.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{
    Peel, Ran, can_mount, eventually,
    image::{Layer, Layout, noise},
    run, walk,
};

fn layout(peel: &Peel) -> (Layout, Value) {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().dir("d", 0o755).file("d/a", 0o644, noise(3, 700_000)),
        Layer::new().file("b", 0o644, noise(4, 300_000)),
    ];
    let manifest = layout.image("v1", layers, json!({}));
    (layout, manifest)
}

/// Runs all commands at the same time.
fn together(commands: Vec<Command>) -> Vec<Ran> {
    thread::scope(|scope| {
        let all: Vec<_> =
            commands.into_iter().map(|mut c| scope.spawn(move || run(&mut c))).collect();
        all.into_iter().map(|one| one.join().expect("thread")).collect()
    })
}

fn with<const N: usize>(peel: &Peel, args: [&str; N]) -> Command {
    let mut command = peel.command();
    command.args(args);
    command
}

#[track_caller]
fn one_wins(ran: Vec<Ran>) {
    assert_eq!(ran.iter().filter(|r| r.code == Some(0)).count(), 1, "{ran:#?}");
    for lost in ran.into_iter().filter(|r| r.code != Some(0)) {
        assert!(lost.fails(4).contains("hint: "));
    }
}

/// Files of images that are on disk.
fn stored(peel: &Peel) -> Vec<PathBuf> {
    let dirs = ["content/blobs", "content/ingest", "layers", "trees", "snapshots"];
    let files = |dir: &&str| walk(&peel.root().join(dir)).collect::<Vec<_>>();
    dirs.iter().flat_map(files).filter(|path| path.is_file()).collect()
}

#[test]
fn pulls_and_mounts_of_one_image() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).0.reference("v1");
    for ran in together((0..4).map(|_| with(&peel, ["pull", &reference])).collect()) {
        ran.ok();
    }
    // The first mounts of the image: each asks for its tree to be merged
    let targets: Vec<_> = (0..4).map(|n| format!("m{n}")).collect();
    for ran in together(targets.iter().map(|t| with(&peel, ["mount", &reference, t])).collect()) {
        ran.ok();
    }
    for target in &targets {
        let content = fs::read(peel.path(target).join("d/a")).expect("read");
        assert_eq!(content, noise(3, 700_000), "{target}");
    }
    let mounts = peel.json(["mounts", "--json"]);
    let slots: Vec<_> = mounts.as_array().expect("list").iter().map(|m| &m["tree_slot"]).collect();
    assert_eq!(slots, [slots[0]; 4]);
    for ran in together(targets.iter().map(|t| with(&peel, ["umount", t])).collect()) {
        ran.ok();
    }

    // Whichever comes first, the image is there as a whole or not at all
    let pulls = [0; 3].map(|_| with(&peel, ["pull", &reference]));
    let ran = together(pulls.into_iter().chain([with(&peel, ["rm", &reference])]).collect());
    for pull in ran.into_iter().take(3) {
        pull.ok();
    }
    if peel.json(["images", "--json"]) == json!([]) {
        assert_eq!(stored(&peel), Vec::<PathBuf>::new());
    } else {
        peel.peel(["mount", &reference, "m"]).ok();
        assert_eq!(fs::read(peel.path("m/b")).expect("read"), noise(4, 300_000));
        peel.peel(["umount", "m"]).ok();
        peel.peel(["rm", &reference]).ok();
        assert_eq!(stored(&peel), Vec::<PathBuf>::new());
    }
}

#[test]
fn mounts_on_one_directory_and_of_one_snapshot() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).0.reference("v1");
    peel.peel(["pull", &reference]).ok();
    one_wins(together((0..4).map(|_| with(&peel, ["mount", &reference, "m"])).collect()));
    assert_eq!(peel.json(["mounts", "--json"]).as_array().expect("list").len(), 1);
    peel.peel(["umount", "m"]).ok();
    assert!(!peel.path("m/b").exists(), "one mount, not a pile of them");

    let named = |n| with(&peel, ["mount", "--rw", "--name", "s", &reference, ["x", "y", "z"][n]]);
    one_wins(together((0..3).map(named).collect()));
    assert_eq!(peel.json(["snapshots", "ls", "--json"]).as_array().expect("list").len(), 1);
}

#[test]
fn five_commands_start_one_daemon_also_while_another_ends() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let five = || (0..5).map(|_| with(&peel, ["status", "--json"]));
    for ran in together((0..5).map(|_| with(&peel, ["images"])).collect()) {
        ran.ok();
    }
    let keepers: Vec<Value> = together(five().collect())
        .into_iter()
        .map(|ran| serde_json::from_str::<Value>(&ran.ok()).expect("JSON")["keeper"].clone())
        .collect();
    assert_eq!(keepers, vec![keepers[0].clone(); 5]);
    for _ in 0..2 {
        let stop = with(&peel, ["daemon", "stop"]);
        let commands = (0..5).map(|_| with(&peel, ["images"]));
        for ran in together([stop].into_iter().chain(commands).collect()) {
            // What had already been asked of the daemon that ended says so
            if ran.code != Some(0) {
                assert!(ran.fails(6).contains("run the command again"));
            }
        }
        peel.peel(["daemon", "stop"]).ok();
        for ran in together((0..5).map(|_| with(&peel, ["images"])).collect()) {
            ran.ok();
        }
    }
    // None of those that came too late takes the place of the one that is stopped
    peel.peel(["daemon", "stop"]).ok();
    thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(peel.peel(["status"]).code, Some(3));
}

/// A registry that serves a layout, and holds the second half of layers back until it is told.
struct Slow {
    host: String,
    waiting: Arc<AtomicUsize>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn new(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let host = listener.local_addr().expect("address").to_string();
        let slow = Self { host, waiting: Arc::default(), open: Arc::default() };
        let (dir, waiting, open) =
            (dir.to_owned(), Arc::clone(&slow.waiting), Arc::clone(&slow.open));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, waiting, open) = (dir.clone(), Arc::clone(&waiting), Arc::clone(&open));
                // A client that was killed breaks its connection
                thread::spawn(move || drop(answer(stream, &dir, &waiting, &open)));
            }
        });
        slow
    }

    fn reference(&self) -> String {
        format!("{}/a/b:v1", self.host)
    }

    fn open(&self, open: bool) {
        *self.open.0.lock().expect("lock") = open;
        self.open.1.notify_all();
    }
}

fn answer(
    mut stream: TcpStream,
    dir: &Path,
    waiting: &AtomicUsize,
    open: &(Mutex<bool>, Condvar),
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
    let (digest, kind) = match path.rsplit_once('/') {
        Some((before, "v1")) if before.ends_with("manifests") => {
            (index["manifests"][0]["digest"].as_str().unwrap_or_default(), "manifest")
        }
        Some((before, digest)) if before.ends_with("manifests") => (digest, "manifest"),
        Some((_, digest)) if digest.contains(':') => (digest, "blob"),
        _ => {
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    };
    let body = fs::read(dir.join("blobs").join(digest.replacen(':', "/", 1)))?;
    let media_type = match kind {
        "manifest" => "application/vnd.oci.image.manifest.v1+json",
        _ => "application/octet-stream",
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    let (first, second) = body.split_at(if body.len() > 100_000 { body.len() / 2 } else { 0 });
    stream.write_all(first)?;
    if !first.is_empty() {
        waiting.fetch_add(1, Ordering::SeqCst);
        drop(open.1.wait_while(open.0.lock().expect("lock"), |open| !*open));
    }
    stream.write_all(second)
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start")
}

#[test]
fn a_pull_that_is_killed_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let slow = Slow::new(&layout(&peel).0.dir);
    for (round, signal) in [Signal::INT, Signal::KILL].into_iter().enumerate() {
        let mut pull = start(with(&peel, ["pull", &slow.reference()]));
        eventually("two layers are half there", || {
            slow.waiting.load(Ordering::SeqCst) == 2 * round + 2
        });
        assert!(!stored(&peel).is_empty());
        kill_process(Pid::from_child(&pull), signal).expect("kill");
        pull.wait().expect("wait");
        eventually("the pull was called off", || stored(&peel).is_empty());
    }

    // Two pulls, of which one is called off: the other one goes on
    let mut first = start(with(&peel, ["pull", &slow.reference()]));
    eventually("two layers are half there", || slow.waiting.load(Ordering::SeqCst) == 6);
    let mut second = start(with(&peel, ["pull", &slow.reference()]));
    thread::sleep(std::time::Duration::from_millis(100));
    first.kill().expect("kill");
    first.wait().expect("wait");
    slow.open(true);
    assert!(second.wait().expect("wait").success());
    assert_eq!(peel.json(["images", "--json"]).as_array().expect("list").len(), 1);
    peel.peel(["rm", &slow.reference()]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}

#[test]
fn a_pull_goes_on_with_the_next_worker() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let slow = Slow::new(&layout(&peel).0.dir);
    peel.peel(["images"]).ok();
    let worker = peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
    let ran = thread::scope(|scope| {
        let pull = scope.spawn(|| peel.peel(["pull", &slow.reference()]));
        eventually("two layers are half there", || slow.waiting.load(Ordering::SeqCst) == 2);
        let worker = Pid::from_raw(worker.try_into().expect("pid")).expect("pid");
        kill_process(worker, Signal::KILL).expect("kill");
        eventually("they are asked for again", || slow.waiting.load(Ordering::SeqCst) == 4);
        // What the first worker had begun is gone, what the second one has begun is no image yet
        assert_eq!(peel.json(["images", "--json"]), json!([]));
        slow.open(true);
        pull.join().expect("thread")
    });
    ran.ok();
    assert_eq!(peel.json(["status", "--json"])["restarts"], 1);
    assert_eq!(peel.json(["images", "--json"]).as_array().expect("list").len(), 1);
    peel.peel(["rm", &slow.reference()]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}

#[test]
fn a_mount_that_was_prepared_holds_its_place_while_its_client_lives() {
    use peel::{api, client, paths::Paths};
    use std::os::unix::ffi::OsStrExt as _;
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).0.reference("v1");
    peel.peel(["pull", &reference]).ok();
    fs::create_dir(peel.path("m")).expect("directory");
    let target = peel.path("m").canonicalize().expect("canonical");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let prepared = runtime.expect("runtime").block_on(async {
        let paths = Paths::new(Some(peel.root()), Some(peel.state()), None).expect("paths");
        let mut client = client::connect(&paths).await.expect("connect").expect("runs");
        let request = api::PrepareMountRequest {
            reference: reference.clone(),
            target: target.as_os_str().as_bytes().to_vec(),
            writable: true,
            mount_ns: peel::mountinfo::namespace().expect("namespace"),
            ..api::PrepareMountRequest::default()
        };
        client.prepare_mount(request).await.expect("prepare").into_inner()
    });
    assert_eq!(prepared.snapshot, "m");
    let error = peel.peel(["mount", &reference, "m"]).fails(4);
    assert!(error.contains("is taken") && error.contains("peel umount"), "{error}");
    peel.peel(["rm", &reference]).fails(4);
    // The remedy of the hint
    peel.peel(["umount", "--rm", "m"]).ok();
    peel.peel(["rm", &reference]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}

#[test]
fn cycles_leak_nothing() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).0.reference("v1");
    let cycle = |mounts: usize| {
        peel.peel(["pull", "-q", &reference]).ok();
        for _ in 0..mounts {
            peel.peel(["mount", "--rw", &reference, "m"]).ok();
            fs::read(peel.path("m/b")).expect("read");
            peel.peel(["umount", "--rm", "m"]).ok();
        }
        peel.peel(["rm", &reference]).ok();
    };
    cycle(1);
    let status = peel.json(["status", "--json"]);
    let open = |process: &str| {
        let dir = format!("/proc/{}/fd", status[process]["pid"]);
        fs::read_dir(dir).expect("descriptors").count()
    };
    let before = (open("keeper"), open("worker"));
    for _ in 0..5 {
        cycle(6);
    }
    // A connection that has just ended may still be counted
    eventually("as many descriptors as before", || {
        open("keeper") <= before.0 && open("worker") <= before.1
    });
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
    let status = peel.json(["status", "--json"]);
    assert_eq!((&status["mounts"], &status["snapshots"]), (&json!(0), &json!(0)));
}
