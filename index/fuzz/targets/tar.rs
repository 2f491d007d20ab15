//! `TarParser` over any bytes.
//!
//! Invariants: no panic; every split of the pushes gives the same entries and the same error; memory
//! in proportion to the input; entries keep what their documentation promises. The first byte says
//! how to split and, by its highest bit, whether checksums are left as they are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peel_index::{TarEntry, TarError, TarParser};
use peel_index_fuzz::{input::split, memory, testing::fix_checksums};

type Outcome = (Vec<TarEntry>, Result<(), TarError>);

fn parse<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    on_entry: &mut dyn FnMut(TarEntry) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let mut parser = TarParser::new();
    for piece in pieces {
        parser.push(piece, on_entry)?;
    }
    parser.finish()
}

fn entries<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut entries = Vec::new();
    let result = parse(pieces, &mut |entry| {
        entries.push(entry);
        Ok(())
    });
    (entries, result)
}

fn check(entry: &TarEntry, tar_len: u64) {
    assert!(entry.mode <= 0o7777 && entry.mtime_nsec < 1_000_000_000, "{entry:?}");
    assert!(entry.size <= i64::MAX as u64 && entry.header_offset < tar_len, "{entry:?}");
    let mut end = 0;
    for extent in &entry.data {
        assert!(extent.len > 0 && extent.logical >= end, "{entry:?}");
        assert!(extent.tar_offset > entry.header_offset, "{entry:?}");
        end = extent.logical.checked_add(extent.len).expect("no overflow");
        assert!(extent.tar_offset.checked_add(extent.len).is_some(), "{entry:?}");
    }
    assert!(end <= entry.size, "{entry:?}");
}

fuzz_target!(|data: &[u8]| {
    let Some((&way, tar)) = data.split_first() else { return };
    let mut tar = tar.to_vec();
    if way & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    // A run of a sparse map is 24 bytes for 4 of text, and vectors double
    let limit = (64 << 10) + 64 * tar.len();
    let whole = memory::bounded(limit, || {
        parse([&tar[..]].into_iter(), &mut |entry| {
            check(&entry, tar.len() as u64);
            Ok(())
        })
    });
    let (first, result) = entries([&tar[..]].into_iter());
    assert_eq!(whole, result);
    for way in [way, 0] {
        let (again, error) = entries(split(&tar, way));
        assert_eq!((&first, &result), (&again, &error), "another split");
    }
});
