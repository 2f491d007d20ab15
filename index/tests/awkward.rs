//! Awkward layers, each with what containerd makes of it: `awkward.jsonl`, which
//! `scripts/awkward-layers --write` records.
//!
//! A line has a case, its layers (base64 of zlib of the blob, lowest first), containerd's answer,
//! and peel's where that is known to be another. An answer is a tree, path to fields, or a string:
//! why there is none.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    sync::Arc,
};

use peel_index::{
    Algorithm, Attr, FileKind, Hasher, Layer, LayerBuilder, NodeId, Piece, Slot, SpanSource, Tree,
    merge,
};
use serde_json::Value;

type Fields = BTreeMap<String, String>;
type Listing = BTreeMap<String, Fields>;

/// Fields that the record leaves out.
const DEFAULTS: [(&str, &str); 3] = [("uid", "0"), ("gid", "0"), ("mtime", "1600000000.000000000")];

/// Stands for a time that containerd took from the clock.
const CLOCK: &str = "clock";

struct Case {
    name: String,
    blobs: Vec<Vec<u8>>,
    /// `None`: there is no tree.
    expected: Option<Listing>,
}

#[test]
fn layers_are_read_as_containerd_unpacks_them() {
    let cases: Vec<Case> = include_str!("awkward.jsonl").lines().map(case).collect();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    for Case { name, blobs, expected } in cases {
        match (show(&blobs), expected) {
            (Err(_), None) => {}
            (Err(error), Some(_)) => panic!("{name}: {error}"),
            (Ok(_), None) => panic!("{name}: expected an error"),
            (Ok(mut found), Some(expected)) => {
                for (path, fields) in &expected {
                    if fields["mtime"] == CLOCK
                        && let Some(found) = found.get_mut(path)
                    {
                        found.insert("mtime".to_owned(), CLOCK.to_owned());
                    }
                }
                assert_eq!(found, expected, "{name}");
            }
        }
    }
}

fn case(line: &str) -> Case {
    let line: Value = serde_json::from_str(line).expect("a case");
    let layers = line["layers"].as_array().expect("layers");
    let answer = line.get("peel").unwrap_or(&line["containerd"]);
    Case {
        name: text(&line["case"]),
        blobs: layers.iter().map(|layer| unzip(&decode_base64(&text(layer)))).collect(),
        expected: answer.as_object().map(|tree| {
            tree.iter().map(|(path, fields)| (path.clone(), full(path, fields))).collect()
        }),
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// Fields of an entry, with those that go without saying.
fn full(path: &str, fields: &Value) -> Fields {
    let given = fields.as_object().expect("fields");
    let mut full: Fields = given.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    for (name, value) in DEFAULTS {
        full.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    if full["kind"] != "directory" {
        full.entry("links".to_owned()).or_insert_with(|| path.to_owned());
    }
    full
}

fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("no digit of base64: {byte}"),
    };
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().map(digit).collect();
    let group = |digits: &[u8]| {
        let bits = digits.iter().fold(0, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - digits.len()));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    flate2::read::ZlibDecoder::new(bytes).read_to_end(&mut blob).expect("zlib");
    blob
}

type AnyError = Box<dyn std::error::Error>;

/// What a mount of the layers would show.
fn show(blobs: &[Vec<u8>]) -> Result<Listing, AnyError> {
    // A blob that occurs twice is one layer
    let slot_of = |blob: &Vec<u8>| blobs.iter().position(|other| other == blob).map(|at| at as u32);
    let mut layers = Vec::new();
    for blob in blobs {
        let mut builder = LayerBuilder::new(Algorithm::Sha256);
        blob.chunks(1000).try_for_each(|part| builder.push(part))?;
        let slot = slot_of(blob).and_then(|at| Slot::new(at + 1)).expect("a slot");
        layers.push(Layer::open(Arc::new(builder.finish()?.encode(slot)))?);
    }
    let merged = merge(&layers.iter().collect::<Vec<_>>(), None)?;
    let tree = Tree::open(Arc::new(merged.encode(Slot::new(1000).expect("a slot"))))?;
    let mut view = View { tree, layers, blobs, shown: Vec::new() };
    view.walk(Vec::new(), NodeId::Tree { slot: view.tree.slot(), number: 1 });
    Ok(view.listing())
}

struct View<'a> {
    tree: Tree,
    layers: Vec<Layer>,
    blobs: &'a [Vec<u8>],
    shown: Vec<(Vec<u8>, NodeId, Fields)>,
}

