//! Errors of the tar parser.
//!
//! The pure parts (header, pax, sparse) return a [`Fault`], which knows nothing of the archive; the
//! state machine adds the entry's name and the offset to make a [`TarError`] of it.

/// Why bytes are not a tar that peel can read. Entries are named lossily and escaped; offsets are
/// those of the uncompressed tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream ends inside an entry.
    #[error(
        "tar ends inside the {what} of {entry:?} at offset {offset}: \
         expected {expected} bytes, found: {found}"
    )]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Name of the entry.
        entry: Box<str>,
        /// Where the part begins.
        offset: u64,
        /// Length of the part in bytes.
        expected: u64,
        /// Bytes of it that are there.
        found: u64,
    },
    /// A header block does not add up: damage, or no tar at all.
    #[error(
        "wrong header checksum of tar entry {entry:?} at offset {offset}: \
         expected {expected}, found: {found}"
    )]
    Checksum {
        /// Name of the entry.
        entry: Box<str>,
        /// Where the header block begins.
        offset: u64,
        /// The sum of the block's bytes.
        expected: u32,
        /// The sum that the block states.
        found: u64,
    },
    /// A field of a header block or a PAX record does not hold a number in range.
    #[error(
        "malformed {field} of tar entry {entry:?} at offset {offset}: \
         expected {expected}, found: {found}"
    )]
    Number {
        /// The field or the PAX keyword.
        field: &'static str,
        /// Name of the entry.
        entry: Box<str>,
        /// Where the header block begins.
        offset: u64,
        /// What may stand there.
        expected: &'static str,
        /// What stands there, escaped.
        found: Box<str>,
    },
    /// A payload of PAX records is not made of `<length> <keyword>=<value>\n`.
    #[error(
        "malformed PAX record for tar entry {entry:?} at offset {offset}: \
         expected {expected}, found: {found}"
    )]
    Record {
        /// Name in the PAX header.
        entry: Box<str>,
        /// Where the PAX header begins.
        offset: u64,
        /// What may stand there.
        expected: &'static str,
        /// What stands there, escaped.
        found: Box<str>,
    },
    /// A sparse map that makes no file.
    #[error(
        "malformed sparse map of tar entry {entry:?} at offset {offset}: \
         expected {expected}, found: {found}"
    )]
    Sparse {
        /// Name of the entry.
        entry: Box<str>,
        /// Where the header block begins.
        offset: u64,
        /// What the map should hold.
        expected: Box<str>,
        /// What it holds.
        found: Box<str>,
    },
    /// Something is larger than peel takes in.
    #[error(
        "{what} of tar entry {entry:?} at offset {offset} too large: \
         expected at most {expected}, found: {found}"
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Name of the entry.
        entry: Box<str>,
        /// Where the header block begins.
        offset: u64,
        /// The limit.
        expected: u64,
        /// The size, as far as it was counted.
        found: u64,
    },
    /// An entry type that has no meaning in a layer.
    #[error(
        "unsupported type of tar entry {entry:?} at offset {offset}: \
         expected one of \"01234567LKSgx\" or NUL, found: {:?}", char::from(*.found)
    )]
    UnsupportedType {
        /// Name of the entry.
        entry: Box<str>,
        /// Where the header block begins.
        offset: u64,
        /// The type flag.
        found: u8,
    },
    /// One block of zeros, where the end of the archive has two.
    #[error(
        "lone zero block in tar at offset {offset}: \
         expected a second one or the end, found: other bytes"
    )]
    LoneZeroBlock {
        /// Where the zero block begins.
        offset: u64,
    },
    /// The caller's callback does not take the entry.
    #[error("tar entry {entry:?} at offset {offset} refused: {reason}")]
    Refused {
        /// Name of the entry.
        entry: Box<str>,
        /// Where the entry's first header begins.
        offset: u64,
        /// Why not.
        reason: Box<str>,
    },
}

impl TarError {
    /// The error with which a callback refuses an entry.
    pub fn refused(entry: &super::TarEntry, reason: impl Into<Box<str>>) -> Self {
        Self::Refused {
            entry: lossy(&entry.path),
            offset: entry.header_offset,
            reason: reason.into(),
        }
    }
}

/// What is wrong, before it is known where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Checksum { expected: u32, found: u64 },
    Number { field: &'static str, expected: &'static str, found: Box<str> },
    Record { expected: &'static str, found: Box<str> },
    Sparse { expected: Box<str>, found: Box<str> },
    TooLarge { what: &'static str, expected: u64, found: u64 },
    UnsupportedType { found: u8 },
}

impl Fault {
    pub(super) fn number(field: &'static str, expected: &'static str, found: &[u8]) -> Self {
        Self::Number { field, expected, found: escaped(found) }
    }

    pub(super) fn record(expected: &'static str, found: &[u8]) -> Self {
        Self::Record { expected, found: escaped(found) }
    }

    pub(super) fn sparse(expected: impl Into<Box<str>>, found: impl ToString) -> Self {
        Self::Sparse { expected: expected.into(), found: found.to_string().into() }
    }

    /// The public error: this fault at an entry.
    pub(super) fn at(self, entry: &[u8], offset: u64) -> TarError {
        let entry = lossy(entry);
        match self {
            Self::Checksum { expected, found } => {
                TarError::Checksum { entry, offset, expected, found }
            }
            Self::Number { field, expected, found } => {
                TarError::Number { field, entry, offset, expected, found }
            }
            Self::Record { expected, found } => TarError::Record { entry, offset, expected, found },
            Self::Sparse { expected, found } => TarError::Sparse { entry, offset, expected, found },
            Self::TooLarge { what, expected, found } => {
                TarError::TooLarge { what, entry, offset, expected, found }
            }
            Self::UnsupportedType { found } => TarError::UnsupportedType { entry, offset, found },
        }
    }
}

/// Longest name or value shown, in bytes: a hostile one must not fill a log.
const SHOWN: usize = 256;

/// A name as text; escaping is left to the message, which shows it with `{:?}`.
pub(super) fn lossy(name: &[u8]) -> Box<str> {
    let shown = &name[..name.len().min(SHOWN)];
    let mut text = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < name.len() {
        text.push('…');
    }
    text.into()
}

fn escaped(value: &[u8]) -> Box<str> {
    let shown = &value[..value.len().min(SHOWN)];
    let rest = if shown.len() < value.len() { "…" } else { "" };
    format!("\"{}\"{rest}", shown.escape_ascii()).into()
}
