//! A safe handle on the one inflate that can stop at block boundaries and resume between two bits.
//!
//! Wraps `z_stream` of libz-rs-sys, raw deflate only. Invariants, on which every `unsafe` here rests:
//!
//! - `stream` was set up by `inflateInit2_` and is freed once, in `drop`; nobody else has its state.
//! - The stream's pointers into input and output are set anew before each call that follows them;
//!   between calls they dangle and nothing reads through them.

use std::ffi::c_int;

use libz_rs_sys as z;

use super::CodecError;

/// The farthest a deflate match reaches back, in bytes (RFC 1951, section 2).
pub(super) const WINDOW: usize = 32 << 10;

/// Negative: raw deflate, without zlib's or gzip's wrapping.
const RAW_WINDOW_BITS: c_int = -15;

/// Bits of `z_stream::data_type` after a call (zlib.h, `inflate`): the number of unused bits of the
/// last byte taken, "in the last block", "just finished a block".
const UNUSED_BITS: c_int = 0x3f;
const LAST_BLOCK: c_int = 64;
const AT_BOUNDARY: c_int = 128;

/// Most that is handed over in one call, so that lengths fit zlib's 32 bits.
const CALL_MAX: usize = 1 << 30;

/// Where [`Inflate::run`] stops, besides at the end of input, output or stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the end of every deflate block but the stream's last.
    Boundary,
    /// Nowhere else.
    Never,
}

/// What one call of [`Inflate::run`] did.
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    pub(super) status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Out of input or of room for output.
    More,
    /// Between two blocks; the `bits` high bits of the last byte consumed belong to the next one.
    Boundary { bits: u8 },
    /// The stream is complete; what was consumed ends with its last byte.
    End,
    /// The data is no deflate stream.
    Corrupt,
}

/// A raw inflate stream.
pub(super) struct Inflate {
    stream: Box<z::z_stream>,
}

// SAFETY: the handle owns its stream and the memory behind it; nothing in it belongs to a thread.
unsafe impl Send for Inflate {}

impl Inflate {
    pub(super) fn new() -> Result<Self, CodecError> {
        let mut stream = Box::new(z::z_stream::default());
        let size = size_of::<z::z_stream>() as c_int;
        // SAFETY: `stream` is a valid z_stream with zlib-rs's own allocator, the version is a
        // C string of the same library.
        let code =
            unsafe { z::inflateInit2_(&raw mut *stream, RAW_WINDOW_BITS, z::zlibVersion(), size) };
        if code == z::Z_OK {
            Ok(Self { stream })
        } else {
            let what = format!("could not be set up (code {code})");
            Err(CodecError::Codec { codec: "inflate", what })
        }
    }

    /// Goes back to the start of a stream, with nothing in the window.
    pub(super) fn reset(&mut self) {
        // SAFETY: the stream is initialised (type invariant).
        let code = unsafe { z::inflateReset2(&raw mut *self.stream, RAW_WINDOW_BITS) };
        debug_assert_eq!(code, z::Z_OK);
    }

    /// Prepares to go on in the middle of a stream: with the `bits` high bits of the first byte of
    /// `compressed` (1 to 7; 0: with the whole byte), after `window`, which was decoded last. Returns
    /// the input that follows these bits.
    pub(super) fn resume<'a>(&mut self, compressed: &'a [u8], bits: u8, window: &[u8]) -> &'a [u8] {
        self.reset();
        let (first, rest) = match compressed.split_first() {
            Some((&first, rest)) if (1..8).contains(&bits) => (Some(first), rest),
            _ => (None, compressed),
        };
        let window = &window[window.len().saturating_sub(WINDOW)..];
        // SAFETY: the stream is initialised (type invariant); zlib copies the window, which is valid
        // for the length given, at most 32 KiB.
        unsafe {
            if let Some(first) = first {
                let value = c_int::from(first >> (8 - bits));
                let code = z::inflatePrime(&raw mut *self.stream, c_int::from(bits), value);
                debug_assert_eq!(code, z::Z_OK);
            }
            if !window.is_empty() {
                let code = z::inflateSetDictionary(
                    &raw mut *self.stream,
                    window.as_ptr(),
                    window.len() as u32,
                );
                debug_assert_eq!(code, z::Z_OK);
            }
        }
        rest
    }

    /// Decodes from `input` to `output` until it has to stop.
    pub(super) fn run(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Step {
        let given = input.len().min(CALL_MAX) as u32;
        let room = output.len().min(CALL_MAX) as u32;
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room;
        let flush = match stop {
            Stop::Boundary => z::Z_BLOCK,
            Stop::Never => z::Z_NO_FLUSH,
        };
        let status = loop {
            // SAFETY: the stream is initialised (type invariant); next_in and next_out were set to
            // slices that are at least as long as avail_in and avail_out say and that live through
            // the call, and the call itself moves them together.
            let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
            let state = self.stream.data_type;
            break match code {
                z::Z_STREAM_END => Status::End,
                // Z_BUF_ERROR only says that the bits left over from earlier input were enough
                z::Z_OK | z::Z_BUF_ERROR if state & AT_BOUNDARY != 0 => {
                    if state & LAST_BLOCK != 0 {
                        // The stream is complete, and one more call finds that out
                        continue;
                    }
                    // zlib.h promises fewer than eight unused bits here
                    debug_assert!(state & UNUSED_BITS < 8);
                    Status::Boundary { bits: (state & 7) as u8 }
                }
                z::Z_OK | z::Z_BUF_ERROR => Status::More,
                _ => Status::Corrupt,
            };
        };
        Step {
            consumed: (given - self.stream.avail_in) as usize,
            produced: (room - self.stream.avail_out) as usize,
            status,
        }
    }

    /// Bytes of memory that zlib allocates for a stream: its window with some margin, and the codes.
    pub(super) fn memory(&self) -> usize {
        const STATE: usize = 48 << 10;
        STATE + size_of::<z::z_stream>()
    }

    /// Replaces the content of `window` by the last bytes decoded, at most [`WINDOW`].
    pub(super) fn copy_window(&self, window: &mut Vec<u8>) {
        window.clear();
        window.resize(WINDOW, 0);
        let mut len = 0;
        // SAFETY: the stream is initialised (type invariant); `window` has room for the 32 KiB that
        // zlib writes at most.
        let code = unsafe {
            z::inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr(), &raw mut len)
        };
        debug_assert_eq!(code, z::Z_OK);
        window.truncate(len as usize);
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream is initialised and dropped once (type invariant).
        unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}
