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
fn global_records() {
    type Found<'a> = (u32, &'a [u8], i64);
    let table: [(&str, Vec<u8>, Found<'_>); 5] = [
        ("they apply", Vec::new(), (7, b"name", 99)),
        ("records of the entry win", pax(b'x', &[("uid", b"8")]), (8, b"name", 99)),
        (
            "empty takes back",
            pax(b'x', &[("uid", b""), ("mtime", b"")]),
            (1000, b"name", 0o14721366125),
        ),
        ("a later one wins", pax(b'g', &[("uid", b"9"), ("comment", b"c")]), (9, b"name", 99)),
        ("a later one takes back", pax(b'g', &[("uid", b""), ("path", b"p")]), (1000, b"p", 99)),
    ];
    let global = pax(b'g', &[("uid", b"7"), ("mtime", b"99"), ("GNU.sparse.major", b"1")]);
    for (case, more, expected) in table {
        let entry = one(&[&global, &more, &header(b'0', "name", 0)]);
        assert_eq!((entry.uid, &entry.path[..], entry.mtime_sec), expected, "{case}");
        let own = if more.get(156) == Some(&b'x') { 1024 } else { 1024 + more.len() as u64 };
        assert_eq!(entry.header_offset, own, "{case}");
    }

    let global = pax(b'g', &[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"2")]);
    let later = pax(b'g', &[("SCHILY.xattr.user.a", b"3")]);
    let own = pax(b'x', &[("SCHILY.xattr.user.b", b"4")]);
    let entries =
        parse_parts(&[&global, &later, &own, &header(b'0', "one", 0), &header(b'0', "two", 0)])
            .unwrap();
    let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let (b, a) = (pair("user.b", "2"), pair("user.a", "3"));
    assert_eq!(entries[0].xattrs, [b.clone(), a.clone(), pair("user.b", "4")]);
    assert_eq!(entries[1].xattrs, [b, a]);
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
    assert_eq!(one(&[&pax(b'g', &[("path", b"global")]), &gnu, &last]).path, b"gnu");
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
    let value = vec![b'v'; MAX_GLOBAL as usize - 200];
    let global = |name: &str| pax(b'g', &[(name, &value[..])]);
    let (a, b) = (global("SCHILY.xattr.user.a"), global("SCHILY.xattr.user.b"));
    assert_eq!(parse_parts(&[&a, &a, &a]).unwrap(), []);
    assert!(matches!(error(&[&a, &b]), TarError::TooLarge { offset: 8704, .. }));
    assert_eq!(parse_parts(&[&global("comment"), &global("comment")]).unwrap(), []);
}
