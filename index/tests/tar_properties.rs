//! Properties of the tar parser on archives made at random, cut, and damaged.

use peel_index::tar::{EntryKind, TarEntry, TarError, TarParser};
use proptest::prelude::*;

/// One entry of an archive made at random.
#[derive(Clone, Debug)]
struct Item {
    path: Vec<u8>,
    typeflag: u8,
    size: u16,
    records: Vec<(String, Vec<u8>)>,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Plain,
    /// Runs of 512 bytes with holes of the same length between.
    OldGnu(u8),
    Text(u8),
}

fn item() -> impl Strategy<Value = Item> {
    // Never ending in a slash, with which type NUL makes a directory, which has no content
    let path = prop::collection::vec(1_u8.., 0..300).prop_map(|mut path| {
        path.push(b'x');
        path
    });
    let typeflag = prop::sample::select(b"0125\x0067".to_vec());
    let record = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|value| ("SCHILY.xattr.user.x".to_owned(), value)),
        any::<i32>().prop_map(|time| ("mtime".to_owned(), format!("{time}.25").into_bytes())),
        any::<u32>().prop_map(|uid| ("uid".to_owned(), uid.to_string().into_bytes())),
        "([ -~]{0,90}x)?".prop_map(|path| ("path".to_owned(), path.into_bytes())),
    ];
    let records = prop::collection::vec(record, 0..4);
    let shape = prop_oneof![
        3 => Just(Shape::Plain),
        1 => any::<u8>().prop_map(Shape::OldGnu),
        1 => any::<u8>().prop_map(Shape::Text),
    ];
    (path, typeflag, 0..3000_u16, records, shape).prop_map(
        |(path, typeflag, size, records, shape)| Item { path, typeflag, size, records, shape },
    )
}

fn archive() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(item(), 0..6), 0..4_usize).prop_map(|(items, end)| {
        let mut bytes: Vec<u8> = items.iter().flat_map(encode).collect();
        // Nothing, one block, both, and more than that
        bytes.resize(bytes.len() + end * 512, 0);
        bytes
    })
}

fn encode(item: &Item) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut records = item.records.clone();
    if let Shape::Text(runs) = item.shape {
        let size = (u32::from(runs) * 1024).to_string().into_bytes();
        let sparse = [("major", b"1".to_vec()), ("minor", b"0".to_vec()), ("realsize", size)];
        records.extend(sparse.map(|(name, value)| (format!("GNU.sparse.{name}"), value)));
    }
    if item.path.len() > 100 {
        bytes.extend(block(b'L', b"long", item.path.len(), |_| {}));
        bytes.extend(padded(&item.path));
    }
    if !records.is_empty() {
        let payload: Vec<u8> = records.iter().flat_map(record).collect();
        bytes.extend(block(b'x', b"pax", payload.len(), |_| {}));
        bytes.extend(padded(&payload));
    }
    match item.shape {
        Shape::Plain => {
            bytes.extend(block(item.typeflag, &item.path, item.size.into(), |_| {}));
            if matches!(item.typeflag, b'0' | b'7' | 0) {
                bytes.extend(padded(&vec![b'c'; item.size.into()]));
            }
        }
        Shape::OldGnu(runs) => {
            let runs = usize::from(runs);
            let slots: Vec<u8> = (0..runs).flat_map(|index| slot(index * 1024, 512)).collect();
            let (first, rest) = slots.split_at(slots.len().min(96));
            bytes.extend(block(b'S', &item.path, runs * 512, |block| {
                block[257..265].copy_from_slice(b"ustar  \0");
                block[345..386].fill(0);
                block[386..386 + first.len()].copy_from_slice(first);
                block[482] = u8::from(!rest.is_empty());
                block[483..495].copy_from_slice(format!("{:011o} ", runs * 1024).as_bytes());
            }));
            let mut chunks = rest.chunks(504).peekable();
            while let Some(chunk) = chunks.next() {
                let mut extension = padded(chunk);
                extension[504] = u8::from(chunks.peek().is_some());
                bytes.extend(extension);
            }
            bytes.resize(bytes.len() + runs * 512, b'c');
        }
        Shape::Text(runs) => {
            let lines = (0..u32::from(runs)).map(|index| format!("{}\n512\n", index * 1024));
            let map = format!("{runs}\n{}", lines.collect::<String>());
            let mut body = padded(map.as_bytes());
            body.resize(body.len() + usize::from(runs) * 512, b'c');
            bytes.extend(block(b'0', &item.path, body.len(), |_| {}));
            bytes.extend(body);
        }
    }
    bytes
}

fn slot(offset: usize, len: usize) -> Vec<u8> {
    format!("{offset:011o}\0{len:011o}\0").into_bytes()
}

fn record((keyword, value): &(String, Vec<u8>)) -> Vec<u8> {
    let rest = keyword.len() + value.len() + 3;
    let length = (rest..).find(|n| n - n.to_string().len() == rest).unwrap();
    [format!("{length} {keyword}=").as_bytes(), value, b"\n"].concat()
}

fn padded(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    bytes.resize(payload.len().next_multiple_of(512), 0);
    bytes
}

