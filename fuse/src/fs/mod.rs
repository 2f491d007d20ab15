//! The filesystem's operations as plain functions.
//!
//! ```text
//! 1 (root)                  one directory per tree, named by the tree's slot in decimal; it lists
//! ├── 17 = tree 17, inode 1   nothing, as trees come and go and the kernel caches listings
//! │   ├── etc = tree 17, inode 2            directories, and files that the merge changed
//! │   │   └── passwd = layer 5, inode 31    all other files: the same inode in every image
//! ```
//!
//! Nothing below the root ever changes, so all of it may be cached for ever, names that do not
//! exist included. The root's entries are asked for each time.
//!
//! Locking: none of its own; everything is read through shared references.

mod readdir;
mod xattr;

use std::{sync::Arc, time::Duration};

use peel_index::{Attr, Entry, FileKind, Layer, NodeId, Slot, Tree};

pub use self::readdir::DirEntry;
use crate::{
    error::Error,
    source::{Ahead, FileSource, ReadError, Sink, Spare},
};

/// How long the kernel may keep what cannot change: a hundred years, which does not overflow the
/// kernel's clock ticks.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Number of a tree's root directory in the tree.
const TREE_ROOT: u32 = 1;

/// Block size that stat(2) and statfs(2) show, in bytes.
pub const BLOCK_SIZE: u32 = 4096;

/// An inode, and how long the kernel may keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the attributes hold.
    pub attr_ttl: Duration,
    /// How long the name holds under which it was found.
    pub entry_ttl: Duration,
}

impl Inode {
    /// `st_blocks`, in units of 512 bytes. Holes count as if they were there: nothing is stored
    /// uncompressed, so there is no truth to tell, and copying tools look for holes only where
    /// they are announced.
    pub fn blocks(&self) -> u64 {
        match self.attr.kind {
            FileKind::Regular => self.attr.size.div_ceil(512),
            _ => 0,
        }
    }

    fn unchanging(node: NodeId, attr: Attr) -> Self {
        Self { ino: node.to_raw(), attr, attr_ttl: FOREVER, entry_ttl: FOREVER }
    }
}

/// What a lookup finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There is such an entry.
    Found(Inode),
    /// There is none, and the kernel may remember that for this long.
    Missing {
        /// How long.
        ttl: Duration,
    },
}

/// What statfs(2) shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Size of all files, in blocks of [`BLOCK_SIZE`].
    pub blocks: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// The filesystem over a source of trees and layers.
#[derive(Debug)]
pub struct Filesystem<S> {
    source: Arc<S>,
}

impl<S> Clone for Filesystem<S> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source) }
    }
}

impl<S: FileSource> Filesystem<S> {
    /// A filesystem that serves from `source`.
    pub fn new(source: Arc<S>) -> Self {
        Self { source }
    }

