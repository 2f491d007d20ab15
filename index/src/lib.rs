//! Indexes of container image layers: where every file is in a compressed tar, where to resume
//! decompression near it, and which layer wins for each path.
//!
//! Architecture invariant: this crate is pure and synchronous. Bytes come in, structs go out; it
//! opens no file, knows no network and no async runtime.

pub mod attr;
pub mod build;
pub mod codec;
pub mod digest;
pub mod format;
pub mod layer;
pub mod merge;
pub mod nodeid;
mod path;
mod stage;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod tree;

pub use attr::{Attr, Bytes, Entry, FileKind, MAX_FILE_SIZE, Piece};
pub use build::{BUILDER_VERSION, BuildError, BuiltLayer, EntryProblem, LayerBuilder};
pub use codec::{
    CodecError, Compression, Decoded, SPAN_MAX, SPAN_TARGET, Span, SpanCoding, SpanDecoder,
    SpanReader, SpanSource, StreamDecoder, decode_span,
};
pub use digest::{Algorithm, Digest, DigestError, Hasher, chain_id};
pub use format::{FORMAT_VERSION, FileType, FormatError, HEADER_LEN, Header, Xattrs, peek_header};
pub use layer::{Layer, Pieces, TarStream};
pub use merge::{BuiltTree, MERGER_VERSION, MergeError, merge};
pub use nodeid::{NodeId, Slot};
pub use tar::{EntryKind, Extent, TarEntry, TarError, TarParser};
pub use tree::{LayerRef, Totals, Tree};
