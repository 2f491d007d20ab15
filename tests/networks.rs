//! Pulls over bad networks: a proxy between peel and a real registry cuts, stalls, limits and lies.
//! Every pull either completes with the right digest, having fetched no more than it had to, or fails
//! with the right message and exit code.

mod support;

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{
    Peel, eventually,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy, Request},
    registry::{Registry, can_serve},
    run, walk,
};

/// An image of one large and two small layers in a registry.
struct Image {
    peel: Peel,
    registry: Registry,
    digest: String,
    /// Compressed bytes of the layers.
    sizes: Vec<u64>,
    config: u64,
    /// Digest of the large layer's blob.
    large: String,
}

const LARGE: usize = 5_000_000;

impl Image {
    fn new() -> Self {
        let peel = Peel::new();
        let mut layout = Layout::new(peel.path("layout"));
        let layers = vec![
            Layer::new().file("large", 0o644, noise(21, LARGE)),
            Layer::new().file("small", 0o644, noise(22, 300_000)),
            Layer::new().file("tiny", 0o644, "tiny"),
        ];
        let manifest = layout.image("v1", layers, json!({}));
        let registry = Registry::start();
        registry.push(&layout.reference("v1"), "team/app:v1", &[]);
        let layers = manifest["layers"].as_array().expect("layers");
        let size = |of: &Value| of["size"].as_u64().expect("size");
        Self {
            digest: registry.raw("team/app:v1", &[]).0,
            sizes: layers.iter().map(size).collect(),
            config: size(&manifest["config"]),
            large: layers[0]["digest"].as_str().expect("digest").to_owned(),
            peel,
            registry,
        }
    }

    /// Bytes of all blobs.
    fn all(&self) -> u64 {
        self.sizes.iter().sum::<u64>() + self.config
    }

    fn proxy(&self, spoil: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Proxy {
        Proxy::start(&self.registry.host, spoil)
    }

    /// The large layer's transfer is spoilt by the number of the try, all else is well.
    fn spoil_large(&self, spoil: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Proxy {
        let large = self.large.clone();
        self.proxy(move |request| match request.path.ends_with(&large) {
            true => spoil(request),
            false => Fault::None,
        })
    }

    /// Starts the daemon so that it loses patience soon.
    fn impatient(&self) {
        run(self.peel.command().env("PEEL_STALL_TIMEOUT", "1").arg("images")).ok();
    }

    fn pull(&self, proxy: &Proxy) -> support::Ran {
        self.peel.peel(["pull", "-q", &reference(proxy)])
    }

    /// Pulls, checks what came, and removes it again.
    #[track_caller]
    fn comes_over(&self, proxy: &Proxy) {
        assert_eq!(self.pull(proxy).ok().trim(), self.digest);
        self.is_whole(proxy);
        self.peel.peel(["rm", &reference(proxy)]).ok();
        assert_eq!(self.stored(), Vec::<std::path::PathBuf>::new());
    }

    #[track_caller]
    fn is_whole(&self, proxy: &Proxy) {
        self.peel.peel(["mount", &reference(proxy), "m"]).ok();
        assert!(fs::read(self.peel.path("m/large")).expect("read") == noise(21, LARGE));
        assert_eq!(fs::read(self.peel.path("m/tiny")).expect("read"), b"tiny");
        self.peel.peel(["umount", "m"]).ok();
    }

    fn stored(&self) -> Vec<std::path::PathBuf> {
        let dirs = ["content/blobs", "content/ingest", "layers", "trees"];
        let files = |dir: &&str| walk(&self.peel.root().join(dir)).collect::<Vec<_>>();
        dirs.iter().flat_map(files).filter(|path| path.is_file()).collect()
    }

    /// What lies there of the large layer.
    fn partial(&self) -> Option<std::path::PathBuf> {
        let ingest = self.peel.root().join("content/ingest");
        walk(&ingest).filter(|path| path.ends_with("data")).max_by_key(|path| {
            // It may be gone by now
            fs::metadata(path).map_or(0, |found| found.len())
        })
    }
}

fn reference(proxy: &Proxy) -> String {
    format!("{}/team/app:v1", proxy.host)
}

#[test]
fn what_breaks_is_taken_up_where_it_broke() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    image.impatient();
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    type Spoil = Box<dyn Fn(&Request) -> Fault + Send + Sync>;
    let table: Vec<(&str, Spoil)> = vec![
        ("well", Box::new(|_| Fault::None)),
        (
            "cut twice",
            Box::new(|r| if r.earlier < 2 { Fault::Cut(1_500_000) } else { Fault::None }),
        ),
        (
            "stalled",
            Box::new(|r| if r.earlier < 1 { Fault::Stall(2_000_000) } else { Fault::None }),
        ),
        (
            "limited, in seconds and by a date",
            Box::new(move |r| match r.earlier {
                0 => Fault::Cut(1_000_000),
                1 => Fault::Status(429, vec![("Retry-After".to_owned(), "1".to_owned())]),
                2 => Fault::Status(429, vec![("Retry-After".to_owned(), date())]),
                _ => Fault::None,
            }),
        ),
        (
            "out of order",
            Box::new(|r| match r.earlier {
                0 => Fault::Status(500, Vec::new()),
                1 => Fault::Cut(1_000_000),
                2 => Fault::Status(503, Vec::new()),
                _ => Fault::None,
            }),
        ),
    ];
    for (name, spoil) in table {
        let proxy = image.spoil_large(spoil);
        image.comes_over(&proxy);
        assert_eq!(proxy.blob_bytes(), image.all(), "{name}: fetched more than was missing");
    }
}

#[test]
fn what_a_proxy_makes_of_ranges_is_put_right() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    // Whole answers to a range
    let proxy = image.spoil_large(|r| match r.earlier {
        0 => Fault::Cut(1_500_000),
        _ => Fault::NoRange,
    });
    image.comes_over(&proxy);
    assert_eq!(proxy.blob_bytes(), image.all() + 1_500_000);
    // Ranges that were not asked for: the whole, then
    let proxy = image.spoil_large(|r| match (r.earlier, r.from()) {
        (0, _) => Fault::Cut(1_500_000),
        (_, Some(_)) => Fault::WrongRange,
        _ => Fault::None,
    });
    image.comes_over(&proxy);
    // The rest is wrong: found by the digest, and fetched again as a whole
    let proxy = image.spoil_large(|r| match r.earlier {
        0 => Fault::Cut(1_500_000),
        1 => Fault::Flip(100_000),
        _ => Fault::None,
    });
    image.comes_over(&proxy);
    let ranges: Vec<_> =
        proxy.seen().iter().filter(|r| r.path.ends_with(&image.large)).map(Request::from).collect();
    assert_eq!(ranges, [None, Some(1_500_000), None]);
}