    /// Runs what only looks, once more where something of the source was lost meanwhile: what was
    /// lost is not given out again, so in the end that is an error or the truth.
    fn steady<T>(&self, look: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let before = self.source.losses();
            let found = look();
            if self.source.losses() == before {
                return found;
            }
        }
    }

    /// Finds `name` in the directory `parent`. `.` and `..` are names too: `.` of any inode is
    /// itself, which is how the kernel opens a file handle whose inode it has forgotten.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Lookup, Error> {
        self.steady(|| self.find(parent, name))
    }

    fn find(&self, parent: u64, name: &[u8]) -> Result<Lookup, Error> {
        let node = node(parent)?;
        match name {
            b"." => return self.inode(node).map(Lookup::Found),
            b".." => return self.inode(self.parent(node)?).map(Lookup::Found),
            _ => {}
        }
        match node {
            NodeId::Root => Ok(self.lookup_tree(name)),
            NodeId::Layer { .. } => {
                self.inode(node)?;
                Err(Error::NotDirectory { ino: parent })
            }
            NodeId::Tree { slot, number } => {
                let tree = self.tree(slot, parent)?;
                directory(&tree, number, parent)?;
                match tree.lookup(number, name) {
                    Some(entry) => self.entry_inode(&tree, &entry, parent).map(Lookup::Found),
                    None => Ok(Lookup::Missing { ttl: FOREVER }),
                }
            }
        }
    }

    /// The attributes of an inode.
    pub fn getattr(&self, ino: u64) -> Result<Inode, Error> {
        self.steady(|| self.inode(node(ino)?))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, Error> {
        self.steady(|| {
            let (layer, _, number) = self.content(ino, FileKind::Symlink)?;
            match layer.symlink_target(number) {
                Some(target) => Ok(target.to_vec()),
                None => Err(Error::WrongKind { ino }),
            }
        })
    }

    /// Gives the bytes `offset..offset + len` of a regular file to `reply`, in one piece; fewer only
    /// where the file ends. Uses `buffer`, which is empty, where they do not lie in one piece in
    /// memory. Blocks while content is read and inflated.
    pub fn read(
        &self,
        ino: u64,
        offset: u64,
        len: u32,
        buffer: &mut Vec<u8>,
        reply: &mut dyn Sink,
    ) -> Result<(), Error> {
        loop {
            let before = self.source.losses();
            let is_steady = || self.source.losses() == before;
            buffer.clear();
            let mut gather =
                Gather { expected: 0, found: 0, replied: false, is_steady, buffer, reply };
            let result = self.read_once(ino, offset, len, &mut gather);
            if gather.replied || is_steady() {
                return result;
            }
        }
    }

    fn read_once<F: Fn() -> bool>(
        &self,
        ino: u64,
        offset: u64,
        len: u32,
        gather: &mut Gather<'_, F>,
    ) -> Result<(), Error> {
        let (slot, number, len) = self.readable(ino, offset, len)?;
        let failed = |source| Error::Read { ino, offset, len, source };
        gather.expected = len as usize;
        if len > 0 {
            self.source.read(slot, number, offset, len, gather).map_err(failed)?;
        }
        gather.finish();
        let Gather { expected, found, .. } = *gather;
        match found == expected {
            true => Ok(()),
            false => Err(failed(ReadError::Length { layer: slot, number, expected, found })),
        }
    }

    /// As [`read`](Self::read) where nothing has to be waited for; false otherwise, and where the
    /// read is in error.
    pub fn read_ready(&self, ino: u64, offset: u64, len: u32, reply: &mut dyn Sink) -> bool {
        let before = self.source.losses();
        let is_steady = || self.source.losses() == before;
        match self.readable(ino, offset, len) {
            Ok((slot, number, len @ 1..)) => {
                let expected = len as usize;
                let buffer = &mut Vec::new();
                let mut gather =
                    Gather { expected, found: 0, replied: false, is_steady, buffer, reply };
                self.source.read_ready(slot, number, offset, len, &mut gather) && gather.replied
            }
            _ => false,
        }
    }

    /// A name was looked up in the directory `parent`; `sink` is told what is worth doing ahead.
    pub fn visited(&self, parent: u64, sink: &mut dyn Sink) {
        if let Some(NodeId::Tree { slot, .. }) = NodeId::from_raw(parent) {
            self.source.visited(slot, sink);
        }
    }

    /// Does what a read said is worth doing ahead, while `spare` says so.
    pub fn ahead(&self, wish: Ahead, spare: &dyn Spare) {
        self.source.ahead(wish, spare);
    }

    /// The layer and inode that have a regular file's content, and how many bytes of `len` it has
    /// from `offset` on.
    fn readable(&self, ino: u64, offset: u64, len: u32) -> Result<(Slot, u32, u32), Error> {
        let (layer, slot, number) = self.content(ino, FileKind::Regular)?;
        let Some(attr) = layer.inode(number) else {
            let source = ReadError::NoContent { layer: slot, number };
            return Err(Error::Read { ino, offset, len, source });
        };
        let left = attr.size.saturating_sub(offset);
        Ok((slot, number, u32::try_from(left).unwrap_or(u32::MAX).min(len)))
    }

    /// Statistics of the tree that an inode is in. A file belongs to a layer, and so to any number
    /// of trees: of such a one, its layer's.
    pub fn statfs(&self, ino: u64) -> Result<Statistics, Error> {
        let (bytes, inodes) = self.steady(|| match node(ino)? {
            NodeId::Root => Ok((0, 1)),
            NodeId::Tree { slot, .. } => {
                let totals = self.tree(slot, ino)?.totals();
                Ok((totals.bytes, totals.inodes))
            }
            NodeId::Layer { slot, .. } => {
                let layer = self.layer(slot, ino)?;
                Ok((layer.tar_len(), layer.inode_count().into()))
            }
        })?;
        Ok(Statistics { blocks: bytes.div_ceil(BLOCK_SIZE.into()), inodes })
    }

    fn lookup_tree(&self, name: &[u8]) -> Lookup {
        let tree = slot_of_name(name).and_then(|slot| self.source.tree(slot));
        let found = tree.and_then(|tree| {
            let attr = tree.inode(TREE_ROOT)?;
            let node = NodeId::Tree { slot: tree.slot(), number: TREE_ROOT };
            Some(Inode { entry_ttl: Duration::ZERO, ..Inode::unchanging(node, attr) })
        });
        match found {
            Some(inode) => Lookup::Found(inode),
            None => Lookup::Missing { ttl: Duration::ZERO },
        }
    }

    fn inode(&self, node: NodeId) -> Result<Inode, Error> {
        let ino = node.to_raw();
        let attr = match node {
            NodeId::Root => return Ok(root()),
            NodeId::Tree { slot, number } => self.tree(slot, ino)?.inode(number),
            NodeId::Layer { slot, number } => self.layer(slot, ino)?.inode(number),
        };
        Ok(Inode::unchanging(node, attr.ok_or(Error::Stale { ino })?))
    }

    /// The inode that an entry of `tree` names; `parent` is for the error only.
    fn entry_inode(&self, tree: &Tree, entry: &Entry<'_>, parent: u64) -> Result<Inode, Error> {
        let attr = match entry.node {
            NodeId::Root => None,
            // The tree at hand: entries name no other
            NodeId::Tree { number, .. } => tree.inode(number),
            NodeId::Layer { slot, number } => {
                self.source.layer(slot).and_then(|layer| layer.inode(number))
            }
        };
        match (attr, entry.node) {
            (Some(attr), node) => Ok(Inode::unchanging(node, attr)),
            (None, NodeId::Layer { slot, number }) => {
                Err(Error::Dangling { ino: parent, layer: slot, number })
            }
            (None, NodeId::Root | NodeId::Tree { .. }) => {
                Err(Error::Stale { ino: entry.node.to_raw() })
            }
        }
    }

    /// The directory above; that of a tree's root is the filesystem's root.
    fn parent(&self, node: NodeId) -> Result<NodeId, Error> {
        let ino = node.to_raw();
        match node {
            NodeId::Root | NodeId::Tree { number: TREE_ROOT, .. } => Ok(NodeId::Root),
            // A file may have many names, so it does not know its directory
            NodeId::Layer { .. } => Err(Error::NotDirectory { ino }),
            NodeId::Tree { slot, number } => {
                let tree = self.tree(slot, ino)?;
                directory(&tree, number, ino)?;
                let parent = tree.parent(number).ok_or(Error::NotDirectory { ino })?;
                Ok(NodeId::Tree { slot, number: parent })
            }
        }
    }

    /// The layer, its slot, and the inode in it that has the content of a file of this kind.
    fn content(&self, ino: u64, kind: FileKind) -> Result<(Arc<Layer>, Slot, u32), Error> {
        let (slot, number, attr) = match node(ino)? {
            NodeId::Root => return Err(Error::IsDirectory { ino }),
            NodeId::Layer { slot, number } => {
                let layer = self.layer(slot, ino)?;
                let attr = layer.inode(number).ok_or(Error::Stale { ino })?;
                of_kind(&attr, kind, ino)?;
                return Ok((layer, slot, number));
            }
            NodeId::Tree { slot, number } => {
                let tree = self.tree(slot, ino)?;
                let attr = tree.inode(number).ok_or(Error::Stale { ino })?;
                of_kind(&attr, kind, ino)?;
                let (slot, number) = tree.content(number).ok_or(Error::WrongKind { ino })?;
                (slot, number, attr)
            }
        };
        let layer = self.source.layer(slot);
        // The tree's word on the size reached the kernel: content of another size would be cut or
        // padded without a trace
        let same = |layer: &Arc<Layer>| layer.inode(number).is_some_and(|a| a.size == attr.size);
        let layer = layer.filter(same).ok_or(Error::Dangling { ino, layer: slot, number })?;
        Ok((layer, slot, number))
    }

    fn tree(&self, slot: Slot, ino: u64) -> Result<Arc<Tree>, Error> {
        self.source.tree(slot).ok_or(Error::Stale { ino })
    }

    fn layer(&self, slot: Slot, ino: u64) -> Result<Arc<Layer>, Error> {
        self.source.layer(slot).ok_or(Error::Stale { ino })
    }
}

