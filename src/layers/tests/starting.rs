//! Layers that come into use again: what was read the last time is decoded ahead.

use std::{cell::RefCell, path::PathBuf};

use peel_fuse::{Ahead, Spare};

use super::{
    reading::{Image, LAYER, TREE, Wishes},
    *,
};

/// Some file in each of eight spans, in an order that no reader of the tar would take.
const ORDER: [usize; 8] = [25, 5, 35, 15, 30, 0, 20, 10];
const FILES: [usize; 40] = [200_000; 40];

/// A thread that does whatever it is offered, until there is no more.
#[derive(Default)]
struct Queue(RefCell<Vec<Ahead>>);

impl Spare for Queue {
    fn go_on(&self) -> bool {
        true
    }

    fn offer(&self, wish: Ahead) {
        self.0.borrow_mut().push(wish);
    }
}

impl Queue {
    fn run(&self, layers: &Layers) {
        while let Some(wish) = { self.0.borrow_mut().pop() } {
            layers.ahead(wish, self);
        }
    }
}

/// Another worker's view of the same files.
fn again(image: &mut Image) {
    image.layers = image.fixture.open_with(SPAN_CACHE_BYTES).expect("open again");
}

fn start(image: &Image) {
    for file in ORDER {
        image.read(file, 1000, 5000, &mut Wishes::default());
    }
}

/// The first read of a start, and all that it is worth doing ahead.
fn first_read(image: &Image) -> CacheStats {
    let mut wishes = Wishes::default();
    image.read(ORDER[0], 1000, 5000, &mut wishes);
    let queue = Queue(RefCell::new(wishes.0));
    queue.run(&image.layers);
    image.layers.cache_stats()
}

fn course_file(image: &Image) -> PathBuf {
    start_path(&image.layers.layers_dir.join(file_name(&image.diff_id)))
}

#[test]
fn the_next_start_finds_decoded_what_the_last_one_read() {
    let mut image = Image::new(&FILES);
    start(&image);
    assert_eq!(image.layers.cache_stats().starts, 1);
    image.layers.keep_starts(false);
    assert!(!course_file(&image).exists(), "it goes on");
    image.layers.keep_starts(true);
    assert!(course_file(&image).exists());

    again(&mut image);
    let ahead = first_read(&image);
    let spans = image.layers.layer(slot(LAYER)).expect("index").span_count();
    let known = ahead.ahead_started;
    assert!(known >= 5 && known < u64::from(spans), "{ahead:?} of {spans} spans");
    assert_eq!(ahead.start_spans, known);
    start(&image);
    let stats = image.layers.cache_stats();
    assert_eq!((stats.misses, stats.ahead_used, stats.continued), (1, known, 0), "{stats:?}");
    assert_eq!(stats.inflated_bytes, ahead.inflated_bytes, "and no more than that");

    // A second time in the same worker only after a rest
    assert_eq!(stats.starts, 1);
    image.layers.keep_starts(true);
    start(&image);
    assert_eq!(image.layers.cache_stats().starts, 1);
}

#[test]
fn the_first_look_up_in_a_tree_begins_it() {
    let mut image = Image::new(&FILES);
    start(&image);
    image.layers.keep_starts(true);
    let visit = |image: &Image, tree| {
        let mut wishes = Wishes::default();
        image.layers.visited(slot(tree), &mut wishes);
        let queue = Queue(RefCell::new(wishes.0));
        queue.run(&image.layers);
        image.layers.cache_stats().start_spans
    };
    again(&mut image);
    assert_eq!(visit(&image, 99), 0, "no such tree");
    let known = visit(&image, TREE);
    assert!(known >= 5, "{known}");
    start(&image);
    let stats = image.layers.cache_stats();
    assert_eq!((stats.misses, stats.ahead_used, stats.starts), (0, known, 1), "{stats:?}");

    // Once is enough
    image.layers.cache.forget(slot(LAYER));
    assert_eq!((visit(&image, 99), visit(&image, TREE)), (known, known));

    again(&mut image);
    image.layers.follow_starts(false);
    assert_eq!(visit(&image, TREE), 0);

    // A layer without a course has nothing to decode
    fs::remove_file(course_file(&image)).expect("removed");
    again(&mut image);
    assert_eq!(visit(&image, TREE), 0);
}

#[test]
fn a_course_that_is_damaged_missing_or_not_wanted_is_no_loss() {
    let mut image = Image::new(&FILES);
    start(&image);
    image.layers.keep_starts(true);
    let path = course_file(&image);
    let good = fs::read(&path).expect("kept");
    let mut damaged = good.clone();
    damaged[10] ^= 4;
    for bytes in [&damaged[..], &good[..20], &[0; 100_000], b""] {
        fs::write(&path, bytes).expect("write");
        again(&mut image);
        assert_eq!(first_read(&image).ahead_started, 0);
    }
    // The next one that ends is kept again
    start(&image);
    image.layers.keep_starts(true);
    assert_eq!(fs::read(&path).expect("kept"), good);

    again(&mut image);
    image.layers.follow_starts(false);
    assert_eq!(first_read(&image).ahead_started, 0);
    assert_eq!(image.layers.cache_stats().starts, 0);

    // A course without its index is nobody's
    image.layers.remove_layer(&image.diff_id).expect("removed");
    assert!(!path.exists());
    fs::write(&path, &good).expect("write");
    again(&mut image);
    assert!(!path.exists());
}

#[test]
fn a_wrong_course_takes_a_part_of_the_cache_and_no_more() {
    let mut image = Image::new(&FILES);
    start(&image);
    image.layers.keep_starts(true);
    image.layers = image.fixture.open_with(6 << 20).expect("open again");
    let ahead = first_read(&image);
    assert!((1..=2).contains(&ahead.ahead_started), "{ahead:?}");
    // Whoever goes on gets the rest
    start(&image);
    first_read(&image);
    let stats = image.layers.cache_stats();
    assert!(stats.bytes <= stats.capacity && stats.ahead_used >= 1, "{stats:?}");
}
