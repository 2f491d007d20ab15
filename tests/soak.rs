//! GC under load: users pull, mount, write, detach, commit and remove at random, workers are killed
//! in the middle of sweeps; what is reachable is looked at all the time, and what is left at the end.
//!
//! For 20 seconds, or `PEEL_SOAK_SECONDS`; `scripts/gc-soak` runs it for longer.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, RwLock},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    Peel, Ran, can_mount, eventually, has_tool,
    image::{Layer, Layout, noise},
    kill_process,
    proxy::{Fault, Proxy},
    registry::Registry,
    run, walk,
};

const IMAGES: u64 = 16;
const USERS: u64 = 4;
/// Files of an image's own layer and of the shared one.
const OWN: usize = 200_000;
const SHARED: usize = 300_000;

/// Images of two layers, the lower of which they share; the last two come from a registry.
struct Images {
    layout: Layout,
    registry: String,
}

impl Images {
    fn new(peel: &Peel) -> Self {
        let mut layout = Layout::new(peel.path("layout"));
        for n in 0..IMAGES {
            let layers = vec![
                Layer::new().dir("d", 0o755).file("d/shared", 0o644, noise(1, SHARED)),
                Layer::new().file("own", 0o644, noise(100 + n, OWN)),
            ];
            layout.image(&format!("v{n}"), layers, json!({}));
        }
        Self { layout, registry: String::new() }
    }

    fn reference(&self, n: u64) -> String {
        match n < IMAGES - 2 || self.registry.is_empty() {
            true => self.layout.reference(&format!("v{n}")),
            false => format!("{}/app:v{n}", self.registry),
        }
    }
}

/// xorshift64; source: Marsaglia, "Xorshift RNGs", 2003.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A process that sees an image's files after they were unmounted everywhere else.
struct Sitting {
    process: Child,
    /// Where the image's root is, by way of it.
    root: PathBuf,
    image: u64,
    /// The snapshot below it, and what was written there.
    written: Option<(String, u64)>,
}

