//! How much is asked of a worker: what the settings of the connection promise, counted on the wire.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use crate::{
    image::noise,
    keeper::can_mount,
    mapped::Mapped,
    overlay::Overlay,
    sample::image,
    tap::{Requests, Tap, opcode},
};

const LIMIT: Duration = Duration::from_secs(120);

/// Nothing but, at most, extended attributes.
#[track_caller]
fn assert_silent(requests: &Requests, what: &str) {
    let asked = |opcode: &u32| ![opcode::GETXATTR, opcode::LISTXATTR].contains(opcode);
    let count: BTreeMap<_, _> = requests.count.iter().filter(|(code, _)| asked(code)).collect();
    assert!(count.is_empty(), "{what} sent requests, by opcode: {count:?}");
}

/// Metadata and content of everything; gives the number of files.
fn walk(root: &Path) -> u64 {
    let mut files = 0;
    for entry in fs::read_dir(root).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("there");
        if meta.is_dir() {
            files += walk(&path);
        } else if meta.is_file() {
            files += 1;
            fs::read(&path).expect("readable");
        } else if meta.is_symlink() {
            fs::read_link(&path).expect("readable");
        }
    }
    files
}

#[test]
fn opening_sends_one_request_for_all_files_and_one_for_all_directories() {
    if !can_mount("opening_sends_one_request_for_all_files_and_one_for_all_directories") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let root = tap.held(17);
    assert!(walk(&root.join("")) > 3000);
    let first = tap.take();
    assert_eq!((first.of(opcode::OPEN), first.of(opcode::OPENDIR)), (1, 1));
    // Attributes and names came with the listings, but for those of the two roots
    assert!(first.of(opcode::GETATTR) <= 2 && first.of(opcode::LOOKUP) <= 1, "{first:?}");
    walk(&root.join(""));
    assert_silent(&tap.take(), "a second walk");
}

#[test]
fn listing_first_and_looking_later_asks_for_no_name() {
    if !can_mount("listing_first_and_looking_later_asks_for_no_name") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let root = tap.held(17);
    let many = root.join("many");
    // As find and ls -l do: the directory holds more than one answer does
    let names: Vec<_> = fs::read_dir(&many).expect("a directory").collect();
    // The kernel tries STATX once
    fs::symlink_metadata(&many).expect("there");
    tap.take();
    assert_eq!(names.len(), 3000);
    for name in names {
        let path = name.expect("an entry").path();
        assert!(fs::symlink_metadata(path).expect("there").is_file());
    }
    assert_silent(&tap.take(), "looking at what was listed");
}

#[test]
fn a_second_walk_of_an_overlay_asks_for_attributes_only() {
    if !can_mount("a_second_walk_of_an_overlay_asks_for_attributes_only") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let overlay = Overlay::new(tap.keeper.dir(), "one", &tap.keeper.tree(17));
    assert!(walk(overlay.path()) > 3000);
    let first = tap.take();
    assert!(first.of(opcode::READ) > 0);
    walk(overlay.path());
    assert_silent(&tap.take(), "a second walk of an overlay");
}

#[test]
fn names_that_are_not_there_are_asked_for_once() {
    if !can_mount("names_that_are_not_there_are_asked_for_once") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let root = tap.held(17);
    let overlay = Overlay::new(tap.keeper.dir(), "one", &tap.keeper.tree(17));
    let missing = |path: &Path| {
        let error = fs::symlink_metadata(path).expect_err("not there");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    };
    for place in [root.join("etc/nothing"), overlay.path().join("etc/nothing-else")] {
        missing(&place);
        assert!(tap.take().of(opcode::LOOKUP) > 0);
        (0..100).for_each(|_| missing(&place));
        assert_silent(&tap.take(), "a name known to be missing");
    }
    // The root of all trees is another matter: there a tree may appear at any time
    let absent = tap.keeper.tree(4000);
    missing(&absent);
    tap.take();
    (0..5).for_each(|_| missing(&absent));
    assert_eq!(tap.take().of(opcode::LOOKUP), 5);
}

#[test]
fn links_are_read_once() {
    if !can_mount("links_are_read_once") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let root = tap.held(17);
    let link = root.join("link");
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("bin/../etc/empty"));
    assert_eq!(tap.take().of(opcode::READLINK), 1);
    fs::read_link(&link).expect("a link");
    assert!(fs::metadata(&link).expect("its target").is_file());
    assert_eq!(tap.take().of(opcode::READLINK), 0);
}

#[test]
fn sequential_reads_come_in_the_length_that_was_set() {
    if !can_mount("sequential_reads_come_in_the_length_that_was_set") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let raised =
        peel_fuse::session::raise_readahead(tap.keeper.lower(), peel_fuse::session::READAHEAD_KIB);
    if let Err(error) = raised {
        return crate::keeper::skip(
            "sequential_reads_come_in_the_length_that_was_set",
            &format!("{error}"),
        );
    }
    let root = tap.held(17);
    fs::read(root.join("bin/tool")).expect("readable");
    let requests = tap.take();
    let longest = peel_fuse::session::READAHEAD_KIB << 10;
    assert_eq!(requests.longest_read, longest, "{requests:?}");
    assert!(requests.of(opcode::READ) <= 2_500_001 / u64::from(longest) + 4, "{requests:?}");
}

#[test]
fn an_image_finds_the_pages_of_another_with_the_same_layer() {
    if !can_mount("an_image_finds_the_pages_of_another_with_the_same_layer") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let (first, second) = (tap.held(17), tap.held(18));
    let tool = |root: &crate::tap::Held| File::open(root.join("bin/tool")).expect("a file");
    let content = noise(2_500_001, 7);
    // Pages that are mapped stay, even if somebody drops all caches
    let mapped = Mapped::shared(&tool(&first), content.len());
    assert!(*mapped == *content);
    assert!(tap.take().of(opcode::READ) > 0);

    let other = tool(&second);
    let pages = Mapped::shared(&other, content.len());
    assert!(pages.resident().iter().all(|page| *page), "before anything read it there");
    assert!(*pages == *content);
    let mut room = vec![0; content.len()];
    other.read_exact_at(&mut room, 0).expect("readable");
    assert!(room == content);
    assert_eq!(tap.take().of(opcode::READ), 0, "bare");
    drop((pages, other, mapped));

    // The same below overlays, whose own inodes have no pages
    rustix::fs::fadvise(tool(&first), 0, None, rustix::fs::Advice::DontNeed).expect("a file");
    let one = Overlay::new(tap.keeper.dir(), "one", &tap.keeper.tree(17));
    let two = Overlay::new(tap.keeper.dir(), "two", &tap.keeper.tree(18));
    tap.take();
    let file = File::open(one.path().join("bin/tool")).expect("a file");
    let mapped = Mapped::shared(&file, content.len());
    assert!(*mapped == *content);
    assert!(tap.take().of(opcode::READ) > 0);
    let file = File::open(two.path().join("bin/tool")).expect("a file");
    let pages = Mapped::shared(&file, content.len());
    assert!(pages.resident().iter().all(|page| *page), "before anything read it there");
    assert!(*pages == *content);
    assert!(fs::read(two.path().join("bin/tool")).expect("readable") == content);
    assert_eq!(tap.take().of(opcode::READ), 0, "below overlays");
    drop(mapped);
}
