//! What the checks at open catch when all checksums are right.

use crate::{
    FormatError, Layer,
    format::{
        ExtentRecord, HIDES_LOWER, IMPLICIT, InodeRecord, LOWER_LINK, LayerDirent, LayerMeta,
        OPAQUE, SPARSE, Section, SpanRecord,
    },
    testing::{Parts, build_blob, dir, file, gzip, hard_link, open_layer, slot, symlink, tar_of},
};

/// Inodes: 1 root, 2 a, 3 a/f, 4 b, 5 b/g, 6 l, 7 lower link, 8 device; entries: a b l x y z,
/// then a/f, then b/g and a whiteout.
fn parts() -> Parts {
    let items = [
        dir("a"),
        file("a/f", "hello").xattr("user.a", "1"),
        dir("b"),
        file("b/g", &"x".repeat(100)),
        symlink("l", "target"),
        hard_link("x", "lower"),
        crate::testing::device("y", tar::EntryType::Char, 1, 3),
        hard_link("z", "a/f"),
        file("b/.wh.gone", ""),
    ];
    let built = build_blob(&gzip(&tar_of(&items))).expect("valid");
    Parts::of(&built.encode(slot(1)))
}

fn inode(parts: &mut Parts, number: usize) -> &mut InodeRecord {
    parts.record(Section::Inodes, number - 1)
}

fn dirent(parts: &mut Parts, index: usize) -> &mut LayerDirent {
    parts.record(Section::Dirents, index)
}

fn span(parts: &mut Parts) -> &mut SpanRecord {
    parts.record(Section::Spans, 0)
}

fn meta(parts: &mut Parts) -> &mut LayerMeta {
    parts.record(Section::Meta, 0)
}

fn open_changed(change: fn(&mut Parts)) -> Result<Layer, FormatError> {
    let mut parts = parts();
    change(&mut parts);
    open_layer(parts.close())
}

