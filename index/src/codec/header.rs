//! The header of a gzip member, in any split (RFC 1952, section 2.3).
//!
//! Nothing of it is kept: the header is only walked to find where the deflate data begins. Its CRC is
//! skipped, like those of the trailer: whether the tar is the right one is for the diffID to say.

/// The bytes every gzip member begins with.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// CRC32 and length of the member's content, in bytes.
pub(super) const TRAILER: usize = 8;

/// Longest header that is accepted, in bytes. FEXTRA ends below 64 KiB; name and comment have no
/// limit of their own.
const HEADER_MAX: u32 = 1 << 20;

const DEFLATE: u8 = 8;

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Why bytes are no gzip header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not gzip, or none that can be read. After a complete member: trailing bytes.
    Foreign(&'static str),
    /// Valid as far as it was read, but longer than any header may be.
    TooLong,
}

impl Fault {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Foreign(what) => what,
            Self::TooLong => "longer than 1 MiB",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// Offset within the ten bytes that are always there.
    Fixed(u8),
    ExtraLow,
    ExtraHigh(u8),
    Extra(u16),
    Name,
    Comment,
    CrcLow,
    CrcHigh,
    Done,
}

/// A header being read.
#[derive(Debug)]
pub(super) struct Header {
    at: At,
    flags: u8,
    len: u32,
}

impl Header {
    pub(super) fn new() -> Self {
        Self { at: At::Fixed(0), flags: 0, len: 0 }
    }

    /// Takes header bytes from the front of `input`; returns true once the header is complete, and
    /// what is left of `input` is deflate data.
    pub(super) fn push(&mut self, input: &mut &[u8]) -> Result<bool, Fault> {
        while !self.is_done() {
            let Some((&byte, rest)) = input.split_first() else {
                return Ok(false);
            };
            *input = rest;
            if self.len == HEADER_MAX {
                return Err(Fault::TooLong);
            }
            self.len += 1;
            self.at = self.step(byte)?;
        }
        Ok(true)
    }

    /// Whether enough was read to say that this is meant to be gzip.
    pub(super) fn is_recognised(&self) -> bool {
        self.len as usize >= MAGIC.len()
    }

    fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    fn step(&mut self, byte: u8) -> Result<At, Fault> {
        Ok(match self.at {
            At::Fixed(at @ (0 | 1)) if byte != MAGIC[usize::from(at)] => {
                return Err(Fault::Foreign("wrong magic number"));
            }
            At::Fixed(2) if byte != DEFLATE => {
                return Err(Fault::Foreign("unknown compression method"));
            }
            At::Fixed(3) if byte & RESERVED != 0 => {
                return Err(Fault::Foreign("reserved flags are set"));
            }
            At::Fixed(3) => {
                self.flags = byte;
                At::Fixed(4)
            }
            At::Fixed(at) if at < 9 => At::Fixed(at + 1),
            At::Fixed(_) if self.flags & FEXTRA != 0 => At::ExtraLow,
            At::Fixed(_) => self.after_extra(),
            At::ExtraLow => At::ExtraHigh(byte),
            At::ExtraHigh(low) => match u16::from_le_bytes([low, byte]) {
                0 => self.after_extra(),
                len => At::Extra(len),
            },
            At::Extra(1) => self.after_extra(),
            At::Extra(left) => At::Extra(left - 1),
            At::Name if byte == 0 => self.after_name(),
            At::Comment if byte == 0 => self.after_comment(),
            At::CrcLow => At::CrcHigh,
            At::CrcHigh => At::Done,
            same @ (At::Name | At::Comment | At::Done) => same,
        })
    }

    fn after_extra(&self) -> At {
        if self.flags & FNAME != 0 { At::Name } else { self.after_name() }
    }

    fn after_name(&self) -> At {
        if self.flags & FCOMMENT != 0 { At::Comment } else { self.after_comment() }
    }

    fn after_comment(&self) -> At {
        if self.flags & FHCRC != 0 { At::CrcLow } else { At::Done }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn every_field_is_walked_whatever_the_split() {
        let cases: &[(u8, &[u8])] = &[
            (0, b""),
            (1, b""),
            (FNAME, b"a name\0"),
            (FCOMMENT, b"\0"),
            (FEXTRA, b"\x03\x00abc"),
            (FEXTRA, b"\x00\x00"),
            (FHCRC, b"\x00\x00"),
            (FEXTRA | FNAME | FCOMMENT | FHCRC, b"\x02\x00\0\0n\0c\0\x12\x34"),
        ];
        for &(flags, fields) in cases {
            let mut bytes = header(flags, fields);
            let len = bytes.len();
            bytes.extend_from_slice(b"deflate");
            for step in 1..=bytes.len() {
                let mut parser = Header::new();
                let mut consumed = 0;
                let mut done = false;
                for chunk in bytes.chunks(step) {
                    let mut rest = chunk;
                    done = parser.push(&mut rest).unwrap();
                    consumed += chunk.len() - rest.len();
                    if done {
                        break;
                    }
                }
                assert!(done, "flags {flags:#x}, step {step}");
                assert_eq!(consumed, len, "flags {flags:#x}, step {step}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_named() {
        let cases: &[(&[u8], &str)] = &[
            (b"\x1f\x8c", "wrong magic number"),
            (b"\0", "wrong magic number"),
            (b"\x1f\x8b\x07", "unknown compression method"),
            (b"\x1f\x8b\x08\x20", "reserved flags are set"),
        ];
        for &(mut bytes, what) in cases {
            assert_eq!(Header::new().push(&mut bytes), Err(Fault::Foreign(what)));
        }
    }

    #[test]
    fn an_endless_name_is_refused() {
        let mut bytes = header(FNAME, b"");
        bytes.resize(3 << 20, b'n');
        assert_eq!(Header::new().push(&mut bytes.as_slice()), Err(Fault::TooLong));
        bytes.truncate(1 << 20);
        assert_eq!(Header::new().push(&mut bytes.as_slice()), Ok(false));
    }
}
