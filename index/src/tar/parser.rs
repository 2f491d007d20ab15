//! The state machine: which part of the archive the next byte belongs to.
//!
//! ```text
//!            ┌──────────── x g L K ────────────┐
//!            ▼                                 │
//!  ┌──▶ Header ──▶ Payload ──▶ (records, name) ┘
//!  │      ├──── S with more runs ──▶ Extension ──┐ entry
//!  │      ├──── PAX sparse 1.0 ────▶ Map ────────┤
//!  │      ├──── other types, entry ──────────────▼
//!  └──────┼──────────────────────────────── Content
//!         └──── zeros ──▶ Zero ──── zeros ──▶ End
//! ```
//!
//! Bytes are kept only for a block that a push cut through, and for payloads.

use super::{
    Extent, MAX_PAYLOAD, TarEntry, TarError,
    entry::Pending,
    error::{Fault, lossy},
    header::{self, BLOCK, Block, Header},
    pax::{self, Records},
    sparse::{Layout, Map, TextMap},
};

/// Reads a tar that comes in pieces, and says where everything is.
///
/// Memory is bounded whatever the input holds; see the module's documentation.
#[derive(Debug)]
pub struct TarParser {
    state: State,
    /// Offset in the tar of the next byte.
    offset: u64,
    /// A block of which only `filled` bytes have come in.
    partial: Block,
    filled: usize,
    /// Name of the entry being read, for errors.
    name: Vec<u8>,
    /// Where its current header block begins, for errors.
    block_offset: u64,
    /// What came before the next entry and belongs to it.
    pending: Pending,
    /// Name of the global header whose payload is being read.
    global: Vec<u8>,
    /// The error that ended the parse: every later call gives it again.
    failed: Option<TarError>,
}

type OnEntry<'a> = &'a mut dyn FnMut(TarEntry) -> Result<(), TarError>;

#[derive(Debug)]
enum State {
    /// A header block comes.
    Header,
    /// A second block of zeros comes, or else something is wrong.
    Zero,
    /// Payload of a header that is about other entries.
    Payload { about: About, total: u64, bytes: Vec<u8> },
    /// An extension block of an old GNU sparse file comes.
    Extension(Box<Sparse>),
    /// The text of a 1.0 sparse map comes, then the content; `Sparse::stored` has both.
    Text(Box<TarEntry>, Box<TextMap>, u64),
    /// Bytes to skip: those of a content or payload, then those that pad them.
    Skip { what: &'static str, begin: u64, content: u64, padding: u64 },
    /// The archive has ended.
    End,
}

/// An old GNU sparse file whose map is not complete.
#[derive(Debug)]
struct Sparse {
    entry: TarEntry,
    map: Map,
    /// Size of the content.
    stored: u64,
}

/// What a payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    NextEntry,
    AllEntries,
    LongName,
    LongLink,
}

impl About {
    fn of(typeflag: u8) -> Option<Self> {
        match typeflag {
            b'x' => Some(Self::NextEntry),
            b'g' => Some(Self::AllEntries),
            b'L' => Some(Self::LongName),
            b'K' => Some(Self::LongLink),
            _ => None,
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::NextEntry => "PAX records",
            Self::AllEntries => "global PAX records",
            Self::LongName => "GNU long name",
            Self::LongLink => "GNU long link target",
        }
    }
}

impl Default for TarParser {
    fn default() -> Self {
        Self::new()
    }
}

