//! The XATTRS section: sets of extended attributes, each distinct set stored once.
//!
//! ```text
//! set:  count u32, then count times: name_len u16, value_len u32, name, value
//! ```
//!
//! Sets follow each other without gaps; the one at offset 0 is empty. Names within a set ascend
//! bytewise.

use std::hash::{BuildHasher, RandomState};

use super::{
    FormatError, Section,
    heap::{HeapFull, Table},
};

/// Longest name in bytes (`XATTR_NAME_MAX`).
pub(crate) const MAX_XATTR_NAME: usize = 255;
/// Longest value in bytes (`XATTR_SIZE_MAX`).
pub(crate) const MAX_XATTR_VALUE: usize = 64 << 10;
/// Largest section in bytes: bounds the memory that a hostile layer can ask for.
const MAX_HEAP: usize = 256 << 20;

const COUNT_LEN: usize = 4;
const ATTRIBUTE_HEADER_LEN: usize = 6;

/// The extended attributes of one inode: name and value, names ascending bytewise.
#[derive(Clone, Debug, Default)]
pub struct Xattrs<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Xattrs<'a> {
    /// The set at an offset of the section; empty where there is none.
    pub(crate) fn at(section: &'a [u8], offset: u32) -> Self {
        let split = section.get(offset as usize..).and_then(|set| set.split_first_chunk());
        let Some((count, rest)) = split else {
            return Self::default();
        };
        Self { rest, left: u32::from_le_bytes(*count) }
    }

    /// How long the set is in the file, in bytes, its count aside; before the first attribute is
    /// taken.
    pub(crate) fn byte_len(&self) -> usize {
        let mut set = self.clone();
        while set.step().is_some() {}
        self.rest.len() - set.rest.len()
    }

    fn step(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        self.left.checked_sub(1)?;
        let (header, rest) = self.rest.split_first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
        let [a, b, lens @ ..] = *header;
        let name_len = usize::from(u16::from_le_bytes([a, b]));
        let value_len = u32::from_le_bytes(lens) as usize;
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (value, rest) = rest.split_at_checked(value_len)?;
        self.rest = rest;
        self.left -= 1;
        Some((name, value))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step();
        if item.is_none() {
            self.left = 0;
        }
        item
    }
}

/// The offsets at which sets begin, ascending; found by checking the whole section.
pub(crate) struct XattrSets(Vec<u32>);

impl XattrSets {
    /// Checks every set of the section.
    pub(crate) fn check(section: &[u8]) -> Result<Self, FormatError> {
        let mut starts = Vec::new();
        let mut rest = section;
        while !rest.is_empty() {
            let start = section.len() - rest.len();
            let bad = |problem| Section::Xattrs.bad(start as u64, problem);
            let offset = u32::try_from(start).map_err(|_| bad("section too long"))?;
            let mut set = Xattrs::at(section, offset);
            let count = set.left;
            if (count == 0) != (offset == 0) || rest.len() < COUNT_LEN {
                return Err(bad("the empty set is at offset 0 and only there"));
            }
            let mut last: &[u8] = &[];
            for _ in 0..count {
                let (name, value) = set.step().ok_or(bad("set past the end"))?;
                if name.len() > MAX_XATTR_NAME || value.len() > MAX_XATTR_VALUE {
                    return Err(bad("name or value too long"));
                }
                if name <= last || name.contains(&0) {
                    return Err(bad("names not ascending or with NUL"));
                }
                last = name;
            }
            rest = set.rest;
            starts.push(offset);
        }
        if starts.is_empty() {
            return Err(FormatError::Section { section: Section::Xattrs.name() });
        }
        Ok(Self(starts))
    }

    /// Whether a set begins at the offset.
    pub(crate) fn contains(&self, offset: u32) -> bool {
        offset == 0 || self.0.binary_search(&offset).is_ok()
    }
}

/// A section of sets that is being built.
pub(crate) struct XattrHeap {
    bytes: Vec<u8>,
    /// Offset and end of each set but the empty one.
    sets: Vec<(u32, u32)>,
    table: Table,
    hasher: RandomState,
}

impl Default for XattrHeap {
    fn default() -> Self {
        Self {
            bytes: 0u32.to_le_bytes().to_vec(),
            sets: Vec::new(),
            table: Table::default(),
            hasher: RandomState::new(),
        }
    }
}

impl XattrHeap {
    /// The offset of a set. `set` must ascend strictly by name and keep to the limits.
    pub(crate) fn intern<'a>(
        &mut self,
        set: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<u32, HeapFull> {
        let mut encoded = vec![0; COUNT_LEN];
        let mut count = 0u32;
        for (name, value) in set {
            encoded.extend_from_slice(&(name.len() as u16).to_le_bytes());
            encoded.extend_from_slice(&(value.len() as u32).to_le_bytes());
            encoded.extend_from_slice(name);
            encoded.extend_from_slice(value);
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        encoded[..COUNT_LEN].copy_from_slice(&count.to_le_bytes());
        let Self { bytes, sets, table, hasher } = self;
        let hash = hasher.hash_one(&encoded[..]);
        if let Some(index) = table.find(hash, |index| set_bytes(bytes, sets, index) == encoded) {
            return Ok(sets[index as usize].0);
        }
        if bytes.len() + encoded.len() > MAX_HEAP {
            return Err(HeapFull { what: "bytes of extended attributes", limit: MAX_HEAP as u64 });
        }
        let start = bytes.len() as u32;
        bytes.extend_from_slice(&encoded);
        let index = sets.len() as u32;
        sets.push((start, bytes.len() as u32));
        table.insert(hash, index);
        Ok(start)
    }

    /// The set at an offset that [`Self::intern`] gave.
    pub(crate) fn set(&self, offset: u32) -> Xattrs<'_> {
        Xattrs::at(&self.bytes, offset)
    }

    /// The finished section.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn set_bytes<'a>(bytes: &'a [u8], sets: &[(u32, u32)], index: u32) -> &'a [u8] {
    let (start, end) = sets[index as usize];
    &bytes[start as usize..end as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_round_trip_and_are_stored_once() {
        let mut heap = XattrHeap::default();
        let one: [(&[u8], &[u8]); 2] = [(b"security.capability", b"\0\n"), (b"user.a", b"")];
        let two: [(&[u8], &[u8]); 1] = [(b"user.a", b"1")];
        let first = heap.intern(one).expect("room");
        let second = heap.intern(two).expect("room");
        assert_eq!(heap.intern([]), Ok(0));
        assert_eq!(heap.intern(one), Ok(first));
        assert!(first != second && first != 0);
        assert!(heap.set(first).eq(one));
        assert!(heap.set(second).eq(two));
        assert_eq!(heap.set(0).count(), 0);

        let section = heap.into_bytes();
        let sets = XattrSets::check(&section).expect("valid");
        assert_eq!(sets.0, [0, first, second]);
        assert!(sets.contains(second) && !sets.contains(second + 1));
    }

    #[test]
    fn bad_sections_are_refused() {
        let good = {
            let mut heap = XattrHeap::default();
            heap.intern([(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]).expect("room");
            heap.into_bytes()
        };
        assert!(XattrSets::check(&good).is_ok());
        for len in (0..good.len()).filter(|len| *len != COUNT_LEN) {
            assert!(XattrSets::check(&good[..len]).is_err(), "{len}");
        }
        for (at, value) in [(0, 1), (4, 0), (4, 3), (4, 255), (8, 0), (9, 1), (13, 255), (14, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(XattrSets::check(&bad).is_err(), "{at}");
        }
        assert_eq!(Xattrs::at(&good, u32::MAX).count(), 0);
    }
}
