//! Helpers of the tests: tars from plain structs, layers and trees from tars, reading them whole.

use std::{io::Write, sync::Arc};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    Algorithm, Attr, BuildError, BuiltLayer, FileType, FormatError, Layer, LayerBuilder,
    MergeError, NodeId, Piece, Slot, SpanSource, Tree,
    format::{Container, Sealed, Section},
    merge, peek_header,
};

/// An entry of a tar.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: tar::EntryType,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Item {
    fn new(path: &str, kind: tar::EntryType, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            link: Vec::new(),
            mode,
            uid: 0,
            mtime: 1,
            device: (0, 0),
            content: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn link(self, target: &str) -> Self {
        Self { link: target.into(), ..self }
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn uid(self, uid: u32) -> Self {
        Self { uid, ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    pub(crate) fn xattr(mut self, name: &str, value: &str) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }
}

pub(crate) fn dir(path: &str) -> Item {
    Item::new(path, tar::EntryType::Directory, 0o755)
}

pub(crate) fn file(path: &str, content: &str) -> Item {
    Item { content: content.into(), ..Item::new(path, tar::EntryType::Regular, 0o644) }
}

pub(crate) fn symlink(path: &str, target: &str) -> Item {
    Item::new(path, tar::EntryType::Symlink, 0o777).link(target)
}

pub(crate) fn hard_link(path: &str, target: &str) -> Item {
    Item::new(path, tar::EntryType::Link, 0o644).link(target)
}

pub(crate) fn device(path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..Item::new(path, kind, 0o600) }
}

/// A global PAX header of this name, without records.
pub(crate) fn global(path: &str) -> Item {
    Item::new(path, tar::EntryType::XGlobalHeader, 0o644)
}

/// The tar of some entries.
pub(crate) fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut records: Vec<(String, &[u8])> = Vec::new();
        let mut header = tar::Header::new_ustar();
        // Straight into the field: the crate would refuse `..` and clean the rest
        if item.path.len() <= 100 {
            header.as_old_mut().name[..item.path.len()].copy_from_slice(&item.path);
        } else {
            records.push(("path".to_owned(), &item.path));
        }
        if item.link.len() <= 100 {
            header.as_old_mut().linkname[..item.link.len()].copy_from_slice(&item.link);
        } else {
            records.push(("linkpath".to_owned(), &item.link));
        }
        for (name, value) in &item.xattrs {
            let name = String::from_utf8(name.clone()).expect("test names are text");
            records.push((format!("SCHILY.xattr.{name}"), value));
        }
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (&name[..], *value));
            builder.append_pax_extensions(records).expect("into memory");
        }
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.uid.into());
        header.set_gid(0);
        header.set_mtime(item.mtime);
        header.set_size(item.content.len() as u64);
        header.set_device_major(item.device.0).expect("ustar");
        header.set_device_minor(item.device.1).expect("ustar");
        header.set_cksum();
        builder.append(&header, &item.content[..]).expect("into memory");
    }
    builder.into_inner().expect("into memory")
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("into memory");
    encoder.finish().expect("into memory")
}

pub(crate) fn build_blob(blob: &[u8]) -> Result<BuiltLayer, BuildError> {
    let mut builder = LayerBuilder::new(Algorithm::Sha256);
    for part in blob.chunks(10_000) {
        builder.push(part)?;
    }
    builder.finish()
}

pub(crate) fn build(items: &[Item]) -> Result<BuiltLayer, BuildError> {
    build_blob(&tar_of(items))
}

pub(crate) fn slot(number: u32) -> Slot {
    Slot::new(number).expect("a valid slot")
}

pub(crate) fn open_layer(file: Vec<u8>) -> Result<Layer, FormatError> {
    Layer::open(Arc::new(file))
}

pub(crate) fn open_tree(file: Vec<u8>) -> Result<Tree, FormatError> {
    Tree::open(Arc::new(file))
}

/// A layer together with its tar; its blob is the tar.
pub(crate) struct Sample {
    pub(crate) tar: Vec<u8>,
    pub(crate) layer: Layer,
}

pub(crate) fn sample(number: u32, items: &[Item]) -> Sample {
    let tar = tar_of(items);
    let built = build_blob(&tar).expect("a valid layer");
    Sample { layer: open_layer(built.encode(slot(number))).expect("a valid file"), tar }
}

/// Merges samples and opens the tree under slot 1000.
pub(crate) fn merge_samples(samples: &[&Sample]) -> Result<Tree, MergeError> {
    let layers: Vec<&Layer> = samples.iter().map(|sample| &sample.layer).collect();
    let built = merge(&layers, None)?;
    Ok(open_tree(built.encode(slot(1000))).expect("a valid file"))
}

