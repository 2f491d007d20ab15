//! Images made in memory out of lists of files, and a `FileSource` over them.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Mutex},
};

use peel_fuse::{FileSource, ReadError, Sink};
use peel_index::{Algorithm, Layer, LayerBuilder, Piece, Slot, SpanSource, Tree, merge};

/// What an entry of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A file with this content.
    File(Vec<u8>),
    /// A sparse file of this size, with data at these offsets: PAX format 1.0 of GNU tar.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    /// A symlink to this target.
    Symlink(String),
    /// Another name of this path.
    HardLink(String),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An entry of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds, with a fraction where the text has one.
    pub(crate) mtime: String,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Node {
    pub(crate) fn new(path: &str, kind: Kind) -> Self {
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let mtime = "1700000000".to_owned();
        Self { path: path.to_owned(), kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
    }

    pub(crate) fn dir(path: &str) -> Self {
        Self::new(path, Kind::Directory)
    }

    pub(crate) fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(content.into()))
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: &str) -> Self {
        Self { mtime: mtime.to_owned(), ..self }
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.to_owned(), value.to_vec()));
        self
    }
}

/// Bytes that do not compress and differ with `seed`.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// The gzip-compressed tar of a layer.
fn blob(nodes: &[Node]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for node in nodes {
        append(&mut tar, node);
    }
    tar.into_inner().and_then(|gzip| gzip.finish()).expect("memory takes it all")
}

fn append(tar: &mut tar::Builder<impl std::io::Write>, node: &Node) {
    use tar::EntryType as Type;

    let mut records = Vec::new();
    pax_record(&mut records, "mtime", node.mtime.as_bytes());
    let packed = match &node.kind {
        Kind::Sparse(size, extents) => {
            pax_record(&mut records, "GNU.sparse.major", b"1");
            pax_record(&mut records, "GNU.sparse.minor", b"0");
            pax_record(&mut records, "GNU.sparse.name", node.path.as_bytes());
            pax_record(&mut records, "GNU.sparse.realsize", size.to_string().as_bytes());
            pack(extents)
        }
        _ => {
            pax_record(&mut records, "path", node.path.as_bytes());
            Vec::new()
        }
    };
    for (name, value) in &node.xattrs {
        pax_record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    let mut header = tar::Header::new_ustar();
    let (kind, content, link) = match &node.kind {
        Kind::Directory => (Type::Directory, &[][..], None),
        Kind::File(content) => (Type::Regular, &content[..], None),
        Kind::Sparse(..) => (Type::Regular, &packed[..], None),
        Kind::Symlink(target) => (Type::Symlink, &[][..], Some(target)),
        Kind::HardLink(target) => (Type::Link, &[][..], Some(target)),
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            header.set_device_major(*major).expect("fits");
            header.set_device_minor(*minor).expect("fits");
            let char = matches!(node.kind, Kind::CharDevice(..));
            (if char { Type::Char } else { Type::Block }, &[][..], None)
        }
        Kind::Fifo => (Type::Fifo, &[][..], None),
    };
    if let Some(link) = link {
        pax_record(&mut records, "linkpath", link.as_bytes());
    }

    let mut extended = tar::Header::new_ustar();
    extended.set_entry_type(Type::XHeader);
    extended.set_size(records.len() as u64);
    extended.set_cksum();
    tar.append(&extended, &records[..]).expect("memory takes it all");

    header.set_entry_type(kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid.into());
    header.set_gid(node.gid.into());
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).expect("memory takes it all");
}

/// The map of a sparse file, filled up to a block, and its data.
fn pack(extents: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let lines = extents.iter().map(|(offset, data)| format!("{offset}\n{}\n", data.len()));
    let mut packed = format!("{}\n{}", extents.len(), lines.collect::<String>()).into_bytes();
    packed.resize(packed.len().next_multiple_of(512), 0);
    extents.iter().for_each(|(_, data)| packed.extend_from_slice(data));
    packed
}

/// `<length of the whole record> <key>=<value>\n`
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    write!(out, "{len} {key}=").expect("memory takes it all");
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A layer: its index opened and as bytes, its blob, and the copy of what cannot be resumed.
pub(crate) struct StoredLayer {
    layer: Arc<Layer>,
    pub(crate) index: Vec<u8>,
    pub(crate) blob: Vec<u8>,
    pub(crate) copy: Vec<u8>,
}

/// A span by slot and index, and its bytes.
type Decoded = ((Slot, u32), Arc<Vec<u8>>);

