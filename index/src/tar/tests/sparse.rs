//! Sparse files in all four formats.

use super::*;

/// A header block of an old GNU sparse file: runs, whether more follow, real size.
fn old_gnu(stored: u64, runs: &[(u64, u64)], more: bool, real_size: u64) -> Block {
    let mut block = plain(b'S', "sparse", stored);
    put(&mut block, 257, "ustar  \0");
    put_runs(&mut block[386..], runs);
    block[482] = u8::from(more);
    put(&mut block, 483, format!("{real_size:011o}\0"));
    seal(block)
}

fn put_runs(field: &mut [u8], runs: &[(u64, u64)]) {
    for (slot, (offset, len)) in field.chunks_exact_mut(24).zip(runs) {
        slot[..12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        slot[12..].copy_from_slice(format!("{len:011o}\0").as_bytes());
    }
}

fn extension(runs: &[(u64, u64)], more: bool) -> Block {
    let mut block = [0; BLOCK];
    put_runs(&mut block[..504], runs);
    block[504] = u8::from(more);
    block
}

/// A 1.0 file: records, map and content.
fn text(map: &str, content: usize, real_size: &str) -> Vec<u8> {
    let pairs: &[(&str, &[u8])] = &[
        ("path", b"GNUSparseFile.0/x"),
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", real_size.as_bytes()),
    ];
    let body = [padded(map.as_bytes()), vec![b'x'; content]].concat();
    [pax(b'x', pairs), with_payload(b'0', "x", &body)].concat()
}

fn sparse_error(error: TarError) {
    assert!(
        matches!(
            error,
            TarError::Sparse { .. } | TarError::Number { .. } | TarError::Record { .. }
        ),
        "{error:?}"
    );
}

#[test]
fn old_gnu_in_the_header() {
    // Adjacent runs join, empty ones vanish
    let runs = [(1024, 512), (1536, 512), (4096, 100), (9999, 0)];
    let parts = [&old_gnu(1124, &runs, false, 9999)[..], &padded(&[b'x'; 1124])].concat();
    let entry = one(&[&parts]);
    assert_eq!((&entry.path[..], entry.size), (&b"sparse"[..], 9999));
    assert_eq!(entry.data, [extent(1024, 512, 1024), extent(4096, 1536, 100)]);
}

#[test]
fn old_gnu_with_extensions() {
    let runs: Vec<_> = (0..30).map(|index| (index * 1024, 512)).collect();
    let stored = 30 * 512;
    let long = with_payload(b'L', "long", b"long name\0");
    let entry = one(&[
        &long,
        &old_gnu(stored, &runs[..4], true, 1 << 20),
        &extension(&runs[4..25], true),
        &extension(&[], true),
        &extension(&runs[25..], false),
        &vec![b'x'; stored as usize],
    ]);
    assert_eq!((entry.size, entry.header_offset), (1 << 20, 0));
    let content = 1024 + 4 * 512;
    let expected: Vec<_> =
        (0..30).map(|index| extent(index * 1024, content + index * 512, 512)).collect();
    assert_eq!(entry.data, expected);
}

#[test]
fn old_gnu_faults() {
    let table = [
        old_gnu(512, &[(0, 512)], false, 100),
        old_gnu(512, &[(0, 256)], false, 512),
        old_gnu(100, &[(0, 256)], false, 512),
        old_gnu(1024, &[(512, 512), (0, 512)], false, 4096),
        old_gnu(1024, &[(0, 512), (256, 512)], false, 4096),
        edited(
            b'S',
            0,
            &[GNU, (386, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff777\0"), (483, b"0")],
        ),
        edited(b'S', 0, &[GNU, (483, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")]),
    ];
    for block in table {
        sparse_error(error(&[&block]));
    }
    // Star's header of the same type is laid out in another way
    let star = edited(b'S', 0, &[(508, b"tar\0")]);
    assert!(matches!(error(&[&star]), TarError::UnsupportedType { found: b'S', .. }));
    let cut = [&old_gnu(512, &[(0, 512)], true, 512)[..], &[0; 9]].concat();
    assert!(matches!(
        error(&[&cut]),
        TarError::Truncated { what: "sparse map", offset: 512, expected: 512, found: 9, .. }
    ));
}

#[test]
fn runs_are_bounded() {
    let bytes = old_gnu(0, &[], true, 1 << 40).to_vec();
    let mut parser = TarParser::new();
    let mut none = |_| panic!("no entry is complete");
    parser.push(&bytes, &mut none).unwrap();
    let block = extension(&[(0, 0); 21], true);
    let error = (0..MAX_RUNS).find_map(|_| parser.push(&block, &mut none).err()).unwrap();
    assert!(matches!(error, TarError::TooLarge { expected: MAX_RUNS, offset: 0, .. }), "{error:?}");
}

#[test]
fn pax_0_0_and_0_1() {
    let map_0_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"2048"),
        ("GNU.sparse.numbytes", b"88"),
        ("GNU.sparse.offset", b"5000"),
        ("GNU.sparse.numbytes", b"0"),
    ];
    let map_0_1: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.map", b"0,512,2048,88,5000,0"),
    ];
    for (map, path) in [(map_0_0, &b"x"[..]), (map_0_1, b"real")] {
        let records = pax(b'x', map);
        let content = records.len() as u64 + 512;
        let entry = one(&[&records, &header(b'0', "x", 600), &padded(&[b'x'; 600])]);
        assert_eq!((&entry.path[..], entry.size), (path, 5000));
        assert_eq!(entry.data, [extent(0, content, 512), extent(2048, content + 512, 88)]);
    }
}

#[test]
fn pax_0_x_without_runs() {
    let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"5000"), ("GNU.sparse.numblocks", b"0")];
    let entry = one(&[&pax(b'x', records), &header(b'0', "x", 0)]);
    assert_eq!((entry.size, &entry.data[..]), (5000, &[][..]));
}

#[test]
fn pax_0_x_faults() {
    let table: [&[(&str, &[u8])]; 9] = [
        &[("GNU.sparse.map", b"0,1")],
        &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.numblocks", b"2")],
        &[("GNU.sparse.map", b"0,1,2"), ("GNU.sparse.numblocks", b"1")],
        &[("GNU.sparse.map", b"0,1,"), ("GNU.sparse.numblocks", b"1")],
        &[("GNU.sparse.map", b"0,-1"), ("GNU.sparse.numblocks", b"1")],
        &[("GNU.sparse.map", b"9,9"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.size", b"9")],
        &[("GNU.sparse.offset", b"1"), ("GNU.sparse.offset", b"1")],
        &[("GNU.sparse.numbytes", b"1")],
        &[("GNU.sparse.offset", b"1,2")],
    ];
    for records in table {
        sparse_error(error(&[&pax(b'x', records), &header(b'0', "x", 1), b"x"]));
    }
    let map: &[(&str, &[u8])] = &[("GNU.sparse.map", b"0,0"), ("GNU.sparse.numblocks", b"1")];
    sparse_error(error(&[&pax(b'x', map), &header(b'5', "directory", 0)]));
}

#[test]
fn pax_1_0() {
    let bytes = text("2\n1024\n512\n4096\n88\n", 600, "5000");
    let entry = one(&[&bytes]);
    assert_eq!((&entry.path[..], entry.size), (&b"real"[..], 5000));
    let content = bytes.len() as u64 - 1024;
    assert_eq!(entry.data, [extent(1024, content, 512), extent(4096, content + 512, 88)]);

    let entry = one(&[&text("0\n", 0, "5000")]);
    assert_eq!((entry.size, &entry.data[..]), (5000, &[][..]));

    // A map of several blocks
    let runs: String = (0..500).map(|index| format!("{}\n1\n", index * 10)).collect();
    let entry = one(&[&text(&format!("500\n{runs}"), 500, "5000")]);
    assert_eq!(entry.data.len(), 500);
    assert_eq!(entry.data[499].logical, 4990);
}

#[test]
fn pax_1_0_faults() {
    let table = [
        ("", 0),
        ("\n", 0),
        ("x\n", 0),
        ("-1\n", 0),
        ("1\n0\n", 0),
        ("1\n0\n10\n", 9),
        ("1\n0\n10\n", 11),
        ("1\n5000\n1\n", 1),
        ("2\n9\n1\n0\n1\n", 2),
        ("9223372036854775807\n0\n0\n", 0),
        ("0000000000000000000000000\n", 0),
        ("1\n18446744073709551615\n1\n", 1),
    ];
    for (map, content) in table {
        sparse_error(error(&[&text(map, content, "5000")]));
    }
    // Less than a block of it is no map, even if the text would fit
    let records: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    sparse_error(error(&[&pax(b'x', records), &with_payload(b'0', "x", b"0\n")]));
    let cut = text("1\n0\n1\n", 1, "1");
    let cut = &cut[..cut.len() - 1024 + 3];
    assert!(matches!(
        error(&[cut]),
        TarError::Truncated { what: "sparse map", expected: 513, found: 3, .. }
    ));
}

#[test]
fn unknown_versions_are_plain_files() {
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"2"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"nonsense"),
    ];
    let entry = one(&[&pax(b'x', records), &with_payload(b'0', "x", b"content")]);
    assert_eq!((&entry.path[..], entry.size), (&b"x"[..], 7));
}
