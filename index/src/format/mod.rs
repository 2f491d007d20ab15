//! The container that layer indexes and trees share: a header, a table, checksummed sections.
//!
//! ```text
//! +--------------+----------------------+---------+-----+---------+-----+
//! | header 128 B | section table 56 B·n | section | pad | section | ... |
//! +--------------+----------------------+---------+-----+---------+-----+
//! ```
//!
//! `index/FORMAT.md` describes every byte. Architecture invariant: only the header depends on the
//! slot, so a file can be written again under another slot without touching its sections.
//!
//! A file has one canonical layout (sections in order of kind, each at the next multiple of 64,
//! padding zero, nothing after the last), so every byte is covered by a check. Nothing here locks:
//! a file is immutable.

mod heap;
mod names;
mod records;
#[cfg(test)]
mod tests;
mod xattrs;

pub(crate) use heap::Table;
pub(crate) use names::{MAX_NAME, NameHeap, NameId, has_valid_form, is_free_of_separators, slice};
pub(crate) use records::*;
pub(crate) use xattrs::{MAX_XATTR_NAME, MAX_XATTR_VALUE, XattrHeap, XattrSets};

pub use heap::HeapFull;
pub use xattrs::Xattrs;

use std::{
    borrow::Cow,
    fmt, io, panic,
    sync::Arc,
    thread::{self, available_parallelism},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{attr::Bytes, nodeid::Slot};

/// How many bytes of a file [`peek_header`] needs.
pub const HEADER_LEN: usize = size_of::<HeaderRecord>();

/// Version of the file format; another one is refused.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"\x89peel\r\n\x1a";
const ALIGNMENT: u64 = 64;
/// Kinds with this bit may be skipped by a reader that does not know them.
const OPTIONAL: u32 = 1 << 31;
/// More than any version will have; bounds what a hostile header can ask for.
const MAX_SECTIONS: u32 = 64;

/// Length in bytes of a file that two threads check: a thread costs 50 us, a MiB takes 350.
const SPREAD_FROM: usize = 1 << 20;

/// What a file of this format holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// The index of one layer.
    Layer,
    /// The merged directories of a stack of layers.
    Tree,
}

impl FileType {
    fn code(self) -> u32 {
        match self {
            Self::Layer => 1,
            Self::Tree => 2,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Layer),
            2 => Some(Self::Tree),
            _ => None,
        }
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer index",
            Self::Tree => "tree",
        })
    }
}

/// What the first [`HEADER_LEN`] bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Layer index or tree.
    pub kind: FileType,
    /// Format version; always [`FORMAT_VERSION`], others are refused.
    pub version: u32,
    /// Version of the builder that numbered the inodes.
    pub builder: u32,
    /// The slot under which the file is served.
    pub slot: Slot,
    /// Length of the whole file in bytes.
    pub file_len: u64,
    /// BLAKE3 over what inode numbers depend on: equal numbering, equal digest.
    pub numbering: [u8; 32],
}

