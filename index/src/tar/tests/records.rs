//! Records and long names that stand before an entry.

use super::*;

#[test]
fn pax_records() {
    let value = b"a=b\n14 path=/etc\n\0\xff";
    let pairs: &[(&str, &[u8])] = &[
        ("path", b"long/\xff\xfe=path\nwith newline"),
        ("uid", b"4000000000"),
        ("gid", b"-2"),
        ("mtime", b"-1.25"),
        ("size", b"3"),
        ("atime", b"nonsense is not looked at"),
        ("SCHILY.xattr.user.binary", value),
        ("SCHILY.xattr.user.empty", b""),
        ("LIBARCHIVE.xattr.user.a%3Db", b"AAEC"),
        ("LIBARCHIVE.xattr.user.bad", b"!"),
        ("SCHILY.xattr.user.twice", b"1"),
        ("SCHILY.xattr.user.twice", b"2"),
        ("SCHILY.xattr.", b"no name"),
    ];
    let entry = one(&[&pax(b'x', pairs), &header(b'0', "short", 9), &padded(b"abc")]);
    assert_eq!(entry.path, b"long/\xff\xfe=path\nwith newline");
    assert_eq!((entry.uid, entry.gid), (4_000_000_000, u32::MAX - 1));
    assert_eq!((entry.mtime_sec, entry.mtime_nsec), (-2, 750_000_000));
    assert_eq!((entry.size, &entry.data[..]), (3, &[extent(0, 1536, 3)][..]));
    assert_eq!(entry.header_offset, 0);
    let xattrs: [(&[u8], &[u8]); 5] = [
        (b"user.binary", value),
        (b"user.empty", b""),
        (b"user.a=b", b"\0\x01\x02"),
        (b"user.twice", b"1"),
        (b"user.twice", b"2"),
    ];
    let xattrs = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec()));
    assert_eq!(entry.xattrs, xattrs);

    let link = one(&[&pax(b'x', &[("linkpath", b"far")]), &header(b'2', "link", 0)]);
    assert_eq!(link.link, b"far");
}

#[test]
fn pax_values_out_of_range() {
    let table: [(&str, &[u8]); 8] = [
        ("uid", b"4294967296"),
        ("gid", b"users"),
        ("size", b"9223372036854775808"),
        ("size", b"-1"),
        ("size", b"0x10"),
        ("mtime", b"now"),
        ("path", b"a\0b"),
        ("linkpath", b"\0"),
    ];
    for (keyword, value) in table {
        let error = error(&[&pax(b'x', &[(keyword, value)])]);
        assert!(
            matches!(error, TarError::Number { .. } | TarError::Record { .. }),
            "{keyword}: {error:?}"
        );
    }
}

#[test]
fn of_two_extended_headers_the_second_counts() {
    let first = pax(b'x', &[("path", b"first"), ("uid", b"1")]);
    let second = pax(b'x', &[("path", b"second")]);
    let entry = one(&[&first, &second, &header(b'0', "name", 0)]);
    assert_eq!((&entry.path[..], entry.uid), (&b"second"[..], 1000));
}

#[test]
fn global_headers() {
    let pairs: &[(&str, &[u8])] = &[
        ("uid", b"7"),
        ("mtime", b"no number"),
        ("SCHILY.xattr.user.a", b"1"),
        ("linkpath", b"else"),
        ("size", b"99"),
    ];
    let global = pax(b'g', pairs);
    let own = pax(b'x', &[("uid", b"8")]);
    let named = pax(b'g', &[("path", b"d/named"), ("comment", b"c")]);
    let file = header(b'0', "name", 0);
    let entries = parse_parts(&[&global, &own, &file, &named, &file]).unwrap();
    let found: Vec<_> = entries.iter().map(|e| (e.kind, &e.path[..], e.uid, e.mtime_sec)).collect();
    let mtime = 0o14721366125;
    assert_eq!(
        found,
        [
            (EntryKind::GlobalHeader, &b"pax"[..], 0, 0),
            (EntryKind::File, b"name", 8, mtime),
            (EntryKind::GlobalHeader, b"d/named", 0, 0),
            (EntryKind::File, b"name", 1000, mtime),
        ]
    );
    assert!(entries.iter().all(|entry| entry.xattrs.is_empty() && entry.size == 0));
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.header_offset).collect();
    assert_eq!(offsets, [0, 1024, 2560, 3584]);

    // It is an entry of its own: what stands before it is not for the next one
    let entries = parse_parts(&[&own, &global, &file]).unwrap();
    assert_eq!((entries.len(), entries[1].uid), (2, 1000));
    let error = error(&[&pax(b'g', &[("path", b"a\0b")])]);
    assert!(matches!(error, TarError::Record { .. }), "{error:?}");
}

#[test]
fn long_names() {
    let long = |typeflag, name: &[u8]| with_payload(typeflag, "././@LongLink", name);
    let name = [[b'n'; 600].as_slice(), b"\0junk"].concat();
    let entry = one(&[
        &long(b'K', b"target\0"),
        &long(b'L', &name),
        &edited(b'1', 77, &[GNU, (157, b"short")]),
    ]);
    assert_eq!(entry.path, [b'n'; 600]);
    assert_eq!((&entry.link[..], entry.header_offset), (&b"target"[..], 0));

    // The long name wins in either order, as in Go; an empty one is none
    let (gnu, own) = (long(b'L', b"gnu\0"), pax(b'x', &[("path", b"pax")]));
    let last = header(b'0', "ustar", 0);
    assert_eq!(one(&[&gnu, &own, &last]).path, b"gnu");
    assert_eq!(one(&[&own, &gnu, &last]).path, b"gnu");
    assert_eq!(one(&[&long(b'L', b""), &last]).path, b"ustar");

    // They are for the next entry alone
    let entries = parse_parts(&[&gnu, &last, &last]).unwrap();
    assert_eq!((&entries[0].path[..], &entries[1].path[..]), (&b"gnu"[..], &b"ustar"[..]));
}

#[test]
fn bounds() {
    let big = |typeflag| header(typeflag, "big", MAX_PAYLOAD + 1);
    for typeflag in *b"xgLK" {
        let error = error(&[&big(typeflag)]);
        let expected = MAX_PAYLOAD;
        assert!(
            matches!(error, TarError::TooLarge { expected: e, found, .. }
                if e == expected && found == expected + 1),
            "{error:?}"
        );
    }
}