#[test]
fn what_does_not_get_well_is_told() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    image.impatient();
    let slow_down = || Fault::Status(429, vec![("Retry-After".to_owned(), "3600".to_owned())]);
    let size = image.sizes[0];
    let shorter = format!("expected {size} bytes, found {}", size - 1);
    let large = image.large.clone();
    type Spoil = Box<dyn Fn(&Request) -> Fault + Send + Sync>;
    let table: Vec<(&str, Spoil, i32, Vec<&str>)> = vec![
        (
            "cut",
            Box::new(|_| Fault::Cut(1000)),
            6,
            vec!["connection broke while reading blob", &large],
        ),
        ("stalled", Box::new(|_| Fault::Stall(1000)), 6, vec!["no bytes in time", &large]),
        ("limited", Box::new(move |_| slow_down()), 6, vec!["limits requests"]),
        (
            "down",
            Box::new(|_| Fault::Status(502, vec![])),
            6,
            vec!["expected status 200, found 502"],
        ),
        ("gone", Box::new(|_| Fault::Status(404, vec![])), 3, vec!["has no blob", &large]),
        (
            "damaged",
            Box::new(|_| Fault::Flip(700_000)),
            5,
            vec!["wrong digest", &large, "found sha256:"],
        ),
        ("short", Box::new(|_| Fault::WrongLength), 5, vec!["wrong length", &shorter, &large]),
    ];
    // Side by side would be one transfer: the layer is the same
    for (name, spoil, code, expected) in table {
        let proxy = image.spoil_large(spoil);
        let error = image.pull(&proxy).fails(code);
        assert!(error.contains("hint: "), "{name}: {error}");
        for part in expected {
            assert!(error.contains(part), "{name}: expected {part:?} in {error}");
        }
        assert_eq!(image.stored(), Vec::<std::path::PathBuf>::new(), "{name}");
        let tries = proxy.seen().iter().filter(|r| r.path.ends_with(&image.large)).count();
        assert!(tries <= 6, "{name}: {tries} tries");
    }
    assert_eq!(image.peel.json(["images", "--json"]), json!([]));
}

#[test]
fn manifests_are_tried_again_and_checked() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    let proxy = image.proxy(|r| match (r.path.contains("/manifests/"), r.earlier) {
        (true, 0) => Fault::Status(500, Vec::new()),
        (true, 1) => Fault::Cut(20),
        _ => Fault::None,
    });
    image.comes_over(&proxy);
    let proxy = image.proxy(|r| match r.path.contains("/manifests/") {
        true => Fault::Flip(30),
        false => Fault::None,
    });
    let error = image.pull(&proxy).fails(5);
    assert!(error.contains(&image.digest) && error.contains("wrong digest of manifest"), "{error}");
}

#[test]
fn the_bandwidth_of_a_daemon_is_bounded() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    run(image.peel.command().env("PEEL_BANDWIDTH", "2M").arg("images")).ok();
    let proxy = image.proxy(|_| Fault::None);
    let begun = Instant::now();
    image.pull(&proxy).ok();
    let least = Duration::from_secs_f64(image.sizes.iter().sum::<u64>() as f64 / 2e6 - 0.2);
    assert!(begun.elapsed() >= least, "{:?} < {least:?}", begun.elapsed());
}

