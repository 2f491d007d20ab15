//! The checks of a tree at open, beyond checksums; the same rules as for a layer, see
//! `layer/check.rs`.

use std::collections::BTreeMap;

use super::{LayerRef, OWN, ROOT, Tree, layer_ref};
use crate::{
    attr::{FileKind, MAX_FILE_SIZE, PERMISSION_MASK, TYPE_MASK},
    format::{
        FormatError, Section, TreeDirent, TreeInode, TreeLayer, XattrSets, has_valid_form, slice,
    },
    nodeid::NodeId,
};

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// Checks everything but checksums and META.
pub(super) fn check(tree: &Tree) -> Result<(), FormatError> {
    let inodes: &[TreeInode] = tree.file.checked_records(Section::Inodes)?;
    let dirents: &[TreeDirent] = tree.file.checked_records(Section::Dirents)?;
    let sets = XattrSets::check(tree.file.section(Section::Xattrs))?;
    if inodes.is_empty() || u32::try_from(inodes.len()).is_err() {
        return Err(FormatError::Section { section: Section::Inodes.name() });
    }
    let layers = check_layers(tree.file.checked_records(Section::Layers)?)?;
    let names = tree.file.section(Section::Names);
    let mut checker = Checker { inodes, dirents, names, layers, dirent: 0 };
    let mut references = vec![0u32; inodes.len()];
    for (number, inode) in (1..).zip(inodes) {
        let bad = |problem| Section::Inodes.bad(u64::from(number), problem);
        if inode.mtime_nsec.get() >= NANOS_PER_SEC || !sets.contains(inode.xattrs.get()) {
            return Err(bad("nanoseconds or extended attributes out of range"));
        }
        checker.inode(number, inode, &mut references)?;
    }
    if checker.dirent != dirents.len() {
        return Err(Section::Inodes.bad(inodes.len() as u64, "entries left over"));
    }
    for (number, (inode, count)) in (1..).zip(inodes.iter().zip(&references)) {
        let is_right = match kind_of(inode) {
            Some(FileKind::Directory) => *count == u32::from(number != ROOT),
            _ => *count > 0 && *count == inode.nlink.get(),
        };
        if !is_right {
            return Err(Section::Inodes.bad(number.into(), "link count differs from names"));
        }
    }
    Ok(())
}

fn kind_of(inode: &TreeInode) -> Option<FileKind> {
    FileKind::from_mode(inode.mode.get())
}

/// Number of inodes by slot.
fn check_layers(records: &[TreeLayer]) -> Result<BTreeMap<u32, u32>, FormatError> {
    let mut layers: BTreeMap<u32, LayerRef> = BTreeMap::new();
    for (index, record) in (0..).zip(records) {
        let bad = |problem| Section::Layers.bad(index, problem);
        let layer = layer_ref(record).ok_or(bad("bad slot or diffID"))?;
        if record.reserved != [0; 7] {
            return Err(bad("reserved bytes not zero"));
        }
        let first = layers.entry(layer.slot.number()).or_insert(layer);
        if *first != layer {
            return Err(bad("two layers of one slot"));
        }
    }
    Ok(layers.into_iter().map(|(slot, layer)| (slot, layer.inodes)).collect())
}

struct Checker<'a> {
    inodes: &'a [TreeInode],
    dirents: &'a [TreeDirent],
    names: &'a [u8],
    layers: BTreeMap<u32, u32>,
    /// The next entry that no directory has claimed.
    dirent: usize,
}

impl<'a> Checker<'a> {
    fn inode(
        &mut self,
        number: u32,
        inode: &TreeInode,
        references: &mut [u32],
    ) -> Result<(), FormatError> {
        let bad = |problem| Section::Inodes.bad(u64::from(number), problem);
        let (mode, size, data) = (inode.mode.get(), inode.size.get(), inode.data.get());
        let (parent, count, content) = (inode.parent.get(), inode.count.get(), inode.content.get());
        if mode & !(TYPE_MASK | PERMISSION_MASK) != 0 || size > MAX_FILE_SIZE {
            return Err(bad("mode or size out of range"));
        }
        let kind = kind_of(inode).ok_or(bad("unknown type"))?;
        if kind == FileKind::Directory {
            // Of other directories, the entry that names them checks the parent
            if size != 0 || content != 0 || (number == ROOT && parent != ROOT) {
                return Err(bad("size, content or parent of a directory"));
            }
            let children = self.claim_dirents(data, count).ok_or(bad("entries out of range"))?;
            let subdirectories = self.directory(number, children, references)?;
            if inode.nlink.get() != subdirectories.saturating_add(2) {
                return Err(bad("link count differs from subdirectories"));
            }
            return Ok(());
        }
        let has_content = matches!(kind, FileKind::Regular | FileKind::Symlink);
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let is_right = number != ROOT
            && parent == 0
            && count == 0
            && (data == 0 || is_device)
            && (size == 0 || has_content)
            && if has_content { self.is_layer_inode(content) } else { content == 0 };
        if is_right { Ok(()) } else { Err(bad("field that its type does not have")) }
    }

    fn is_layer_inode(&self, raw: u64) -> bool {
        match NodeId::from_raw(raw) {
            Some(NodeId::Layer { slot, number }) => {
                self.layers.get(&slot.number()).is_some_and(|inodes| number <= *inodes)
            }
            _ => false,
        }
    }

    fn claim_dirents(&mut self, first: u64, count: u32) -> Option<&'a [TreeDirent]> {
        if first != self.dirent as u64 {
            return None;
        }
        let end = self.dirent.checked_add(count as usize)?;
        let claimed = self.dirents.get(self.dirent..end)?;
        self.dirent = end;
        Some(claimed)
    }

    /// Checks the entries of a directory; gives the number of subdirectories.
    fn directory(
        &self,
        number: u32,
        children: &[TreeDirent],
        references: &mut [u32],
    ) -> Result<u32, FormatError> {
        let mut subdirectories = 0;
        let mut last: &[u8] = &[];
        for (position, entry) in (self.dirent - children.len()..).zip(children) {
            let bad = |problem| Section::Dirents.bad(position as u64, problem);
            let (offset, len) = (entry.name_offset.get(), entry.name_len.get());
            let name = slice(self.names, offset.into(), len.into());
            let name = name.filter(|name| has_valid_form(name)).ok_or(bad("invalid name"))?;
            if name <= last || entry.reserved != 0 {
                return Err(bad("names not ascending"));
            }
            last = name;
            let kind = FileKind::from_code(entry.kind).ok_or(bad("unknown type"))?;
            let raw = entry.node.get();
            if raw >> 32 != OWN >> 32 {
                if kind == FileKind::Directory || !self.is_layer_inode(raw) {
                    return Err(bad("no inode of a layer"));
                }
                continue;
            }
            let target = raw as u32;
            let index = target.checked_sub(1).ok_or(bad("no inode"))? as usize;
            let inode = self.inodes.get(index).ok_or(bad("inode out of range"))?;
            if kind_of(inode) != Some(kind) {
                return Err(bad("type differs from its inode"));
            }
            if kind == FileKind::Directory {
                if target <= number || inode.parent.get() != number {
                    return Err(bad("wrong parent"));
                }
                subdirectories += 1;
            }
            references[index] = references[index].saturating_add(1);
        }
        Ok(subdirectories)
    }
}
