//! Table tests on hand-made archives. Archives of other writers are in `tests/tar_writers.rs`.

use super::*;
use header::{BLOCK, Block, Format, Header};

/// A ustar header block without a checksum.
fn plain(typeflag: u8, name: &str, size: u64) -> Block {
    let mut block = [0; BLOCK];
    put(&mut block, 0, name);
    put(&mut block, 100, "0000644\0");
    put(&mut block, 108, "0001750\0");
    put(&mut block, 116, "0000144\0");
    put(&mut block, 124, format!("{size:011o}\0"));
    put(&mut block, 136, "14721366125\0");
    block[156] = typeflag;
    put(&mut block, 257, "ustar\x0000");
    block
}

fn put(block: &mut Block, at: usize, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    block[at..at + text.len()].copy_from_slice(text);
}

/// Writes the checksum.
fn seal(mut block: Block) -> Block {
    put(&mut block, 148, "        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 "));
    block
}

fn header(typeflag: u8, name: &str, size: u64) -> Block {
    seal(plain(typeflag, name, size))
}

/// Offsets in a block, and what to write there.
type Edits<'a> = &'a [(usize, &'a [u8])];

/// A header block with fields of one's own, in the order of writing.
fn edited(typeflag: u8, size: u64, edits: Edits<'_>) -> Block {
    let mut block = plain(typeflag, "name", size);
    for &(at, text) in edits {
        put(&mut block, at, text);
    }
    seal(block)
}

/// The magic of GNU headers.
const GNU: (usize, &[u8]) = (257, b"ustar  \0");

/// A header with a payload.
fn with_payload(typeflag: u8, name: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(typeflag, name, payload.len() as u64).to_vec();
    bytes.extend(padded(payload));
    bytes
}

fn padded(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    bytes.resize(payload.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (keyword, value) in records {
        let rest = keyword.len() + value.len() + 3;
        let length = (1..).find(|n| n - n.to_string().len() == rest).unwrap();
        payload.extend(format!("{length} {keyword}=").as_bytes());
        payload.extend_from_slice(value);
        payload.push(b'\n');
    }
    payload
}

fn pax(typeflag: u8, pairs: &[(&str, &[u8])]) -> Vec<u8> {
    with_payload(typeflag, "pax", &records(pairs))
}

fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<TarEntry>, Result<(), TarError>) {
    let mut entries = Vec::new();
    let mut parser = TarParser::new();
    let mut push = |bytes| {
        parser.push(bytes, &mut |entry| {
            entries.push(entry);
            Ok(())
        })
    };
    let mut result = Ok(());
    for piece in pieces {
        result = push(piece);
        if result.is_err() {
            break;
        }
    }
    let finish = parser.finish();
    if result.is_err() {
        assert_eq!(finish, result, "errors are final");
    }
    (entries, finish)
}

/// Parses in one push, and checks that other splits give the same.
fn parse(bytes: &[u8]) -> Result<Vec<TarEntry>, TarError> {
    let (entries, result) = feed(std::iter::once(bytes));
    for size in [1, 511, 513] {
        assert_eq!(feed(bytes.chunks(size)), (entries.clone(), result.clone()), "pieces of {size}");
    }
    result.map(|()| entries)
}

fn parse_parts(parts: &[&[u8]]) -> Result<Vec<TarEntry>, TarError> {
    parse(&parts.concat())
}

/// The one entry of an archive made of these parts and the end.
fn one(parts: &[&[u8]]) -> TarEntry {
    let mut bytes = parts.concat();
    bytes.extend([0; 2 * BLOCK]);
    let mut entries = parse(&bytes).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

fn error(parts: &[&[u8]]) -> TarError {
    parse_parts(parts).unwrap_err()
}

fn extent(logical: u64, tar_offset: u64, len: u64) -> Extent {
    Extent { logical, tar_offset, len }
}

#[test]
fn plain_file() {
    let entry = one(&[&header(b'0', "dir/file", 700), &[b'x'; 1024]]);
    let expected = TarEntry {
        path: b"dir/file".to_vec(),
        kind: EntryKind::File,
        link: Vec::new(),
        mode: 0o644,
        uid: 1000,
        gid: 100,
        mtime_sec: 0o14721366125,
        mtime_nsec: 0,
        rdev_major: 0,
        rdev_minor: 0,
        size: 700,
        header_offset: 0,
        data: vec![extent(0, 512, 700)],
        xattrs: Vec::new(),
    };
    assert_eq!(entry, expected);
}

#[test]
fn numbers() {
    let table: [(&[u8], Option<i64>); 22] = [
        (b"0000644\0", Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"\0\0 0644\0", Some(0o644)),
        (b"00000644", Some(0o644)),
        (b"77777777", Some(0o77777777)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"644\0junk", Some(0o644)),
        (b"644 junk", None),
        (b"6 4     ", None),
        (b"0000648\0", None),
        (b"-000644\0", None),
        (b"\x80\0\0\0\0\0\x01\x00", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
        (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
    ];
    for (field, expected) in table {
        let found = header::field_number("field", field).ok();
        assert_eq!(found, expected, "{}", field.escape_ascii());
    }
}

#[test]
fn owners() {
    let table = [
        (0, Some(0)),
        (u32::MAX as i64 - 1, Some(u32::MAX - 1)),
        (u32::MAX as i64, Some(0)),
        (1 << 32, None),
        (-1, Some(0)),
        (-2, Some(u32::MAX - 1)),
        (i32::MIN as i64, Some(1 << 31)),
        (i32::MIN as i64 - 1, None),
    ];
    for (id, expected) in table {
        assert_eq!(header::owner(id), expected, "{id}");
    }
}

#[test]
fn formats_and_prefixes() {
    let table: [(&str, Edits<'_>, Format, &str); 8] = [
        ("V7", &[(257, b"\0\0\0\0\0\0\0\0"), (345, b"no")], Format::V7, "name"),
        ("ustar", &[(345, b"some/dir")], Format::Ustar, "some/dir/name"),
        ("ustar of another version", &[(263, b"  "), (345, b"dir")], Format::Ustar, "dir/name"),
        ("star", &[(345, &[b'p'; 155]), (508, b"tar\0")], Format::Star, ""),
        ("GNU", &[GNU, (345, b"14721366125 14721366125 ")], Format::Gnu, "name"),
        ("GNU, blank times", &[GNU], Format::Gnu, "name"),
        ("GNU of Go 1.7", &[GNU, (345, b"some/dir")], Format::Gnu, "some/dir/name"),
        ("GNU, binary", &[GNU, (345, b"\x01\xff")], Format::Gnu, "name"),
    ];
    for (case, edits, format, path) in table {
        let block = edited(b'0', 0, edits);
        let header = Header::parse(&block).unwrap();
        assert_eq!(header.format, format, "{case}");
        let found = header.path();
        let path = if format == Format::Star { "p".repeat(131) + "/name" } else { path.into() };
        assert_eq!(String::from_utf8_lossy(&found), path, "{case}");
    }
}

#[test]
fn names_fill_their_fields() {
    let mut block = plain(b'2', &"n".repeat(100), 0);
    put(&mut block, 157, "l".repeat(100));
    put(&mut block, 345, "p".repeat(155));
    let entry = one(&[&seal(block)]);
    assert_eq!(entry.path, [[b'p'; 155].as_slice(), b"/", &[b'n'; 100]].concat());
    assert_eq!(entry.link, [b'l'; 100]);
}

#[test]
fn checksums() {
    // A byte past 127 tells the two conventions apart
    let mut block = plain(b'0', "\u{fc}ber", 0);
    let entry = one(&[&seal(block)]);
    assert_eq!(entry.path, "\u{fc}ber".as_bytes());

    put(&mut block, 148, "        ");
    let signed: i32 = block.iter().map(|&byte| i32::from(byte as i8)).sum();
    put(&mut block, 148, format!("{signed:06o}\0 "));
    assert_eq!(one(&[&block]).path, "\u{fc}ber".as_bytes());

    let mut wrong = header(b'0', "file", 0);
    wrong[3] ^= 1;
    let TarError::Checksum { entry, offset: 0, expected, found } = error(&[&wrong]) else {
        panic!("no checksum error")
    };
    assert_eq!((&*entry, expected.abs_diff(found as u32)), ("fild", 1));

    let text = error(&[&[b'a'; BLOCK]]).to_string();
    assert!(text.contains("malformed checksum"), "{text}");
}

#[test]
fn kinds() {
    use EntryKind::*;
    let v7: Edits<'_> = &[(257, b"\0\0\0\0\0\0\0\0")];
    let slash: Edits<'_> = &[(0, b"name/")];
    let v7_slash: Edits<'_> = &[(0, b"name/"), (257, b"\0\0\0\0\0\0\0\0")];
    let table = [
        (b'0', v7, File),
        (b'\0', v7, File),
        (b'\0', v7_slash, Directory),
        (b'\0', slash, Directory),
        (b'0', slash, File),
        (b'7', &[], File),
        (b'1', &[], HardLink),
        (b'2', &[], Symlink),
        (b'3', &[], CharDevice),
        (b'4', &[], BlockDevice),
        (b'5', &[], Directory),
        (b'6', &[], Fifo),
    ];
    for (typeflag, edits, kind) in table {
        // Only files have content, whatever the size says
        let size = if kind == File { 0 } else { 99 };
        let mut edits = edits.to_vec();
        edits.extend([(157, &b"to"[..]), (329, b"0000010\0"), (337, b"0000011\0")]);
        let entry = one(&[&edited(typeflag, size, &edits)]);
        assert_eq!(entry.kind, kind);
        assert_eq!((entry.size, &entry.data[..]), (0, &[][..]), "{kind:?}");
        let link = if matches!(kind, HardLink | Symlink) { &b"to"[..] } else { b"" };
        assert_eq!(entry.link, link, "{kind:?}");
        let device = if matches!(kind, CharDevice | BlockDevice) { (8, 9) } else { (0, 0) };
        assert_eq!((entry.rdev_major, entry.rdev_minor), device, "{kind:?}");
    }
    for found in *b"VMNDXA89\xff" {
        let block = header(found, "odd", 0);
        let expected = TarError::UnsupportedType { entry: "odd".into(), offset: 0, found };
        assert_eq!(error(&[&block]), expected);
    }
}

#[test]
fn a_long_name_can_make_a_directory() {
    let name = "d".repeat(200) + "/";
    let parts = [with_payload(b'L', "././@LongLink", name.as_bytes()), header(0, "d", 5).to_vec()];
    let entry = one(&[&parts.concat()]);
    assert_eq!((entry.kind, entry.size), (EntryKind::Directory, 0));
}

#[test]
fn fields_out_of_range() {
    let table: [(&str, u8, usize, &[u8]); 7] = [
        ("size", b'0', 124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("size", b'0', 124, b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
        ("uid", b'0', 108, b"\x80\0\0\x01\0\0\0\0"),
        ("gid", b'0', 116, b"nobody\0\0"),
        ("mtime", b'0', 136, b"yesterday\0\0\0"),
        ("mode", b'0', 100, b"rw-r--r-"),
        ("devmajor", b'3', 329, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    ];
    for (name, typeflag, at, text) in table {
        let block = edited(typeflag, 0, &[(at, text)]);
        let error = error(&[&header(b'0', "first", 0), &block]);
        assert!(
            matches!(&error, TarError::Number { field, entry, offset: 512, .. }
                if *field == name && &**entry == "name"),
            "{name}: {error:?}"
        );
    }
    // No device, so nobody looks
    assert_eq!(one(&[&edited(b'0', 0, &[(329, b"junkjunk")])]).rdev_major, 0);
}

#[test]
fn the_end() {
    let (file, zeros) = (header(b'0', "file", 0), [0; BLOCK]);
    for tail in [&[][..], &zeros, &[0; 2 * BLOCK], &[0; 20 * BLOCK]] {
        assert_eq!(parse_parts(&[&file, tail]).unwrap().len(), 1, "{} bytes", tail.len());
    }
    assert_eq!(parse(&[]).unwrap(), []);
    // Nothing counts after the end
    assert_eq!(parse_parts(&[&file, &zeros, &zeros, &file, b"junk"]).unwrap().len(), 1);
    let expected = TarError::LoneZeroBlock { offset: 512 };
    assert_eq!(error(&[&file, &zeros, &file]), expected);
    // Dropped by the end, and by the end of the stream, also in the padding
    let name = with_payload(b'L', "long", b"name");
    assert_eq!(parse_parts(&[&name, &zeros, &zeros]).unwrap(), []);
    assert_eq!(parse_parts(&[&name]).unwrap(), []);
    assert_eq!(parse_parts(&[&name[..BLOCK + 5]]).unwrap(), []);
}

#[test]
fn truncation() {
    let whole = [&header(b'0', "file", 700)[..], &padded(&[b'x'; 700])].concat();
    let table = [
        (100, "header block", 0, 512, 100),
        (512, "content", 512, 700, 0),
        (513, "content", 512, 700, 1),
        (1211, "content", 512, 700, 699),
    ];
    for (cut, what, offset, expected, found) in table {
        let entry = if cut < 512 { "".into() } else { "file".into() };
        let error = error(&[&whole[..cut]]);
        assert_eq!(error, TarError::Truncated { what, entry, offset, expected, found });
    }
    // The padding may be missing
    for cut in [1212, 1300, 1536] {
        assert_eq!(parse(&whole[..cut]).unwrap().len(), 1);
    }
    let records = &pax(b'x', &[("path", b"p")])[..515];
    assert!(matches!(
        error(&[records]),
        TarError::Truncated { what: "PAX records", offset: 512, expected: 9, found: 3, .. }
    ));
    let zeros = [0; BLOCK + 1];
    assert!(matches!(error(&[&zeros]), TarError::Truncated { offset: 512, found: 1, .. }));
}

#[test]
fn errors_of_the_callback_end_the_parse() {
    let file = header(b'0', "file\n", 0);
    let mut parser = TarParser::new();
    let mut calls = 0;
    let mut refuse = |entry: TarEntry| {
        calls += 1;
        Err(TarError::refused(&entry, "unwanted"))
    };
    let error = parser.push(&[file, file].concat(), &mut refuse).unwrap_err();
    assert_eq!(parser.push(&file, &mut refuse).unwrap_err(), error);
    assert_eq!(parser.finish().unwrap_err(), error);
    assert_eq!(calls, 1);
    assert_eq!(error.to_string(), r#"tar entry "file\n" at offset 0 refused: unwanted"#);
}

#[test]
fn messages() {
    let cut = &header(b'0', "a\nb", 9)[..];
    let cases = [
        (
            parse(cut),
            r#"tar ends inside the content of "a\nb" at offset 512: expected 9 bytes, found: 0"#,
        ),
        (
            parse(&edited(b'0', 0, &[(108, b"\xffnobody\0")])),
            "malformed uid of tar entry \"name\" at offset 0: expected -2147483648 to 4294967295, \
             found: \"\\xffnobody\\x00\"",
        ),
        (
            parse(&pax(b'x', &[("mtime", b"now")])),
            "malformed PAX mtime of tar entry \"pax\" at offset 0: \
             expected seconds with an optional fraction, found: \"now\"",
        ),
        (
            parse(&header(b'V', "label", 0)),
            "unsupported type of tar entry \"label\" at offset 0: \
             expected one of \"01234567LKSgx\" or NUL, found: 'V'",
        ),
        (
            parse(&header(b'L', "big", 1 << 30)),
            "GNU long name of tar entry \"big\" at offset 0 too large: \
             expected at most 1048576, found: 1073741824",
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    // A hostile name does not fill the log
    let long = with_payload(b'L', "long", &[b'n'; 5000]);
    assert!(error(&[&long, &header(b'M', "x", 0)]).to_string().len() < 600);
}

mod records;
mod sparse;
