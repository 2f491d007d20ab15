//! From merged directories to the sections of a tree's file.
//!
//! Inodes are numbered depth first, names bytewise. A file becomes an inode of the tree where its
//! visible names are not as many as its layer says, and where a hard link of an upper layer gave it
//! other attributes.

use zerocopy::{FromBytes, IntoBytes};

use super::{
    BuiltTree, MERGER_VERSION, MergeError,
    census::Census,
    stack::{Directory, File, LayerInode, Stack},
    walk::{Event, Walk},
};
use crate::{
    attr::{Attr, FileKind},
    digest::Digest,
    format::{
        FileType, NameHeap, Sealed, Section, TreeDirent, TreeInode, TreeLayer, TreeMeta, XattrHeap,
    },
    layer::digest_record,
    nodeid::NodeId,
    tree::OWN,
};

/// Mode of a directory that no layer lists, the root's included.
const UNLISTED_MODE: u32 = 0o755;

/// Walks a stack once more and seals its tree.
pub(super) fn seal(
    stack: &Stack<'_>,
    census: Census,
    xattrs: XattrHeap,
    chain_id: Option<Digest>,
) -> Result<BuiltTree, MergeError> {
    let (entries, totals) = (census.entries, census.totals);
    let mut encoder = Encoder {
        stack,
        heap: NameHeap::default(),
        inodes: Vec::with_capacity(census.inodes() * size_of::<TreeInode>()),
        dirents: vec![0; entries as usize * size_of::<TreeDirent>()],
        claimed: 0,
        group_numbers: vec![0; stack.groups.len()],
        census,
        entered: 0,
        borrowed: 0,
        xattrs,
        open: Vec::new(),
    };
    encoder.walk()?;
    let Encoder { heap, inodes, dirents, xattrs, .. } = encoder;

    let (chain_algorithm, chain_id) = chain_id.as_ref().map_or((0, [0; 64]), digest_record);
    let meta = TreeMeta {
        inodes: totals.inodes.into(),
        bytes: totals.bytes.into(),
        chain_algorithm,
        reserved: [0; 7],
        chain_id,
    };
    let layer_record = |layer: &&crate::layer::Layer| {
        let (diff_algorithm, diff_id) = digest_record(&layer.diff_id());
        TreeLayer {
            slot: layer.slot().number().into(),
            inodes: layer.inode_count().into(),
            diff_algorithm,
            reserved: [0; 7],
            diff_id,
            numbering: layer.numbering(),
        }
    };
    let layers: Vec<TreeLayer> = stack.layers.iter().map(layer_record).collect();
    let sections = vec![
        (Section::Meta, meta.as_bytes().to_vec()),
        (Section::Inodes, inodes),
        (Section::Dirents, dirents),
        (Section::Names, heap.into_bytes()),
        (Section::Xattrs, xattrs.into_bytes()),
        (Section::Layers, layers.as_bytes().to_vec()),
    ];
    let sealed = Sealed::new(FileType::Tree, MERGER_VERSION, sections);
    Ok(BuiltTree { sealed, entries, totals })
}

struct Encoder<'s, 'a> {
    stack: &'s Stack<'a>,
    census: Census,
    /// Directories entered so far, and those of them that borrow their attributes.
    entered: usize,
    borrowed: usize,
    heap: NameHeap,
    xattrs: XattrHeap,
    /// The sections, as bytes: they are not copied to be sealed.
    inodes: Vec<u8>,
    dirents: Vec<u8>,
    /// Entries that have an owner.
    claimed: u64,
    group_numbers: Vec<u32>,
    open: Vec<Open>,
}

/// A directory whose entries are being written.
struct Open {
    number: u32,
    /// Where its next entry goes.
    dirent: usize,
    subdirectories: u32,
}

impl Encoder<'_, '_> {
    fn walk(&mut self) -> Result<(), MergeError> {
        let (mut walk, root) = Walk::new(self.stack);
        // The root is its own parent
        self.enter(1, &root)?;
        while let Some(event) = walk.next(self.stack) {
            match event {
                Event::File { name, file } => {
                    let (kind, node) = self.file(file)?;
                    self.entry(name, kind, node)?;
                }
                Event::Enter { name, directory } => {
                    let number = self.next_number();
                    self.entry(name, FileKind::Directory, own(number))?;
                    let parent = self.open.last_mut().map_or(1, |open| {
                        open.subdirectories += 1;
                        open.number
                    });
                    self.enter(parent, &directory)?;
                }
                Event::Leave => self.leave(),
            }
        }
        Ok(())
    }

