//! What the checks at open catch when all checksums are right.

use super::OWN;
use crate::{
    FormatError, Tree,
    format::{Section, TreeDirent, TreeInode, TreeLayer, TreeMeta},
    merge,
    testing::{Parts, build, dir, file, hard_link, open_layer, open_tree, slot},
};

/// Inodes: 1 root, 2 a, 3 x (of the tree), 4 b; entries: a, b, then a/f, a/x, then b/x.
fn parts() -> Parts {
    let low = [
        dir("a"),
        file("a/f", "1"),
        file("a/x", "2"),
        hard_link("gone", "a/x"),
        dir("b"),
        hard_link("b/x", "a/x"),
    ];
    let low = build(&low).expect("valid").encode(slot(5));
    let high = build(&[file(".wh.gone", "")]).expect("valid").encode(slot(6));
    let (low, high) = (open_layer(low).expect("valid"), open_layer(high).expect("valid"));
    let built = merge(&[&low, &high], Some(low.diff_id())).expect("valid");
    Parts::of(&built.encode(slot(1)))
}

fn inode(parts: &mut Parts, number: usize) -> &mut TreeInode {
    parts.record(Section::Inodes, number - 1)
}

fn dirent(parts: &mut Parts, index: usize) -> &mut TreeDirent {
    parts.record(Section::Dirents, index)
}

fn layer(parts: &mut Parts, index: usize) -> &mut TreeLayer {
    parts.record(Section::Layers, index)
}

fn meta(parts: &mut Parts) -> &mut TreeMeta {
    parts.record(Section::Meta, 0)
}

fn open_changed(change: fn(&mut Parts)) -> Result<Tree, FormatError> {
    let mut parts = parts();
    change(&mut parts);
    open_tree(parts.close())
}

#[test]
fn wrong_records_are_refused() {
    assert!(open_changed(|_| {}).is_ok());
    type Case = (&'static str, fn(&mut Parts));
    let table: &[Case] = &[
        ("META short", |p| p.shorten(Section::Meta)),
        ("META chainID of no algorithm", |p| meta(p).chain_algorithm = 0),
        ("META unknown algorithm", |p| meta(p).chain_algorithm = 5),
        ("META reserved", |p| meta(p).reserved[6] = 1),
        ("slot of a layer", |p| layer(p, 0).slot = 0.into()),
        ("diffID of a layer", |p| layer(p, 0).diff_algorithm = 0),
        ("reserved in a layer", |p| layer(p, 0).reserved[0] = 1),
        ("two layers of one slot", |p| layer(p, 1).slot = 5.into()),
        ("a layer missing", |p| p.section(Section::Layers).clear()),
        ("half a layer", |p| p.shorten(Section::Layers)),
        ("layer too small for its numbers", |p| layer(p, 0).inodes = 2.into()),
        ("no inodes", |p| p.section(Section::Inodes).clear()),
        ("root no directory", |p| {
            let record = inode(p, 3).clone();
            *inode(p, 1) = record;
        }),
        ("root with a parent", |p| inode(p, 1).parent = 2.into()),
        ("wrong parent", |p| inode(p, 4).parent = 2.into()),
        ("no parent", |p| inode(p, 2).parent = 0.into()),
        ("file with a parent", |p| inode(p, 3).parent = 1.into()),
        ("type", |p| inode(p, 3).mode = 0o644.into()),
        ("mode", |p| inode(p, 3).mode = (1 << 20).into()),
        ("nanoseconds", |p| inode(p, 2).mtime_nsec = u32::MAX.into()),
        ("xattrs", |p| inode(p, 2).xattrs = 4.into()),
        ("size", |p| inode(p, 3).size = u64::MAX.into()),
        ("size of a directory", |p| inode(p, 2).size = 1.into()),
        ("content of a directory", |p| inode(p, 2).content = (5 << 32 | 1).into()),
        ("no content", |p| inode(p, 3).content = 0.into()),
        ("content in another layer", |p| inode(p, 3).content = (7 << 32 | 1).into()),
        ("content out of range", |p| inode(p, 3).content = (5 << 32 | 99).into()),
        ("content in the tree", |p| inode(p, 3).content = (OWN | 5 << 32 | 1).into()),
        ("data of a file", |p| inode(p, 3).data = 1.into()),
        ("count of a file", |p| inode(p, 3).count = 1.into()),
        ("link count of a file", |p| inode(p, 3).nlink = 1.into()),
        ("link count of a directory", |p| inode(p, 1).nlink = 9.into()),
        ("entries overlap", |p| inode(p, 4).data = 3.into()),
        ("entries out of range", |p| inode(p, 4).count = 9.into()),
        ("entries left over", |p| p.section(Section::Dirents).extend([0; 16])),
        ("name past the heap", |p| dirent(p, 0).name_offset = 9999.into()),
        ("long name", |p| dirent(p, 0).name_len = 300.into()),
        ("names out of order", |p| p.section(Section::Names)[0] = b'c'),
        ("NUL in a name", |p| p.section(Section::Names)[0] = 0),
        ("reserved in an entry", |p| dirent(p, 0).reserved = 1),
        ("kind", |p| dirent(p, 0).kind = 8),
        ("unknown kind", |p| dirent(p, 2).kind = 14),
        ("number 0", |p| dirent(p, 0).node = OWN.into()),
        ("number out of range", |p| dirent(p, 0).node = (OWN | 5).into()),
        ("a directory in itself", |p| {
            dirent(p, 2).kind = 4;
            dirent(p, 2).node = (OWN | 2).into();
        }),
        ("the same directory twice", |p| dirent(p, 1).node = (OWN | 2).into()),
        ("number of another tree", |p| dirent(p, 0).node = (OWN | 5 << 32 | 2).into()),
        ("number of no layer", |p| dirent(p, 2).node = (9 << 32 | 1).into()),
        ("number past a layer's", |p| dirent(p, 2).node = (5 << 32 | 99).into()),
        ("directory of a layer", |p| {
            dirent(p, 0).node = (5 << 32 | 2).into();
        }),
        ("FUSE's root", |p| dirent(p, 2).node = 1.into()),
    ];
    for (what, change) in table {
        let error = open_changed(*change).expect_err(what);
        assert!(
            matches!(error, FormatError::Record { .. } | FormatError::Section { .. }),
            "{what}: {error}"
        );
    }
}
