//! A stack of layers, and its merged directories as lists of the layers' own.

use std::collections::HashMap;

use super::{error::MergeError, links::Group};
use crate::{
    attr::FileKind,
    format::{HIDES_LOWER, LOWER_LINK_KIND, LayerDirent, WHITEOUT_KIND},
    layer::{self, Layer},
    path::printable,
};

/// Most layers: they are numbered with 16 bits.
const MAX_LAYERS: usize = u16::MAX as usize;

/// Most steps that one merge takes to look up what lies elsewhere: the targets of hard links into
/// lower layers, and the lower directories that lend an implicit one their attributes. A step is a
/// search for a name in one layer's directory; as much count 16 bytes of a symlink's target or of
/// extended attributes.
/// About ten seconds; without a bound, a hostile stack could take days.
pub const MAX_STEPS: u64 = 1 << 26;

/// Bytes of a symlink's target, and of extended attributes, that cost as much as a step.
pub(super) const BYTES_PER_STEP: usize = 16;

/// An inode of a layer: index of the layer, number in it.
pub(super) type LayerInode = (u16, u32);

/// A directory of a layer that has part in a merged one.
pub(super) type Part = LayerInode;

/// Layers, lowest first, and what hard links into lower layers made of their files.
pub(super) struct Stack<'a> {
    pub(super) layers: &'a [&'a Layer],
    /// For each layer the lowest one of the same slot: a layer that occurs twice has one set of
    /// inodes.
    first_of_slot: Vec<u16>,
    pub(super) groups: Vec<Group>,
    /// For each layer its lower links by number, and their groups.
    pub(super) links: Vec<Vec<(u32, u32)>>,
    /// Groups of files that hard links of layers further up split off, by layer and index in
    /// DIRENTS of the name that is linked.
    pub(super) split: HashMap<(u16, u32), u32>,
    steps_left: u64,
    max_steps: u64,
}

/// What a name of a merged directory stands for, where it is no directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum File {
    /// An inode of a layer.
    Layer(LayerInode),
    /// Index of a file that hard links into lower layers made.
    Group(u32),
}

/// A merged directory, while its parts are gathered, topmost first.
#[derive(Clone, Copy, Default)]
pub(super) struct Directory {
    /// The topmost part that its tar lists; gives the attributes.
    pub(super) listed: Option<LayerInode>,
    /// The topmost layer that has it.
    pub(super) top: u16,
    /// Whether lower layers may have more at this path, or below it, than the parts show: they can
    /// still lend attributes.
    pub(super) is_cut: bool,
    is_opaque: bool,
}

impl<'a> Stack<'a> {
    pub(super) fn new(layers: &'a [&'a Layer], max_steps: u64) -> Result<Self, MergeError> {
        if layers.len() > MAX_LAYERS {
            return Err(MergeError::Layers { expected: MAX_LAYERS, found: layers.len() });
        }
        Ok(Self {
            layers,
            first_of_slot: first_of_slot(layers)?,
            groups: Vec::new(),
            links: Vec::new(),
            split: HashMap::new(),
            steps_left: max_steps,
            max_steps,
        })
    }

    pub(super) fn layer(&self, index: u16) -> &'a Layer {
        self.layers[usize::from(index)]
    }

    /// Counts steps for a path of a layer.
    pub(super) fn spend(
        &mut self,
        steps: usize,
        of: u16,
        path: &[&[u8]],
    ) -> Result<(), MergeError> {
        if let Some(left) = self.steps_left.checked_sub(steps as u64) {
            self.steps_left = left;
            return Ok(());
        }
        let (layer, path) = (self.layer(of).diff_id(), printable(&path.join(&b'/')));
        Err(MergeError::Steps { layer, path, expected: self.max_steps })
    }

    /// The root of the lowest layers, as many as are said; its parts go to `parts`.
    pub(super) fn root(&self, layers: usize, parts: &mut Vec<Part>) -> Directory {
        let mut directory = Directory::default();
        let mut top_down = (0..layers).rev();
        while let Some(index) = top_down.next()
            && directory.add(self.layers[index], index as u16, layer::ROOT, parts)
        {}
        directory
    }

    /// What an entry that is no directory stands for; `None` for a whiteout.
    pub(super) fn file(&self, layer: u16, index: u32, entry: &LayerDirent) -> Option<File> {
        if !self.split.is_empty()
            && let Some(group) = self.split.get(&(layer, index))
        {
            return Some(File::Group(*group));
        }
        let number = entry.inode.get();
        match entry.kind {
            WHITEOUT_KIND => None,
            LOWER_LINK_KIND => {
                let links = self.links.get(usize::from(layer))?;
                let found = links.binary_search_by_key(&number, |(number, _)| *number).ok()?;
                Some(File::Group(links[found].1))
            }
            _ => Some(File::Layer((self.first_of_slot[usize::from(layer)], number))),
        }
    }

    /// The layer's inode that has a file's content.
    pub(super) fn content(&self, file: File) -> LayerInode {
        match file {
            File::Layer(inode) => inode,
            File::Group(group) => self.groups[group as usize].content,
        }
    }

    /// Target of a file that is a symlink.
    pub(super) fn symlink_target(&self, file: File) -> Option<&'a [u8]> {
        let (layer, number) = self.content(file);
        self.layer(layer).symlink_target(number)
    }
}

fn first_of_slot(layers: &[&Layer]) -> Result<Vec<u16>, MergeError> {
    let mut by_slot = HashMap::new();
    (0..)
        .zip(layers)
        .map(|(index, layer)| {
            let first = *by_slot.entry(layer.slot()).or_insert(index);
            let lower = layers[usize::from(first)];
            if lower.numbering() != layer.numbering() || lower.diff_id() != layer.diff_id() {
                return Err(MergeError::Slot {
                    slot: layer.slot().number(),
                    expected: Box::new(lower.diff_id()),
                    found: Box::new(layer.diff_id()),
                });
            }
            Ok(first)
        })
        .collect()
}

impl Directory {
    /// A directory whose topmost entry is given, in one that may be cut.
    pub(super) fn new(is_cut: bool) -> Self {
        Self { is_cut, ..Self::default() }
    }

    /// Whether the attributes have to be looked for where the parts do not show.
    pub(super) fn borrows(&self) -> bool {
        self.is_cut && self.listed.is_none()
    }

    /// Takes the next entry of its name, from the top down. Says whether one further down can have
    /// part in it.
    pub(super) fn add_entry(
        &mut self,
        layer: &Layer,
        index: u16,
        entry: &LayerDirent,
        parts: &mut Vec<Part>,
    ) -> bool {
        if !is_directory(entry) {
            // In its own layer the symlink leads to directories that lend their attributes
            self.is_cut |= entry.kind == FileKind::Symlink.code();
            return false;
        }
        self.add(layer, index, entry.inode.get(), parts) && entry.flags & HIDES_LOWER == 0
    }

    fn add(&mut self, layer: &Layer, index: u16, number: u32, parts: &mut Vec<Part>) -> bool {
        self.top = self.top.max(index);
        if self.listed.is_none() && !layer.is_implicit(number) {
            self.listed = Some((index, number));
        }
        if !self.is_opaque {
            parts.push((index, number));
            self.is_opaque = layer.is_opaque(number);
            self.is_cut |= self.is_opaque;
        }
        !self.is_opaque || self.listed.is_none()
    }
}

pub(super) fn is_directory(entry: &LayerDirent) -> bool {
    entry.kind == FileKind::Directory.code()
}