/// Why bytes are not a valid layer index or tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer or more bytes than the header says, or not even a header.
    #[error("index file has the wrong length: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The file does not begin like one of peel's.
    #[error("not an index file of peel: expected magic {MAGIC:x?}, found {found:x?}")]
    Magic {
        /// The first bytes.
        found: [u8; 8],
    },
    /// A format version that this build does not read.
    #[error("unsupported index format: expected version {expected}, found {found}")]
    Version {
        /// The version this build reads.
        expected: u32,
        /// The version of the file.
        found: u32,
    },
    /// A tree where a layer index was asked for, or the reverse, or neither.
    #[error("wrong kind of index file: expected {expected}, found kind {found}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// The code in the header.
        found: u32,
    },
    /// A slot of 0 or past 24 bits.
    #[error("slot out of range: expected 1 to 16777215, found {found}")]
    Slot {
        /// The number in the header or in a record.
        found: u32,
    },
    /// Bytes do not match their checksum.
    #[error("checksum mismatch in the {part} of an index file")]
    Checksum {
        /// Header, section table, numbering or the name of a section.
        part: &'static str,
    },
    /// The section table breaks the canonical layout.
    #[error("malformed section table: entry {index}: {problem}")]
    Table {
        /// Position in the table.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// A section that every file of this kind has is missing or has the wrong size.
    #[error("section {section} is missing or has the wrong size")]
    Section {
        /// The section's name.
        section: &'static str,
    },
    /// A record holds what no builder writes.
    #[error("bad record {index} in section {section}: {problem}")]
    Record {
        /// The section's name.
        section: &'static str,
        /// Position in the section, or the inode's number in INODES.
        index: u64,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Reads a file's header from its first [`HEADER_LEN`] bytes (more may follow), verifying the
/// header's own checksum. Enough to map slots to files without reading them.
///
/// # Errors
/// When the bytes are too few, the header is damaged, or the version is another one.
pub fn peek_header(first: &[u8]) -> Result<Header, FormatError> {
    parse_header(first).map(|(header, _)| header)
}

fn parse_header(first: &[u8]) -> Result<(Header, HeaderRecord), FormatError> {
    let (record, _) = HeaderRecord::read_from_prefix(first).map_err(|_| FormatError::Length {
        expected: HEADER_LEN as u64,
        found: first.len() as u64,
    })?;
    if record.magic != MAGIC {
        return Err(FormatError::Magic { found: record.magic });
    }
    // Before the checksum: a later version may lay out the rest differently
    if record.version.get() != FORMAT_VERSION {
        let found = record.version.get();
        return Err(FormatError::Version { expected: FORMAT_VERSION, found });
    }
    if record.checksum != header_checksum(&record) {
        return Err(FormatError::Checksum { part: "header" });
    }
    if record.reserved.get() != 0 || record.reserved_tail.get() != 0 {
        return Err(FormatError::Checksum { part: "header" });
    }
    let found = record.kind.get();
    let kind = FileType::from_code(found)
        .ok_or(FormatError::Kind { expected: "layer index or tree", found })?;
    let found = record.slot.get();
    let slot = Slot::new(found).ok_or(FormatError::Slot { found })?;
    let header = Header {
        kind,
        version: record.version.get(),
        builder: record.builder.get(),
        slot,
        file_len: record.file_len.get(),
        numbering: record.numbering,
    };
    Ok((header, record))
}

fn header_checksum(record: &HeaderRecord) -> [u8; 32] {
    let bytes = record.as_bytes();
    *blake3::hash(&bytes[..bytes.len() - 32]).as_bytes()
}

/// The sections of both kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum Section {
    Meta = 1,
    Inodes = 2,
    Dirents = 3,
    Names = 4,
    Targets = 5,
    Xattrs = 6,
    Extents = 7,
    Spans = 8,
    Windows = 9,
    Layers = 10,
}

impl Section {
    /// All sections, in the order in which they stand in a file.
    pub(crate) const ALL: [Self; 10] = [
        Self::Meta,
        Self::Inodes,
        Self::Dirents,
        Self::Names,
        Self::Targets,
        Self::Xattrs,
        Self::Extents,
        Self::Spans,
        Self::Windows,
        Self::Layers,
    ];

    const COUNT: usize = Self::ALL.len() + 1;

    fn from_kind(kind: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|section| *section as u32 == kind)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Meta => "META",
            Self::Inodes => "INODES",
            Self::Dirents => "DIRENTS",
            Self::Names => "NAMES",
            Self::Targets => "TARGETS",
            Self::Xattrs => "XATTRS",
            Self::Extents => "EXTENTS",
            Self::Spans => "SPANS",
            Self::Windows => "WINDOWS",
            Self::Layers => "LAYERS",
        }
    }

    /// Whether the meaning of an inode number hangs on the section's content.
    fn is_numbering(self) -> bool {
        match self {
            Self::Inodes | Self::Dirents | Self::Names | Self::Targets => true,
            Self::Xattrs | Self::Extents | Self::Layers => true,
            Self::Meta | Self::Spans | Self::Windows => false,
        }
    }

    /// A [`FormatError::Record`] of this section.
    pub(crate) fn bad(self, index: u64, problem: &'static str) -> FormatError {
        FormatError::Record { section: self.name(), index, problem }
    }
}

/// The numbering digest: over kind, length and checksum of the sections that matter, in order.
fn numbering_digest(table: &[TableRecord]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("peel 2026 index numbering");
    for entry in table {
        if Section::from_kind(entry.kind.get()).is_some_and(Section::is_numbering) {
            hasher.update(entry.kind.as_bytes());
            hasher.update(entry.len.as_bytes());
            hasher.update(&entry.checksum);
        }
    }
    *hasher.finalize().as_bytes()
}

/// A file but for its slot: sections in order of kind, with checksums.
pub(crate) struct Sealed {
    kind: FileType,
    builder: u32,
    sections: Vec<Vec<u8>>,
    table: Vec<TableRecord>,
    numbering: [u8; 32],
    /// Bytes of the last section that are elsewhere.
    elsewhere: u64,
}

/// What is known of a section of which only the end is here.
pub(crate) struct Begun {
    /// Bytes that are elsewhere.
    pub(crate) elsewhere: u64,
    /// BLAKE3 of the whole section.
    pub(crate) checksum: [u8; 32],
}

impl Sealed {
    /// `sections` in ascending order of kind.
    pub(crate) fn new(kind: FileType, builder: u32, sections: Vec<(Section, Vec<u8>)>) -> Self {
        Self::with_begun(kind, builder, sections, None)
    }

