//! From merged directories to the sections of a tree's file.
//!
//! Inodes are numbered depth first, names bytewise. A file becomes an inode of the tree where its
//! visible names are not as many as its layer says, and where a hard link of an upper layer gave it
//! other attributes.

use std::collections::HashMap;

use zerocopy::IntoBytes;

use super::{
    BuiltTree, MERGER_VERSION, MergeError,
    apply::Merged,
    arena::{Child, LayerInode, ROOT, Target},
};
use crate::{
    attr::{Attr, FileKind},
    digest::Digest,
    format::{
        FileType, HeapFull, NameHeap, Sealed, Section, TreeDirent, TreeInode, TreeLayer, TreeMeta,
    },
    layer::digest_record,
    nodeid::NodeId,
    tree::{OWN, Totals},
};

/// Most inodes of a tree: numbers are 32 bits, and 0 and the highest one stay free.
const MAX_INODES: usize = u32::MAX as usize - 1;

/// Mode of a directory that no layer lists, the root's included.
const UNLISTED_MODE: u32 = 0o755;

/// Seals a merged tree.
pub(super) fn seal(
    mut merged: Merged<'_>,
    chain_id: Option<Digest>,
) -> Result<BuiltTree, MergeError> {
    let names = count_names(&merged);
    let mut encoder = Encoder {
        group_names: names.groups,
        group_numbers: vec![0; merged.groups.len()],
        shared: names.shared,
        heap: NameHeap::default(),
        inodes: Vec::new(),
        dirents: Vec::new(),
        totals: Totals::default(),
    };
    encoder.walk(&mut merged)?;
    let Encoder { heap, inodes, dirents, totals, .. } = encoder;

    let (chain_algorithm, chain_id) = chain_id.as_ref().map_or((0, [0; 64]), digest_record);
    let meta = TreeMeta {
        inodes: totals.inodes.into(),
        bytes: totals.bytes.into(),
        chain_algorithm,
        reserved: [0; 7],
        chain_id,
    };
    let layers: Vec<TreeLayer> = merged
        .arena
        .layers
        .iter()
        .map(|layer| {
            let (diff_algorithm, diff_id) = digest_record(&layer.diff_id());
            TreeLayer {
                slot: layer.slot().number().into(),
                inodes: layer.inode_count().into(),
                diff_algorithm,
                reserved: [0; 7],
                diff_id,
                numbering: layer.numbering(),
            }
        })
        .collect();
    let entries = dirents.len() as u64;
    let sections = vec![
        (Section::Meta, meta.as_bytes().to_vec()),
        (Section::Inodes, inodes.as_bytes().to_vec()),
        (Section::Dirents, dirents.as_bytes().to_vec()),
        (Section::Names, heap.into_bytes()),
        (Section::Xattrs, merged.xattrs.into_bytes()),
        (Section::Layers, layers.as_bytes().to_vec()),
    ];
    let sealed = Sealed::new(FileType::Tree, MERGER_VERSION, sections);
    Ok(BuiltTree { sealed, entries, totals })
}

/// A layer's inode that may have several names.
#[derive(Default)]
struct Shared {
    /// Visible names.
    names: u32,
    /// Number in the tree, once it has one; 0 before, and for what stays the layer's.
    number: u32,
    /// Whether a name has been written.
    is_seen: bool,
}

struct Names {
    /// Visible names by group.
    groups: Vec<u32>,
    shared: HashMap<LayerInode, Shared>,
}

/// Counts visible names of the inodes that can have other than one.
fn count_names(merged: &Merged<'_>) -> Names {
    let layers = merged.arena.layers;
    let mut occurs = vec![0u32; layers.len()];
    for first in &merged.first_of_slot {
        occurs[usize::from(*first)] += 1;
    }
    let mut groups = vec![0u32; merged.groups.len()];
    let mut shared: HashMap<LayerInode, Shared> = HashMap::new();
    let mut pending = vec![ROOT];
    while let Some(directory) = pending.pop() {
        for child in &merged.arena.directory(directory).children {
            match child.target {
                Target::Directory(directory) => pending.push(directory),
                Target::Group(group) => groups[group as usize] += 1,
                Target::File(layer, number) => {
                    let index = usize::from(layer);
                    let links = layers[index].record(number).map_or(1, |inode| inode.nlink.get());
                    if links != 1 || occurs[index] > 1 {
                        shared.entry((layer, number)).or_default().names += 1;
                    }
                }
            }
        }
    }
    Names { groups, shared }
}

struct Encoder {
    group_names: Vec<u32>,
    group_numbers: Vec<u32>,
    shared: HashMap<LayerInode, Shared>,
    heap: NameHeap,
    inodes: Vec<TreeInode>,
    dirents: Vec<TreeDirent>,
    totals: Totals,
}

/// A directory whose entries are being written.
struct Open {
    number: u32,
    /// Where its next entry goes.
    dirent: usize,
    children: std::vec::IntoIter<Child>,
}

