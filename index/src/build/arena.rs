//! The directory tree of one layer while it is being built: about 120 bytes an entry.
//!
//! Inodes are kept as the records that the file will hold, with these differences for directories:
//! `data` is the number of the first link below them (links are numbered from 1, 0 is none), `size`
//! is the number of the link that names them, `count` the length of their path. `nlink` counts names; 0 means the inode is dead.
//! Links below a directory form a list; one that is taken away stays in the list and is used again
//! when its name comes back.

use std::hash::{BuildHasher, RandomState};

use crate::{
    attr::FileKind,
    format::{ExtentRecord, HeapFull, IMPLICIT, InodeRecord, NameHeap, NameId, Table, XattrHeap},
    layer::ROOT,
};

/// Most inodes, most names and most extents of sparse files of a layer; replaced ones count. Bounds the memory of a build to
/// about 1.5 GB; the file format itself has room for 2^32 - 2.
pub const MAX_ENTRIES: usize = 8 << 20;

const IMPLICIT_MODE: u32 = 0o755;

/// A name in a directory.
pub(super) struct Link {
    pub(super) parent: u32,
    pub(super) name: NameId,
    /// Number of the next link of the directory.
    next: u32,
    /// 0 where the name is gone or only whited out.
    pub(super) inode: u32,
    /// Lower content of this name is hidden.
    pub(super) is_whiteout: bool,
}

/// All inodes and names of a layer.
pub(super) struct Arena {
    pub(super) inodes: Vec<InodeRecord>,
    links: Vec<Link>,
    table: Table,
    hasher: RandomState,
    pub(super) names: NameHeap,
    pub(super) targets: NameHeap,
    pub(super) xattrs: XattrHeap,
    pub(super) extents: Vec<ExtentRecord>,
    /// [`MAX_ENTRIES`]; less in tests.
    limit: usize,
}

impl Arena {
    /// A tree of an implicit root only.
    pub(super) fn new() -> Self {
        let mut root = implicit_directory();
        root.nlink = 1.into();
        Self {
            inodes: vec![root],
            links: Vec::new(),
            table: Table::default(),
            hasher: RandomState::new(),
            names: NameHeap::default(),
            targets: NameHeap::default(),
            xattrs: XattrHeap::default(),
            extents: Vec::new(),
            limit: MAX_ENTRIES,
        }
    }

    pub(super) fn inode(&self, number: u32) -> &InodeRecord {
        &self.inodes[number as usize - 1]
    }

    pub(super) fn inode_mut(&mut self, number: u32) -> &mut InodeRecord {
        &mut self.inodes[number as usize - 1]
    }

    /// The kind; `None` for a hard link into a lower layer.
    pub(super) fn kind(&self, number: u32) -> Option<FileKind> {
        FileKind::from_mode(self.inode(number).mode.get())
    }

    pub(super) fn is_directory(&self, number: u32) -> bool {
        self.kind(number) == Some(FileKind::Directory)
    }

    /// Target of a symlink or lower link.
    pub(super) fn target(&self, number: u32) -> &[u8] {
        self.targets.name(NameId::from_number(self.inode(number).data.get() as u32))
    }

    pub(super) fn link(&self, link: u32) -> &Link {
        &self.links[link as usize - 1]
    }

    pub(super) fn link_mut(&mut self, link: u32) -> &mut Link {
        &mut self.links[link as usize - 1]
    }

