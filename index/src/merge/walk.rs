//! The merged tree, depth first, names bytewise, without ever being there as a whole.

use std::cmp::Ordering;

use super::stack::{Directory, File, Part, Stack, is_directory};
use crate::{format::LayerDirent, layer::Layer};

/// What comes next in the tree.
pub(super) enum Event<'a> {
    /// A name that is no directory.
    File { name: &'a [u8], file: File },
    /// A directory: what follows is in it, until it is left.
    Enter { name: &'a [u8], directory: Directory },
    /// The end of the directory that was entered last.
    Leave,
}

/// Where a layer's directory has been read to.
struct Cursor<'a> {
    /// The first bytes of `name`, so that most comparisons are of numbers.
    key: u128,
    name: &'a [u8],
    /// The entry of that name and those after it; never empty.
    entries: &'a [LayerDirent],
    /// Position of the first of them in DIRENTS.
    position: u32,
    layer: u16,
}

/// A directory that has been entered.
struct Open<'a> {
    name: &'a [u8],
    /// Its first cursor; those of the deepest directory end the list.
    first: usize,
    is_cut: bool,
}

/// Goes through the tree.
pub(super) struct Walk<'a> {
    layers: &'a [&'a Layer],
    /// For each open directory a heap with the lowest name first, and of one name the topmost layer.
    cursors: Vec<Cursor<'a>>,
    open: Vec<Open<'a>>,
    parts: Vec<Part>,
}

impl<'a> Walk<'a> {
    /// A walk that has entered the root; also gives the root.
    pub(super) fn new(stack: &Stack<'a>) -> (Self, Directory) {
        let layers = stack.layers;
        let mut walk = Self { layers, cursors: Vec::new(), open: Vec::new(), parts: Vec::new() };
        let root = stack.root(layers.len(), &mut walk.parts);
        walk.enter(&[], &root);
        (walk, root)
    }

    /// Names of the open directories, the root's aside, outermost first.
    pub(super) fn path(&self) -> Vec<&'a [u8]> {
        self.open.iter().skip(1).map(|open| open.name).collect()
    }

    /// The next event; `None` after the root has been left.
    pub(super) fn next(&mut self, stack: &Stack<'a>) -> Option<Event<'a>> {
        loop {
            let open = self.open.last()?;
            let (first, is_cut) = (open.first, open.is_cut);
            if self.cursors.len() == first {
                self.open.pop();
                return Some(Event::Leave);
            }
            let name = self.cursors[first].name;
            // Within one layer names differ
            let is_alone = self.cursors.len() - first == 1;
            let (layer, position, entry) = self.take(first);
            if !is_directory(entry) {
                if !is_alone {
                    self.skip(first, name);
                }
                match stack.file(layer, position, entry) {
                    Some(file) => return Some(Event::File { name, file }),
                    None => continue,
                }
            }
            let mut directory = Directory::new(is_cut);
            self.parts.clear();
            let mut goes_on = self.add(&mut directory, layer, entry);
            while goes_on && !is_alone && self.has_next(first, name) {
                let (layer, _, entry) = self.take(first);
                goes_on = self.add(&mut directory, layer, entry);
            }
            if !is_alone {
                self.skip(first, name);
            }
            self.enter(name, &directory);
            return Some(Event::Enter { name, directory });
        }
    }

    fn add(&mut self, directory: &mut Directory, layer: u16, entry: &LayerDirent) -> bool {
        directory.add_entry(self.layers[usize::from(layer)], layer, entry, &mut self.parts)
    }

    /// Enters a directory of the parts that were gathered.
    fn enter(&mut self, name: &'a [u8], directory: &Directory) {
        let first = self.cursors.len();
        self.open.push(Open { name, first, is_cut: directory.is_cut });
        for (layer, number) in self.parts.drain(..) {
            let of = self.layers[usize::from(layer)];
            let (position, entries) = of.children(number);
            if let Some(entry) = entries.first() {
                let name = of.name(entry);
                self.cursors.push(Cursor { key: key(name), name, entries, position, layer });
            }
        }
        let heap = &mut self.cursors[first..];
        (0..heap.len() / 2).rev().for_each(|at| sift_down(heap, at));
    }

    /// Whether the heap that begins at `first` goes on with this name.
    fn has_next(&self, first: usize, name: &[u8]) -> bool {
        self.cursors.get(first).is_some_and(|cursor| cursor.name == name)
    }

    /// Leaves out what lower layers have of a name.
    fn skip(&mut self, first: usize, name: &[u8]) {
        while self.has_next(first, name) {
            self.take(first);
        }
    }

    /// Takes the first entry of the heap that begins at `first`: layer, position in DIRENTS, entry.
    fn take(&mut self, first: usize) -> (u16, u32, &'a LayerDirent) {
        let cursor = &mut self.cursors[first];
        let taken = (cursor.layer, cursor.position, &cursor.entries[0]);
        cursor.entries = &cursor.entries[1..];
        match cursor.entries.first() {
            Some(entry) => {
                cursor.name = self.layers[usize::from(cursor.layer)].name(entry);
                cursor.position += 1;
                if self.cursors.len() - first == 1 {
                    return taken;
                }
                let cursor = &mut self.cursors[first];
                cursor.key = key(cursor.name);
            }
            None => drop(self.cursors.swap_remove(first)),
        }
        sift_down(&mut self.cursors[first..], 0);
        taken
    }
}

/// The first bytes of a name as a number of the same order; names hold no NUL.
fn key(name: &[u8]) -> u128 {
    let mut key = [0; 16];
    let len = name.len().min(key.len());
    key[..len].copy_from_slice(&name[..len]);
    u128::from_be_bytes(key)
}

fn order(one: &Cursor<'_>, other: &Cursor<'_>) -> Ordering {
    let names = one.key.cmp(&other.key).then_with(|| one.name.cmp(other.name));
    names.then_with(|| other.layer.cmp(&one.layer))
}

/// Makes a heap whose element at `at` may be too far up one again.
fn sift_down(heap: &mut [Cursor<'_>], mut at: usize) {
    loop {
        let mut least = at;
        for child in [2 * at + 1, 2 * at + 2] {
            if child < heap.len() && order(&heap[child], &heap[least]) == Ordering::Less {
                least = child;
            }
        }
        if least == at {
            return;
        }
        heap.swap(at, least);
        at = least;
    }
}