    /// As [`Self::new`]; the last section may only be the end of one.
    pub(crate) fn with_begun(
        kind: FileType,
        builder: u32,
        sections: Vec<(Section, Vec<u8>)>,
        begun: Option<Begun>,
    ) -> Self {
        debug_assert!(sections.is_sorted_by_key(|(section, _)| *section));
        let mut table = Vec::with_capacity(sections.len());
        let mut end = (HEADER_LEN + sections.len() * size_of::<TableRecord>()) as u64;
        for (section, content) in &sections {
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + content.len() as u64;
            table.push(TableRecord {
                kind: (*section as u32).into(),
                reserved: 0.into(),
                offset: offset.into(),
                len: (content.len() as u64).into(),
                checksum: *blake3::hash(content).as_bytes(),
            });
        }
        let elsewhere = begun.as_ref().map_or(0, |begun| begun.elsewhere);
        if let (Some(begun), Some(last)) = (begun, table.last_mut()) {
            last.len = (last.len.get() + elsewhere).into();
            last.checksum = begun.checksum;
        }
        let numbering = numbering_digest(&table);
        let sections = sections.into_iter().map(|(_, content)| content).collect();
        Self { kind, builder, sections, table, numbering, elsewhere }
    }

    pub(crate) fn numbering(&self) -> [u8; 32] {
        self.numbering
    }

    /// Length of the whole file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.table.last().map_or(HEADER_LEN as u64, |last| last.offset.get() + last.len.get())
    }

    /// The whole file, where all of it is here.
    pub(crate) fn encode(&self, slot: Slot) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.file_len() as usize);
        self.parts(slot).for_each(|part| out.extend_from_slice(&part));
        out
    }

    /// Writes the whole file; `elsewhere` gives what is not here.
    pub(crate) fn write_to(
        &self,
        slot: Slot,
        out: &mut impl io::Write,
        elsewhere: impl io::Read,
    ) -> io::Result<()> {
        let mut parts: Vec<_> = self.parts(slot).collect();
        let last = parts.pop();
        parts.iter().try_for_each(|part| out.write_all(part))?;
        let mut elsewhere = elsewhere.take(self.elsewhere);
        if self.elsewhere > 0 && io::copy(&mut elsewhere, out)? < self.elsewhere {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        last.map_or(Ok(()), |last| out.write_all(&last))
    }

    /// The file in pieces, to be written one after the other; what is elsewhere comes before the last.
    pub(crate) fn parts(&self, slot: Slot) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let mut header = HeaderRecord {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            kind: self.kind.code().into(),
            builder: self.builder.into(),
            slot: slot.number().into(),
            sections: (self.table.len() as u32).into(),
            reserved: 0.into(),
            file_len: self.file_len().into(),
            reserved_tail: 0.into(),
            numbering: self.numbering,
            table_checksum: table_checksum(self.table.as_bytes()),
            checksum: [0; 32],
        };
        header.checksum = header_checksum(&header);
        let begin = [header.as_bytes(), self.table.as_bytes()].concat();
        let mut end = begin.len();
        let sections = self.table.iter().zip(&self.sections).flat_map(move |(entry, content)| {
            let offset = entry.offset.get() as usize;
            let padding = &[0; ALIGNMENT as usize][..offset - end];
            end = offset + content.len();
            [Cow::Borrowed(padding), Cow::Borrowed(&content[..])]
        });
        std::iter::once(Cow::Owned(begin)).chain(sections)
    }
}

fn table_checksum(table: &[u8]) -> [u8; 16] {
    let mut checksum = [0; 16];
    checksum.copy_from_slice(&blake3::hash(table).as_bytes()[..16]);
    checksum
}

/// An opened file: checksums verified, sections found.
pub(crate) struct Container {
    bytes: Bytes,
    header: Header,
    ranges: [(usize, usize); Section::COUNT],
}

impl Container {
    /// Checks header, table, layout, padding, the checksum of every section and the heap of names, and
    /// has `check` look at the rest. That happens at the same time where the file is large and a core
    /// may be free, so `check` must not rely on the checksums; a wrong checksum is the error that
    /// comes out.
    pub(crate) fn open<T>(
        bytes: Bytes,
        expected: FileType,
        check: impl FnOnce(Self) -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        let file: &[u8] = (*bytes).as_ref();
        let (header, table) = parse_table(file, expected)?;
        let ranges = check_layout(file, table)?;
        if numbering_digest(table) != header.numbering {
            return Err(FormatError::Checksum { part: "numbering" });
        }
        let container = Self { bytes: Arc::clone(&bytes), header, ranges };
        let (begin, end) = ranges[Section::Names as usize];
        let verify = || {
            verify_checksums(file, table)?;
            let bad = || Section::Names.bad(0, "separator in a name");
            is_free_of_separators(&file[begin..end]).then_some(()).ok_or_else(bad)
        };
        let has_core = || available_parallelism().is_ok_and(|cores| cores.get() > 1);
        thread::scope(|scope| {
            let helper = (file.len() >= SPREAD_FROM && has_core())
                .then(|| thread::Builder::new().spawn_scoped(scope, verify).ok())
                .flatten();
            let Some(helper) = helper else {
                verify()?;
                return check(container);
            };
            let checked = check(container);
            helper.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            checked
        })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// A section's bytes; empty where the file has none.
    pub(crate) fn section(&self, section: Section) -> &[u8] {
        let (start, end) = self.ranges[section as usize];
        (*self.bytes).as_ref().get(start..end).unwrap_or_default()
    }

    /// A section as records; empty where its length is no multiple of theirs.
    pub(crate) fn records<T>(&self, section: Section) -> &[T]
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        <[T]>::ref_from_bytes(self.section(section)).unwrap_or_default()
    }

