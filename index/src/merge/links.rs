//! Symlinks that lead from one layer into those below, and hard links that do.

use std::collections::{BTreeMap, HashMap};

use super::{
    apply::Merged,
    arena::{Child, LayerInode, ROOT, Target},
    error::MergeError,
};
use crate::{
    attr::{Attr, FileKind, PERMISSION_MASK},
    format::{HeapFull, is_valid_name},
    layer::Layer,
    path::{MAX_LINKS, MAX_STEPS, clean},
};

/// A file with names of its own: content of a lower layer's inode, attributes of the hard link.
pub(super) struct Group {
    /// The inode that has the content.
    pub(super) content: LayerInode,
    pub(super) attr: Attr,
    /// Offset in the merge's XATTRS.
    pub(super) xattrs: u32,
}

impl Group {
    pub(super) fn kind(&self) -> FileKind {
        self.attr.kind
    }
}

/// Follows the components of a path, counting links and steps.
struct Walk {
    current: u32,
    /// Components that are left, the next one last.
    rest: Vec<Vec<u8>>,
    links: usize,
    steps: usize,
}

impl Walk {
    fn new(start: u32) -> Self {
        Self { current: start, rest: Vec::new(), links: 0, steps: 0 }
    }

    fn is_too_long(&mut self) -> bool {
        self.steps += 1;
        self.links > MAX_LINKS || self.steps > MAX_STEPS
    }
}

