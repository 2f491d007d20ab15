//! The container: every byte is covered, every length is checked.

use proptest::prelude::*;

use super::{ALIGNMENT, FileType, FormatError, HEADER_LEN, HeaderRecord, Section, peek_header};
use crate::{
    Layer, Tree, merge,
    testing::{
        Item, Parts, build, device, dir, file, gzip, hard_link, open_layer, open_tree, slot,
        symlink, tar_of,
    },
};
use zerocopy::{FromBytes, IntoBytes};

/// Something of everything.
fn items() -> Vec<Item> {
    vec![
        dir("d").xattr("user.a", "1"),
        file("d/f", "hello").xattr("user.a", "1").xattr("user.b", "2"),
        hard_link("d/g", "d/f"),
        hard_link("h", "lower/file"),
        symlink("l", "d/f"),
        device("n", tar::EntryType::Char, 1, 3),
        file("d/.wh.gone", ""),
        file("o/.wh..wh..opq", ""),
    ]
}

fn layer_file() -> Vec<u8> {
    let blob = gzip(&tar_of(&items()));
    crate::testing::build_blob(&blob).expect("valid").encode(slot(1))
}

/// What [`items`] links to.
fn lower() -> Layer {
    let low = build(&[file("lower/file", "x"), hard_link("i", "lower/file")]).expect("valid");
    open_layer(low.encode(slot(2))).expect("valid")
}

fn tree_file() -> Vec<u8> {
    let low = lower();
    let high = open_layer(layer_file()).expect("valid");
    merge(&[&low, &high], Some(low.diff_id())).expect("valid").encode(slot(3))
}

#[test]
fn headers_say_what_a_file_is() {
    let (layer, tree) = (layer_file(), tree_file());
    let header = peek_header(&layer[..HEADER_LEN]).expect("valid");
    assert_eq!((header.kind, header.slot), (FileType::Layer, slot(1)));
    assert_eq!((header.version, header.builder), (1, crate::BUILDER_VERSION));
    assert_eq!(header.file_len, layer.len() as u64);
    assert_eq!(header.numbering, open_layer(layer.clone()).expect("valid").numbering());
    let header = peek_header(&tree).expect("valid");
    assert_eq!((header.kind, header.slot), (FileType::Tree, slot(3)));
    assert_eq!(header.builder, crate::MERGER_VERSION);

    assert!(matches!(open_tree(layer), Err(FormatError::Kind { expected: "tree", found: 1 })));
    let found = open_layer(tree);
    assert!(matches!(found, Err(FormatError::Kind { expected: "layer index", found: 2 })));
}

#[test]
fn any_changed_byte_is_noticed() {
    for (file, open) in [
        (layer_file(), (|file| open_layer(file).map(drop)) as fn(Vec<u8>) -> _),
        (tree_file(), |file| open_tree(file).map(drop)),
    ] {
        assert_eq!(open(file.clone()), Ok(()));
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(open(bad).is_err(), "byte {at}");
            assert!(open(file[..at].to_vec()).is_err(), "cut at {at}");
        }
        let mut long = file.clone();
        long.push(0);
        assert!(open(long).is_err(), "one byte more");
    }
    for at in 0..HEADER_LEN {
        let mut bad = layer_file();
        bad[at] ^= 0x80;
        assert!(peek_header(&bad).is_err(), "byte {at}");
        assert!(peek_header(&bad[..at]).is_err(), "cut at {at}");
    }
}

/// Changes the header and gives it a right checksum again.
fn with_header(change: impl Fn(&mut HeaderRecord)) -> Vec<u8> {
    let mut file = layer_file();
    let (mut header, _) = HeaderRecord::read_from_prefix(&file).expect("long enough");
    change(&mut header);
    header.checksum = super::header_checksum(&header);
    file[..HEADER_LEN].copy_from_slice(header.as_bytes());
    file
}