    /// As [`Self::records`], for the checks at open.
    ///
    /// # Errors
    /// When the length is no multiple of the records'.
    pub(crate) fn checked_records<T>(&self, section: Section) -> Result<&[T], FormatError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        <[T]>::ref_from_bytes(self.section(section))
            .map_err(|_| FormatError::Section { section: section.name() })
    }

    /// A section that is one record.
    ///
    /// # Errors
    /// When the length is not the record's.
    pub(crate) fn single<T>(&self, section: Section) -> Result<&T, FormatError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        T::ref_from_bytes(self.section(section))
            .map_err(|_| FormatError::Section { section: section.name() })
    }
}

/// Header and section table, each with its own checksum verified.
fn parse_table(file: &[u8], expected: FileType) -> Result<(Header, &[TableRecord]), FormatError> {
    let (header, record) = parse_header(file)?;
    if header.kind != expected {
        let expected = if expected == FileType::Layer { "layer index" } else { "tree" };
        return Err(FormatError::Kind { expected, found: header.kind.code() });
    }
    if header.file_len != file.len() as u64 {
        let found = file.len() as u64;
        return Err(FormatError::Length { expected: header.file_len, found });
    }
    let count = record.sections.get();
    if count > MAX_SECTIONS {
        return Err(FormatError::Table { index: count, problem: "too many sections" });
    }
    let table_end = HEADER_LEN + count as usize * size_of::<TableRecord>();
    let table = file
        .get(HEADER_LEN..table_end)
        .ok_or(FormatError::Length { expected: table_end as u64, found: file.len() as u64 })?;
    if table_checksum(table) != record.table_checksum {
        return Err(FormatError::Checksum { part: "section table" });
    }
    let table = <[TableRecord]>::ref_from_bytes(table)
        .map_err(|_| FormatError::Checksum { part: "section table" })?;
    Ok((header, table))
}

/// Where the sections are; checks all of the file that belongs to none.
fn check_layout(
    file: &[u8],
    table: &[TableRecord],
) -> Result<[(usize, usize); Section::COUNT], FormatError> {
    let mut ranges = [(0, 0); Section::COUNT];
    let mut end = (HEADER_LEN + size_of_val(table)) as u64;
    let mut last_kind = 0;
    for (index, entry) in (0..).zip(table) {
        let bad = |problem| FormatError::Table { index, problem };
        let (kind, offset, len) = (entry.kind.get(), entry.offset.get(), entry.len.get());
        if kind <= last_kind {
            return Err(bad("kinds out of order"));
        }
        last_kind = kind;
        if entry.reserved.get() != 0 || offset != end.next_multiple_of(ALIGNMENT) {
            return Err(bad("not at its place"));
        }
        let padding = file.get(end as usize..offset as usize).ok_or(bad("past the end"))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(bad("padding not zero"));
        }
        end = offset.checked_add(len).ok_or(bad("past the end"))?;
        if end > file.len() as u64 {
            return Err(bad("past the end"));
        }
        match Section::from_kind(kind) {
            Some(section) => ranges[section as usize] = (offset as usize, end as usize),
            None if kind & OPTIONAL != 0 => {}
            None => return Err(bad("unknown kind")),
        }
    }
    if end != file.len() as u64 {
        return Err(FormatError::Length { expected: end, found: file.len() as u64 });
    }
    Ok(ranges)
}

/// Checks the checksum of every section of a file whose layout is right.
fn verify_checksums(file: &[u8], table: &[TableRecord]) -> Result<(), FormatError> {
    for (index, entry) in (0..).zip(table) {
        let bad = FormatError::Table { index, problem: "past the end" };
        let content = slice(file, entry.offset.get(), entry.len.get()).ok_or(bad)?;
        if *blake3::hash(content).as_bytes() != entry.checksum {
            let section = Section::from_kind(entry.kind.get());
            return Err(FormatError::Checksum { part: section.map_or("section", Section::name) });
        }
    }
    Ok(())
}
