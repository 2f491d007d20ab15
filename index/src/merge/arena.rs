//! The merged tree while layers are applied to it: 16 bytes an entry, 40 a directory, and no copy
//! of any name.

use crate::{attr::FileKind, format::slice, layer::Layer};

/// Index of the root in [`Arena::directories`].
pub(super) const ROOT: u32 = 0;

/// Stands for the arena's own names where a layer's index would stand.
const OWN_NAMES: u16 = u16::MAX;

/// Most layers: an index must fit beside [`OWN_NAMES`].
pub(super) const MAX_LAYERS: usize = OWN_NAMES as usize;

/// An inode of a layer: index of the layer, number in it.
pub(super) type LayerInode = (u16, u32);

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// Index of a directory of the arena.
    Directory(u32),
    /// An inode of a layer that is no directory.
    File(u16, u32),
    /// Index of a file that hard links into lower layers made.
    Group(u32),
}

/// An entry of a merged directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    name_offset: u32,
    name_layer: u16,
    name_len: u8,
    pub(super) kind: FileKind,
    pub(super) target: Target,
}

/// A merged directory.
pub(super) struct Directory {
    pub(super) parent: u32,
    /// The topmost layer's directory that its tar lists; gives the attributes.
    pub(super) listed: Option<LayerInode>,
    /// By name, ascending bytewise.
    pub(super) children: Vec<Child>,
}

/// All directories, and what names refer to.
pub(super) struct Arena<'a> {
    pub(super) layers: &'a [&'a Layer],
    names: Vec<&'a [u8]>,
    own_names: Vec<u8>,
    pub(super) directories: Vec<Directory>,
}

impl<'a> Arena<'a> {
    pub(super) fn new(layers: &'a [&'a Layer]) -> Self {
        let root = Directory { parent: ROOT, listed: None, children: Vec::new() };
        Self {
            layers,
            names: layers.iter().map(|layer| layer.names()).collect(),
            own_names: Vec::new(),
            directories: vec![root],
        }
    }

    pub(super) fn directory(&self, directory: u32) -> &Directory {
        &self.directories[directory as usize]
    }

    pub(super) fn directory_mut(&mut self, directory: u32) -> &mut Directory {
        &mut self.directories[directory as usize]
    }

    pub(super) fn name(&self, child: &Child) -> &[u8] {
        let heap = match child.name_layer {
            OWN_NAMES => &self.own_names,
            layer => self.names[usize::from(layer)],
        };
        slice(heap, child.name_offset.into(), child.name_len.into()).unwrap_or_default()
    }

    /// An entry whose name stands in a layer's heap.
    pub(super) fn child(
        layer: u16,
        name_offset: u32,
        name_len: u16,
        kind: FileKind,
        target: Target,
    ) -> Child {
        // A layer's names have been checked: at most 255 bytes
        Child { name_offset, name_layer: layer, name_len: name_len as u8, kind, target }
    }

    /// A new, empty directory that nothing lists and no entry names yet.
    pub(super) fn add_directory(&mut self, parent: u32) -> u32 {
        self.directories.push(Directory { parent, listed: None, children: Vec::new() });
        (self.directories.len() - 1) as u32
    }

    /// Position of a name among a directory's children, or where it would be.
    pub(super) fn find(&self, directory: u32, name: &[u8]) -> Result<usize, usize> {
        let children = &self.directory(directory).children;
        children.binary_search_by(|child| self.name(child).cmp(name))
    }

    /// Makes an empty directory below another one, in place of any entry of that name. The name
    /// has at most 255 bytes.
    pub(super) fn make_directory(&mut self, parent: u32, name: &[u8]) -> u32 {
        let directory = self.add_directory(parent);
        let position = self.find(parent, name);
        let child = Child {
            name_offset: self.own_names.len() as u32,
            name_layer: OWN_NAMES,
            name_len: name.len() as u8,
            kind: FileKind::Directory,
            target: Target::Directory(directory),
        };
        self.own_names.extend_from_slice(name);
        let children = &mut self.directory_mut(parent).children;
        match position {
            Ok(position) => children[position] = child,
            Err(position) => children.insert(position, child),
        }
        directory
    }
}
