//! Programs that read mounts all the time and must never see an error.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;

use super::{
    Peel, eventually,
    image::{Layer, Layout, noise},
    output, run,
};

/// An image of three hundred small files and one of 8 MiB, as an OCI layout; its reference.
pub fn image(peel: &Peel) -> String {
    let mut layout = Layout::new(peel.path("layout"));
    let mut layer = Layer::new();
    for n in 0..300 {
        layer = layer.file(&format!("d{}/f{n}", n % 20), 0o644, noise(n, 40_000));
    }
    layout.image("v1", vec![layer.file("big", 0o644, noise(99, 8 << 20))], json!({}));
    layout.reference("v1")
}

/// Makes the kernel ask again.
pub fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
}

/// The checksum of all files of a mount, as other programs see them.
pub fn checksum(peel: &Peel, mount: &str) -> String {
    let cat = "cat big d*/f* | sha256sum";
    let read = run(Command::new("sh").args(["-c", cat]).current_dir(peel.path(mount)));
    assert_eq!(read.stderr, "", "no reader sees an error");
    assert_eq!(read.code, Some(0));
    read.stdout
}

/// Rounds of reading that were done.
pub struct Rounds(AtomicU64);

impl Rounds {
    /// Waits until some more are done, begun now or later.
    #[track_caller]
    pub fn go_on(&self) {
        let before = self.0.load(Ordering::SeqCst);
        // Two readers, each of which may be about to end a round that it began long ago
        eventually("reading goes on", || self.0.load(Ordering::SeqCst) >= before + 4);
    }
}

/// Does something while `find` and `cat` go over the mounts and caches are dropped under them.
pub fn under_load<T>(peel: &Peel, mounts: &[&str], work: impl FnOnce(&Rounds) -> T) -> T {
    let done = AtomicBool::new(false);
    let rounds = Rounds(AtomicU64::new(0));
    let sums: Vec<_> = mounts.iter().map(|mount| checksum(peel, mount)).collect();
    // Also where the work panics: the readers are awaited
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    thread::scope(|scope| {
        let _ends = Ends(&done);
        for (mount, expected) in mounts.iter().zip(&sums) {
            let (done, rounds) = (&done, &rounds);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let found = output(Command::new("find").arg(peel.path(mount)).arg("-ls"));
                    assert!(found.status.success() && found.stderr.is_empty(), "{found:?}");
                    assert_eq!(checksum(peel, mount), *expected, "wrong bytes in {mount}");
                    drop_caches();
                    rounds.0.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        work(&rounds)
    })
}
