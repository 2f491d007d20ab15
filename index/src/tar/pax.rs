//! PAX records: the payload of extended (`x`) and global (`g`) headers.
//!
//! ```text
//! "<length> <keyword>=<value>\n" …      length in decimal, of the whole record
//! ```
//!
//! Only the length ends a record: values may hold newlines, `=` and NUL.

use super::{error::Fault, header};

/// Seconds, rounded down, and nanoseconds on top.
pub(super) type Time = (i64, u32);

/// The records of one payload that mean something to peel. An empty value is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    /// At most `i64::MAX`.
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Box<SparseRecords>>,
}

/// The `GNU.sparse.*` records, not yet looked into: what they mean depends on the version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) realsize: Vec<u8>,
    pub(super) numblocks: Vec<u8>,
    /// `offset,length,…`; version 0.0's pairs of records are joined to the same.
    pub(super) map: Vec<u8>,
}

impl Records {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, Fault> {
        let mut records = Self::default();
        // Numbers seen in version 0.0's pairs; they have to alternate
        let mut pairs = 0_usize;
        let mut rest = payload;
        while !rest.is_empty() {
            let record = split_record(rest)?;
            records.set(record.keyword, record.value, &mut pairs)?;
            rest = record.rest;
        }
        Ok(records)
    }

    fn set(&mut self, keyword: &[u8], value: &[u8], pairs: &mut usize) -> Result<(), Fault> {
        match keyword {
            b"path" => self.path = parsed(value, text)?,
            b"linkpath" => self.linkpath = parsed(value, text)?,
            b"size" => self.size = parsed(value, |value| size("PAX size", value))?,
            b"uid" => self.uid = parsed(value, |value| owner("PAX uid", value))?,
            b"gid" => self.gid = parsed(value, |value| owner("PAX gid", value))?,
            b"mtime" => self.mtime = parsed(value, time)?,
            _ => {
                if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
                    self.add_xattr(name.to_vec(), value.to_vec());
                } else if let Some(name) = keyword.strip_prefix(b"LIBARCHIVE.xattr.") {
                    if let (Some(name), Some(value)) = (url_decode(name), base64_decode(value)) {
                        self.add_xattr(name, value);
                    }
                } else if let Some(keyword) = keyword.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().set(keyword, value, pairs)?;
                }
            }
        }
        Ok(())
    }

    /// Drops what no file can carry: a name that is empty or holds a NUL.
    fn add_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        if !name.is_empty() && !name.contains(&0) {
            self.xattrs.push((name, value));
        }
    }
}

/// The path that a global header's records give the header itself: all that containerd, which takes
/// it for an entry that makes nothing, looks at.
pub(super) fn global_path(payload: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    let mut path = None;
    let mut rest = payload;
    while !rest.is_empty() {
        let record = split_record(rest)?;
        if record.keyword == b"path" {
            path = parsed(record.value, text)?;
        }
        rest = record.rest;
    }
    Ok(path)
}

impl SparseRecords {
    fn set(&mut self, keyword: &[u8], value: &[u8], pairs: &mut usize) -> Result<(), Fault> {
        let field = match keyword {
            b"major" => &mut self.major,
            b"minor" => &mut self.minor,
            b"name" => &mut self.name,
            b"size" => &mut self.size,
            b"realsize" => &mut self.realsize,
            b"numblocks" => &mut self.numblocks,
            b"map" => &mut self.map,
            b"offset" | b"numbytes" => return self.add_to_map(keyword, value, pairs),
            _ => return Ok(()),
        };
        field.clear();
        field.extend_from_slice(value);
        Ok(())
    }

    fn add_to_map(&mut self, keyword: &[u8], value: &[u8], pairs: &mut usize) -> Result<(), Fault> {
        let expected: &[u8] = if pairs.is_multiple_of(2) { b"offset" } else { b"numbytes" };
        if keyword != expected || value.contains(&b',') {
            let expected = "GNU.sparse.offset and GNU.sparse.numbytes in turn";
            return Err(Fault::record(expected, &[keyword, b"=", value].concat()));
        }
        if *pairs == 0 {
            self.map.clear();
        } else {
            self.map.push(b',');
        }
        *pairs += 1;
        self.map.extend_from_slice(value);
        Ok(())
    }
}

/// The first record of a payload, and what stands behind it.
struct Record<'a> {
    keyword: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

fn split_record(payload: &[u8]) -> Result<Record<'_>, Fault> {
    let fault = |expected| Fault::record(expected, payload);
    let space = payload
        .iter()
        .take(MAX_DIGITS + 1)
        .position(|&byte| byte == b' ')
        .ok_or_else(|| fault("a length and a space"))?;
    let length = decimal(&payload[..space])
        .and_then(|length| usize::try_from(length).ok())
        .filter(|&length| length <= payload.len() && length > space + 1)
        .ok_or_else(|| fault("a length within the header's payload"))?;
    let (record, rest) = payload.split_at(length);
    let record = record[space + 1..]
        .strip_suffix(b"\n")
        .ok_or_else(|| fault("a newline where the length ends the record"))?;
    let equals = record
        .iter()
        .position(|&byte| byte == b'=')
        .ok_or_else(|| fault("a keyword, an equals sign and a value"))?;
    let (keyword, value) = (&record[..equals], &record[equals + 1..]);
    if keyword.contains(&0) {
        return Err(fault("a keyword without NUL"));
    }
    Ok(Record { keyword, value, rest })
}

