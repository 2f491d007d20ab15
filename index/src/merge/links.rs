//! Hard links whose targets are in lower layers.
//!
//! A layer's links come before all else of it: each is looked up in the layers below as they show
//! by then, and makes a file of its own of its target, the name there included. That this name
//! stands for the new file is kept beside the layers, by where the name stands in them: whatever a
//! layer further up does to the path hides that entry, and the new file with it.

use std::collections::BTreeMap;

use super::{
    error::MergeError,
    stack::{BYTES_PER_STEP, Directory, File, LayerInode, Part, Stack, is_directory},
};
use crate::{
    attr::{Attr, FileKind, PERMISSION_MASK},
    format::{LayerDirent, XattrHeap},
    layer::Layer,
    path::{self, MAX_LINKS, clean, printable},
};

/// A file with names of its own: content of a lower layer's inode, attributes of a hard link.
#[derive(Clone)]
pub(super) struct Group {
    /// The inode that has the content.
    pub(super) content: LayerInode,
    /// The lower link whose header came last.
    header: LayerInode,
    /// Offset in the merge's XATTRS.
    pub(super) xattrs: u32,
}

/// A name of a merged directory.
enum Child {
    Directory(Vec<Part>),
    /// Layer, and position in its DIRENTS.
    File((u16, u32), File),
}

/// Follows the components of a path.
struct Lookup<'a> {
    /// Components that are left, the next one last.
    rest: Vec<&'a [u8]>,
    /// Parts of the directories that lead to the current one, from the root on.
    directories: Vec<Vec<Part>>,
    links: usize,
    steps: usize,
}

impl<'a> Lookup<'a> {
    fn enter(&mut self, target: &'a [u8]) {
        let target = clean(target);
        let depth = if target.is_absolute { 1 } else { self.directories.len() };
        self.directories.truncate(depth.saturating_sub(target.ups).max(1));
        self.rest.extend(target.names.iter().rev());
    }

    fn is_too_long(&mut self) -> bool {
        self.steps += 1;
        self.links > MAX_LINKS || self.steps > path::MAX_STEPS
    }
}

impl<'a> Stack<'a> {
    /// Applies the links of all layers, lowest first; gives the extended attributes they made.
    pub(super) fn apply_lower_links(&mut self) -> Result<XattrHeap, MergeError> {
        let mut xattrs = XattrHeap::default();
        for (index, layer) in (0..).zip(self.layers) {
            let links = self.apply_links_of(index, layer, &mut xattrs)?;
            self.links.push(links);
        }
        Ok(xattrs)
    }

    fn apply_links_of(
        &mut self,
        index: u16,
        layer: &'a Layer,
        xattrs: &mut XattrHeap,
    ) -> Result<Vec<(u32, u32)>, MergeError> {
        let mut links: Vec<(u32, &[u8])> = layer.lower_links().collect();
        // The last header wins
        links.sort_by_key(|(number, _)| layer.record(*number).map(|record| record.header.get()));
        let first_group = self.groups.len();
        let mut made = Vec::with_capacity(links.len());
        for (number, path) in links {
            let group = match self.find_target(index, path)? {
                (_, File::Group(group)) if group as usize >= first_group => group,
                (name, file) => self.split_off(name, file, xattrs)?,
            };
            let missing =
                || MergeError::MissingTarget { layer: layer.diff_id(), path: printable(path) };
            self.attr(group).ok_or_else(missing)?;
            self.set_header(group, (index, number), xattrs, path)?;
            made.push((number, group));
        }
        made.sort_unstable();
        Ok(made)
    }

