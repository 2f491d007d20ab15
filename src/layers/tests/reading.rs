//! Reading through the span cache: any order, any number of readers, damage.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use flate2::{Compression, write::GzEncoder};
use peel_fuse::{Ahead, ReadError, Sink};
use proptest::prelude::*;

use super::*;

/// Text that deflate makes into matches as well as literals.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 60 < 4 && out.len() > 5000 {
            let from = out.len() - 1 - (state >> 20) as usize % 5000;
            out.extend_from_within(from..(from + 40).min(out.len()));
        } else {
            writeln!(out, "line {} of {seed}", state >> 40).expect("memory");
        }
    }
    out.truncate(len);
    out
}

/// A gzip layer of these files in a fixture, by number of inode.
pub(super) struct Image {
    pub(super) fixture: Fixture,
    pub(super) layers: Layers,
    files: Vec<(u32, Vec<u8>)>,
    pub(super) diff_id: Digest,
}

pub(super) const LAYER: u32 = 1;
pub(super) const TREE: u32 = 2;

impl Image {
    pub(super) fn new(sizes: &[usize]) -> Self {
        Self::with_cache(sizes, SPAN_CACHE_BYTES)
    }

    fn with_cache(sizes: &[usize], bytes: u64) -> Self {
        let fixture = Fixture::new();
        let layers = fixture.open_with(bytes).expect("open");
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::new(6)));
        let bodies: Vec<_> = (0..).zip(sizes).map(|(n, len)| content(n, *len)).collect();
        for (n, body) in bodies.iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("f{n:05}"), &body[..]).expect("append");
        }
        let blob = tar.into_inner().and_then(GzEncoder::finish).expect("finish");
        let diff_id = fixture.store(&layers, &blob, LAYER);
        let tree = layers.build_tree(&[diff_id], slot(TREE)).expect("tree");
        let number = |n| match tree.lookup(1, format!("f{n:05}").as_bytes()).expect("entry").node {
            NodeId::Layer { number, .. } => number,
            other => panic!("not of a layer: {other:?}"),
        };
        let files = bodies.into_iter().enumerate().map(|(n, body)| (number(n), body)).collect();
        Self { fixture, layers, files, diff_id }
    }

    pub(super) fn read(&self, file: usize, offset: usize, len: usize, sink: &mut dyn Sink) {
        let (number, body) = &self.files[file];
        let mut checked = Checked { expected: &body[offset..offset + len], sink };
        let len = len as u32;
        self.layers.read(slot(LAYER), *number, offset as u64, len, &mut checked).expect("readable");
        assert!(checked.expected.is_empty(), "too little");
    }
}

/// Compares what comes with what has to.
struct Checked<'a> {
    expected: &'a [u8],
    sink: &'a mut dyn Sink,
}

impl Sink for Checked<'_> {
    fn data(&mut self, bytes: &[u8]) {
        let (expected, rest) = self.expected.split_at(bytes.len());
        assert!(bytes == expected, "wrong bytes");
        self.expected = rest;
    }

    fn ahead(&mut self, wish: Ahead) {
        self.sink.ahead(wish);
    }
}

/// Keeps the wishes, or does them at once.
#[derive(Default)]
pub(super) struct Wishes(pub(super) Vec<Ahead>);

impl Sink for Wishes {
    fn data(&mut self, _bytes: &[u8]) {}

    fn ahead(&mut self, wish: Ahead) {
        if !self.0.contains(&wish) {
            self.0.push(wish);
        }
    }
}

#[test]
fn many_small_files_of_a_span_cost_one_inflate() {
    let image = Image::new(&[3000; 250]);
    let spans = u64::from(image.layers.layer(slot(LAYER)).expect("index").span_count());
    for file in 0..image.files.len() {
        image.read(file, 0, 3000, &mut Wishes::default());
    }
    let stats = image.layers.cache_stats();
    assert_eq!((spans, stats.misses), (1, 1));
    let tar_len = image.layers.layer(slot(LAYER)).expect("index").tar_len();
    assert!(stats.inflated_bytes <= tar_len, "{stats:?}");
    assert_eq!(stats.served_bytes, 250 * 3000);
    // The other way round it is one inflate as well
    for file in (0..image.files.len()).rev() {
        image.read(file, 0, 3000, &mut Wishes::default());
    }
    assert_eq!(image.layers.cache_stats().misses, 1);
}

