//! Stacks of layers from a small grammar, and the comparison with the naive model of their merge.

use std::{collections::BTreeMap, sync::Arc};

use peel_index::{
    Algorithm, Attr, BuildError, FileKind, Layer, LayerBuilder, NodeId, Slot, Tree, merge,
};
use tar::EntryType;

use crate::{
    input::Input,
    testing::{Item, tar_of},
    walk,
};

#[path = "../../src/merge/tests/model.rs"]
mod model;

use model::{Body, Inode, LayerModel, TreeModel};

const MAX_LAYERS: usize = 5;
const MAX_ITEMS: usize = 12;

/// Layers of the merge's grammar: per entry, a byte for what it is, one for path, one for the
/// attributes, and one or two for content or target. Few names and little depth, so that layers meet.
pub fn layers(input: &mut Input<'_>) -> Vec<Vec<Item>> {
    let mut layers = vec![Vec::new()];
    while !input.is_empty() {
        let items = layers.last_mut().expect("never empty");
        match item(input) {
            Some(item) if items.len() < MAX_ITEMS => items.push(item),
            Some(_) => {}
            None if layers.len() < MAX_LAYERS => layers.push(Vec::new()),
            None => break,
        }
    }
    layers
}

/// A path of one to three names from a byte.
fn path(byte: u8) -> String {
    let (depth, names) = (1 + byte / 27 % 3, byte % 27);
    let name = |level: u32| ["a", "b", "c"][usize::from(names) / 3usize.pow(level) % 3];
    (0..depth.into()).map(name).collect::<Vec<_>>().join("/")
}

/// An entry, or `None` for the next layer.
fn item(input: &mut Input<'_>) -> Option<Item> {
    let (what, place) = (input.byte(), path(input.byte()));
    let hidden = || {
        let (parent, name) = place.rsplit_once('/').unwrap_or(("", &place));
        format!("{parent}/.wh.{name}")
    };
    let mut item = match what % 16 {
        0..=3 => Item::new(&*place, EntryType::Regular),
        4 | 5 => Item::new(&*place, EntryType::Directory),
        6 => Item::new("./", EntryType::Directory),
        7 | 8 => Item::new(&*place, EntryType::Symlink),
        9 | 10 => Item::new(&*place, EntryType::Link),
        11 => Item::new(&*place, EntryType::Fifo),
        12 => Item::new(hidden(), EntryType::Regular),
        13 => Item::new(format!("{place}/.wh..wh..opq"), EntryType::Regular),
        14 => Item::new(".wh..wh..opq", EntryType::Regular),
        _ => return None,
    };
    let style = input.byte();
    item.mode = (u32::from(style) * 37) & 0o7777;
    (item.uid, item.mtime) = (u32::from(style) % 3, u64::from(style) % 5);
    if style >= 0xc0 {
        let name = if item.uid == 0 { "capability" } else { "other" };
        item.xattrs.push((format!("security.{name}").into(), vec![b'0' + style % 2]));
    }
    match item.kind {
        EntryType::Regular if what % 16 < 4 => item.content = vec![b'x'; input.below(4).into()],
        EntryType::Symlink => {
            let start = ["", "/", "../", "../../"][usize::from(input.below(4))];
            item.link = [start, &path(input.byte())].concat().into();
        }
        EntryType::Link => item.link = path(input.byte()).into(),
        _ => {}
    }
    Some(item)
}

/// A layer with its tar, which is its blob.
#[derive(Debug)]
pub struct Sample {
    /// The tar.
    pub tar: Vec<u8>,
    /// The opened layer.
    pub layer: Layer,
}

/// # Panics
/// When the number is no slot.
pub fn slot(number: u32) -> Slot {
    Slot::new(number).expect("a slot")
}

/// Builds and opens the layer of a tar.
///
/// # Errors
/// When the builder refuses it.
///
/// # Panics
/// When what was built cannot be opened.
pub fn sample(number: u32, tar: Vec<u8>) -> Result<Sample, BuildError> {
    let mut builder = LayerBuilder::new(Algorithm::Sha256);
    builder.push(&tar)?;
    let file = builder.finish()?.encode(slot(number));
    Ok(Sample { layer: Layer::open(Arc::new(file)).expect("just built"), tar })
}

/// The entries without those that the builder refuses after what is before them.
pub fn buildable(items: impl IntoIterator<Item = Item>) -> Vec<Item> {
    let mut taken = Vec::new();
    for item in items {
        taken.push(item);
        if sample(1, tar_of(&taken)).is_err() {
            taken.pop();
        }
    }
    taken
}

/// Merges a stack, lowest first.
///
/// # Panics
/// When what was merged cannot be opened, or [`walk::tree`] panics.
pub fn merged(layers: &[&Layer]) -> Option<Tree> {
    let file = merge(layers, None).ok()?.encode(slot(1000));
    let tree = Tree::open(Arc::new(file)).expect("just merged");
    assert!(tree.totals().inodes >= 1);
    Some(tree)
}

