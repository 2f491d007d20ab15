//! The buffer that a decoder writes tar to, with what matches refer to in front.
//!
//! ```text
//! | up to 32 KiB before | with the sink | to come | room | slack |
//! ```
//! When it is full the last 32 KiB move to the front: to that of another buffer where the sink takes
//! this one.

use super::{
    CodecError, TarSink,
    inflate::{SLACK, WINDOW},
};

/// Tar bytes decoded at a time: stays in the second-level cache until the sink has seen it.
const ROOM: usize = 128 << 10;

pub(super) struct Output {
    bytes: Vec<u8>,
    /// Where the next byte of tar goes.
    at: usize,
    /// What is before is with the sink.
    told: usize,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; WINDOW + ROOM + SLACK], at: 0, told: 0 }
    }

    /// The buffer, where to go on in it, and up to where; there is room.
    pub(super) fn room(
        &mut self,
        sink: &mut dyn TarSink,
    ) -> Result<(&mut [u8], usize, usize), CodecError> {
        let enough = self.bytes.len() - SLACK;
        if self.at >= enough {
            let (fresh, end) = (self.told, self.at);
            (self.at, self.told) = (WINDOW, WINDOW);
            match sink.exchange(self.bytes.len()) {
                Some(mut next) => {
                    next[..WINDOW].copy_from_slice(&self.bytes[end - WINDOW..end]);
                    sink.give(std::mem::replace(&mut self.bytes, next), fresh..end)?;
                }
                None => {
                    sink.take(&self.bytes[fresh..end])?;
                    self.bytes.copy_within(end - WINDOW..end, 0);
                }
            }
        }
        Ok((&mut self.bytes, self.at, enough))
    }

    /// `len` bytes were written; gives them.
    pub(super) fn add(&mut self, len: usize) -> &[u8] {
        let begin = self.at;
        self.at += len;
        &self.bytes[begin..self.at]
    }

    /// The last `len` bytes of tar, at most [`WINDOW`].
    pub(super) fn last(&self, len: usize) -> &[u8] {
        &self.bytes[self.at - len.min(WINDOW)..self.at]
    }

    /// Lets the sink take what it does not have. Where it takes whole buffers that waits until this
    /// one is full, or for the `last` time.
    pub(super) fn tell(&mut self, sink: &mut dyn TarSink, last: bool) -> Result<(), CodecError> {
        if self.told == self.at || (!last && sink.takes_buffers()) {
            return Ok(());
        }
        let fresh = std::mem::replace(&mut self.told, self.at);
        sink.take(&self.bytes[fresh..self.at])
    }
}