/// Layers and trees in memory.
#[derive(Default)]
pub(crate) struct MemorySource {
    pub(crate) layers: HashMap<Slot, StoredLayer>,
    pub(crate) trees: HashMap<Slot, (Arc<Tree>, Vec<u8>)>,
    /// The span decoded last.
    last: Mutex<Option<Decoded>>,
}

impl MemorySource {
    /// Indexes a layer.
    pub(crate) fn add_layer(&mut self, slot: Slot, nodes: &[Node]) {
        let blob = blob(nodes);
        let mut builder = LayerBuilder::new(Algorithm::Sha256);
        builder.push(&blob).expect("a good layer");
        let mut copy = builder.take_copy();
        let built = builder.finish().expect("a good layer");
        copy.extend_from_slice(&built.copy_rest);
        self.insert_layer(built.encode(slot), blob, copy);
    }

    /// Merges layers, lowest first.
    pub(crate) fn add_tree(&mut self, slot: Slot, layers: &[Slot]) {
        let layers: Vec<_> = layers.iter().map(|slot| &*self.layers[slot].layer).collect();
        let bytes = merge(&layers, None).expect("layers merge").encode(slot);
        self.insert_tree(bytes);
    }

    /// Adds a layer that is encoded already.
    pub(crate) fn insert_layer(&mut self, index: Vec<u8>, blob: Vec<u8>, copy: Vec<u8>) {
        let layer = Layer::open(Arc::new(index.clone())).expect("a good index");
        let stored = StoredLayer { layer: Arc::new(layer), index, blob, copy };
        self.layers.insert(stored.layer.slot(), stored);
    }

    /// Adds a tree that is encoded already.
    pub(crate) fn insert_tree(&mut self, bytes: Vec<u8>) {
        let tree = Tree::open(Arc::new(bytes.clone())).expect("a good tree");
        self.trees.insert(tree.slot(), (Arc::new(tree), bytes));
    }

    fn span(&self, slot: Slot, index: u32) -> Result<Arc<Vec<u8>>, ReadError> {
        let held = self.last.lock().expect("no panic under the lock").clone();
        if let Some((key, bytes)) = held.filter(|(key, _)| *key == (slot, index)) {
            assert_eq!(key, (slot, index));
            return Ok(bytes);
        }
        let stored = self.layers.get(&slot).ok_or(ReadError::NoLayer { layer: slot })?;
        let damaged =
            |what: &str| ReadError::Damaged { layer: slot, again: false, source: what.into() };
        let span = stored.layer.span(index).ok_or(damaged("no such span"))?;
        let from = match span.source {
            SpanSource::Blob => &stored.blob,
            SpanSource::Copy => &stored.copy,
        };
        let start = usize::try_from(span.offset).expect("in memory");
        let compressed = from.get(start..start + span.len as usize);
        let decoded = stored
            .layer
            .decode_span(index, compressed.ok_or(damaged("cut short"))?)
            .map_err(|e| ReadError::Damaged { layer: slot, again: false, source: e.into() })?;
        let decoded = Arc::new(decoded);
        let mut last = self.last.lock().expect("no panic under the lock");
        *last = Some(((slot, index), Arc::clone(&decoded)));
        Ok(decoded)
    }
}

impl FileSource for MemorySource {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.trees.get(&slot).map(|(tree, _)| Arc::clone(tree))
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.layers.get(&slot).map(|stored| Arc::clone(&stored.layer))
    }

    fn read(
        &self,
        slot: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        let layer = self.layer(slot).ok_or(ReadError::NoLayer { layer: slot })?;
        for piece in layer.pieces(number, offset, len.into()) {
            match piece {
                Piece::Zero { len } => sink.data(&vec![0; len as usize]),
                Piece::Data { mut tar_offset, mut len } => {
                    while len > 0 {
                        let index = layer.span_at(tar_offset);
                        let index = index.ok_or(ReadError::NoContent { layer: slot, number })?;
                        let start = layer.span(index).expect("it has an index").tar_offset;
                        let bytes = self.span(slot, index)?;
                        let from = &bytes[(tar_offset - start) as usize..];
                        let take = from.len().min(len as usize);
                        sink.data(&from[..take]);
                        tar_offset += take as u64;
                        len -= take as u64;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A slot by its number.
pub(crate) fn slot(number: u32) -> Slot {
    Slot::new(number).expect("in range")
}