    /// The link of a name, gone or not.
    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let name = self.names.find(name)?;
        self.find_id(self.hasher.hash_one((parent, name)), parent, name)
    }

    fn find_id(&self, hash: u64, parent: u32, name: NameId) -> Option<u32> {
        self.table.find(hash, |link| {
            let link = self.link(link);
            (link.parent, link.name) == (parent, name)
        })
    }

    /// The link of a name, made where there is none.
    pub(super) fn find_or_add(&mut self, parent: u32, name: &[u8]) -> Result<u32, HeapFull> {
        let name = self.names.intern(name)?;
        let hash = self.hasher.hash_one((parent, name));
        if let Some(link) = self.find_id(hash, parent, name) {
            return Ok(link);
        }
        if self.links.len() >= self.limit {
            return Err(HeapFull { what: "names in a layer", limit: self.limit as u64 });
        }
        let first = self.inode(parent).data.get() as u32;
        self.links.push(Link { parent, name, next: first, inode: 0, is_whiteout: false });
        let link = self.links.len() as u32;
        self.inode_mut(parent).data = u64::from(link).into();
        self.table.insert(hash, link);
        Ok(link)
    }

    /// Adds an inode that no link names yet.
    pub(super) fn add(&mut self, inode: InodeRecord) -> Result<u32, HeapFull> {
        if self.inodes.len() >= self.limit {
            return Err(HeapFull { what: "inodes in a layer", limit: self.limit as u64 });
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() as u32)
    }

    /// Lets a link that names nothing name an inode.
    pub(super) fn attach(&mut self, link: u32, number: u32) {
        self.link_mut(link).inode = number;
        let is_directory = self.is_directory(number);
        let inode = self.inode_mut(number);
        inode.nlink = (inode.nlink.get() + 1).into();
        if is_directory {
            inode.size = u64::from(link).into();
            let Link { parent, name, .. } = *self.link(link);
            let len = self.path_len(parent) + 1 + self.names.name(name).len();
            self.inode_mut(number).count = (len as u32).into();
        }
    }

    /// The length of a directory's path in bytes, a slash before each name.
    pub(super) fn path_len(&self, directory: u32) -> usize {
        self.inode(directory).count.get() as usize
    }

    /// Adds a run of a sparse file.
    pub(super) fn add_extent(&mut self, extent: ExtentRecord) -> Result<(), HeapFull> {
        if self.extents.len() >= self.limit {
            return Err(HeapFull { what: "extents in a layer", limit: self.limit as u64 });
        }
        self.extents.push(extent);
        Ok(())
    }

    /// Takes the inode away from a link, and with a directory all that is below it.
    pub(super) fn detach(&mut self, link: u32) {
        let mut pending = vec![link];
        while let Some(link) = pending.pop() {
            let number = std::mem::take(&mut self.link_mut(link).inode);
            if number == 0 {
                continue;
            }
            let is_directory = self.is_directory(number);
            if is_directory {
                pending.extend(self.children(number));
            }
            let inode = self.inode_mut(number);
            inode.nlink = (inode.nlink.get() - 1).into();
        }
    }

    /// The links below a directory, gone ones among them, latest first.
    pub(super) fn children(&self, directory: u32) -> impl Iterator<Item = u32> {
        let mut next = self.inode(directory).data.get() as u32;
        std::iter::from_fn(move || {
            let link = next;
            next = self.links.get((link as usize).checked_sub(1)?)?.next;
            Some(link)
        })
    }

    /// The directory above a directory; the root is above itself.
    pub(super) fn parent(&self, directory: u32) -> u32 {
        match self.inode(directory).size.get() as u32 {
            0 => ROOT,
            link => self.link(link).parent,
        }
    }

    /// The path of a directory, without a leading slash.
    pub(super) fn path(&self, mut directory: u32) -> Vec<u8> {
        let mut names = Vec::new();
        while directory != ROOT {
            let link = self.link(self.inode(directory).size.get() as u32);
            names.push(self.names.name(link.name));
            directory = link.parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// A directory that nothing lists.
pub(super) fn implicit_directory() -> InodeRecord {
    let mode = FileKind::Directory.type_bits() | IMPLICIT_MODE;
    InodeRecord { mode: mode.into(), flags: IMPLICIT.into(), ..InodeRecord::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_past_the_limit_are_refused() {
        let mut arena = Arena { limit: 3, ..Arena::new() };
        for name in [b"a", b"b", b"c", b"a"] {
            arena.find_or_add(ROOT, name).expect("room");
        }
        let full = arena.find_or_add(ROOT, b"d").expect_err("full").to_string();
        assert_eq!(full, "too much names in a layer: expected at most 3");
        let file = InodeRecord::default;
        assert_eq!((arena.add(file()), arena.add(file())), (Ok(2), Ok(3)), "the root is number 1");
        let full = arena.add(file()).expect_err("full").to_string();
        assert_eq!(full, "too much inodes in a layer: expected at most 3");
        let run = ExtentRecord { logical: 0.into(), tar_offset: 0.into(), len: 1.into() };
        (0..3).for_each(|_| arena.add_extent(run.clone()).expect("room"));
        let full = arena.add_extent(run).expect_err("full").to_string();
        assert_eq!(full, "too much extents in a layer: expected at most 3");
    }
}