    /// The file that a path of the layers below `index` names, and where its name stands.
    fn find_target(
        &mut self,
        index: u16,
        path: &'a [u8],
    ) -> Result<((u16, u32), File), MergeError> {
        let layer = self.layer(index).diff_id();
        let text = || printable(path);
        let missing = || MergeError::MissingTarget { layer, path: text() };
        let mut root = Vec::new();
        self.root(index.into(), &mut root);
        let mut lookup = Lookup { rest: Vec::new(), directories: vec![root], links: 0, steps: 0 };
        lookup.enter(path);
        while let Some(name) = lookup.rest.pop() {
            if lookup.is_too_long() {
                return Err(MergeError::Links { layer, path: text() });
            }
            let parts = lookup.directories.last().map_or(&[][..], Vec::as_slice);
            self.spend(parts.len(), index, &[path])?;
            // Targets of links go on top of the rest, so the path's own last name comes last
            let is_last = lookup.rest.is_empty();
            match self.child(parts, name).ok_or_else(missing)? {
                Child::Directory(_) if is_last => {
                    return Err(MergeError::DirectoryTarget { layer, path: text() });
                }
                Child::Directory(parts) => lookup.directories.push(parts),
                Child::File(name, file) if is_last => return Ok((name, file)),
                Child::File(_, file) => {
                    let target = self.symlink_target(file).ok_or_else(missing)?;
                    self.spend(target.len() / BYTES_PER_STEP, index, &[path])?;
                    lookup.links += 1;
                    lookup.enter(target);
                }
            }
        }
        Err(MergeError::DirectoryTarget { layer, path: text() })
    }

    /// What a directory shows under a name.
    fn child(&self, parts: &[Part], name: &[u8]) -> Option<Child> {
        let mut entries = parts.iter().filter_map(|(index, number)| {
            let layer = self.layer(*index);
            let (position, entry) = layer.find_child(*number, name)?;
            Some((*index, layer, position, entry))
        });
        let (index, layer, position, entry): (_, _, _, &LayerDirent) = entries.next()?;
        if !is_directory(entry) {
            return Some(Child::File((index, position), self.file(index, position, entry)?));
        }
        let (mut directory, mut parts) = (Directory::default(), Vec::new());
        let mut goes_on = directory.add_entry(layer, index, entry, &mut parts);
        while goes_on && let Some((index, layer, _, entry)) = entries.next() {
            goes_on = directory.add_entry(layer, index, entry, &mut parts);
        }
        Some(Child::Directory(parts))
    }

    /// Makes a group of a file, which takes this name out of any group it had.
    fn split_off(
        &mut self,
        name: (u16, u32),
        file: File,
        xattrs: &mut XattrHeap,
    ) -> Result<u32, MergeError> {
        let made = match file {
            File::Group(old) => self.groups[old as usize].clone(),
            File::Layer(content) => {
                let set = self.layer(content.0).xattrs(content.1);
                Group { content, header: content, xattrs: xattrs.intern(set)? }
            }
        };
        self.groups.push(made);
        let group = (self.groups.len() - 1) as u32;
        self.split.insert(name, group);
        Ok(group)
    }

    /// Applies the header of a hard link to a group, as chown(2), setxattr(2), chmod(2) and
    /// utimensat(2) would.
    fn set_header(
        &mut self,
        group: u32,
        header: LayerInode,
        heap: &mut XattrHeap,
        path: &[u8],
    ) -> Result<(), MergeError> {
        let own = self.layer(header.0).xattrs(header.1);
        let old = heap.set(self.groups[group as usize].xattrs);
        let steps = (old.byte_len() + own.byte_len()) / BYTES_PER_STEP;
        self.spend(steps, header.0, &[path])?;
        let mut set: BTreeMap<Vec<u8>, Vec<u8>> = old
            .filter(|(name, _)| *name != b"security.capability")
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        set.extend(own.map(|(name, value)| (name.to_vec(), value.to_vec())));
        let xattrs = heap.intern(set.iter().map(|(name, value)| (&name[..], &value[..])))?;
        let group = &mut self.groups[group as usize];
        (group.header, group.xattrs) = (header, xattrs);
        Ok(())
    }

    /// Attributes of a group, but for its link count, which is that of the content's inode.
    pub(super) fn attr(&self, group: u32) -> Option<Attr> {
        let Group { content, header, .. } = &self.groups[group as usize];
        let attr = self.layer(content.0).inode(content.1)?;
        let record = self.layer(header.0).record(header.1)?;
        let mode = match attr.kind {
            FileKind::Symlink => attr.mode,
            _ => record.mode.get() & PERMISSION_MASK,
        };
        Some(Attr {
            mode,
            uid: record.uid.get(),
            gid: record.gid.get(),
            mtime_sec: record.mtime_sec.get(),
            mtime_nsec: record.mtime_nsec.get(),
            ..attr
        })
    }
}
