//! Inode numbers that hold their own meaning.
//!
//! ```text
//!  63      57 56 55            32 31             0
//! +----------+--+----------------+----------------+
//! |    0     |k |  slot (24 bit) |     number     |
//! +----------+--+----------------+----------------+
//! ```
//!
//! Architecture invariant: an inode number says which file of peel's on disk describes it (`k` and
//! the slot) and which record of that file (the number). There is no inode table, so any process
//! can answer any request of the kernel, and a file of a shared layer is one inode in every image.

/// The number under which one layer index or one tree is served; 1 to 2^24-1, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// The highest slot there is.
    pub const MAX: Slot = Slot((1 << 24) - 1);

    /// `None` where the number is 0 or past 24 bits.
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX.0).contains(&number).then_some(Self(number))
    }

    /// The slot as a number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeId {
    /// FUSE's root: the directory that holds one directory per tree.
    Root,
    /// An inode of a layer: anything but a directory.
    Layer {
        /// The layer's slot.
        slot: Slot,
        /// The inode's number in the layer's index, from 1.
        number: u32,
    },
    /// An inode of a tree: a directory, or a file whose attributes the merge changed.
    Tree {
        /// The tree's slot.
        slot: Slot,
        /// The inode's number in the tree, from 1; 1 is the tree's root.
        number: u32,
    },
}

const TREE: u64 = 1 << 56;

impl NodeId {
    /// The inode number on the wire. Below 2^57, so that overlays can be mounted with `xino=on`.
    pub fn to_raw(self) -> u64 {
        match self {
            Self::Root => 1,
            Self::Layer { slot, number } => u64::from(slot.0) << 32 | u64::from(number),
            Self::Tree { slot, number } => TREE | u64::from(slot.0) << 32 | u64::from(number),
        }
    }

    /// The meaning of an inode number; `None` for one that peel never gives out.
    pub fn from_raw(raw: u64) -> Option<Self> {
        if raw == 1 {
            return Some(Self::Root);
        }
        let number = raw as u32;
        let slot = Slot::new(((raw & !TREE) >> 32).try_into().ok()?)?;
        match (number, raw & TREE != 0) {
            (0, _) => None,
            (_, false) => Some(Self::Layer { slot, number }),
            (_, true) => Some(Self::Tree { slot, number }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for slot in [1, 2, 0xff_ffff].map(|n| Slot::new(n).expect("in range")) {
            for number in [1, 2, u32::MAX] {
                for id in [NodeId::Layer { slot, number }, NodeId::Tree { slot, number }] {
                    assert_eq!(NodeId::from_raw(id.to_raw()), Some(id));
                    assert!(id.to_raw() > 1 && id.to_raw() < 1 << 57);
                }
            }
        }
        assert_eq!(NodeId::from_raw(NodeId::Root.to_raw()), Some(NodeId::Root));
    }

    #[test]
    fn foreign_numbers_are_refused() {
        for raw in [0, 2, u64::from(u32::MAX), 1 << 32, TREE, TREE | 5, 1 << 57 | 1 << 32 | 1] {
            assert_eq!(NodeId::from_raw(raw), None, "{raw:#x}");
        }
    }
}