/// A range of a file through pieces and spans, for a layer whose blob is at hand and has no copy.
pub(crate) fn read(layer: &Layer, blob: &[u8], number: u32, offset: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in layer.pieces(number, offset, len) {
        let (mut at, len) = match piece {
            Piece::Zero { len } => {
                out.resize(out.len() + len as usize, 0);
                continue;
            }
            Piece::Data { tar_offset, len } => (tar_offset, len),
        };
        let end = at + len;
        while at < end {
            let index = layer.span_at(at).expect("inside the tar");
            let span = layer.span(index).expect("found");
            assert_eq!(span.source, SpanSource::Blob);
            let range = span.offset as usize..span.offset as usize + span.len as usize;
            let tar = layer.decode_span(index, &blob[range]).expect("intact");
            let from = (at - span.tar_offset) as usize;
            let take = (tar.len() - from).min((end - at) as usize);
            out.extend_from_slice(&tar[from..from + take]);
            at += take as u64;
        }
    }
    out
}

/// A file, directory, … of a merged tree, as a mount would show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) path: String,
    pub(crate) node: NodeId,
    pub(crate) attr: Attr,
    /// Content of a file, target of a symlink.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Everything in a tree, depth first, the root included as the empty path.
pub(crate) fn walk(tree: &Tree, samples: &[&Sample]) -> Vec<Shown> {
    let mut out = Vec::new();
    let root = NodeId::Tree { slot: tree.slot(), number: 1 };
    walk_node(tree, samples, String::new(), root, &mut out);
    out
}

fn walk_node(tree: &Tree, samples: &[&Sample], path: String, node: NodeId, out: &mut Vec<Shown>) {
    let of_slot = |slot: Slot| {
        *samples.iter().find(|sample| sample.layer.slot() == slot).expect("a layer of the tree")
    };
    let own = |xattrs: crate::Xattrs<'_>| {
        xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    };
    let (attr, xattrs, source) = match node {
        NodeId::Layer { slot, number } => {
            let layer = &of_slot(slot).layer;
            (layer.inode(number).expect("there"), own(layer.xattrs(number)), Some((slot, number)))
        }
        NodeId::Tree { number, .. } => {
            (tree.inode(number).expect("there"), own(tree.xattrs(number)), tree.content(number))
        }
        NodeId::Root => panic!("never in a tree"),
    };
    let content = source.map_or_else(Vec::new, |(slot, number)| {
        let sample = of_slot(slot);
        match sample.layer.symlink_target(number) {
            Some(target) => target.to_vec(),
            None => read(&sample.layer, &sample.tar, number, 0, u64::MAX),
        }
    });
    out.push(Shown { path: path.clone(), node, attr, content, xattrs });
    let NodeId::Tree { number, .. } = node else {
        return;
    };
    for index in 0..tree.entry_count(number).unwrap_or(0) {
        let entry = tree.entry(number, index).expect("in range");
        assert_eq!(tree.lookup(number, entry.name), Some(entry));
        let name = String::from_utf8(entry.name.to_vec()).expect("test names are text");
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        if let NodeId::Tree { number: child, .. } = entry.node
            && tree.entry_count(child).is_some()
        {
            assert_eq!(tree.parent(child), Some(number));
        }
        walk_node(tree, samples, below, entry.node, out);
        let shown = out.iter().rfind(|shown| shown.node == entry.node).expect("just pushed");
        assert_eq!(shown.attr.kind, entry.kind);
    }
}

/// A file taken apart, so that a test can change sections and close it again with right checksums.
pub(crate) struct Parts {
    pub(crate) kind: FileType,
    pub(crate) sections: Vec<(Section, Vec<u8>)>,
}

impl Parts {
    pub(crate) fn of(file: &[u8]) -> Self {
        let kind = peek_header(file).expect("a header").kind;
        let container = Container::open(Arc::new(file.to_vec()), kind, Ok).expect("a valid file");
        let mut sections = Section::ALL.to_vec();
        sections.retain(|section| match kind {
            FileType::Layer => *section != Section::Layers,
            FileType::Tree => {
                use Section::*;
                !matches!(section, Targets | Extents | Spans | Windows)
            }
        });
        let content = |section| (section, container.section(section).to_vec());
        Self { kind, sections: sections.into_iter().map(content).collect() }
    }

    pub(crate) fn section(&mut self, section: Section) -> &mut Vec<u8> {
        &mut self.sections.iter_mut().find(|(other, _)| *other == section).expect("there").1
    }

    /// Takes the last byte of a section away.
    pub(crate) fn shorten(&mut self, section: Section) {
        self.section(section).pop();
    }

    /// A record to change.
    pub(crate) fn record<T>(&mut self, section: Section, index: usize) -> &mut T
    where
        T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
    {
        let records = <[T]>::mut_from_bytes(self.section(section)).expect("whole records");
        &mut records[index]
    }

    pub(crate) fn close(self) -> Vec<u8> {
        Sealed::new(self.kind, 1, self.sections).encode(slot(1))
    }
}
