//! Listing directories.
//!
//! The offset that goes with an entry is that of the next one: 1 after `.`, 2 after `..`, then
//! index + 3. As directories never change, an offset is good for ever and in every worker.

use std::sync::Arc;

use peel_index::{FileKind, Layer, NodeId, Slot, Tree};

use super::{Filesystem, Inode, TREE_ROOT, directory, node};
use crate::{error::Error, source::FileSource};

/// An entry as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The inode that it names.
    pub ino: u64,
    /// Kind of that inode.
    pub kind: FileKind,
    /// Where to go on after it.
    pub offset: u64,
}

/// The layer that the last entry's inode was in: the entries of a directory mostly come from one.
type Held = Option<(Slot, Arc<Layer>)>;

/// The index of the first entry after `.` and `..` that an offset asks for.
fn index_of(offset: u64) -> u64 {
    offset.saturating_sub(2)
}

impl<S: FileSource> Filesystem<S> {
    /// Lists the directory `ino` from `offset` (0 at first) until `full` says that the last entry
    /// found no room.
    pub fn readdir(
        &self,
        ino: u64,
        offset: u64,
        full: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Error> {
        self.list(ino, offset, |_, _, _| Ok(()), |entry, ()| full(entry))
    }

    /// Lists a directory as [`readdir`](Self::readdir) does, with the inodes. An inode that cannot
    /// be had ends the listing before it, and is an error where it would be the first.
    ///
    /// `.` and `..` come with the directory's own inode: the kernel takes no attributes of theirs.
    pub fn readdirplus(
        &self,
        ino: u64,
        offset: u64,
        full: &mut dyn FnMut(DirEntry<'_>, &Inode) -> bool,
    ) -> Result<(), Error> {
        let own = self.getattr(ino)?;
        let inode =
            |tree: Option<&Tree>, last: &mut Held, entry: &DirEntry<'_>| match NodeId::from_raw(
                entry.ino,
            ) {
                _ if entry.name == b"." || entry.name == b".." => Ok(own),
                Some(NodeId::Layer { slot, number }) => {
                    if last.as_ref().is_none_or(|(held, _)| *held != slot) {
                        *last = self.source.layer(slot).map(|layer| (slot, layer));
                    }
                    let attr = last.as_ref().and_then(|(_, layer)| layer.inode(number));
                    attr.ok_or(Error::Dangling { ino, layer: slot, number })
                        .map(|attr| Inode::unchanging(NodeId::Layer { slot, number }, attr))
                }
                Some(NodeId::Tree { slot, number }) => {
                    let attr = tree.and_then(|tree| tree.inode(number));
                    attr.ok_or(Error::Stale { ino: entry.ino })
                        .map(|attr| Inode::unchanging(NodeId::Tree { slot, number }, attr))
                }
                Some(NodeId::Root) | None => Err(Error::Stale { ino: entry.ino }),
            };
        self.list(ino, offset, inode, |entry, inode| full(entry, &inode))
    }

    /// Lists what `look` finds for each entry, from `offset` until `full`. Where something of the
    /// source is lost meanwhile, the listing ends before it, or begins again.
    fn list<T>(
        &self,
        ino: u64,
        offset: u64,
        mut look: impl FnMut(Option<&Tree>, &mut Held, &DirEntry<'_>) -> Result<T, Error>,
        mut full: impl FnMut(DirEntry<'_>, T) -> bool,
    ) -> Result<(), Error> {
        let mut is_first = true;
        loop {
            let before = self.source.losses();
            let is_steady = || self.source.losses() == before;
            let mut last = None;
            let result = self.each_entry(ino, offset, |tree, entry| {
                let found = look(tree, &mut last, &entry);
                if !is_steady() {
                    return Ok(true);
                }
                match found {
                    Ok(found) => {
                        is_first = false;
                        Ok(full(entry, found))
                    }
                    Err(error) if is_first => Err(error),
                    Err(_) => Ok(true),
                }
            });
            if !is_first || is_steady() {
                return result;
            }
        }
    }

    fn each_entry(
        &self,
        ino: u64,
        offset: u64,
        mut each: impl FnMut(Option<&Tree>, DirEntry<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let (parent, tree) = match node(ino)? {
            NodeId::Root => (NodeId::Root, None),
            NodeId::Layer { .. } => {
                self.getattr(ino)?;
                return Err(Error::NotDirectory { ino });
            }
            NodeId::Tree { slot, number } => {
                let tree = self.tree(slot, ino)?;
                directory(&tree, number, ino)?;
                let parent = match tree.parent(number) {
                    _ if number == TREE_ROOT => NodeId::Root,
                    Some(parent) => NodeId::Tree { slot, number: parent },
                    None => return Err(Error::NotDirectory { ino }),
                };
                (parent, Some((tree, number)))
            }
        };
        let dots = [(b".".as_slice(), ino), (b"..".as_slice(), parent.to_raw())];
        for (at, (name, ino)) in (1..).zip(dots).skip(usize::try_from(offset).unwrap_or(2)) {
            let entry = DirEntry { name, ino, kind: FileKind::Directory, offset: at };
            if each(tree.as_ref().map(|(tree, _)| &**tree), entry)? {
                return Ok(());
            }
        }
        let Some((tree, number)) = tree else {
            return Ok(());
        };
        let count = tree.entry_count(number).unwrap_or(0);
        let start = u32::try_from(index_of(offset)).unwrap_or(count);
        for index in start..count {
            let Some(entry) = tree.entry(number, index) else {
                break;
            };
            let listed = DirEntry {
                name: entry.name,
                ino: entry.node.to_raw(),
                kind: entry.kind,
                offset: u64::from(index) + 3,
            };
            if each(Some(&tree), listed)? {
                break;
            }
        }
        Ok(())
    }
}