#[test]
fn headers_are_checked_beyond_their_checksum() {
    type Check = fn(&FormatError) -> bool;
    let table: Vec<(Vec<u8>, Check)> = vec![
        (with_header(|h| h.version = 2.into()), |e| {
            matches!(e, FormatError::Version { found: 2, .. })
        }),
        (with_header(|h| h.magic[0] = 0), |e| matches!(e, FormatError::Magic { .. })),
        (with_header(|h| h.kind = 3.into()), |e| matches!(e, FormatError::Kind { found: 3, .. })),
        (with_header(|h| h.slot = 0.into()), |e| matches!(e, FormatError::Slot { found: 0 })),
        (with_header(|h| h.slot = (1 << 24).into()), |e| matches!(e, FormatError::Slot { .. })),
        (with_header(|h| h.reserved = 1.into()), |e| matches!(e, FormatError::Checksum { .. })),
        (with_header(|h| h.file_len = 1.into()), |e| matches!(e, FormatError::Length { .. })),
        (with_header(|h| h.sections = 65.into()), |e| matches!(e, FormatError::Table { .. })),
        (with_header(|h| h.sections = 64.into()), |e| matches!(e, FormatError::Length { .. })),
        (with_header(|h| h.sections = 10.into()), |e| matches!(e, FormatError::Checksum { .. })),
        (with_header(|h| h.sections = 0.into()), |e| matches!(e, FormatError::Checksum { .. })),
        (with_header(|h| h.numbering[0] ^= 1), |e| matches!(e, FormatError::Checksum { .. })),
    ];
    for (number, (file, is_expected)) in table.into_iter().enumerate() {
        let error = open_layer(file).expect_err("changed");
        assert!(is_expected(&error), "{number}: {error}");
    }
    let moved = with_header(|h| h.slot = 77.into());
    assert_eq!(open_layer(moved).expect("still valid").slot(), slot(77), "a slot can be changed");
}

/// A file with the given section table and its sections' bytes, all checksums right.
fn with_table(change: impl Fn(&mut Vec<super::TableRecord>, &mut Vec<u8>)) -> Vec<u8> {
    let file = layer_file();
    let (mut header, _) = HeaderRecord::read_from_prefix(&file).expect("long enough");
    let count = header.sections.get() as usize;
    let end = HEADER_LEN + count * size_of::<super::TableRecord>();
    let mut table = <[super::TableRecord]>::ref_from_bytes(&file[HEADER_LEN..end])
        .expect("whole records")
        .to_vec();
    let mut rest = file[end..].to_vec();
    change(&mut table, &mut rest);
    header.sections = (table.len() as u32).into();
    header.table_checksum = super::table_checksum(table.as_bytes());
    header.numbering = super::numbering_digest(&table);
    header.file_len = ((HEADER_LEN + table.as_bytes().len() + rest.len()) as u64).into();
    header.checksum = super::header_checksum(&header);
    [header.as_bytes(), table.as_bytes(), &rest].concat()
}

#[test]
fn section_tables_are_checked_beyond_their_checksum() {
    assert!(open_layer(with_table(|_, _| {})).is_ok());
    type Change = fn(&mut Vec<super::TableRecord>, &mut Vec<u8>);
    let table: [(&str, Change); 9] = [
        ("out of order", |table, _| table.swap(1, 2)),
        ("twice", |table, _| table[1].kind = table[0].kind),
        ("unknown", |table, _| table[8].kind = 100.into()),
        ("reserved", |table, _| table[0].reserved = 1.into()),
        ("elsewhere", |table, _| table[3].offset = 0.into()),
        ("unaligned", |table, _| table[3].offset = (table[3].offset.get() + 1).into()),
        ("too long", |table, _| table[8].len = (1 << 40).into()),
        ("overflow", |table, _| table[8].len = u64::MAX.into()),
        ("trailing bytes", |_, rest| rest.push(0)),
    ];
    for (what, change) in table {
        let error = open_layer(with_table(change)).expect_err(what);
        assert!(
            matches!(error, FormatError::Table { .. } | FormatError::Length { .. }),
            "{what}: {error}"
        );
    }
    let padded = with_table(|table, rest| {
        let after_meta = table[0].offset.get() + table[0].len.get();
        rest[(after_meta - HEADER_LEN as u64) as usize - table.as_bytes().len()] = 1;
    });
    assert!(matches!(
        open_layer(padded),
        Err(FormatError::Table { problem: "padding not zero", .. })
    ));
    let missing = with_table(|table, rest| {
        // WINDOWS, the last section, becomes one that readers may skip
        table[8].kind = (super::OPTIONAL | 100).into();
        let len = rest.len() as u64 - table[8].len.get();
        rest.truncate(len as usize);
        table[8].len = 0.into();
        table[8].checksum = *blake3::hash(b"").as_bytes();
        assert_eq!(table[8].offset.get() % ALIGNMENT, 0);
    });
    let result = open_layer(missing);
    assert!(result.is_ok(), "windows are not used by a small layer: {result:?}");
    for section in [Section::Meta, Section::Inodes, Section::Xattrs] {
        let mut parts = Parts::of(&layer_file());
        parts.sections.retain(|(other, _)| *other != section);
        assert!(open_layer(parts.close()).is_err(), "{section:?}");
    }
}