#[test]
fn a_short_read_decodes_a_part_of_its_span() {
    let image = Image::new(&[900_000]);
    image.read(0, 0, 4096, &mut Wishes::default());
    let first = image.layers.cache_stats();
    assert!((4096..50_000).contains(&first.inflated_bytes), "{first:?}");
    assert!(first.bytes > first.inflated_bytes, "what is suspended counts whole: {first:?}");
    image.read(0, 400_000, 4096, &mut Wishes::default());
    let second = image.layers.cache_stats();
    assert!((404_096..450_000).contains(&second.inflated_bytes), "{second:?}");
    assert_eq!((second.misses, second.continued), (1, 1));
    assert_eq!(second.compressed_bytes, first.compressed_bytes);
}

#[test]
fn a_reader_in_order_has_the_next_spans_decoded_ahead() {
    let image = Image::new(&[9 << 20]);
    let mut wishes = Wishes::default();
    let step = 128 << 10;
    for n in 0..72 {
        image.read(0, n * step, step, &mut wishes);
        for wish in wishes.0.drain(..) {
            image.layers.ahead(wish, &|| true);
        }
    }
    let stats = image.layers.cache_stats();
    assert!(stats.misses <= 2, "all but the first were there: {stats:?}");
    assert!(stats.ahead_used >= 6 && stats.ahead_wasted == 0, "{stats:?}");
    let tar_len = image.layers.layer(slot(LAYER)).expect("index").tar_len();
    assert!(stats.inflated_bytes <= tar_len, "nothing twice: {stats:?}");
    // And at the end of the layer there is nothing more to wish for
    image.read(0, 71 * step, step, &mut wishes);
    let index = image.layers.layer(slot(LAYER)).expect("index");
    let there = |wish: &Ahead| match wish {
        Ahead::Span { span, .. } => index.span(*span).is_some(),
        Ahead::Start { .. } | Ahead::Starts { .. } => true,
    };
    assert!(wishes.0.iter().all(there));
}

#[test]
fn reads_at_once_are_answered_only_where_the_bytes_are() {
    let image = Image::new(&[5000, 2 << 20]);
    let (number, body) = &image.files[0];
    let ready = |number, offset, len, sink: &mut Vec<u8>| {
        image.layers.read_ready(slot(LAYER), number, offset, len, sink)
    };
    let mut out = Vec::new();
    assert!(!ready(*number, 0, 5000, &mut out));
    image.read(0, 0, 5000, &mut Wishes::default());
    assert!(ready(*number, 10, 4000, &mut out));
    assert!(out == body[10..4010]);
    let (number, _) = &image.files[1];
    out.clear();
    // It crosses spans
    assert!(!ready(*number, 0, 2 << 20, &mut out));
    assert!(!ready(9999, 0, 10, &mut out) && !ready(*number, 1 << 40, 1, &mut out));
    assert!(out.is_empty());
}