impl TarParser {
    /// A parser at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            offset: 0,
            partial: [0; BLOCK],
            filled: 0,
            name: Vec::new(),
            block_offset: 0,
            pending: Pending::default(),
            global: Vec::new(),
            failed: None,
        }
    }

    /// Feeds the next bytes of the uncompressed tar, split at any place. `on_entry` gets each entry
    /// once its headers and, of a sparse file, its map are complete, before its content has come.
    ///
    /// # Errors
    ///
    /// What is wrong with the archive, or what `on_entry` returned. An error is final: the parser
    /// returns it again from then on.
    pub fn push(
        &mut self,
        bytes: &[u8],
        on_entry: &mut dyn FnMut(TarEntry) -> Result<(), TarError>,
    ) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance(bytes, on_entry);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Tells that the stream has ended.
    ///
    /// # Errors
    ///
    /// [`TarError::Truncated`] where that is inside an entry; missing end-of-archive blocks are not
    /// an error. The error of an earlier [`push`](Self::push), if there was one.
    pub fn finish(&mut self) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = match self.missing() {
            Some((what, offset, expected, found)) => {
                Err(TarError::Truncated { what, entry: lossy(&self.name), offset, expected, found })
            }
            None => Ok(()),
        };
        self.failed = result.clone().err();
        result
    }

    /// The part that the end of the stream would cut off: what, where, its length, and how much of
    /// it there is.
    fn missing(&self) -> Option<(&'static str, u64, u64, u64)> {
        let block = |what| {
            let found = self.filled as u64;
            Some((what, self.offset - found, BLOCK as u64, found))
        };
        match &self.state {
            State::Header | State::Zero if self.filled == 0 => None,
            State::Header | State::Zero => block("header block"),
            State::Extension(_) => block("sparse map"),
            State::Text(_, text, stored) => {
                Some(("sparse map", self.offset - text.read, *stored, text.read))
            }
            State::Payload { about, total, bytes } => {
                let found = bytes.len() as u64;
                Some((about.noun(), self.offset - found, *total, found))
            }
            State::Skip { content: 0, .. } | State::End => None,
            State::Skip { what, begin, content, .. } => {
                let found = self.offset - begin;
                Some((*what, *begin, found.saturating_add(*content), found))
            }
        }
    }

    fn advance(&mut self, mut input: &[u8], on_entry: OnEntry<'_>) -> Result<(), TarError> {
        while !input.is_empty() {
            match &mut self.state {
                State::Skip { content, padding, .. } => {
                    let skipped = take(content, input.len());
                    let skipped = skipped + take(padding, input.len() - skipped);
                    if *content == 0 && *padding == 0 {
                        self.state = State::Header;
                    }
                    self.consume(&mut input, skipped);
                }
                State::Payload { total, bytes, .. } => {
                    let missing = *total - bytes.len() as u64;
                    let taken = missing.min(input.len() as u64) as usize;
                    bytes.extend_from_slice(&input[..taken]);
                    let complete = bytes.len() as u64 == *total;
                    self.consume(&mut input, taken);
                    if complete {
                        self.end_payload(on_entry)?;
                    }
                }
                State::Text(..) => self.text(&mut input, on_entry)?,
                State::End => {
                    let rest = input.len();
                    self.consume(&mut input, rest);
                }
                State::Header | State::Zero | State::Extension(_) => {
                    let copy;
                    let block = match input.first_chunk() {
                        Some(block) if self.filled == 0 => {
                            self.consume(&mut input, BLOCK);
                            block
                        }
                        _ => {
                            let taken = input.len().min(BLOCK - self.filled);
                            let (from, to) = (self.filled, self.filled + taken);
                            self.partial[from..to].copy_from_slice(&input[..taken]);
                            self.filled = to;
                            self.consume(&mut input, taken);
                            if self.filled < BLOCK {
                                return Ok(());
                            }
                            self.filled = 0;
                            copy = self.partial;
                            &copy
                        }
                    };
                    self.block(block, on_entry)?;
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self, input: &mut &[u8], taken: usize) {
        *input = &input[taken..];
        self.offset += taken as u64;
    }

    fn block(&mut self, block: &Block, on_entry: OnEntry<'_>) -> Result<(), TarError> {
        self.state = match std::mem::replace(&mut self.state, State::Header) {
            State::Extension(sparse) => {
                return self.runs(*sparse, header::extension_runs(block), on_entry);
            }
            state => state,
        };
        let zeros = *block == [0; BLOCK];
        match (&self.state, zeros) {
            (State::Zero, true) => self.state = State::End,
            (State::Zero, false) => {
                let offset = self.offset - 2 * BLOCK as u64;
                return Err(TarError::LoneZeroBlock { offset });
            }
            (_, true) => {
                self.state = State::Zero;
                // As in Go, records that no entry follows are dropped
                self.pending = Pending::default();
            }
            (_, false) => return self.header(block, on_entry),
        }
        Ok(())
    }

    fn header(&mut self, block: &Block, on_entry: OnEntry<'_>) -> Result<(), TarError> {
        self.block_offset = self.offset - BLOCK as u64;
        self.name.clear();
        self.name.extend_from_slice(header::name(block));
        let header = Header::parse(block).map_err(|fault| self.fault(fault))?;
        let Some(about) = About::of(header.typeflag) else {
            return self.entry(&header, on_entry);
        };
        if header.size > MAX_PAYLOAD {
            let (what, expected, found) = (about.noun(), MAX_PAYLOAD, header.size);
            return Err(self.fault(Fault::TooLarge { what, expected, found }));
        }
        if about == About::AllEntries {
            self.global = header.path();
        } else {
            self.pending.begin.get_or_insert(self.block_offset);
        }
        self.state = State::Payload { about, total: header.size, bytes: Vec::new() };
        if header.size == 0 {
            self.end_payload(on_entry)?;
        }
        Ok(())
    }

    fn end_payload(&mut self, on_entry: OnEntry<'_>) -> Result<(), TarError> {
        let state = std::mem::replace(&mut self.state, State::Header);
        let State::Payload { about, total, bytes } = state else {
            return Ok(());
        };
        self.skip(about.noun(), 0, padding(total));
        let until_nul = |mut name: Vec<u8>| {
            name.truncate(header::c_string(&name).len());
            name
        };
        match about {
            About::LongName => self.pending.long_name = until_nul(bytes),
            About::LongLink => self.pending.long_link = until_nul(bytes),
            About::NextEntry => {
                self.pending.records = Records::parse(&bytes).map_err(|fault| self.fault(fault))?;
            }
            About::AllEntries => {
                // As in Go, which takes it for an entry: what comes before is no longer for the next
                self.pending = Pending::default();
                let path = pax::global_path(&bytes).map_err(|fault| self.fault(fault))?;
                let path = path.unwrap_or_else(|| std::mem::take(&mut self.global));
                return on_entry(TarEntry::global(path, self.block_offset));
            }
        }
        Ok(())
    }

    /// A header block that makes an entry.
    fn entry(&mut self, header: &Header<'_>, on_entry: OnEntry<'_>) -> Result<(), TarError> {
        let pending = std::mem::take(&mut self.pending);
        let (entry, layout) = pending
            .entry(header, self.block_offset, &mut self.name)
            .map_err(|fault| self.fault(fault))?;
        let stored = entry.size;
        match layout {
            Layout::Plain => self.plain(entry, on_entry),
            Layout::Mapped(map) => self.mapped(entry, map, stored, on_entry),
            Layout::Blocks(map) => {
                let sparse = Sparse { entry, map, stored };
                self.runs(sparse, header.sparse_runs(), on_entry)
            }
            Layout::Text(_) if whole_blocks(stored) == 0 => Err(self.text_too_long(stored)),
            Layout::Text(map) => {
                self.state = State::Text(Box::new(entry), Box::new(TextMap::new(map)), stored);
                Ok(())
            }
        }
    }

    fn plain(&mut self, mut entry: TarEntry, on_entry: OnEntry<'_>) -> Result<(), TarError> {
        if entry.size > 0 {
            entry.data.reserve_exact(1);
            let (tar_offset, len) = (self.offset, entry.size);
            entry.data.push(Extent { logical: 0, tar_offset, len });
        }
        self.skip("content", entry.size, padding(entry.size));
        on_entry(entry)
    }

    /// An entry with its whole sparse map, right before its content.
    fn mapped(
        &mut self,
        mut entry: TarEntry,
        map: Map,
        stored: u64,
        on_entry: OnEntry<'_>,
    ) -> Result<(), TarError> {
        entry.size = map.real_size();
        entry.data = map.place(self.offset, stored).map_err(|fault| self.fault(fault))?;
        self.skip("content", stored, padding(stored));
        on_entry(entry)
    }

    /// Runs from the header of an old GNU sparse file, or from an extension block.
    fn runs(
        &mut self,
        mut sparse: Sparse,
        (runs, more): (&[u8], bool),
        on_entry: OnEntry<'_>,
    ) -> Result<(), TarError> {
        sparse.map.push_old_gnu(runs).map_err(|fault| self.fault(fault))?;
        if more {
            self.state = State::Extension(Box::new(sparse));
            return Ok(());
        }
        self.mapped(sparse.entry, sparse.map, sparse.stored, on_entry)
    }

    /// Reads on in the text of a 1.0 map, up to its end with the padding if that has come.
    fn text(&mut self, input: &mut &[u8], on_entry: OnEntry<'_>) -> Result<(), TarError> {
        let State::Text(_, text, stored) = &mut self.state else {
            return Ok(());
        };
        let stored = *stored;
        // The text takes whole blocks of the content, whatever the split of the pushes
        let end = whole_blocks(stored);
        let left = usize::try_from(end - text.read).unwrap_or(usize::MAX);
        let fed = text.feed(&input[..left.min(input.len())]);
        let (read, padded) = (text.read, text.padded());
        let (taken, complete) = fed.map_err(|fault| self.fault(fault))?;
        self.consume(input, taken);
        if !complete && read == end {
            return Err(self.text_too_long(stored));
        }
        if !complete {
            return Ok(());
        }
        let state = std::mem::replace(&mut self.state, State::Header);
        let State::Text(mut entry, text, _) = state else {
            return Ok(());
        };
        let (gap, content) = (padded - read, stored - padded);
        entry.size = text.map.real_size();
        let placed = text.map.place(self.offset + gap, content);
        entry.data = placed.map_err(|fault| self.fault(fault))?;
        self.skip("content", gap + content, padding(stored));
        on_entry(*entry)
    }

    fn text_too_long(&self, stored: u64) -> TarError {
        self.fault(Fault::sparse(
            "a map within the content",
            format_args!("no end of it in {stored} bytes"),
        ))
    }

    fn skip(&mut self, what: &'static str, content: u64, padding: u64) {
        self.state = match (content, padding) {
            (0, 0) => State::Header,
            _ => State::Skip { what, begin: self.offset, content, padding },
        };
    }

    fn fault(&self, fault: Fault) -> TarError {
        fault.at(&self.name, self.block_offset)
    }
}

/// Takes from a counter as many bytes as there are, and says how many that was.
fn take(counter: &mut u64, available: usize) -> usize {
    // Not above `available`, so it fits
    let taken = (*counter).min(available as u64);
    *counter -= taken;
    taken as usize
}

/// Bytes from the end of a payload of this size to the end of its last block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn whole_blocks(size: u64) -> u64 {
    size - size % BLOCK as u64
}