fn parsed<T>(
    value: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    if value.is_empty() { Ok(None) } else { parse(value).map(Some) }
}

fn text(value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.contains(&0) {
        return Err(Fault::record("a path without NUL", value));
    }
    Ok(value.to_vec())
}

/// A size in bytes, at most `i64::MAX`.
pub(super) fn size(field: &'static str, value: &[u8]) -> Result<u64, Fault> {
    decimal(value).ok_or_else(|| Fault::number(field, "0 to 9223372036854775807", value))
}

fn owner(field: &'static str, value: &[u8]) -> Result<u32, Fault> {
    signed(value).and_then(header::owner).ok_or_else(|| Fault::number(field, header::OWNER, value))
}

/// `[-]seconds[.fraction]`; digits past the ninth of the fraction are dropped, as Go does.
fn time(value: &[u8]) -> Result<Time, Fault> {
    let parse = || {
        let dot = value.iter().position(|&byte| byte == b'.').unwrap_or(value.len());
        let seconds = signed(&value[..dot])?;
        let fraction = value.get(dot + 1..).unwrap_or_default();
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let nanoseconds = (0..9).fold(0, |sum, place| {
            sum * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'))
        });
        if value[0] == b'-' && nanoseconds > 0 {
            return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
        }
        Some((seconds, nanoseconds))
    };
    parse().ok_or_else(|| Fault::number("PAX mtime", "seconds with an optional fraction", value))
}

/// More digits than any 64-bit number has, and few enough to end a search early.
const MAX_DIGITS: usize = 20;

/// Decimal digits, a number of at most `i64::MAX`.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > MAX_DIGITS {
        return None;
    }
    let number = value.iter().try_fold(0_i64, |number, &byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })?;
    Some(number.unsigned_abs())
}

fn signed(value: &[u8]) -> Option<i64> {
    match value {
        [b'-', digits @ ..] => decimal(digits).map(|number| -(number as i64)),
        [b'+', digits @ ..] | digits => decimal(digits).map(|number| number as i64),
    }
}

/// `%XX` to bytes; `None` where a percent sign is not followed by two hex digits.
fn url_decode(name: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name.iter().copied();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => digit(rest.next()?)? << 4 | digit(rest.next()?)?,
            _ => byte,
        });
    }
    Some(decoded)
}

/// RFC 4648 base64; libarchive leaves out the padding.
fn base64_decode(value: &[u8]) -> Option<Vec<u8>> {
    let end = value.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let mut decoded = Vec::with_capacity(end / 4 * 3 + 2);
    for group in value[..end].chunks(4) {
        let mut bits = 0_u32;
        for &byte in group {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        if group.len() == 1 {
            return None;
        }
        bits <<= 6 * (4 - group.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table: [(&str, Option<Time>); 16] = [
            ("0", Some((0, 0))),
            ("1", Some((1, 0))),
            ("+7", Some((7, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.0000000009", Some((1, 0))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-0", Some((0, 0))),
            ("-9223372036854775807.5", Some((i64::MIN, 500_000_000))),
            ("9223372036854775808", None),
            (".5", None),
            ("1.5x", None),
            ("--1", None),
        ];
        for (value, expected) in table {
            assert_eq!(time(value.as_bytes()).ok(), expected, "{value}");
        }
    }

    #[test]
    fn base64_and_url() {
        let table: [(&str, Option<&[u8]>); 8] = [
            ("", Some(b"")),
            ("Zg", Some(b"f")),
            ("Zg==", Some(b"f")),
            ("Zm8", Some(b"fo")),
            ("Zm9vYg", Some(b"foob")),
            ("+/8A", Some(b"\xfb\xff\x00")),
            ("Z", None),
            ("Zm 9", None),
        ];
        for (value, expected) in table {
            assert_eq!(base64_decode(value.as_bytes()).as_deref(), expected, "{value}");
        }
        assert_eq!(url_decode(b"user.a%3Db%25").as_deref(), Some(&b"user.a=b%"[..]));
        assert_eq!(url_decode(b"user.%3"), None);
        assert_eq!(url_decode(b"user.%zz"), None);
    }

    #[test]
    fn malformed_records() {
        let table: [&[u8]; 10] = [
            b"path=x\n",
            b"11 path=x",
            b"99 path=x\n",
            b"0 path=x\n",
            b"1 path=x\n",
            b"2 \n",
            b"5 ab\n",
            b"10 path=x\nx",
            b"0000000000000000000000010 path=x\n",
            b"11 pa\0th=x\n\0\0\0",
        ];
        for payload in table {
            let fault = Records::parse(payload).unwrap_err();
            assert!(matches!(fault, Fault::Record { .. }), "{}: {fault:?}", payload.escape_ascii());
        }
    }
}
