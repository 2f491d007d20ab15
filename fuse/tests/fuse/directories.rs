//! Names and listings at their limits.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    time::Duration,
};

use crate::{
    image::{Kind, MemorySource, Node, slot},
    keeper::{Keeper, can_mount},
};

const LIMIT: Duration = Duration::from_secs(180);

fn serve(nodes: &[Node]) -> Keeper {
    let mut source = MemorySource::default();
    source.add_layer(slot(1), nodes);
    source.add_tree(slot(2), &[slot(1)]);
    Keeper::serve(&source, LIMIT)
}

#[test]
fn long_names_long_links_and_deep_paths() {
    if !can_mount("long_names_long_links_and_deep_paths") {
        return;
    }
    let long = "n".repeat(255);
    let target = "t/".repeat(2047) + "t";
    assert_eq!(target.len(), 4095, "what PATH_MAX leaves");
    // The longest path that a layer can hold
    let part = "p".repeat(200);
    let deep = vec![&*part; 20].join("/");
    let keeper = serve(&[
        Node::file(&long, "long"),
        Node::new("link", Kind::Symlink(target.clone())),
        Node::file(&format!("d/{deep}"), "bottom"),
    ]);
    let root = keeper.tree(2);
    assert_eq!(fs::read(root.join(&long)).expect("readable"), b"long");
    let error = fs::metadata(root.join(long.clone() + "n")).expect_err("too long");
    assert!([libc::ENAMETOOLONG, libc::ENOENT].contains(&error.raw_os_error().expect("an errno")));
    let found = fs::read_link(root.join("link")).expect("a link");
    assert!(found.as_os_str().as_bytes() == target.as_bytes());
    assert_eq!(fs::symlink_metadata(root.join("link")).expect("there").len(), 4095);

    let bottom = root.join("d").join(&deep);
    assert_eq!(fs::read(&bottom).expect("readable"), b"bottom");
    assert_eq!(fs::read_dir(bottom.parent().expect("above")).expect("a directory").count(), 1);
}

/// A position in a directory, as readdir(3) gives it, and what comes from there on.
fn from(dir: &mut rustix::fs::Dir, position: i64, count: usize) -> Vec<(String, u64, i64)> {
    dir.seek(position).expect("a position that was given");
    let entries = dir.take(count).map(|entry| entry.expect("an entry"));
    entries
        .map(|e| (e.file_name().to_str().expect("UTF-8").to_owned(), e.ino(), e.offset()))
        .collect()
}

#[test]
fn a_hundred_thousand_files_in_one_directory() {
    if !can_mount("a_hundred_thousand_files_in_one_directory") {
        return;
    }
    const FILES: usize = 100_000;
    let nodes: Vec<_> = (0..FILES).map(|n| Node::file(&format!("d/file-{n:06}"), "")).collect();
    let mut keeper = serve(&nodes);
    let path = keeper.tree(2).join("d");
    let open = || {
        let dir = fs::File::open(&path).expect("a directory");
        rustix::fs::Dir::new(dir).expect("a directory")
    };
    let mut dir = open();
    let all: Vec<_> = from(&mut dir, 0, usize::MAX);
    let names: BTreeSet<_> = all.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!((all.len(), names.len()), (FILES + 2, FILES + 2), "each once, and . and ..");
    assert!(names.contains("file-000000") && names.contains("file-099999"));

    // Any position leads back to what came after it, in this worker and in the next, in a listing
    // that is cached and in one that is not
    for round in 0..2 {
        for at in [0, 1, 2, 3, 500, 77_777, FILES, FILES + 1] {
            let rest = from(&mut dir, all[at].2, 3);
            let expected = &all[at + 1..all.len().min(at + 4)];
            assert_eq!(rest, expected, "after {at} in round {round}");
        }
        dir.rewind();
        let again: Vec<_> = (&mut dir).take(10).map(|e| e.expect("an entry").ino()).collect();
        let expected: Vec<_> = all[..10].iter().map(|(_, ino, _)| *ino).collect();
        assert_eq!(again, expected, "from the start");
        if round == 0 {
            drop(dir);
            keeper.kill_worker();
            fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
            keeper.start_worker();
            dir = open();
        }
    }
    drop(dir);

    // Several list at once while the kernel forgets what it knows
    let expected: BTreeSet<_> = all.iter().map(|(name, ino, _)| (name.clone(), *ino)).collect();
    std::thread::scope(|scope| {
        let listers: Vec<_> = (0..4)
            .map(|_| {
                let (open, expected) = (&open, &expected);
                scope.spawn(move || {
                    for _ in 0..2 {
                        let all: Vec<_> = from(&mut open(), 0, usize::MAX);
                        assert_eq!(all.len(), FILES + 2);
                        let found: BTreeSet<_> =
                            all.into_iter().map(|(n, ino, _)| (n, ino)).collect();
                        assert!(found == *expected);
                    }
                })
            })
            .collect();
        while listers.iter().any(|lister| !lister.is_finished()) {
            fs::write("/proc/sys/vm/drop_caches", "2").expect("root");
            std::thread::sleep(Duration::from_millis(100));
        }
        listers.into_iter().for_each(|lister| lister.join().expect("the same for all"));
    });
    let one = fs::metadata(path.join("file-077777")).expect("there");
    assert!(expected.contains(&("file-077777".to_owned(), one.ino())));
}