/// The entries that the model takes, and its model.
fn accepted(items: Vec<Item>) -> (Vec<Item>, LayerModel) {
    let mut model = LayerModel::new();
    let mut taken = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        let mut next = model.clone();
        let is_taken = next.apply(&item, position).is_ok();
        taken.push(item);
        if is_taken {
            model = next;
        } else {
            assert!(sample(1, tar_of(&taken)).is_err(), "built: {taken:?}");
            taken.pop();
        }
    }
    (taken, model)
}

/// Merges layers, and compares.
///
/// # Panics
/// When the tree differs from the model's.
pub fn compare(layers: Vec<Vec<Item>>) {
    let mut samples = Vec::new();
    let mut model = TreeModel::new();
    let mut is_taken = true;
    for (number, items) in (1..).zip(layers) {
        let (items, layer) = accepted(items);
        samples.push(sample(number, tar_of(&items)).expect("the model takes it"));
        is_taken = is_taken && model.apply(&layer).is_ok();
    }
    let opened: Vec<&Layer> = samples.iter().map(|sample| &sample.layer).collect();
    let tree = merged(&opened);
    assert_eq!(tree.is_some(), is_taken, "one of merge and model takes it");
    if let Some(tree) = tree {
        check(&tree, &samples, &model);
    }
}

fn check(tree: &Tree, samples: &[Sample], model: &TreeModel) {
    let mut nodes: BTreeMap<usize, NodeId> = BTreeMap::new();
    let mut numbers: BTreeMap<NodeId, usize> = BTreeMap::new();
    let places = walk::tree(tree);
    assert_eq!(places.len(), model.paths.len(), "{places:?}");
    for place in places {
        let names: Vec<String> = place.path.into_iter().map(text).collect();
        let path = names.join("/");
        let number = *model.paths.get(&path).unwrap_or_else(|| panic!("/{path} is in no layer"));
        assert_eq!(*nodes.entry(number).or_insert(place.node), place.node, "/{path}");
        assert_eq!(*numbers.entry(place.node).or_insert(number), number, "/{path}");
        let inode = &model.inodes[number];
        let subdirectories = model.paths.iter().filter(|(other, inode)| {
            !other.is_empty()
                && model::split(other).0 == path
                && model.inodes[**inode].body == Body::Directory
        });
        let nlink = match inode.body {
            Body::Directory => 2 + subdirectories.count(),
            _ => model.paths.values().filter(|other| **other == number).count(),
        };
        let (attr, xattrs, content) = shown(tree, samples, place.node);
        assert_eq!(attr.nlink as usize, nlink, "/{path}");
        check_inode(&path, inode, place.kind, &attr, &content);
        assert!(xattrs.iter().map(|(name, value)| (name, value)).eq(&inode.xattrs), "/{path}");
    }
}

fn text(name: Vec<u8>) -> String {
    String::from_utf8(name).expect("names of the grammar are text")
}

fn check_inode(path: &str, inode: &Inode, kind: FileKind, attr: &Attr, content: &[u8]) {
    let (expected, body) = match &inode.body {
        Body::Directory => (FileKind::Directory, &b""[..]),
        Body::File(content) => (FileKind::Regular, &content[..]),
        Body::Symlink(target) => (FileKind::Symlink, target.as_bytes()),
        Body::Pipe => (FileKind::Fifo, &b""[..]),
        Body::Lower(_) => panic!("none is left after the merge"),
    };
    assert_eq!((kind, content), (expected, body), "/{path}");
    let header = inode.header.unwrap_or((0o755, 0, 0));
    assert_eq!((attr.kind, attr.mode, attr.uid), (kind, header.0, header.1), "/{path}");
    assert_eq!(attr.mtime_sec, header.2 as i64, "/{path}");
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes, extended attributes, and content or target of an inode.
fn shown(tree: &Tree, samples: &[Sample], node: NodeId) -> (Attr, Pairs, Vec<u8>) {
    let of_slot = |slot: Slot| &samples[slot.number() as usize - 1];
    let (attr, xattrs, source) = match node {
        NodeId::Layer { slot, number } => {
            let layer = &of_slot(slot).layer;
            (layer.inode(number), layer.xattrs(number), Some((slot, number)))
        }
        NodeId::Tree { number, .. } => {
            (tree.inode(number), tree.xattrs(number), tree.content(number))
        }
        NodeId::Root => panic!("never in a tree"),
    };
    let content = source.map(|(slot, number)| {
        let Sample { layer, tar } = of_slot(slot);
        match layer.symlink_target(number) {
            Some(target) => target.to_vec(),
            None => walk::content(layer, tar, number),
        }
    });
    let xattrs = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    (attr.expect("an entry leads to an inode"), xattrs, content.unwrap_or_default())
}