impl Sitting {
    /// In `root` itself, which may be detached then, or in a mount namespace of its own.
    fn start(here: bool, root: &Path, image: u64) -> Self {
        let mut command = match here {
            true => Command::new("sleep"),
            false => Command::new("unshare"),
        };
        match here {
            true => command.arg("3600").current_dir(root),
            false => command.args(["-m", "--propagation", "private", "sleep", "3600"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("start");
        let seen = match here {
            true => PathBuf::from(format!("/proc/{}/cwd", process.id())),
            false => PathBuf::from(format!("/proc/{}/root{}", process.id(), root.display())),
        };
        let own = Self { process, root: seen, image, written: None };
        // The namespace is its own before it takes no part in unmounts of others
        let comm = format!("/proc/{}/comm", own.process.id());
        eventually("it sits", || fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"));
        own
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A name of something written, with the image below it.
struct Kept {
    name: String,
    image: u64,
    seed: u64,
}

/// One who uses peel with others beside.
struct User<'a> {
    number: u64,
    peel: &'a Peel,
    images: &'a Images,
    dice: Dice,
    made: u64,
    kept: Vec<Kept>,
    sitting: Vec<Sitting>,
    done: BTreeMap<&'static str, u64>,
}

#[track_caller]
fn may_fail(ran: &Ran) -> bool {
    // Removed, or pulled anew, between two steps; used by somebody else
    assert!(matches!(ran.code, Some(0 | 3 | 4)), "{ran:?}");
    ran.code == Some(0)
}

#[track_caller]
fn is_image(root: &Path, image: u64) {
    let own = fs::read(root.join("own")).expect("read");
    assert!(own == noise(100 + image, OWN), "{}: another image", root.display());
    let shared = fs::read(root.join("d/shared")).expect("read");
    assert!(shared == noise(1, SHARED), "{}: another layer", root.display());
}

#[track_caller]
fn is_written(root: &Path, seed: u64) {
    let written = fs::read(root.join("d/written")).expect("read");
    assert!(written == noise(seed, 20_000), "{}: other writes", root.display());
}

impl User<'_> {
    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn target(&self) -> String {
        format!("m{}", self.number)
    }

    fn new_name(&mut self) -> (String, u64) {
        self.made += 1;
        (format!("s{}-{}", self.number, self.made), self.number << 32 | self.made)
    }

    fn step(&mut self) {
        let n = self.dice.below(IMAGES);
        let reference = self.images.reference(n);
        match self.dice.below(16) {
            0 | 1 => {
                if may_fail(&self.peel.peel(["rm", &reference])) {
                    self.count("removals");
                }
            }
            2 => {
                drop(self.peel.peel(["gc"]).ok());
                self.count("gcs");
            }
            3 | 4 => {
                drop(self.peel.peel(["pull", "-q", &reference]).ok());
                self.count("pulls");
            }
            5 => self.broken_pull(&reference),
            6 | 7 => self.mount(&["mount"], n),
            8 => self.mount(&["mount", "--rw"], n),
            9 | 10 => self.write(n),
            11 => self.take_up(),
            12 => self.commit(),
            13 => self.sit(n),
            14 => self.stand_up(),
            _ => self.look(),
        }
    }

    /// A pull whose client is killed somewhere.
    fn broken_pull(&mut self, reference: &str) {
        let mut command = self.peel.command();
        command.args(["pull", "-q", reference]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pull = command.spawn().expect("start");
        thread::sleep(Duration::from_millis(self.dice.below(40)));
        let _ = pull.kill();
        pull.wait().expect("wait");
        self.count("pulls killed");
    }

    fn mount(&mut self, command: &[&str], n: u64) {
        let target = self.target();
        let reference = self.images.reference(n);
        let mounted = run(self.peel.command().args(command).args([&reference, &target]));
        if !may_fail(&mounted) {
            return;
        }
        is_image(&self.peel.path(&target), n);
        match command.len() {
            1 => self.unmount(),
            _ => {
                self.unmount();
                // Who sits in a namespace of his own may have a copy
                self.remove(&target);
            }
        }
        self.count("mounts");
    }

    /// A command that another thread has just started may hold a file of this one's until it runs.
    fn unmount(&self) {
        eventually("it can be unmounted", || {
            let ran = self.peel.peel(["umount", &self.target()]);
            may_fail(&ran) || {
                assert!(ran.stderr.contains("busy"), "{ran:?}");
                false
            }
        });
    }

    /// Mounts writable, by a new name or that of what was kept.
    fn mount_named(&self, name: &str, image: u64) -> bool {
        let (reference, target) = (self.images.reference(image), self.target());
        let ran = self.peel.peel(["mount", "--rw", "--name", name, &reference, &target]);
        if !may_fail(&ran) {
            return false;
        }
        is_image(&self.peel.path(&target), image);
        true
    }

    fn write(&mut self, image: u64) {
        if self.kept.len() >= 2 {
            return self.take_up();
        }
        let (name, seed) = self.new_name();
        if !self.mount_named(&name, image) {
            return;
        }
        let root = self.peel.path(&self.target());
        fs::write(root.join("d/written"), noise(seed, 20_000)).expect("write");
        self.unmount();
        self.kept.push(Kept { name, image, seed });
        self.count("snapshots");
    }

    /// Removes a snapshot, unless somebody's namespace has a copy of its mount.
    fn remove(&self, name: &str) -> bool {
        may_fail(&self.peel.peel(["snapshots", "rm", name]))
    }

    fn one_kept(&mut self) -> Option<Kept> {
        let among = self.kept.len() as u64;
        (among > 0).then(|| self.kept.swap_remove(self.dice.below(among) as usize))
    }

    fn take_up(&mut self) {
        let Some(kept) = self.one_kept() else { return };
        if self.mount_named(&kept.name, kept.image) {
            is_written(&self.peel.path(&self.target()), kept.seed);
            self.unmount();
            self.count("snapshots taken up");
        }
        if self.dice.below(2) == 0 || !self.remove(&kept.name) {
            self.kept.push(kept);
        }
    }

    fn commit(&mut self) {
        let Some(kept) = self.one_kept() else { return };
        let made = format!("localhost/{}:1", kept.name);
        if may_fail(&self.peel.peel(["commit", &kept.name, &made])) {
            self.remove(&kept.name);
            // Nobody else knows its name
            self.peel.peel(["mount", &made, &self.target()]).ok();
            let root = self.peel.path(&self.target());
            is_image(&root, kept.image);
            is_written(&root, kept.seed);
            self.unmount();
            self.peel.peel(["rm", &made]).ok();
            self.count("commits");
        } else {
            self.kept.push(kept);
        }
    }

    /// Leaves a process in an image that is unmounted for all others: detached, or in a mount
    /// namespace of its own.
    fn sit(&mut self, image: u64) {
        if self.sitting.len() >= 2 {
            return self.stand_up();
        }
        let target = self.target();
        let root = self.peel.path(&target);
        let written = if self.dice.below(2) == 0 {
            let (name, seed) = self.new_name();
            if !self.mount_named(&name, image) {
                return;
            }
            fs::write(root.join("d/written"), noise(seed, 20_000)).expect("write");
            Some((name, seed))
        } else {
            if !may_fail(&self.peel.peel(["mount", &self.images.reference(image), &target])) {
                return;
            }
            None
        };
        let mut sitting = Sitting::start(self.dice.below(2) == 0, &root, image);
        self.peel.peel(["umount", "--lazy", &target]).ok();
        if let Some((name, _)) = &written {
            self.peel.peel(["snapshots", "rm", name]).fails(4);
        }
        sitting.written = written;
        self.sitting.push(sitting);
        self.count("detached");
    }

    fn stand_up(&mut self) {
        self.look();
        let Some(sitting) = self.sitting.pop() else { return };
        let written = sitting.written.clone();
        drop(sitting);
        if let Some((name, _)) = written {
            self.remove(&name);
        }
    }

    /// Those who sit there see what they saw.
    fn look(&mut self) {
        if self.dice.below(2) == 0 {
            support::drop_caches();
        }
        for sitting in &self.sitting {
            is_image(&sitting.root, sitting.image);
            if let Some((_, seed)) = &sitting.written {
                is_written(&sitting.root, *seed);
            }
        }
        self.count("looks");
    }
}

/// Kills the worker in the middle of a sweep.
fn kill_a_sweep(peel: &Peel, images: &Images, dice: &mut Dice) {
    let worker = peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
    let reference = images.reference(dice.below(IMAGES));
    let mut sweep = peel.command();
    let args = match dice.below(2) {
        0 => vec!["gc"],
        _ => vec!["rm", reference.as_str()],
    };
    let sweep = sweep.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sweep = sweep.stdin(Stdio::null()).spawn().expect("start");
    thread::sleep(Duration::from_micros(dice.below(20_000)));
    kill_process(worker, rustix::process::Signal::KILL);
    sweep.wait().expect("wait");
    eventually("the next worker answers", || {
        peel.peel(["status", "--json"]).code == Some(0)
            && peel.json(["status", "--json"])["worker"]["pid"].as_i64() != Some(worker)
    });
}

/// Everything in the store that belongs to an image.
fn stored(peel: &Peel) -> Vec<PathBuf> {
    let dirs = ["content/blobs", "content/ingest", "layers", "trees", "snapshots"];
    let files = dirs.iter().flat_map(|dir| walk(&peel.root().join(dir)).collect::<Vec<_>>());
    files
        .filter(|path| !(path.is_dir() && path.parent().is_some_and(|p| p.ends_with("blobs"))))
        .collect()
}

#[test]
fn nothing_that_is_reachable_goes_whatever_happens() {
    if !can_mount() || !has_tool("unshare") {
        return;
    }
    let seconds = std::env::var("PEEL_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(20, |text| text.parse().expect("a number of seconds"));
    let peel = Peel::new();
    let mut images = Images::new(&peel);
    let registry = has_tool("docker-registry") && has_tool("skopeo");
    let registry = registry.then(Registry::start);
    if let Some(registry) = &registry {
        for n in IMAGES - 2..IMAGES {
            let tag = format!("v{n}");
            registry.push(&images.layout.reference(&tag), &format!("app:{tag}"), &[]);
        }
        let proxy = Proxy::start(&registry.host, |request| match request.is_blob() {
            true => Fault::Slow(4_000_000),
            false => Fault::None,
        });
        images.registry = proxy.host;
    }
    let images = images;
    peel.peel(["images"]).ok();
    for user in 0..USERS {
        // One that peel has made goes with its unmount, and what other namespaces have there as well
        fs::create_dir(peel.path(&format!("m{user}"))).expect("create");
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let done: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    // Commands that a dying worker leaves without an answer are the killer's own
    let living = RwLock::new(());
    let left: Vec<Sitting> = thread::scope(|scope| {
        let users = (0..USERS).map(|number| {
            let (peel, images, done, living) = (&peel, &images, &done, &living);
            scope.spawn(move || {
                let dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (number + 1));
                let (kept, sitting, ops) = (Vec::new(), Vec::new(), BTreeMap::new());
                let mut user =
                    User { number, peel, images, dice, made: 0, kept, sitting, done: ops };
                while Instant::now() < end {
                    let _alive = living.read().expect("lock");
                    user.step();
                }
                user.look();
                let mut all = done.lock().expect("lock");
                for (what, times) in &user.done {
                    *all.entry(what).or_default() += times;
                }
                user.sitting
            })
        });
        let users: Vec<_> = users.collect();
        let mut dice = Dice(77);
        while Instant::now() + Duration::from_secs(3) < end {
            thread::sleep(Duration::from_millis(1000 + dice.below(2000)));
            let _alone = living.write().expect("lock");
            kill_a_sweep(&peel, &images, &mut dice);
            *done.lock().expect("lock").entry("workers killed").or_default() += 1;
        }
        users.into_iter().flat_map(|user| user.join().expect("thread")).collect()
    });
    let done = done.into_inner().expect("lock");
    println!("soak of {seconds} s: {done:?}");
    for what in ["mounts", "removals", "pulls", "gcs", "snapshots", "detached", "workers killed"] {
        assert!(done.get(what).is_some_and(|times| *times > 1), "{what}: {done:?}");
    }

    // Nobody is left: whatever is named can go, and is whole
    drop(left);
    // Another test's namespace may have a copy for a moment
    eventually("all snapshots can be removed", || {
        let names = peel.json(["snapshots", "ls", "--json"]);
        let names =
            names.as_array().expect("list").iter().map(|s| s["name"].as_str().expect("text"));
        names.filter(|name| !may_fail(&peel.peel(["snapshots", "rm", name]))).count() == 0
    });
    eventually("no mount is left", || peel.json(["mounts", "--json"]) == json!([]));
    peel.peel(["check"]).ok();
    for image in peel.json(["images", "--json"]).as_array().expect("list") {
        let name = image["name"].as_str().expect("text");
        let n = (0..IMAGES).find(|n| images.reference(*n) == name).expect("one of ours");
        peel.peel(["mount", name, "m"]).ok();
        is_image(&peel.path("m"), n);
        peel.peel(["umount", "m"]).ok();
        peel.peel(["rm", name]).ok();
    }
    // And nothing else is there, once the last pull that was killed is called off
    eventually("everything is gone", || {
        peel.peel(["gc"]).ok();
        stored(&peel).is_empty()
    });
}