#[test]
fn wrong_records_are_refused() {
    assert!(open_changed(|_| {}).is_ok());
    type Case = (&'static str, fn(&mut Parts));
    let table: &[Case] = &[
        ("META short", |p| p.shorten(Section::Meta)),
        ("META digest algorithm", |p| meta(p).blob_algorithm = 9),
        ("META padding of a digest", |p| meta(p).diff_id[63] = 1),
        ("META compression", |p| meta(p).compression = 77),
        ("META reserved", |p| meta(p).reserved = 1),
        ("META reserved at the end", |p| meta(p).reserved_tail = 1.into()),
        ("META lower links", |p| meta(p).lower_links = 2.into()),
        ("META tar length", |p| meta(p).tar_len = 1.into()),
        ("META blob length", |p| meta(p).blob_len = 1.into()),
        ("no inodes", |p| p.section(Section::Inodes).clear()),
        ("half an inode", |p| p.shorten(Section::Inodes)),
        ("half an entry", |p| p.shorten(Section::Dirents)),
        ("half an extent", |p| p.section(Section::Extents).push(0)),
        ("half a span", |p| p.section(Section::Spans).push(0)),
        ("an extent too many", |p| p.section(Section::Extents).extend([0; 24])),
        ("an entry too many", |p| p.section(Section::Dirents).extend([0; 12])),
        ("root no directory", |p| {
            let mode = inode(p, 8).mode;
            inode(p, 1).mode = mode;
        }),
        ("unknown type", |p| inode(p, 3).mode = 0o140_644.into()),
        ("mode past 16 bits", |p| inode(p, 3).mode = 0o1_100_644.into()),
        ("nanoseconds", |p| inode(p, 3).mtime_nsec = 1_000_000_000.into()),
        ("size past i64", |p| inode(p, 3).size = (1 << 63).into()),
        ("content past the tar", |p| inode(p, 3).size = 1_000_000.into()),
        ("content offset overflows", |p| inode(p, 3).data = u64::MAX.into()),
        ("xattrs past the end", |p| inode(p, 3).xattrs = 1000.into()),
        ("xattrs inside a set", |p| inode(p, 3).xattrs = 5.into()),
        ("file with a count", |p| inode(p, 3).count = 1.into()),
        ("file with a directory's flag", |p| inode(p, 3).flags = IMPLICIT.into()),
        ("file opaque", |p| inode(p, 3).flags = OPAQUE.into()),
        ("unknown flag", |p| inode(p, 2).flags = 0x100.into()),
        ("sparse without extents of its own", |p| {
            inode(p, 3).flags = SPARSE.into();
            inode(p, 3).data = 1.into();
        }),
        ("sparse past the extents", |p| {
            inode(p, 3).flags = SPARSE.into();
            inode(p, 3).data = 0.into();
            inode(p, 3).count = 1.into();
        }),
        ("link count of a file", |p| inode(p, 3).nlink = 1.into()),
        ("link count of a directory", |p| inode(p, 2).nlink = 3.into()),
        ("size of a directory", |p| inode(p, 2).size = 1.into()),
        ("entries of a directory overlap", |p| inode(p, 2).data = 0.into()),
        ("entries out of range", |p| inode(p, 4).count = 1000.into()),
        ("entries overflow", |p| inode(p, 2).data = u64::MAX.into()),
        ("symlink target past the heap", |p| inode(p, 6).data = 1_000_000.into()),
        ("symlink target too long", |p| inode(p, 6).count = 5000.into()),
        ("symlink target empty", |p| inode(p, 6).count = 0.into()),
        ("symlink size", |p| inode(p, 6).size = 1.into()),
        ("lower link that is a file too", |p| inode(p, 3).flags = LOWER_LINK.into()),
        ("lower link without its flag", |p| inode(p, 7).flags = 0.into()),
        ("lower link target", |p| inode(p, 7).data = u64::MAX.into()),
        ("device with a size", |p| inode(p, 8).size = 1.into()),
        ("name past the heap", |p| dirent(p, 0).name_offset = 1_000_000.into()),
        ("empty name", |p| dirent(p, 0).name_len = 0.into()),
        ("long name", |p| dirent(p, 0).name_len = 256.into()),
        ("slash in a name", |p| p.section(Section::Names)[0] = b'/'),
        ("dot", |p| p.section(Section::Names)[0] = b'.'),
        ("names out of order", |p| p.section(Section::Names)[0] = b'y'),
        ("the same name twice", |p| {
            let offset = dirent(p, 0).name_offset;
            dirent(p, 1).name_offset = offset;
        }),
        ("inode 0", |p| dirent(p, 0).inode = 0.into()),
        ("inode out of range", |p| dirent(p, 0).inode = 9.into()),
        ("kind of another", |p| dirent(p, 0).kind = 8),
        ("unknown kind", |p| dirent(p, 0).kind = 3),
        ("flag of a file", |p| dirent(p, 6).flags = HIDES_LOWER),
        ("unknown flag of an entry", |p| dirent(p, 0).flags = 2),
        ("whiteout with an inode", |p| dirent(p, 8).inode = 3.into()),
        ("whiteout with a flag", |p| dirent(p, 8).flags = HIDES_LOWER),
        ("a directory named twice", |p| dirent(p, 1).inode = 2.into()),
        ("a directory in itself", |p| {
            let (kind, number) = (4, 2);
            dirent(p, 6).kind = kind;
            dirent(p, 6).inode = number.into();
        }),
        ("a subdirectory with a lower number", |p| {
            dirent(p, 7).kind = 4;
            dirent(p, 7).inode = 2.into();
        }),
        ("the root below", |p| {
            dirent(p, 0).kind = 4;
            dirent(p, 0).inode = 1.into();
        }),
        ("span not at its place", |p| span(p).tar_offset = 1.into()),
        ("span too short", |p| span(p).tar_len = (span(p).tar_len.get() - 1).into()),
        ("span empty", |p| span(p).tar_len = 0.into()),
        ("span too long", |p| span(p).tar_len = u32::MAX.into()),
        ("span past the blob", |p| span(p).offset = (1 << 40).into()),
        ("span of a copy that is not there", |p| span(p).source = 1),
        ("unknown source", |p| span(p).source = 2),
        ("unknown coding", |p| span(p).coding = 0x20),
        ("reserved in a span", |p| span(p).reserved = 1.into()),
        ("window out of range", |p| span(p).window_len = 1.into()),
        ("window overflows", |p| span(p).window_offset = u64::MAX.into()),
        ("no spans", |p| p.section(Section::Spans).clear()),
    ];
    for (what, change) in table {
        let error = open_changed(*change).expect_err(what);
        assert!(
            matches!(error, FormatError::Record { .. } | FormatError::Section { .. }),
            "{what}: {error}"
        );
    }
}

#[test]
fn wrong_extents_are_refused() {
    let sparse = |extents: &[(u64, u64, u64)]| {
        let mut parts = parts();
        for (logical, tar_offset, len) in extents {
            let record = ExtentRecord {
                logical: (*logical).into(),
                tar_offset: (*tar_offset).into(),
                len: (*len).into(),
            };
            let bytes = zerocopy::IntoBytes::as_bytes(&record);
            parts.section(Section::Extents).extend_from_slice(bytes);
        }
        let file = inode(&mut parts, 5);
        file.flags = SPARSE.into();
        file.data = 0.into();
        file.count = (extents.len() as u32).into();
        open_layer(parts.close())
    };
    assert!(sparse(&[]).is_ok());
    assert!(sparse(&[(0, 0, 50), (50, 512, 50)]).is_ok());
    type Case = (&'static str, &'static [(u64, u64, u64)]);
    let table: [Case; 7] = [
        ("empty", &[(0, 0, 0)]),
        ("overlapping", &[(0, 0, 50), (49, 0, 5)]),
        ("out of order", &[(50, 0, 5), (0, 0, 5)]),
        ("past the size", &[(99, 0, 2)]),
        ("past the tar", &[(0, 1 << 40, 1)]),
        ("overflow", &[(u64::MAX, 0, 2)]),
        ("overflow in the tar", &[(0, u64::MAX, 2)]),
    ];
    for (what, extents) in table {
        assert!(matches!(sparse(extents), Err(FormatError::Record { .. })), "{what}");
    }
}