#[test]
fn damage_is_told_once_a_span() {
    let image = Image::new(&[300_000; 20]);
    let index = image.layers.layer(slot(LAYER)).expect("index");
    assert!(index.span_count() > 3);
    let path = image.fixture.content.path(&index.blob());
    let good = fs::read(&path).expect("read");
    let bad = index.span(1).expect("span");
    let mut bytes = good.clone();
    bytes[bad.offset as usize + bad.len as usize / 2] ^= 4;
    fs::write(&path, &bytes).expect("write");
    image.layers.set_mender(Arc::new(Nobody));
    let read_all = || {
        let mut failed = 0;
        for (number, body) in &image.files {
            for offset in (0..body.len()).step_by(4096) {
                let mut out = Vec::new();
                match image.layers.read(slot(LAYER), *number, offset as u64, 4096, &mut out) {
                    Ok(()) => assert!(out == body[offset..body.len().min(offset + 4096)]),
                    // Logged here, and not once more by whoever answers
                    Err(ReadError::Damaged { again: true, .. }) => failed += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        let open = image.layers.open_layer(slot(LAYER)).expect("open");
        let told: Vec<_> = open.told.lock().expect("lock").iter().copied().collect();
        (failed > 200, told)
    };
    assert_eq!(read_all(), (true, vec![1]));
    assert_eq!(read_all(), (true, vec![1]));
    assert!(image.layers.cache_stats().failures > 200);
    fs::write(&path, &good).expect("write");
    assert_eq!(read_all(), (false, vec![]));
    assert!(image.layers.tar(&image.diff_id).expect("index").is_some());
}

/// Cannot mend anything.
struct Nobody;

impl Mender for Nobody {
    fn mend(&self, _: &Wound) -> Result<(), String> {
        Err("nobody here".to_owned())
    }

    fn images_of(&self, _: Option<Digest>) -> Vec<String> {
        Vec::new()
    }
}

/// Writes the right bytes, the first time it is asked; counts how often it is.
struct Writes {
    path: PathBuf,
    good: Vec<u8>,
    asked: AtomicUsize,
}

impl Mender for Writes {
    fn mend(&self, _: &Wound) -> Result<(), String> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            fs::write(&self.path, &self.good).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn images_of(&self, _: Option<Digest>) -> Vec<String> {
        Vec::new()
    }
}

#[test]
fn damage_that_is_mended_reaches_nobody() {
    let image = Image::new(&[300_000; 20]);
    let path = image.fixture.content.path(&image.layers.layer(slot(LAYER)).expect("index").blob());
    let good = fs::read(&path).expect("read");
    let writes = Arc::new(Writes { path: path.clone(), good, asked: AtomicUsize::new(0) });
    image.layers.set_mender(Arc::clone(&writes) as _);
    let spoil = || {
        let mut bytes = fs::read(&path).expect("read");
        bytes.iter_mut().skip(100).step_by(1000).for_each(|byte| *byte ^= 1);
        fs::write(&path, bytes).expect("write");
    };
    spoil();
    let read = |n: usize| {
        let (number, body) = &image.files[n];
        let mut out = Vec::new();
        let read = image.layers.read(slot(LAYER), *number, 0, 300_000, &mut out);
        assert!(read.is_err() || out == *body);
        read.is_ok()
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|n| scope.spawn(move || read(n * 5))).collect();
        readers.into_iter().for_each(|reader| assert!(reader.join().expect("no panic")));
    });
    assert_eq!(writes.asked.load(Ordering::SeqCst), 1, "one for all");
    // Mended in name only: given up on for a while
    spoil();
    image.layers.cache.forget(slot(LAYER));
    assert!(!read(0) && !read(0));
    assert_eq!(writes.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_blob_that_is_cut_short_under_us_is_an_error() {
    let image = Image::new(&[3 << 20]);
    image.layers.set_mender(Arc::new(Nobody));
    image.read(0, 0, 4096, &mut Wishes::default());
    let path = image.fixture.content.path(&image.layers.layer(slot(LAYER)).expect("index").blob());
    let file = File::options().write(true).open(path).expect("open");
    file.set_len(1000).expect("cut");
    let (number, _) = &image.files[0];
    let error = image.layers.read(slot(LAYER), *number, 2 << 20, 4096, &mut Vec::new());
    let told = crate::failure::chain(&error.expect_err("cut short"));
    assert!(told.contains(&image.diff_id.to_string()), "{told}");
}

#[test]
fn readers_and_work_ahead_at_the_same_time() {
    // Of the eight spans, three have room
    let image = Image::with_cache(&[40_000; 200], 4 << 20);
    let done = AtomicBool::new(false);
    let wishes = Mutex::new(Wishes::default());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let wish = wishes.lock().expect("wishes").0.pop();
                    match wish {
                        Some(wish) => image.layers.ahead(wish, &|| !done.load(Ordering::SeqCst)),
                        None => thread::yield_now(),
                    }
                }
            });
        }
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (image, wishes, next) = (&image, &wishes, &next);
                scope.spawn(move || {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if n >= 600 {
                            break;
                        }
                        let mut mine = Wishes::default();
                        // One in order, the others anywhere
                        let file = if reader == 0 { n % 200 } else { n * 7919 % 200 };
                        image.read(file, n * 13 % 20_000, 20_000, &mut mine);
                        wishes.lock().expect("wishes").0.append(&mut mine.0);
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().expect("right bytes");
        }
        done.store(true, Ordering::SeqCst);
    });
    let stats = image.layers.cache_stats();
    assert!(stats.bytes <= stats.capacity, "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whoever reads whatever from whatever place while others do so gets the file's bytes.
    #[test]
    fn any_interleaving_of_reads_gives_the_files_bytes(
        readers in prop::collection::vec(
            prop::collection::vec((0..4_usize, 0..1_000_000_usize, 1..400_000_usize, any::<bool>()), 1..25),
            1..5,
        ),
    ) {
        static IMAGE: std::sync::LazyLock<Image> =
            std::sync::LazyLock::new(|| Image::new(&[1_000_000, 10, 1_400_001, 600_000]));
        let image = &*IMAGE;
        thread::scope(|scope| {
            for reads in &readers {
                scope.spawn(move || for (file, offset, len, ahead) in reads {
                    let size = image.files[*file].1.len();
                    let offset = offset % size;
                    let mut wishes = Wishes::default();
                    image.read(*file, offset, (*len).min(size - offset), &mut wishes);
                    for wish in wishes.0.into_iter().filter(|_| *ahead) {
                        image.layers.ahead(wish, &|| true);
                    }
                });
            }
        });
    }
}
