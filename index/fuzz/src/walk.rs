//! Everything that an opened layer or tree gives access to.

use std::{collections::BTreeSet, sync::Arc};

use peel_index::{CodecError, FileKind, Layer, NodeId, Piece, Slot, SpanSource, TarStream, Tree};

/// Ranges of a file to ask for, besides all of it: offset and length.
const RANGES: [(u64, u64); 4] = [(1, 1), (0, 4096), (511, 1024), (u64::MAX, u64::MAX)];

/// Reads every inode and span of a layer.
///
/// # Panics
/// When pieces do not add up or lie outside the tar, or a span outside what it is in.
pub fn layer(layer: &Layer) {
    for number in 0..=layer.inode_count().saturating_add(1) {
        let Some(attr) = layer.inode(number) else {
            assert_eq!(layer.pieces(number, 0, u64::MAX).count(), 0);
            continue;
        };
        assert!((1..=layer.inode_count()).contains(&number));
        assert!(attr.mtime_nsec < 1_000_000_000 && attr.mode <= 0o7777);
        layer.xattrs(number).for_each(|(name, _)| assert!(!name.is_empty()));
        if let Some(target) = layer.symlink_target(number) {
            assert_eq!((attr.kind, attr.size), (FileKind::Symlink, target.len() as u64));
        }
        let size = if attr.kind == FileKind::Regular { attr.size } else { 0 };
        for (offset, len) in RANGES.into_iter().chain([(0, u64::MAX), (size / 2, size)]) {
            let expected = size.saturating_sub(offset).min(len);
            assert_eq!(pieces(layer, number, offset, len), expected, "{number} {offset}+{len}");
        }
    }
    let mut end = 0;
    for index in 0..layer.span_count() {
        let span = layer.span(index).expect("in range");
        assert_eq!(span.tar_offset, end);
        assert_eq!(layer.span_at(end), Some(index));
        end += u64::from(span.tar_len);
        assert_eq!(layer.span_at(end - 1), Some(index));
        assert_eq!(layer.window(&span).len(), span.window_len as usize);
        let source_len = match span.source {
            SpanSource::Blob => layer.blob_len(),
            SpanSource::Copy => layer.copy_len(),
        };
        assert!(span.offset + u64::from(span.len) <= source_len);
        if span.len > 0 {
            assert!(layer.decode_span(index, b"").is_err());
        }
    }
    assert_eq!((layer.tar_len(), layer.span_at(end)), (end, None));
    assert!(layer.span(layer.span_count()).is_none());
}

/// How much the pieces of a range come to.
fn pieces(layer: &Layer, number: u32, offset: u64, len: u64) -> u64 {
    let mut sum = 0u64;
    for piece in layer.pieces(number, offset, len) {
        let (Piece::Data { len, .. } | Piece::Zero { len }) = piece;
        if let Piece::Data { tar_offset, len } = piece {
            assert!(tar_offset.checked_add(len).is_some_and(|end| end <= layer.tar_len()));
        }
        assert!(len > 0);
        sum = sum.checked_add(len).expect("no overflow");
    }
    sum
}

/// The whole tar of a layer again.
///
/// # Errors
/// When a span cannot be decoded.
///
/// # Panics
/// When a span lies outside of blob or copy.
pub fn tar(layer: Arc<Layer>, blob: &[u8], copy: &[u8]) -> Result<Vec<u8>, CodecError> {
    let (mut tar, mut stream) = (Vec::new(), TarStream::new(layer));
    while let Some(span) = stream.wanted() {
        let source = if span.source == SpanSource::Blob { blob } else { copy };
        tar.extend_from_slice(stream.push(&source[span.offset as usize..][..span.len as usize])?);
    }
    Ok(tar)
}

/// Content of a file, out of the tar.
pub fn content(layer: &Layer, tar: &[u8], number: u32) -> Vec<u8> {
    let mut content = Vec::new();
    for piece in layer.pieces(number, 0, u64::MAX) {
        match piece {
            Piece::Zero { len } => content.resize(content.len() + len as usize, 0),
            Piece::Data { tar_offset, len } => {
                content.extend_from_slice(&tar[tar_offset as usize..][..len as usize]);
            }
        }
    }
    content
}

/// A name in a tree.
#[derive(Clone, Debug)]
pub struct Place {
    /// Names from the root, which is the empty list.
    pub path: Vec<Vec<u8>>,
    /// What it names.
    pub node: NodeId,
    /// Its kind as the directory says.
    pub kind: FileKind,
}

/// Every name of a tree, the root first, directories before what is in them.
///
/// # Panics
/// When a directory is reached twice, an entry is not found by its name, names do not ascend, or an
/// entry differs from its inode.
pub fn tree(tree: &Tree) -> Vec<Place> {
    let layers: BTreeSet<Slot> = tree.layers().map(|layer| layer.slot).collect();
    let node = NodeId::Tree { slot: tree.slot(), number: 1 };
    let mut places = vec![Place { path: Vec::new(), node, kind: FileKind::Directory }];
    let mut directories = BTreeSet::new();
    let mut next = 0;
    while let Some(Place { path, node, kind }) = places.get(next).cloned() {
        next += 1;
        let number = match node {
            NodeId::Tree { slot, number } if slot == tree.slot() => number,
            NodeId::Layer { slot, .. } if kind != FileKind::Directory => {
                assert!(layers.contains(&slot));
                continue;
            }
            other => panic!("{other:?} in a tree"),
        };
        let attr = tree.inode(number).expect("an entry leads to an inode");
        assert_eq!(attr.kind, kind);
        tree.xattrs(number).for_each(|(name, _)| assert!(!name.is_empty()));
        if let Some((slot, _)) = tree.content(number) {
            assert!(layers.contains(&slot) && kind != FileKind::Directory);
        }
        assert_eq!(tree.entry_count(number).is_some(), kind == FileKind::Directory);
        if kind == FileKind::Directory {
            assert!(directories.insert(number), "directory {number} twice");
            children(tree, number, &path, &mut places);
        }
    }
    for number in [0, tree.inode_count() + 1, u32::MAX] {
        assert!(tree.inode(number).is_none() && tree.entry(number, 0).is_none());
    }
    places
}

fn children(tree: &Tree, number: u32, path: &[Vec<u8>], places: &mut Vec<Place>) {
    let count = tree.entry_count(number).expect("a directory");
    let mut last: &[u8] = b"";
    for index in 0..count {
        let entry = tree.entry(number, index).expect("in range");
        assert!(entry.name > last && !entry.name.contains(&b'/'));
        assert_eq!(tree.lookup(number, entry.name), Some(entry));
        if let (NodeId::Tree { number: child, .. }, FileKind::Directory) = (entry.node, entry.kind)
        {
            assert_eq!(tree.parent(child), Some(number));
        }
        let path = path.iter().cloned().chain([entry.name.to_vec()]).collect();
        places.push(Place { path, node: entry.node, kind: entry.kind });
        last = entry.name;
    }
    assert!(tree.entry(number, count).is_none() && tree.lookup(number, b"/").is_none());
}
