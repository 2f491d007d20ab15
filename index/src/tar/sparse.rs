//! Sparse maps: which runs of a file are stored, one behind the other, as the entry's content.
//!
//! ```text
//! old GNU   runs in the header block and in extension blocks before the content
//! PAX 0.0   GNU.sparse.offset and GNU.sparse.numbytes, repeated
//! PAX 0.1   GNU.sparse.map=offset,length,…
//! PAX 1.0   text before the content: "count\noffset\nlength\n…", padded to a block
//! ```

use super::{
    Extent, MAX_RUNS,
    error::Fault,
    header::{BLOCK, field_number},
    pax::{self, SparseRecords},
};

/// A map being read: each run is checked as it comes.
#[derive(Debug)]
pub(super) struct Map {
    /// Size of the file with its holes.
    real_size: u64,
    /// Runs so far; `tar_offset` counts from the start of the content until the map is placed.
    extents: Vec<Extent>,
    /// Runs so far, those of length 0 and those joined to the one before included.
    count: u64,
    /// End of the last run in the file.
    end: u64,
    /// Sum of the lengths so far.
    stored: u64,
}

impl Map {
    pub(super) fn new(real_size: u64) -> Self {
        Self { real_size, extents: Vec::new(), count: 0, end: 0, stored: 0 }
    }

    pub(super) fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Adds the next run.
    pub(super) fn push(&mut self, logical: u64, len: u64) -> Result<(), Fault> {
        if self.count == MAX_RUNS {
            let found = MAX_RUNS + 1;
            return Err(Fault::TooLarge { what: "sparse map", expected: MAX_RUNS, found });
        }
        self.count += 1;
        if logical < self.end {
            return Err(Fault::sparse(format!("a run at {} or later", self.end), logical));
        }
        let end = logical.checked_add(len).filter(|&end| end <= self.real_size);
        let Some(end) = end else {
            let expected = format!("runs within the file's {} bytes", self.real_size);
            return Err(Fault::sparse(expected, format_args!("{len} bytes at {logical}")));
        };
        if len > 0 {
            match self.extents.last_mut() {
                Some(last) if last.logical + last.len == logical => last.len += len,
                _ => self.extents.push(Extent { logical, tar_offset: self.stored, len }),
            }
        }
        self.end = end;
        // Runs do not overlap and end within a u64, so neither does their sum pass it
        self.stored += len;
        Ok(())
    }

    /// The extents of content that begins at `content` and is `stored` bytes long.
    pub(super) fn place(mut self, content: u64, stored: u64) -> Result<Vec<Extent>, Fault> {
        if self.stored != stored {
            let expected = format!("runs of {stored} bytes in all, as many as are stored");
            return Err(Fault::sparse(expected, self.stored));
        }
        for extent in &mut self.extents {
            extent.tar_offset += content;
        }
        self.extents.shrink_to_fit();
        Ok(self.extents)
    }

    /// Adds the runs of an old GNU header or extension block.
    pub(super) fn push_old_gnu(&mut self, runs: &[u8]) -> Result<(), Fault> {
        // GNU tar, Go and libarchive all take a first byte of NUL for the end
        for run in runs.chunks_exact(24).take_while(|run| run[0] != 0) {
            let number = |field, bytes: &[u8]| {
                u64::try_from(field_number(field, bytes)?)
                    .map_err(|_| Fault::number(field, "0 or more", bytes))
            };
            self.push(number("sparse offset", &run[..12])?, number("sparse length", &run[12..])?)?;
        }
        Ok(())
    }
}

/// How the content of an entry makes its file.
#[derive(Debug)]
pub(super) enum Layout {
    /// It is the file.
    Plain,
    /// The whole map (0.0 and 0.1).
    Mapped(Map),
    /// The map stands before the content (1.0).
    Text(Map),
    /// The map begins in the header block and may go on in blocks behind it (old GNU).
    Blocks(Map),
}