impl View<'_> {
    fn walk(&mut self, path: Vec<u8>, node: NodeId) {
        let fields = self.describe(node);
        self.shown.push((path.clone(), node, fields));
        let NodeId::Tree { number, .. } = node else { return };
        for index in 0..self.tree.entry_count(number).unwrap_or(0) {
            let entry = self.tree.entry(number, index).expect("in range");
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let (below, node) = ([&path, separator, entry.name].concat(), entry.node);
            self.walk(below, node);
        }
    }

    /// Adds what only the whole tree tells: the names that share an inode.
    fn listing(self) -> Listing {
        let mut names: HashMap<NodeId, Vec<String>> = HashMap::new();
        for (path, node, _) in &self.shown {
            names.entry(*node).or_default().push(escape(path));
        }
        let entries = self.shown.into_iter().map(|(path, node, mut fields)| {
            if fields["kind"] != "directory" {
                let mut links = names[&node].clone();
                links.sort();
                fields.insert("links".to_owned(), links.join(","));
            }
            (if path.is_empty() { ".".to_owned() } else { escape(&path) }, fields)
        });
        entries.collect()
    }

    fn describe(&self, node: NodeId) -> Fields {
        let (attr, content) = match node {
            NodeId::Layer { slot, number } => {
                (self.layer(slot).0.inode(number), Some((slot, number)))
            }
            NodeId::Tree { number, .. } => (self.tree.inode(number), self.tree.content(number)),
            NodeId::Root => panic!("never in a tree"),
        };
        let attr = attr.expect("an inode");
        let mut fields = attributes(&attr);
        let mut set = |name: &str, value: String| fields.insert(name.to_owned(), value);
        if let Some((slot, number)) = content {
            let (layer, blob) = self.layer(slot);
            if let Some(target) = layer.symlink_target(number) {
                set("target", escape(target));
            }
            if attr.kind == FileKind::Regular {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                hasher.update(&read(layer, blob, number));
                let digest = hasher.finish().to_string();
                set("sha256", digest.trim_start_matches("sha256:").to_owned());
            }
        }
        let xattrs: Vec<_> = match node {
            NodeId::Layer { slot, number } => self.layer(slot).0.xattrs(number).collect(),
            NodeId::Tree { number, .. } => self.tree.xattrs(number).collect(),
            NodeId::Root => Vec::new(),
        };
        for (name, value) in xattrs {
            set(&format!("xattr:{}", escape(name)), escape(value));
        }
        fields
    }

    fn layer(&self, slot: Slot) -> (&Layer, &[u8]) {
        let at = self.layers.iter().position(|layer| layer.slot() == slot).expect("a layer");
        (&self.layers[at], &self.blobs[at])
    }
}

fn attributes(attr: &Attr) -> Fields {
    let kind = match attr.kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
        FileKind::Fifo => "fifo",
    };
    let nanoseconds = i128::from(attr.mtime_sec) * 1_000_000_000 + i128::from(attr.mtime_nsec);
    let (sign, magnitude) = (if nanoseconds < 0 { "-" } else { "" }, nanoseconds.unsigned_abs());
    let (seconds, rest) = (magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    let mut fields = vec![
        ("kind", kind.to_owned()),
        ("mode", format!("{:04o}", attr.mode)),
        ("uid", attr.uid.to_string()),
        ("gid", attr.gid.to_string()),
        ("mtime", format!("{sign}{seconds}.{rest:09}")),
        ("nlink", attr.nlink.to_string()),
    ];
    match attr.kind {
        FileKind::Regular | FileKind::Symlink => fields.push(("size", attr.size.to_string())),
        FileKind::CharDevice | FileKind::BlockDevice => {
            let major = attr.rdev >> 32 & 0xffff_f000 | attr.rdev >> 8 & 0xfff;
            let minor = attr.rdev >> 12 & 0xffff_ff00 | attr.rdev & 0xff;
            fields.push(("rdev", format!("{major}:{minor}")));
        }
        FileKind::Directory | FileKind::Fifo => {}
    }
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A whole file by its pieces and spans.
fn read(layer: &Layer, blob: &[u8], number: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in layer.pieces(number, 0, u64::MAX) {
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
            let span = layer.span(index).expect("there");
            assert_eq!(span.source, SpanSource::Blob, "layers of the table are small");
            let range = span.offset as usize..span.offset as usize + span.len as usize;
            let tar = layer.decode_span(index, &blob[range]).expect("intact");
            let from = (at - span.tar_offset) as usize;
            let taken = (tar.len() - from).min((end - at) as usize);
            out.extend_from_slice(&tar[from..from + taken]);
            at += taken as u64;
        }
    }
    out
}

/// Bytes as `scripts/compare-trees` prints them: a word of printable ASCII.
fn escape(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "''".to_owned();
    }
    let escaped = |byte: &u8| match byte {
        b'\\' => "\\x5c".to_owned(),
        0x21..=0x7e => char::from(*byte).to_string(),
        other => format!("\\x{other:02x}"),
    };
    bytes.iter().map(escaped).collect()
}
