//! The NAMES and TARGETS heaps: file names, and link targets apart from them; each distinct one is
//! stored once.

use std::hash::{BuildHasher, RandomState};

use super::heap::{HeapFull, Table};

/// Longest file name in bytes (`NAME_MAX`).
pub(crate) const MAX_NAME: usize = 255;

/// Largest heap in bytes: bounds the memory that a hostile layer can ask for.
const MAX_HEAP: usize = 1 << 29;

/// What a heap makes room for at first.
const FIRST_ROOM: usize = 64;

/// A name in a heap that is being built; equal ids, equal names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NameId(u32);

impl NameId {
    /// The id as a number.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// The reverse of [`Self::number`].
    pub(crate) fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// A heap of names that is being built.
#[derive(Default)]
pub(crate) struct NameHeap {
    bytes: Vec<u8>,
    /// End of each name; it begins where the one before ends.
    ends: Vec<u32>,
    table: Table,
    // Keyed by chance, so that a layer cannot choose colliding names; the output does not hang on it
    hasher: RandomState,
}

impl NameHeap {
    /// The id of a name that the heap has.
    pub(crate) fn find(&self, name: &[u8]) -> Option<NameId> {
        self.table.find(self.hasher.hash_one(name), |id| self.bytes_of(id) == name).map(NameId)
    }

    /// The id of a name, adding it where it is new.
    pub(crate) fn intern(&mut self, name: &[u8]) -> Result<NameId, HeapFull> {
        let hash = self.hasher.hash_one(name);
        if let Some(id) = self.table.find(hash, |id| self.bytes_of(id) == name) {
            return Ok(NameId(id));
        }
        if self.bytes.len() + name.len() > MAX_HEAP {
            return Err(HeapFull { what: "bytes of names", limit: MAX_HEAP as u64 });
        }
        let id = self.ends.len() as u32;
        reserve(&mut self.bytes, name.len());
        reserve(&mut self.ends, 1);
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len() as u32);
        self.table.insert(hash, id);
        Ok(NameId(id))
    }

    /// The name.
    pub(crate) fn name(&self, id: NameId) -> &[u8] {
        self.bytes_of(id.0)
    }

    /// Where the name stands in the finished heap, and its length.
    pub(crate) fn place(&self, id: NameId) -> (u32, u32) {
        let start = start_of(&self.ends, id.0);
        (start, self.ends[id.0 as usize] - start)
    }

    /// The finished section.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn bytes_of(&self, id: u32) -> &[u8] {
        range_of(&self.bytes, &self.ends, id)
    }
}

/// Makes room as `Vec` does, but for a quarter more than there is and not as much again.
fn reserve<T>(vec: &mut Vec<T>, additional: usize) {
    if vec.capacity() - vec.len() < additional {
        vec.reserve_exact(additional.max(vec.len() / 4).max(FIRST_ROOM));
    }
}

fn start_of(ends: &[u32], id: u32) -> u32 {
    id.checked_sub(1).map_or(0, |before| ends[before as usize])
}

fn range_of<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    &bytes[start_of(ends, id) as usize..ends[id as usize] as usize]
}

/// A range of a heap; `None` where it does not lie inside.
pub(crate) fn slice(heap: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = offset.checked_add(len)?;
    heap.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
}

/// Whether a directory can have an entry of this name, where the whole heap is known to be free of
/// separators.
pub(crate) fn has_valid_form(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name != b"." && name != b".."
}

/// Whether bytes hold neither `/` nor NUL.
pub(crate) fn is_free_of_separators(bytes: &[u8]) -> bool {
    // No early end within a page, and lanes of bytes, so that it compiles to vector instructions
    let is_separator = |byte: u8| u8::from(byte == 0) | u8::from(byte == b'/');
    !bytes.chunks(4096).any(|page| {
        let (chunks, rest) = page.as_chunks::<64>();
        let mut found = [0; 64];
        for chunk in chunks {
            found.iter_mut().zip(chunk).for_each(|(found, byte)| *found |= is_separator(*byte));
        }
        found.iter().fold(0, |all, found| all | found) != 0
            || rest.iter().any(|byte| is_separator(*byte) != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stored_once() {
        let mut heap = NameHeap::default();
        let a = heap.intern(b"usr").expect("room");
        let b = heap.intern(b"").expect("room");
        let c = heap.intern(b"lib").expect("room");
        assert_eq!(heap.intern(b"usr"), Ok(a));
        assert_eq!((heap.find(b"lib"), heap.find(b"li")), (Some(c), None));
        assert_eq!(
            (heap.name(a), heap.name(b), heap.name(c)),
            (&b"usr"[..], &b""[..], &b"lib"[..])
        );
        assert_eq!(heap.place(c), (3, 3));
        assert_eq!(heap.into_bytes(), b"usrlib");
    }

    #[test]
    fn valid_names() {
        let is_valid_name = |name| has_valid_form(name) && is_free_of_separators(name);
        for name in [&b"a"[..], b"...", b".a", b"\xff", &[b'x'; 255]] {
            assert!(is_valid_name(name), "{name:?}");
        }
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            assert!(!is_valid_name(name), "{name:?}");
        }
    }
}