impl Merged<'_> {
    /// Target of an entry that is a symlink.
    pub(super) fn symlink_target(&self, child: &Child) -> Option<&[u8]> {
        let (layer, number) = match child.target {
            Target::Directory(_) => return None,
            Target::File(layer, number) => (layer, number),
            Target::Group(group) => self.groups[group as usize].content,
        };
        self.arena.layers[usize::from(layer)].symlink_target(number)
    }

    fn enter(&self, walk: &mut Walk, target: &[u8]) {
        let path = clean(target);
        walk.rest.extend(path.names.iter().rev().map(|name| name.to_vec()));
        if path.is_absolute {
            walk.current = ROOT;
        }
        for _ in 0..path.ups {
            walk.current = self.arena.directory(walk.current).parent;
        }
    }

    /// The directory that a symlink leads to, made with its parents where there is none.
    pub(super) fn follow(
        &mut self,
        layer: &Layer,
        holder: u32,
        target: &[u8],
    ) -> Result<u32, MergeError> {
        let path = || printable(target);
        let mut walk = Walk::new(holder);
        self.enter(&mut walk, target);
        while let Some(name) = walk.rest.pop() {
            if walk.is_too_long() {
                return Err(MergeError::Links { layer: layer.diff_id(), path: path() });
            }
            if !is_valid_name(&name) {
                return Err(MergeError::Name { layer: layer.diff_id(), path: path() });
            }
            let found = self.arena.find(walk.current, &name);
            let child = found.ok().map(|at| self.arena.directory(walk.current).children[at]);
            match child {
                Some(Child { target: Target::Directory(directory), .. }) => {
                    walk.current = directory;
                }
                Some(child) if let Some(target) = self.symlink_target(&child) => {
                    let target = target.to_vec();
                    walk.links += 1;
                    self.enter(&mut walk, &target);
                }
                _ => walk.current = self.arena.make_directory(walk.current, &name),
            }
        }
        Ok(walk.current)
    }

    /// Applies the hard links of a layer whose targets are in the layers below; gives the group of
    /// each by the link's number. This comes before all else of the layer.
    pub(super) fn apply_lower_links(
        &mut self,
        index: u16,
        layer: &Layer,
    ) -> Result<HashMap<u32, u32>, MergeError> {
        let mut links: Vec<(u32, &[u8])> = layer.lower_links().collect();
        // The last header wins
        links.sort_by_key(|(number, _)| layer.record(*number).map(|record| record.header.get()));
        let mut groups = HashMap::new();
        let mut made_here = HashMap::new();
        for (number, path) in links {
            let target = self.find_target(layer, path)?;
            let group = match made_here.get(&target) {
                Some(group) => *group,
                None => {
                    let group = self.split_off(target)?.ok_or_else(|| {
                        let path = printable(path);
                        MergeError::MissingTarget { layer: layer.diff_id(), path }
                    })?;
                    made_here.insert(target, group);
                    group
                }
            };
            self.set_header(group, (index, number))?;
            groups.insert(number, group);
        }
        Ok(groups)
    }

    /// Directory and position of the file that a path of the lower layers names.
    fn find_target(&self, layer: &Layer, path: &[u8]) -> Result<(u32, usize), MergeError> {
        let digest = layer.diff_id();
        let missing = || MergeError::MissingTarget { layer: digest, path: printable(path) };
        let mut walk = Walk::new(ROOT);
        self.enter(&mut walk, path);
        while let Some(name) = walk.rest.pop() {
            if walk.is_too_long() {
                return Err(MergeError::Links { layer: digest, path: printable(path) });
            }
            let at = self.arena.find(walk.current, &name).map_err(|_| missing())?;
            let child = self.arena.directory(walk.current).children[at];
            // Targets of links go on top of the rest, so the path's own last name comes last
            let is_last = walk.rest.is_empty();
            match child.target {
                Target::Directory(_) if is_last => {
                    return Err(MergeError::DirectoryTarget {
                        layer: digest,
                        path: printable(path),
                    });
                }
                Target::Directory(directory) => walk.current = directory,
                _ if is_last => return Ok((walk.current, at)),
                _ => {
                    let target = self.symlink_target(&child).ok_or_else(missing)?.to_vec();
                    walk.links += 1;
                    self.enter(&mut walk, &target);
                }
            }
        }
        Err(MergeError::DirectoryTarget { layer: digest, path: printable(path) })
    }

    /// Makes a group of the file at a position, which takes this name out of any group it had.
    fn split_off(&mut self, (directory, at): (u32, usize)) -> Result<Option<u32>, HeapFull> {
        let group = match self.arena.directory(directory).children[at].target {
            Target::Group(old) => {
                let old = &self.groups[old as usize];
                Group { content: old.content, attr: old.attr, xattrs: old.xattrs }
            }
            Target::File(layer, number) => {
                let of = self.arena.layers[usize::from(layer)];
                let Some(attr) = of.inode(number) else {
                    return Ok(None);
                };
                let xattrs = self.xattrs.intern(of.xattrs(number))?;
                Group { content: (layer, number), attr, xattrs }
            }
            Target::Directory(_) => return Ok(None),
        };
        self.groups.push(group);
        let group = (self.groups.len() - 1) as u32;
        self.arena.directory_mut(directory).children[at].target = Target::Group(group);
        Ok(Some(group))
    }

    /// Applies the header of a hard link to a group, as chown(2), setxattr(2), chmod(2) and
    /// utimensat(2) would.
    fn set_header(&mut self, group: u32, (index, number): LayerInode) -> Result<(), MergeError> {
        let layer = self.arena.layers[usize::from(index)];
        let group = &mut self.groups[group as usize];
        let Some(record) = layer.record(number) else {
            return Ok(());
        };
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = self
            .xattrs
            .set(group.xattrs)
            .filter(|(name, _)| *name != b"security.capability")
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        xattrs.extend(layer.xattrs(number).map(|(name, value)| (name.to_vec(), value.to_vec())));
        group.xattrs = self.xattrs.intern(xattrs.iter().map(|(n, v)| (&n[..], &v[..])))?;
        if group.attr.kind != FileKind::Symlink {
            group.attr.mode = record.mode.get() & PERMISSION_MASK;
        }
        group.attr.uid = record.uid.get();
        group.attr.gid = record.gid.get();
        group.attr.mtime_sec = record.mtime_sec.get();
        group.attr.mtime_nsec = record.mtime_nsec.get();
        Ok(())
    }
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
