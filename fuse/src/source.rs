//! What the filesystem serves from.

use std::sync::Arc;

use peel_index::{Layer, Slot, Tree};

/// Trees, layers and the content of files. Asked from several threads at once.
pub trait FileSource: Send + Sync + 'static {
    /// The tree of a slot; `None` where there is none. Called for every request about metadata:
    /// after the first call for a slot it has to be cheap, and it must never wait for I/O that can
    /// take long.
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>>;

    /// The layer index of a slot, under the same conditions.
    fn layer(&self, slot: Slot) -> Option<Arc<Layer>>;

    /// Gives `sink` the bytes `offset..offset + len` of a regular file; fewer only where the file
    /// ends. May block.
    ///
    /// # Errors
    /// What `sink` was given then counts for nothing.
    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError>;

    /// As [`read`](Self::read), where the bytes are in memory in one piece: never waits for I/O or
    /// for a decode. Otherwise it is false, and `sink` was given nothing.
    fn read_ready(
        &self,
        _layer: Slot,
        _number: u32,
        _offset: u64,
        _len: u32,
        _sink: &mut dyn Sink,
    ) -> bool {
        false
    }

    /// How often something of what this gave out has lost bytes: what was read of it between two
    /// calls that say the same is right, and anything else counts for nothing. Trees and layers that
    /// lost some are given out no more.
    fn losses(&self) -> u64 {
        0
    }

    /// A name was looked up in a tree, found or not: `sink` may be told what is worth doing ahead of
    /// the reads that follow. Called for every such request, so it has to be cheap.
    fn visited(&self, _tree: Slot, _sink: &mut dyn Sink) {}

    /// Does what [`Sink::ahead`] was told of, on a thread that has nothing else to do, for as long
    /// as that says so.
    fn ahead(&self, _wish: Ahead, _spare: &dyn Spare) {}
}

/// A thread that has nothing else to do.
pub trait Spare {
    /// Whether it still has not. Ask every 100 us or so: somebody waits for the thread otherwise.
    fn go_on(&self) -> bool;

    /// Something else worth doing, for this thread later or for another one now. It may be dropped.
    fn offer(&self, wish: Ahead);
}

/// A thread without queues: what is offered to it is dropped.
impl<F: Fn() -> bool> Spare for F {
    fn go_on(&self) -> bool {
        self()
    }

    fn offer(&self, _wish: Ahead) {}
}

/// Takes what a read gives.
pub trait Sink {
    /// The next bytes, in the file's order.
    fn data(&mut self, bytes: &[u8]);

    /// Something that is worth doing before it is asked for. It may be dropped.
    fn ahead(&mut self, wish: Ahead);
}

/// For reading into memory, without a thread to work ahead.
impl Sink for Vec<u8> {
    fn data(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn ahead(&mut self, _wish: Ahead) {}
}

/// What is likely to be read soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// A span.
    Span {
        /// The layer's slot.
        layer: Slot,
        /// The span's number in the layer's index.
        span: u32,
    },
    /// What was read of a tree's layers the last time that each came into use.
    Starts {
        /// The tree's slot.
        tree: Slot,
    },
    /// What was read of a layer the last time that it came into use.
    Start {
        /// The layer's slot.
        layer: Slot,
    },
}

/// Why content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The layer's index is not there.
    #[error("layer {layer} is not there")]
    NoLayer {
        /// Its slot.
        layer: Slot,
    },
    /// The inode holds no content: it is out of range, or no regular file.
    #[error("inode {number} of layer {layer} has no content")]
    NoContent {
        /// The layer's slot.
        layer: Slot,
        /// The inode's number in the layer.
        number: u32,
    },
    /// The layer's bytes could not be had.
    #[error("cannot get the bytes of layer {layer}")]
    Io {
        /// The layer's slot.
        layer: Slot,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The source gave another number of bytes than the file has there. The kernel would take that
    /// for the file's end.
    #[error("expected {expected} bytes of inode {number} of layer {layer}, found {found}")]
    Length {
        /// The layer's slot.
        layer: Slot,
        /// The inode's number in the layer.
        number: u32,
        /// Bytes that the file has there.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// The layer's bytes are there, but they are not what was indexed.
    #[error("the bytes of layer {layer} are damaged")]
    Damaged {
        /// The layer's slot.
        layer: Slot,
        /// It has been told before.
        again: bool,
        /// What is wrong with them.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