/// Asks a layer for all it has and a little more.
fn use_layer(layer: &Layer, lower: &Layer) -> bool {
    for number in 0..=layer.inode_count() + 1 {
        let _ = layer.inode(number);
        let _ = (layer.symlink_target(number), layer.xattrs(number).count());
        let _ = layer.pieces(number, 3, u64::MAX).take(1000).count();
        let _ = (layer.is_implicit(number), layer.is_opaque(number));
        layer.children(number).1.iter().for_each(|entry| drop(layer.name(entry).to_vec()));
    }
    for index in 0..=layer.span_count() {
        if let Some(span) = layer.span(index) {
            let _ = (layer.window(&span), layer.span_at(span.tar_offset));
        }
        let _ = layer.decode_span(index, &[1, 2, 3]);
    }
    let built = merge(&[lower, layer, layer], None);
    if let Ok(built) = &built {
        // A layer that passes its checks gives a tree that passes its own
        use_tree(&open_tree(built.encode(slot(1))).expect("valid"));
    }
    built.is_ok()
}

fn use_tree(tree: &Tree) {
    assert!(tree.layers().count() < 10);
    for number in 0..=tree.inode_count() + 1 {
        let _ = (tree.inode(number), tree.content(number), tree.parent(number));
        let _ = tree.xattrs(number).count();
        for index in 0..tree.entry_count(number).unwrap_or(0) {
            let entry = tree.entry(number, index).expect("in range");
            assert_eq!(tree.lookup(number, entry.name), Some(entry));
        }
        let _ = (tree.entry(number, u32::MAX), tree.lookup(number, b"d"));
    }
}

/// Changes bytes of a file's sections and closes it with right checksums.
fn mutate(file: &[u8], changes: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut parts = Parts::of(file);
    let count = parts.sections.len();
    for (section, at, value) in changes {
        let content = &mut parts.sections[section % count].1;
        if !content.is_empty() {
            let at = at % content.len();
            content[at] = *value;
        }
    }
    parts.close()
}

#[test]
fn the_unchanged_layer_is_used_to_the_end() {
    assert!(use_layer(&open_layer(mutate(&layer_file(), &[])).expect("valid"), &lower()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_files_never_panic(
        changes in prop::collection::vec((0usize..10, any::<usize>(), any::<u8>()), 1..4)
    ) {
        thread_local! {
            static FILES: (Vec<u8>, Vec<u8>, Layer) = (layer_file(), tree_file(), lower());
        }
        FILES.with(|(layer, tree, lower)| {
            if let Ok(layer) = open_layer(mutate(layer, &changes)) {
                use_layer(&layer, lower);
            }
            if let Ok(tree) = open_tree(mutate(tree, &changes)) {
                use_tree(&tree);
            }
        });
    }

    #[test]
    fn no_file_at_all_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open_layer(bytes.clone()).is_err());
        prop_assert!(open_tree(bytes.clone()).is_err());
        prop_assert!(peek_header(&bytes).is_err());
    }
}