impl SparseRecords {
    /// What the records mean; [`Layout::Plain`] if they make no sparse file of a known version.
    /// `stored` is the size of the content, which is the file's own where no record gives it.
    pub(super) fn layout(&self, stored: u64) -> Result<Layout, Fault> {
        let text = match (&self.major[..], &self.minor[..]) {
            (b"1", b"0") => true,
            (b"0", b"0" | b"1") => false,
            // Versions 0.0 and 0.1 have no version records; without a run there may be no map
            (b"", b"") if !self.map.is_empty() || self.numblocks == b"0" => false,
            _ => return Ok(Layout::Plain),
        };
        let real_size = match (&self.size[..], &self.realsize[..]) {
            (b"", b"") => stored,
            (b"", realsize) => pax::size("GNU.sparse.realsize", realsize)?,
            (size, _) => pax::size("GNU.sparse.size", size)?,
        };
        let mut map = Map::new(real_size);
        if text {
            return Ok(Layout::Text(map));
        }
        let expected = pax::size("GNU.sparse.numblocks", &self.numblocks)?;
        let number = |value: Option<&[u8]>| pax::size("GNU.sparse.map", value.unwrap_or_default());
        let mut numbers = self.map.split(|&byte| byte == b',');
        if !self.map.is_empty() {
            while let Some(offset) = numbers.next() {
                map.push(number(Some(offset))?, number(numbers.next())?)?;
            }
        }
        if map.count != expected {
            return Err(Fault::sparse(
                format!("{expected} runs (GNU.sparse.numblocks)"),
                map.count,
            ));
        }
        Ok(Layout::Mapped(map))
    }
}

/// The text of a 1.0 map, read in any split: numbers in decimal, each ended by a newline.
#[derive(Debug)]
pub(super) struct TextMap {
    pub(super) map: Map,
    /// Bytes of text so far.
    pub(super) read: u64,
    /// Runs still to come, once the count was read.
    left: Option<u64>,
    /// Offset of a run whose length is to come.
    offset: Option<u64>,
    /// Digits of the number being read.
    digits: Digits,
}

/// Room for the digits of one number; one more than fits makes it malformed.
#[derive(Debug, Default)]
struct Digits {
    bytes: [u8; 21],
    len: usize,
}

impl TextMap {
    pub(super) fn new(map: Map) -> Self {
        Self { map, read: 0, left: None, offset: None, digits: Digits::default() }
    }

    /// Takes bytes up to the map's end: how many, and whether that end was among them.
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<(usize, bool), Fault> {
        for (index, &byte) in input.iter().enumerate() {
            self.read += 1;
            if byte != b'\n' {
                self.digits.push(byte)?;
            } else if self.end_number()? {
                return Ok((index + 1, true));
            }
        }
        Ok((input.len(), false))
    }

    /// Length of the text with its padding.
    pub(super) fn padded(&self) -> u64 {
        self.read.next_multiple_of(BLOCK as u64)
    }

    /// Whether that was the last one.
    fn end_number(&mut self) -> Result<bool, Fault> {
        let number = pax::decimal(self.digits.text()).ok_or_else(|| self.digits.malformed())?;
        self.digits.len = 0;
        match (self.left, self.offset.take()) {
            (None, _) => self.left = Some(number),
            (Some(_), None) => self.offset = Some(number),
            (Some(left), Some(offset)) => {
                self.map.push(offset, number)?;
                self.left = Some(left - 1);
            }
        }
        Ok(self.left == Some(0) && self.offset.is_none())
    }
}

impl Digits {
    fn push(&mut self, byte: u8) -> Result<(), Fault> {
        let Some(slot) = self.bytes.get_mut(self.len) else {
            return Err(self.malformed());
        };
        *slot = byte;
        self.len += 1;
        Ok(())
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn malformed(&self) -> Fault {
        Fault::number("number of the sparse map", "0 to 9223372036854775807", self.text())
    }
}
