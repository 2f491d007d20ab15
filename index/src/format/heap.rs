//! A hash table of indexes into someone else's array: 8 bytes a cell, keys stay where they are.

/// A heap or table has reached the size that offsets or memory allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much {what}: expected at most {limit}")]
pub struct HeapFull {
    /// What there is too much of.
    pub(crate) what: &'static str,
    /// The limit, in bytes or entries.
    pub(crate) limit: u64,
}

/// A hash's part that is kept beside the index: tells nearly all different keys apart without a look
/// at them, and gives an index its place when the table grows.
type Tag = u32;

const FREE: (Tag, u32) = (0, u32::MAX);
const FIRST_CELLS: usize = 64;

/// Maps hashes to indexes. The owner compares keys and computes hashes.
#[derive(Default)]
pub(crate) struct Table {
    cells: Vec<(Tag, u32)>,
    used: usize,
}

impl Table {
    /// The index stored under `hash` for which `is_equal` holds.
    pub(crate) fn find(&self, hash: u64, is_equal: impl Fn(u32) -> bool) -> Option<u32> {
        if self.cells.is_empty() {
            return None;
        }
        let tag = hash as Tag;
        let mut cell = self.first_cell(tag);
        loop {
            match self.cells[cell] {
                FREE => return None,
                (found, index) if found == tag && is_equal(index) => return Some(index),
                _ => cell = self.next_cell(cell),
            }
        }
    }

    /// Stores an index, below `u32::MAX`, that [`Self::find`] does not find.
    pub(crate) fn insert(&mut self, hash: u64, index: u32) {
        if (self.used + 1) * 4 > self.cells.len() * 3 {
            // By half only: the table is most of what a heap takes beyond its bytes
            let len = (self.cells.len() / 2 * 3).max(FIRST_CELLS);
            let old = std::mem::replace(&mut self.cells, vec![FREE; len]);
            old.into_iter().filter(|cell| *cell != FREE).for_each(|cell| self.place(cell));
        }
        self.place((hash as Tag, index));
        self.used += 1;
    }

    fn place(&mut self, new: (Tag, u32)) {
        let mut cell = self.first_cell(new.0);
        while self.cells[cell] != FREE {
            cell = self.next_cell(cell);
        }
        self.cells[cell] = new;
    }

    /// Where a tag would be if nothing else were there: in order of tags, so that a table that grows
    /// is written from front to back.
    fn first_cell(&self, tag: Tag) -> usize {
        ((u64::from(tag) * self.cells.len() as u64) >> Tag::BITS) as usize
    }

    fn next_cell(&self, cell: usize) -> usize {
        if cell + 1 == self.cells.len() { 0 } else { cell + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_stored() {
        let keys: Vec<u64> = (0..1000).map(|n| n * 4_294_967).collect();
        let mut table = Table::default();
        assert_eq!(table.find(0, |_| true), None);
        for (index, key) in (0..).zip(&keys) {
            table.insert(*key, index);
        }
        for (index, key) in (0..).zip(&keys) {
            assert_eq!(table.find(*key, |found| keys[found as usize] == *key), Some(index));
            assert_eq!(table.find(*key + 1, |found| keys[found as usize] == *key + 1), None);
        }
    }
}
