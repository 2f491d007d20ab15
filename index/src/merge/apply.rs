//! One layer after the other, applied to the merged tree.

use std::{cmp::Ordering, collections::BTreeSet, collections::HashMap};

use super::{
    arena::{Arena, Child, MAX_LAYERS, ROOT, Target},
    error::MergeError,
    links::Group,
};
use crate::{
    attr::FileKind,
    format::{HIDES_LOWER, HeapFull, LOWER_LINK_KIND, LayerDirent, WHITEOUT_KIND, XattrHeap},
    layer::{self, Layer},
};

/// Most directories: numbers are 32 bits.
const MAX_DIRECTORIES: usize = u32::MAX as usize - 2;

/// Most entries of directories that one layer may be merged into through lower symlinks: half a
/// second. A directory counts each time that an implicit directory of the layer is led there;
/// without a bound, many symlinks to one huge directory would take hours.
const MAX_MERGED: u64 = 1 << 26;

/// The merged tree.
pub(super) struct Merged<'a> {
    pub(super) arena: Arena<'a>,
    pub(super) groups: Vec<Group>,
    pub(super) xattrs: XattrHeap,
    /// For each layer the lowest one of the same slot: a layer that occurs twice has one set of
    /// inodes.
    pub(super) first_of_slot: Vec<u16>,
}

/// The content of a layer's implicit directory that goes where a lower symlink leads.
///
/// Ordered by the layer's number of the directory, which is the order in the tar.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Graft {
    /// Number of the directory in the layer.
    from: u32,
    /// The merged directory that holds the symlink.
    holder: u32,
    target: Vec<u8>,
}

/// What is left to do of the layer that is being applied.
struct Work<'a> {
    index: u16,
    layer: &'a Layer,
    /// Groups by number of the layer's lower links.
    links: HashMap<u32, u32>,
    /// Merged directory and the layer's directory to apply to it.
    pairs: Vec<(u32, u32)>,
    grafts: BTreeSet<Graft>,
    /// Entries of merged directories that grafts were merged into.
    merged: u64,
}

/// Applies all layers, lowest first.
pub(super) fn apply<'a>(layers: &'a [&'a Layer]) -> Result<Merged<'a>, MergeError> {
    if layers.len() > MAX_LAYERS {
        return Err(MergeError::Layers { expected: MAX_LAYERS, found: layers.len() });
    }
    let mut merged = Merged {
        arena: Arena::new(layers),
        groups: Vec::new(),
        xattrs: XattrHeap::default(),
        first_of_slot: first_of_slot(layers)?,
    };
    for (index, layer) in (0..).zip(layers) {
        merged.apply_layer(index, layer)?;
    }
    Ok(merged)
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

impl<'a> Merged<'a> {
    fn apply_layer(&mut self, index: u16, layer: &'a Layer) -> Result<(), MergeError> {
        let links = self.apply_lower_links(index, layer)?;
        let pairs = vec![(ROOT, layer::ROOT)];
        let mut work = Work { index, layer, links, pairs, grafts: BTreeSet::new(), merged: 0 };
        self.apply_pairs(&mut work)?;
        work.merged = 0;
        while let Some(Graft { from, holder, target }) = work.grafts.pop_first() {
            if work.merged > MAX_MERGED {
                return Err(MergeError::Grafts { layer: layer.diff_id(), expected: MAX_MERGED });
            }
            let directory = self.follow(layer, holder, &target)?;
            work.pairs.push((directory, from));
            self.apply_pairs(&mut work)?;
        }
        Ok(())
    }

    fn apply_pairs(&mut self, work: &mut Work<'a>) -> Result<(), MergeError> {
        while let Some((merged, number)) = work.pairs.pop() {
            if self.arena.directories.len() > MAX_DIRECTORIES {
                return Err(HeapFull { what: "directories", limit: MAX_DIRECTORIES as u64 }.into());
            }
            work.merged += self.arena.directory(merged).children.len() as u64;
            self.apply_directory(work, merged, number);
        }
        Ok(())
    }

    /// Merges the children of a layer's directory into those of a merged one.
    fn apply_directory(&mut self, work: &mut Work<'a>, merged: u32, number: u32) {
        let layer = work.layer;
        let directory = self.arena.directory_mut(merged);
        let mut lower = std::mem::take(&mut directory.children);
        if !layer.is_implicit(number) {
            directory.listed = Some((work.index, number));
        }
        if layer.is_opaque(number) {
            lower.clear();
        }
        let upper = layer.children(number);
        let mut children = Vec::with_capacity(lower.len() + upper.len());
        let mut lower = lower.into_iter().peekable();
        for entry in upper {
            let name = layer.name(entry);
            let mut below = None;
            while let Some(child) = lower.peek() {
                match self.arena.name(child).cmp(name) {
                    Ordering::Less => children.push(*child),
                    Ordering::Equal => below = Some(*child),
                    Ordering::Greater => break,
                }
                lower.next();
            }
            children.extend(self.apply_entry(work, merged, entry, below));
        }
        children.extend(lower);
        children.shrink_to_fit();
        self.arena.directory_mut(merged).children = children;
    }

    /// What a layer's entry makes of the lower entry of the same name.
    fn apply_entry(
        &mut self,
        work: &mut Work<'a>,
        merged: u32,
        entry: &LayerDirent,
        below: Option<Child>,
    ) -> Option<Child> {
        let number = entry.inode.get();
        let (offset, len) = (entry.name_offset.get(), entry.name_len.get());
        let child = |kind, target| Some(Arena::child(work.index, offset, len, kind, target));
        match (entry.kind, FileKind::from_code(entry.kind)) {
            (WHITEOUT_KIND, _) => None,
            (LOWER_LINK_KIND, _) => {
                let group = *work.links.get(&number)?;
                child(self.groups[group as usize].kind(), Target::Group(group))
            }
            (_, Some(FileKind::Directory)) => {
                let below = below.filter(|_| entry.flags & HIDES_LOWER == 0);
                if let Some(below @ Child { target: Target::Directory(directory), .. }) = below {
                    work.pairs.push((directory, number));
                    return Some(below);
                }
                if let Some(below) = below
                    && work.layer.is_implicit(number)
                    && let Some(target) = self.symlink_target(&below)
                {
                    let target = target.to_vec();
                    work.grafts.insert(Graft { from: number, holder: merged, target });
                    return Some(below);
                }
                let directory = self.arena.add_directory(merged);
                work.pairs.push((directory, number));
                child(FileKind::Directory, Target::Directory(directory))
            }
            (_, kind) => {
                let layer = self.first_of_slot[usize::from(work.index)];
                child(kind?, Target::File(layer, number))
            }
        }
    }
}