fn block(typeflag: u8, name: &[u8], size: usize, edit: impl FnOnce(&mut [u8; 512])) -> [u8; 512] {
    let mut block = [0; 512];
    let name = &name[..name.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<TarEntry>, Result<(), TarError>) {
    let mut entries = Vec::new();
    let mut parser = TarParser::new();
    for piece in pieces {
        let result = parser.push(piece, &mut |entry| {
            entries.push(entry);
            Ok(())
        });
        if result.is_err() {
            break;
        }
    }
    let result = parser.finish();
    (entries, result)
}

/// What holds for every entry, of a damaged archive too.
fn check(entries: &[TarEntry]) {
    for entry in entries {
        assert!(entry.mode <= 0o7777 && entry.mtime_nsec < 1_000_000_000);
        assert!(entry.size <= i64::MAX as u64);
        assert!(entry.kind == EntryKind::File || (entry.size == 0 && entry.data.is_empty()));
        let (mut logical, mut stored) = (0, entry.header_offset + 512);
        for extent in &entry.data {
            assert!(extent.len > 0 && extent.logical >= logical && extent.tar_offset >= stored);
            logical = extent.logical.checked_add(extent.len).unwrap();
            stored = extent.tar_offset.checked_add(extent.len).unwrap();
        }
        assert!(logical <= entry.size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same(
        archive in archive(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let whole = parse([&archive[..]]);
        prop_assert_eq!(&whole.1, &Ok(()));
        check(&whole.0);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(archive.len() + 1)).collect();
        cuts.extend([0, archive.len()]);
        cuts.sort();
        let pieces = cuts.windows(2).map(|pair| &archive[pair[0]..pair[1]]);
        prop_assert_eq!(&whole, &parse(pieces));
        prop_assert_eq!(whole, parse(archive.chunks(1)));
    }

    #[test]
    fn damage_never_panics(
        mut archive in archive(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        mend in any::<bool>(),
    ) {
        prop_assume!(!archive.is_empty());
        for (at, byte) in damage {
            // Mostly into headers: mend their checksum, or hardly any damage would get past it
            let at = at.index(archive.len());
            archive[at] = byte;
            let block = at / 512 * 512;
            if mend && archive.get(block + 257..block + 262) == Some(b"ustar") {
                seal(&mut archive[block..block + 512]);
            }
        }
        let whole = parse([&archive[..]]);
        check(&whole.0);
        prop_assert_eq!(whole, parse(archive.chunks(7)));
    }

    #[test]
    fn noise_never_panics(
        mut noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 512), 1..4),
        typeflag in prop::sample::select(b"0xgLKS3".to_vec()),
    ) {
        for block in &mut noise {
            // Blank numbers, so that the rest is looked at
            block[100..148].fill(0);
            block[156] = typeflag;
            seal(block);
        }
        let noise = noise.concat();
        let whole = parse([&noise[..]]);
        check(&whole.0);
        prop_assert_eq!(whole, parse(noise.chunks(100)));
    }
}

#[test]
fn cut_anywhere() {
    let item = |typeflag, size, records: &[(&str, &[u8])], shape| Item {
        path: vec![b'p'; 150],
        typeflag,
        size,
        records: records.iter().map(|(key, value)| (key.to_string(), value.to_vec())).collect(),
        shape,
    };
    let items = [
        item(b'0', 700, &[("mtime", b"1.5")], Shape::Plain),
        item(b'0', 0, &[], Shape::OldGnu(30)),
        item(b'0', 0, &[], Shape::Text(60)),
        item(b'5', 0, &[], Shape::Plain),
    ];
    let ends: Vec<usize> = items
        .iter()
        .scan(0, |end, item| {
            *end += encode(item).len();
            Some(*end)
        })
        .collect();
    let archive: Vec<u8> = items.iter().flat_map(encode).collect();
    let (all, result) = parse([&archive[..]]);
    assert_eq!((all.len(), result), (4, Ok(())));
    let starts = [0].iter().chain(&ends);
    let dropped: Vec<_> = starts.flat_map(|start| after_payloads(&archive, *start)).collect();
    for cut in 0..archive.len() {
        let (entries, result) = parse([&archive[..cut]]);
        assert_eq!(entries, all[..entries.len()], "cut at {cut}");
        // Padding may be missing: the first item ends in 324 bytes of it. So may be the entry that
        // records and long names are about
        let complete = cut == 0
            || ends.contains(&cut)
            || (ends[0] - 324..ends[0]).contains(&cut)
            || dropped.iter().any(|range| range.contains(&cut));
        match result {
            Ok(()) => assert!(complete, "cut at {cut}"),
            Err(TarError::Truncated { offset, expected, found, .. }) => {
                assert!(!complete, "cut at {cut}");
                assert!(found < expected && offset + found <= cut as u64, "cut at {cut}");
            }
            Err(error) => panic!("cut at {cut}: {error}"),
        }
    }
}

/// Where an archive may end among the records and long names at an offset: behind each payload.
fn after_payloads(archive: &[u8], mut at: usize) -> Vec<std::ops::RangeInclusive<usize>> {
    let mut found = Vec::new();
    while let Some(block) = archive.get(at..at + 512)
        && matches!(block[156], b'L' | b'x')
    {
        let size = str::from_utf8(&block[124..135]).expect("octal digits");
        let end = at + 512 + usize::from_str_radix(size, 8).expect("octal digits");
        at = end.next_multiple_of(512);
        found.push(end..=at);
    }
    found
}
