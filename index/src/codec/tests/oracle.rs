//! zlib (libz-rs-sys), of which it is known what it takes.

use std::ffi::c_int;

use libz_rs_sys as z;

use super::super::inflate::Status;

/// What zlib makes of a raw deflate stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// [`Status::Input`], [`Status::End`] or [`Status::Corrupt`].
    pub(super) status: Status,
    /// Where it is corrupt, of no meaning.
    pub(super) consumed: usize,
    /// Where it is corrupt, of no meaning.
    pub(super) output: Vec<u8>,
}

/// Inflates all of `input`, after `window`.
pub(super) fn inflate(input: &[u8], window: &[u8]) -> Verdict {
    let mut stream = z::z_stream::default();
    let mut output = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    stream.next_in = input.as_ptr();
    stream.avail_in = input.len() as u32;
    // SAFETY: the stream is set up before anything else and freed once; its pointers are to slices
    // that live as long as this call and are as long as it is told.
    unsafe {
        let size = size_of::<z::z_stream>() as c_int;
        assert_eq!(z::inflateInit2_(&raw mut stream, -15, z::zlibVersion(), size), z::Z_OK);
        if !window.is_empty() {
            let len = window.len() as u32;
            let code = z::inflateSetDictionary(&raw mut stream, window.as_ptr(), len);
            assert_eq!(code, z::Z_OK);
        }
        let status = loop {
            stream.next_out = chunk.as_mut_ptr();
            stream.avail_out = chunk.len() as u32;
            let code = z::inflate(&raw mut stream, z::Z_NO_FLUSH);
            let produced = chunk.len() - stream.avail_out as usize;
            output.extend_from_slice(&chunk[..produced]);
            match code {
                z::Z_STREAM_END => break Status::End,
                z::Z_OK | z::Z_BUF_ERROR if produced < chunk.len() => break Status::Input,
                z::Z_OK => {}
                _ => break Status::Corrupt,
            }
        };
        let consumed = input.len() - stream.avail_in as usize;
        z::inflateEnd(&raw mut stream);
        Verdict { status, consumed, output }
    }
}