fn start(peel: &Peel, args: &[&str]) -> Child {
    let mut command: Command = peel.command();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start")
}

/// Starts a pull that falls silent in the middle of the large layer, and waits for that.
fn half_way(image: &Image, proxy: &Proxy) -> Child {
    let child = start(&image.peel, &["pull", "-q", &reference(proxy)]);
    let written =
        || image.partial().and_then(|data| fs::metadata(data).ok()).map_or(0, |m| m.len());
    eventually("half of the layer is here", || written() == 3_000_000);
    // And all else: manifest, config, and the small layers
    let blobs = image.peel.root().join("content/blobs");
    eventually("the rest is here", || walk(&blobs).filter(|path| path.is_file()).count() == 4);
    child
}

/// A proxy whose first transfer of the large layer falls silent after 3,000,000 bytes.
fn silent(image: &Image) -> Proxy {
    image.spoil_large(|r| if r.earlier == 0 { Fault::Stall(3_000_000) } else { Fault::None })
}

/// Pulls again: only what was missing comes.
#[track_caller]
fn goes_on(image: &Image, proxy: &Proxy) {
    // The small layers came over before
    let before = proxy.blob_bytes();
    assert_eq!(image.pull(proxy).ok().trim(), image.digest);
    went_on(image, proxy, before);
}

/// A pull was done with what was missing after `before` bytes.
#[track_caller]
fn went_on(image: &Image, proxy: &Proxy, before: u64) {
    let asked = proxy.seen().iter().rev().find(|r| r.path.ends_with(&image.large)).cloned();
    assert_eq!(asked.and_then(|r| r.from()), Some(3_000_000));
    let fetched = proxy.blob_bytes() - before;
    let missing = image.all() - 3_000_000;
    assert!(fetched <= missing, "fetched {fetched}, missing were {missing}");
    image.is_whole(proxy);
    assert!(image.partial().is_none());
}

#[test]
fn a_pull_goes_on_after_its_client_was_killed() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    for (earlier, signal) in [Signal::INT, Signal::KILL].into_iter().enumerate() {
        let proxy = silent(&image);
        let mut pull = half_way(&image, &proxy);
        kill_process(Pid::from_child(&pull), signal).expect("kill");
        pull.wait().expect("wait");
        eventually("the pull was called off", || {
            let log = fs::read_to_string(image.peel.state().join("peel.log")).unwrap_or_default();
            log.matches("called off").count() > earlier
        });
        goes_on(&image, &proxy);
        image.peel.peel(["rm", &reference(&proxy)]).ok();
    }
}

#[test]
fn a_pull_goes_on_after_the_worker_was_killed() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    let proxy = silent(&image);
    let mut pull = half_way(&image, &proxy);
    let before = proxy.blob_bytes();
    let worker = image.peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
    let worker = Pid::from_raw(worker.try_into().expect("pid")).expect("pid");
    kill_process(worker, Signal::KILL).expect("kill");
    // The next worker takes it up
    assert!(pull.wait().expect("wait").success());
    went_on(&image, &proxy, before);
}

#[test]
fn a_pull_goes_on_after_the_daemon_was_stopped() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    let proxy = silent(&image);
    let mut pull = half_way(&image, &proxy);
    image.peel.peel(["daemon", "stop", "--force"]).ok();
    assert!(!pull.wait().expect("wait").success());
    goes_on(&image, &proxy);
}

#[test]
fn what_went_bad_on_the_disk_is_fetched_again() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    let proxy = silent(&image);
    let mut pull = half_way(&image, &proxy);
    pull.kill().expect("kill");
    pull.wait().expect("wait");
    eventually("the pull was called off", || {
        let log = fs::read_to_string(image.peel.state().join("peel.log")).unwrap_or_default();
        log.contains("called off")
    });
    let data = image.partial().expect("kept");
    let mut bytes = fs::read(&data).expect("read");
    bytes[1_000_000] ^= 1;
    fs::write(&data, bytes).expect("write");
    assert_eq!(image.pull(&proxy).ok().trim(), image.digest);
    image.is_whole(&proxy);
    let ranges: Vec<_> =
        proxy.seen().iter().filter(|r| r.path.ends_with(&image.large)).map(Request::from).collect();
    // The flipped bit may be noticed before the rest is asked for
    let noticed_late = [None, Some(3_000_000), None];
    assert!(ranges == noticed_late || ranges == [None, None], "{ranges:?}");
}

#[test]
fn many_pulls_of_one_layer_are_one_transfer() {
    if !can_serve() {
        return;
    }
    let image = Image::new();
    let proxy = image.spoil_large(|_| Fault::Slow(3_000_000));
    let pulls = thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| image.pull(&proxy))).collect();
        all.into_iter().map(|pull| pull.join().expect("thread")).collect::<Vec<_>>()
    });
    for pull in pulls {
        assert_eq!(pull.ok().trim(), image.digest);
    }
    let large = proxy.seen().iter().filter(|r| r.path.ends_with(&image.large)).count();
    assert_eq!(large, 1);
}