    /// Numbers a directory and claims its entries.
    fn enter(&mut self, parent: u32, directory: &Directory) -> Result<(), MergeError> {
        let entries = self.census.directories[self.entered];
        self.entered += 1;
        let mut listed = directory.listed;
        if directory.borrows() {
            listed = self.census.lenders[self.borrowed];
            self.borrowed += 1;
        }
        let mut inode = match listed {
            Some((layer, number)) => {
                let layer = self.stack.layer(layer);
                let xattrs = self.xattrs.intern(layer.xattrs(number))?;
                layer.inode(number).map(|attr| record(&attr, xattrs)).unwrap_or_default()
            }
            None => {
                let mode = FileKind::Directory.type_bits() | UNLISTED_MODE;
                TreeInode { mode: mode.into(), ..TreeInode::default() }
            }
        };
        inode.size = 0.into();
        inode.parent = parent.into();
        inode.data = self.claimed.into();
        inode.count = entries.into();
        let number = self.add(&inode);
        self.open.push(Open { number, dirent: self.claimed as usize, subdirectories: 0 });
        self.claimed += u64::from(entries);
        Ok(())
    }

    fn leave(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let inodes = <[TreeInode]>::mut_from_bytes(&mut self.inodes).unwrap_or_default();
        if let Some(inode) = inodes.get_mut(open.number as usize - 1) {
            inode.nlink = open.subdirectories.saturating_add(2).into();
        }
    }

    fn entry(&mut self, name: &[u8], kind: FileKind, node: u64) -> Result<(), MergeError> {
        let name = self.heap.intern(name)?;
        let (name_offset, name_len) = self.heap.place(name);
        let entry = TreeDirent {
            name_offset: name_offset.into(),
            name_len: (name_len as u16).into(),
            kind: kind.code(),
            reserved: 0,
            node: node.into(),
        };
        if let Some(open) = self.open.last_mut() {
            let at = open.dirent * size_of::<TreeDirent>();
            self.dirents[at..at + size_of::<TreeDirent>()].copy_from_slice(entry.as_bytes());
            open.dirent += 1;
        }
        Ok(())
    }

    fn next_number(&self) -> u32 {
        (self.inodes.len() / size_of::<TreeInode>() + 1) as u32
    }

    fn add(&mut self, inode: &TreeInode) -> u32 {
        let number = self.next_number();
        self.inodes.extend_from_slice(inode.as_bytes());
        number
    }

    fn file(&mut self, file: File) -> Result<(FileKind, u64), MergeError> {
        match file {
            File::Group(group) => Ok(self.group(group)),
            File::Layer(inode) => self.layer_file(inode),
        }
    }

    fn group(&mut self, group: u32) -> (FileKind, u64) {
        let index = group as usize;
        // Every group was made with attributes
        let Some(attr) = self.stack.attr(group) else { return (FileKind::Regular, 0) };
        if self.group_numbers[index] == 0 {
            let attr = Attr { nlink: self.census.group_names[index], ..attr };
            let group = &self.stack.groups[index];
            let inode = file_record(self.stack, &attr, group.content, group.xattrs);
            self.group_numbers[index] = self.add(&inode);
        }
        (attr.kind, own(self.group_numbers[index]))
    }

    /// Kind and raw number of a layer's file: the layer's, or the tree's own where the names that
    /// show are not as many as the layer says.
    fn layer_file(&mut self, inode: LayerInode) -> Result<(FileKind, u64), MergeError> {
        let layer = self.stack.layer(inode.0);
        let raw = NodeId::Layer { slot: layer.slot(), number: inode.1 }.to_raw();
        let Some(attr) = layer.inode(inode.1) else {
            return Ok((FileKind::Regular, raw));
        };
        let Some(changed) = self.census.changed(inode) else {
            return Ok((attr.kind, raw));
        };
        let (number, nlink) = (changed.number, changed.names);
        if number != 0 {
            return Ok((attr.kind, own(number)));
        }
        let xattrs = self.xattrs.intern(layer.xattrs(inode.1))?;
        let number = self.add(&file_record(self.stack, &Attr { nlink, ..attr }, inode, xattrs));
        if let Some(changed) = self.census.changed(inode) {
            changed.number = number;
        }
        Ok((attr.kind, own(number)))
    }
}

/// The raw number of an inode of the tree at hand.
fn own(number: u32) -> u64 {
    OWN | u64::from(number)
}

fn file_record(
    stack: &Stack<'_>,
    attr: &Attr,
    (layer, number): LayerInode,
    xattrs: u32,
) -> TreeInode {
    let slot = stack.layer(layer).slot();
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
