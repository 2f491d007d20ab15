//! The merged directories of a stack of layers, read in place.
//!
//! Layout: [`crate::format`] and `index/FORMAT.md`. A tree holds directories, their entries, and
//! those files whose attributes or link count the merge changed; every other file is an inode of
//! its layer. Checked once in [`Tree::open`], bounds-checked ever after. No locking: a tree is
//! immutable.

mod check;
#[cfg(test)]
mod tests;

use crate::{
    attr::{Attr, Bytes, DIRECTORY_SIZE, Entry, FileKind, PERMISSION_MASK},
    digest::Digest,
    format::{
        Container, FileType, FormatError, Section, TreeDirent, TreeInode, TreeLayer, TreeMeta,
        Xattrs, slice,
    },
    layer::digest,
    nodeid::{NodeId, Slot},
};

/// Bit of a raw inode number that marks an inode of a tree; with slot 0: of the tree at hand.
pub(crate) const OWN: u64 = 1 << 56;

/// Number of the root directory of every tree.
pub(crate) const ROOT: u32 = 1;

/// An opened tree.
pub struct Tree {
    file: Container,
    chain_id: Option<Digest>,
    totals: Totals,
}

/// What a whole tree amounts to, for statfs(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Distinct inodes, directories included.
    pub inodes: u64,
    /// Sizes of all distinct regular files in bytes.
    pub bytes: u64,
}

/// A layer that a tree was merged from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Its slot.
    pub slot: Slot,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Digest of its numbering: the tree holds for a layer of this numbering only.
    pub numbering: [u8; 32],
    /// How many inodes it has.
    pub inodes: u32,
}

impl Tree {
    /// Opens a tree and checks all of it: checksums, then every offset, count, name and number.
    ///
    /// # Errors
    /// When the bytes are no tree of this version, are damaged, or hold what no merge writes.
    pub fn open(bytes: Bytes) -> Result<Self, FormatError> {
        Container::open(bytes, FileType::Tree, Self::check)
    }

    fn check(file: Container) -> Result<Self, FormatError> {
        let meta: &TreeMeta = file.single(Section::Meta)?;
        let bad = |problem| Section::Meta.bad(0, problem);
        let chain_id = match meta.chain_algorithm {
            0 if meta.chain_id == [0; 64] => None,
            code => Some(digest(code, &meta.chain_id).ok_or(bad("malformed chainID"))?),
        };
        if meta.reserved != [0; 7] {
            return Err(bad("reserved bytes not zero"));
        }
        let totals = Totals { inodes: meta.inodes.get(), bytes: meta.bytes.get() };
        let tree = Self { chain_id, totals, file };
        check::check(&tree)?;
        Ok(tree)
    }

    /// The slot under which the tree is served.
    pub fn slot(&self) -> Slot {
        self.file.header().slot
    }

    /// Version of the merge that numbered the inodes.
    pub fn builder(&self) -> u32 {
        self.file.header().builder
    }

    /// The chainID of the layers, where the merge was given one.
    pub fn chain_id(&self) -> Option<Digest> {
        self.chain_id
    }