impl Encoder {
    fn walk(&mut self, merged: &mut Merged<'_>) -> Result<(), MergeError> {
        // The root is its own parent
        let mut stack = vec![self.open(merged, ROOT, 1)?];
        while let Some(open) = stack.last_mut() {
            let Some(child) = open.children.next() else {
                stack.pop();
                continue;
            };
            let (parent, position) = (open.number, open.dirent);
            open.dirent += 1;
            let name = self.heap.intern(merged.arena.name(&child))?;
            let (name_offset, name_len) = self.heap.place(name);
            let node = match child.target {
                Target::Directory(directory) => {
                    let opened = self.open(merged, directory, parent)?;
                    let number = opened.number;
                    stack.push(opened);
                    own(number)
                }
                Target::Group(group) => own(self.group(merged, group)?),
                Target::File(layer, number) => self.file(merged, (layer, number))?,
            };
            self.dirents[position] = TreeDirent {
                name_offset: name_offset.into(),
                name_len: (name_len as u16).into(),
                kind: child.kind.code(),
                reserved: 0,
                node: node.into(),
            };
        }
        Ok(())
    }

    /// Numbers a directory and makes room for its entries.
    fn open(
        &mut self,
        merged: &mut Merged<'_>,
        directory: u32,
        parent: u32,
    ) -> Result<Open, MergeError> {
        let directory = merged.arena.directory_mut(directory);
        let children = std::mem::take(&mut directory.children);
        let subdirectories = children.iter().filter(|c| c.kind == FileKind::Directory).count();
        let mut inode = match directory.listed {
            Some((layer, number)) => {
                let layer = merged.arena.layers[usize::from(layer)];
                let xattrs = merged.xattrs.intern(layer.xattrs(number))?;
                layer.inode(number).map(|attr| record(&attr, xattrs)).unwrap_or_default()
            }
            None => {
                let mode = FileKind::Directory.type_bits() | UNLISTED_MODE;
                TreeInode { mode: mode.into(), ..TreeInode::default() }
            }
        };
        let first = self.dirents.len();
        inode.size = 0.into();
        inode.parent = parent.into();
        inode.data = (first as u64).into();
        inode.count = (children.len() as u32).into();
        inode.nlink = (subdirectories as u32).saturating_add(2).into();
        self.dirents.resize(first + children.len(), TreeDirent::default());
        let number = self.add(inode)?;
        self.totals.inodes += 1;
        Ok(Open { number, dirent: first, children: children.into_iter() })
    }

    fn add(&mut self, inode: TreeInode) -> Result<u32, HeapFull> {
        if self.inodes.len() >= MAX_INODES {
            return Err(HeapFull { what: "inodes in a tree", limit: MAX_INODES as u64 });
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() as u32)
    }

    fn group(&mut self, merged: &Merged<'_>, group: u32) -> Result<u32, HeapFull> {
        let index = group as usize;
        if self.group_numbers[index] == 0 {
            let group = &merged.groups[index];
            let attr = Attr { nlink: self.group_names[index], ..group.attr };
            let inode = file_record(merged, &attr, group.content, group.xattrs);
            self.group_numbers[index] = self.add(inode)?;
            self.count(&attr);
        }
        Ok(self.group_numbers[index])
    }

    /// The raw number of a layer's file: the layer's, or the tree's own where the visible names
    /// are not as many as the layer says.
    fn file(&mut self, merged: &mut Merged<'_>, inode: LayerInode) -> Result<u64, MergeError> {
        let layer = merged.arena.layers[usize::from(inode.0)];
        let raw = NodeId::Layer { slot: layer.slot(), number: inode.1 }.to_raw();
        let Some(attr) = layer.inode(inode.1) else {
            return Ok(raw);
        };
        let Some(shared) = self.shared.get_mut(&inode) else {
            self.count(&attr);
            return Ok(raw);
        };
        let (number, names) = (shared.number, shared.names);
        let is_first = !std::mem::replace(&mut shared.is_seen, true);
        if is_first {
            self.count(&attr);
        }
        if names == attr.nlink {
            return Ok(raw);
        }
        if number != 0 {
            return Ok(own(number));
        }
        let xattrs = merged.xattrs.intern(layer.xattrs(inode.1))?;
        let attr = Attr { nlink: names, ..attr };
        let number = self.add(file_record(merged, &attr, inode, xattrs))?;
        self.shared.entry(inode).or_default().number = number;
        Ok(own(number))
    }

    fn count(&mut self, attr: &Attr) {
        self.totals.inodes += 1;
        if attr.kind == FileKind::Regular {
            self.totals.bytes = self.totals.bytes.saturating_add(attr.size);
        }
    }
}

/// The raw number of an inode of the tree at hand.
fn own(number: u32) -> u64 {
    OWN | u64::from(number)
}

fn file_record(
    merged: &Merged<'_>,
    attr: &Attr,
    (layer, number): LayerInode,
    xattrs: u32,
) -> TreeInode {
    let slot = merged.arena.layers[usize::from(layer)].slot();
    let mut inode = record(attr, xattrs);
    if matches!(attr.kind, FileKind::Regular | FileKind::Symlink) {
        inode.content = NodeId::Layer { slot, number }.to_raw().into();
    }
    inode
}

fn record(attr: &Attr, xattrs: u32) -> TreeInode {
    TreeInode {
        mode: (attr.kind.type_bits() | attr.mode).into(),
        uid: attr.uid.into(),
        gid: attr.gid.into(),
        mtime_sec: attr.mtime_sec.into(),
        mtime_nsec: attr.mtime_nsec.into(),
        size: attr.size.into(),
        data: attr.rdev.into(),
        nlink: attr.nlink.into(),
        xattrs: xattrs.into(),
        ..TreeInode::default()
    }
}