fn node(ino: u64) -> Result<NodeId, Error> {
    NodeId::from_raw(ino).ok_or(Error::Stale { ino })
}

/// Checks that an inode of a tree is a directory.
fn directory(tree: &Tree, number: u32, ino: u64) -> Result<Attr, Error> {
    let attr = tree.inode(number).ok_or(Error::Stale { ino })?;
    match attr.kind {
        FileKind::Directory => Ok(attr),
        _ => Err(Error::NotDirectory { ino }),
    }
}

fn of_kind(attr: &Attr, kind: FileKind, ino: u64) -> Result<(), Error> {
    match attr.kind {
        found if found == kind => Ok(()),
        FileKind::Directory => Err(Error::IsDirectory { ino }),
        _ => Err(Error::WrongKind { ino }),
    }
}

/// The root directory. Who may pass it is decided by the directory that it is mounted in.
fn root() -> Inode {
    let attr = Attr {
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        rdev: 0,
        size: 0,
        mtime_sec: 0,
        mtime_nsec: 0,
    };
    Inode::unchanging(NodeId::Root, attr)
}

/// The slot that a name in the root stands for. One name a slot: no sign, no leading zeros.
fn slot_of_name(name: &[u8]) -> Option<Slot> {
    let digits = name.iter().all(u8::is_ascii_digit) && !name.starts_with(b"0");
    let text = std::str::from_utf8(name).ok().filter(|_| digits)?;
    Slot::new(text.parse().ok()?)
}

/// Makes one piece of what a source gives: passed on as it is where it comes in one. Passes on
/// nothing once something was lost.
struct Gather<'a, F> {
    expected: usize,
    found: usize,
    replied: bool,
    is_steady: F,
    buffer: &'a mut Vec<u8>,
    reply: &'a mut dyn Sink,
}

impl<F: Fn() -> bool> Sink for Gather<'_, F> {
    fn data(&mut self, bytes: &[u8]) {
        if self.found == 0 && bytes.len() == self.expected {
            if (self.is_steady)() {
                self.reply.data(bytes);
                self.replied = true;
            }
        } else if self.buffer.len() + bytes.len() <= self.expected {
            self.buffer.extend_from_slice(bytes);
        }
        self.found += bytes.len();
    }

    fn ahead(&mut self, wish: Ahead) {
        self.reply.ahead(wish);
    }
}

impl<F: Fn() -> bool> Gather<'_, F> {
    /// Passes on what came in pieces, if it is all.
    fn finish(&mut self) {
        let is_all = self.found == self.expected && self.buffer.len() == self.expected;
        if is_all && !self.replied && (self.is_steady)() {
            self.reply.data(self.buffer);
            self.replied = true;
        }
    }
}

#[cfg(test)]
mod tests;