    /// Digest of what inode numbers depend on, the layers' slots and numberings included.
    pub fn numbering(&self) -> [u8; 32] {
        self.file.header().numbering
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = LayerRef> {
        let records: &[TreeLayer] = self.file.records(Section::Layers);
        records.iter().filter_map(layer_ref)
    }

    /// How many inodes the tree itself has; they are numbered from 1, the root.
    pub fn inode_count(&self) -> u32 {
        self.inodes().len() as u32
    }

    /// Attributes of an inode of the tree: a directory, or a file that the tree owns.
    pub fn inode(&self, number: u32) -> Option<Attr> {
        let record = self.record(number)?;
        let kind = FileKind::from_mode(record.mode.get())?;
        Some(Attr {
            kind,
            mode: record.mode.get() & PERMISSION_MASK,
            uid: record.uid.get(),
            gid: record.gid.get(),
            nlink: record.nlink.get(),
            rdev: match kind {
                FileKind::CharDevice | FileKind::BlockDevice => record.data.get(),
                _ => 0,
            },
            size: match kind {
                FileKind::Directory => DIRECTORY_SIZE,
                _ => record.size.get(),
            },
            mtime_sec: record.mtime_sec.get(),
            mtime_nsec: record.mtime_nsec.get(),
        })
    }

    /// The layer inode that has the content of a file that the tree owns, or the target of a
    /// symlink; `None` for any other inode. All else about the file stands in the tree.
    pub fn content(&self, number: u32) -> Option<(Slot, u32)> {
        match NodeId::from_raw(self.record(number)?.content.get())? {
            NodeId::Layer { slot, number } => Some((slot, number)),
            NodeId::Root | NodeId::Tree { .. } => None,
        }
    }

    /// Extended attributes of an inode of the tree, names ascending bytewise; nothing for a number
    /// out of range. They are the tree's own: no layer has to be asked.
    pub fn xattrs(&self, number: u32) -> Xattrs<'_> {
        let Some(record) = self.record(number) else {
            return Xattrs::default();
        };
        Xattrs::at(self.file.section(Section::Xattrs), record.xattrs.get())
    }

    /// Parent of a directory; the root is its own. `None` for what is no directory.
    pub fn parent(&self, directory: u32) -> Option<u32> {
        self.record(directory).map(|record| record.parent.get()).filter(|parent| *parent != 0)
    }

    /// Looks a name up in a directory.
    pub fn lookup(&self, directory: u32, name: &[u8]) -> Option<Entry<'_>> {
        let children = self.children(directory)?;
        let found = children.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        self.entry_of(children.get(found)?)
    }

    /// How many entries a directory has; `None` for what is no directory.
    pub fn entry_count(&self, directory: u32) -> Option<u32> {
        self.children(directory).map(|children| children.len() as u32)
    }

    /// An entry of a directory by its index, from 0, in bytewise order of names.
    pub fn entry(&self, directory: u32, index: u32) -> Option<Entry<'_>> {
        self.entry_of(self.children(directory)?.get(index as usize)?)
    }

    /// What the whole tree amounts to.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn inodes(&self) -> &[TreeInode] {
        self.file.records(Section::Inodes)
    }

    fn record(&self, number: u32) -> Option<&TreeInode> {
        self.inodes().get(number.checked_sub(1)? as usize)
    }

    fn children(&self, directory: u32) -> Option<&[TreeDirent]> {
        let record = self.record(directory)?;
        if FileKind::from_mode(record.mode.get()) != Some(FileKind::Directory) {
            return None;
        }
        let first = usize::try_from(record.data.get()).ok()?;
        let end = first.checked_add(record.count.get() as usize)?;
        self.file.records(Section::Dirents).get(first..end)
    }

    fn name(&self, entry: &TreeDirent) -> &[u8] {
        let (offset, len) = (entry.name_offset.get(), entry.name_len.get());
        slice(self.file.section(Section::Names), offset.into(), len.into()).unwrap_or_default()
    }

    fn entry_of(&self, entry: &TreeDirent) -> Option<Entry<'_>> {
        let node = match entry.node.get() {
            own if own >> 32 == OWN >> 32 => NodeId::Tree { slot: self.slot(), number: own as u32 },
            raw => NodeId::from_raw(raw)?,
        };
        Some(Entry { name: self.name(entry), kind: FileKind::from_code(entry.kind)?, node })
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("slot", &self.slot())
            .field("chain_id", &self.chain_id)
            .finish_non_exhaustive()
    }
}

fn layer_ref(record: &TreeLayer) -> Option<LayerRef> {
    Some(LayerRef {
        slot: Slot::new(record.slot.get())?,
        diff_id: digest(record.diff_algorithm, &record.diff_id)?,
        numbering: record.numbering,
        inodes: record.inodes.get(),
    })
}
