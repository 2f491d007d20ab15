//! Maps of files that may lose bytes under whoever reads them.
//!
//! A file that is cut short under a map, or on a disk that fails, gives its readers SIGBUS, of which
//! a process dies. Here the signal's handler puts zeros in the place of what is lost, notes the loss,
//! and the reader goes on. So whoever used a map asks afterwards whether it is still whole, and
//! throws away what came of it where it is not:
//!
//! ```text
//! read bytes ─▶ SIGBUS ─▶ handler: note the loss, map zeros there ─▶ zeros are read
//!          └────────────────────▶ Map::check, losses(): was anything noted? ─▶ EIO, or once more
//! ```
//! A loss is noted before the zeros can be seen, so a reader that finds nothing noted after its last
//! look has seen the file's own bytes.
//!
//! Locking: none. The handler walks a list that only grows, through atomics alone; entries of maps
//! that are gone are used again.

use std::{
    fs::File,
    io, mem,
    path::{Path, PathBuf},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use memmap2::Mmap;

use super::LayersError;

/// Entries that are made at once.
const CHUNK: usize = 256;

static RANGES: Ranges = Ranges::new();
static LOSSES: AtomicU64 = AtomicU64::new(0);
static WATCH: OnceLock<Option<Watch>> = OnceLock::new();

/// What the handler has to know.
struct Watch {
    /// Bytes of a page.
    page: usize,
    /// Who was asked before.
    before: libc::sigaction,
}

/// Where maps lie in memory.
struct Ranges {
    ranges: [Range; CHUNK],
    more: OnceLock<Box<Self>>,
}

/// Where one does.
struct Range {
    is_used: AtomicBool,
    start: AtomicUsize,
    /// 0 where the handler is to leave it alone.
    end: AtomicUsize,
    is_cut: AtomicBool,
}

/// A file mapped for reading.
pub(super) struct Map {
    map: Mmap,
    range: &'static Range,
    path: PathBuf,
}

impl Map {
    /// Maps a file, which is not empty, as far as it reaches now.
    pub(super) fn open(path: &Path) -> Result<Self, LayersError> {
        install().map_err(LayersError::io("watch over the map of", path))?;
        let file = File::open(path).map_err(LayersError::io("open", path))?;
        // SAFETY: files below layers/ and trees/ are written aside and renamed into place, after
        // which peel never writes to them; the directory is writable by peel's user alone. Whoever
        // cuts one short all the same is found out as the module says.
        #[expect(unsafe_code, reason = "an index is used in place; see the module's invariant")]
        let map = unsafe { Mmap::map(&file) }.map_err(LayersError::io("map", path))?;
        Ok(Self { range: RANGES.add(&map), map, path: path.to_owned() })
    }

    /// Whether every byte that was read of it so far was the file's.
    pub(super) fn is_whole(&self) -> bool {
        fence(Ordering::Acquire);
        !self.range.is_cut.load(Ordering::Relaxed)
    }

    /// The same as a result.
    pub(super) fn check(&self) -> Result<(), LayersError> {
        match self.is_whole() {
            true => Ok(()),
            false => Err(LayersError::Cut { path: self.path.clone(), expected: self.map.len() }),
        }
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.range.end.store(0, Ordering::Release);
        self.range.is_used.store(false, Ordering::Release);
    }
}

/// How many maps have lost bytes. What was read of any map between two calls that say the same is
/// what the file held.
pub(super) fn losses() -> u64 {
    fence(Ordering::Acquire);
    LOSSES.load(Ordering::Relaxed)
}

impl Range {
    const fn new() -> Self {
        Self {
            is_used: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            is_cut: AtomicBool::new(false),
        }
    }

    /// Notes the loss of what lies at `address` and behind it, where this map lies there; gives how
    /// much that is.
    fn lose(&self, address: usize) -> Option<usize> {
        let end = self.end.load(Ordering::Acquire);
        if address >= end || address < self.start.load(Ordering::Acquire) {
            return None;
        }
        if !self.is_cut.swap(true, Ordering::SeqCst) {
            LOSSES.fetch_add(1, Ordering::SeqCst);
        }
        Some(end - address)
    }
}

impl Ranges {
    const fn new() -> Self {
        Self { ranges: [const { Range::new() }; CHUNK], more: OnceLock::new() }
    }

    fn iter(&'static self) -> impl Iterator<Item = &'static Range> {
        let chunks = std::iter::successors(Some(self), |chunk| chunk.more.get().map(AsRef::as_ref));
        chunks.flat_map(|chunk| &chunk.ranges)
    }

    /// Has the handler know of a map.
    fn add(&'static self, map: &[u8]) -> &'static Range {
        let take = |range: &&Range| !range.is_used.swap(true, Ordering::AcqRel);
        let range = self.iter().find(take).unwrap_or_else(|| {
            let mut last = self;
            loop {
                last = last.more.get_or_init(|| Box::new(Self::new()));
                if let Some(range) = last.ranges.iter().find(take) {
                    return range;
                }
            }
        });
        let start = map.as_ptr() as usize;
        range.start.store(start, Ordering::Relaxed);
        range.is_cut.store(false, Ordering::Relaxed);
        range.end.store(start + map.len(), Ordering::Release);
        range
    }
}

/// Has [`on_bus`] called for SIGBUS from now on.
fn install() -> io::Result<()> {
    let watch = WATCH.get_or_init(|| {
        let page = rustix::param::page_size();
        // SAFETY: both structures are plain data, all zeros are values of them, and the handler has
        // the signature that SA_SIGINFO asks for. It runs on the thread's own signal stack.
        #[expect(unsafe_code, reason = "no safe wrapper lets a handler know of the one before it")]
        unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_bus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let done = libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before);
            (done == 0).then_some(Watch { page, before })
        }
    });
    // It fails for signals that do not exist only
    watch.as_ref().map(drop).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Puts zeros in the place of what a map has lost. What is no map's is the business of the handler
/// before this one: it is put back, and the access tried again meets it.
extern "C" fn on_bus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO, and SIGBUS's has an
    // address. What is mapped over lies within one live map of this module: whoever reads it holds
    // it. Nothing called here takes a lock or allocates.
    #[expect(unsafe_code, reason = "a signal handler, and a map over a map")]
    unsafe {
        // Until it is installed, which comes before the first map, the access is tried again
        let Some(Watch { page, before }) = WATCH.get().and_then(Option::as_ref) else { return };
        let address = (*info).si_addr() as usize;
        let start = address - address % page;
        let is_mended = RANGES.iter().find_map(|range| range.lose(address)).is_some_and(|lost| {
            let (len, rights) = (lost + (address - start), libc::PROT_READ);
            let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            libc::mmap(start as *mut _, len, rights, how, -1, 0) != libc::MAP_FAILED
        });
        if !is_mended {
            libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    /// A file of `len` bytes that are not 0.
    fn file(dir: &Path, name: &str, len: usize) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, vec![7; len]).expect("write");
        path
    }

    fn cut(path: &Path, len: u64) {
        File::options().write(true).open(path).and_then(|f| f.set_len(len)).expect("cut");
    }

    #[test]
    fn what_is_lost_is_zeros_and_noted() {
        let dir = tempfile::tempdir().expect("directory");
        let (whole, short) = (file(dir.path(), "whole", 20_000), file(dir.path(), "short", 20_000));
        let (kept, map) = (Map::open(&whole).expect("map"), Map::open(&short).expect("map"));
        assert_eq!(map.as_ref().iter().filter(|b| **b == 7).count(), 20_000);
        cut(&short, 5000);
        assert!(map.is_whole(), "nobody has read any of it");
        let before = losses();
        assert_eq!(map.as_ref()[0], 7);
        assert_eq!(map.as_ref()[19_999], 0);
        assert!(!map.is_whole());
        assert!(losses() > before, "{before}");
        let error = map.check().expect_err("cut").to_string();
        assert!(error.contains("20000") && error.contains("short"), "{error}");
        assert_eq!(map.as_ref()[8192], 0, "a page before the first that was missed");
        assert!(kept.is_whole() && kept.as_ref().iter().all(|b| *b == 7));
    }

    #[test]
    fn entries_are_used_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = file(dir.path(), "file", 5000);
        let many = |_| (0..CHUNK + 10).map(|_| Map::open(&path).expect("map")).collect::<Vec<_>>();
        let first = many(0);
        let last = Map::open(&path).expect("map");
        cut(&path, 0);
        assert_eq!(last.as_ref()[4999], 0, "one that is not in the first chunk");
        assert!(!last.is_whole() && first.iter().all(Map::is_whole));
        drop((first, last));
        std::fs::write(&path, [7; 5000]).expect("write");
        let entries = RANGES.iter().count();
        assert!((1..4).map(many).all(|maps| maps.iter().all(Map::is_whole)));
        assert!(RANGES.iter().count() <= entries + CHUNK, "other tests have maps as well");
    }

    /// In a process of its own, as it is about to die.
    #[test]
    fn what_is_no_map_of_this_module_is_deadly_still() {
        const ASKED: &str = "PEEL_TEST_DIES_OF_SIGBUS";
        if std::env::var_os(ASKED).is_some() {
            let dir = tempfile::tempdir().expect("directory");
            let path = file(dir.path(), "file", 5000);
            let _watched = Map::open(&path).expect("map");
            let file = File::open(&path).expect("open");
            // SAFETY: it is cut short on purpose, in a process that does nothing else.
            #[expect(unsafe_code, reason = "part of the test")]
            let other = unsafe { Mmap::map(&file) }.expect("map");
            cut(&path, 0);
            std::process::exit(i32::from(std::hint::black_box(&other)[4999]));
        }
        let name = "layers::map::tests::what_is_no_map_of_this_module_is_deadly_still";
        let status = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name])
            .env(ASKED, "1")
            .output()
            .expect("run")
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}
