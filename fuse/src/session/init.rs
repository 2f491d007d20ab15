//! FUSE's INIT exchange as bytes: parsing the kernel's request, choosing the answer, and keeping
//! both for the workers that adopt the connection later. No I/O happens here.
//!
//! ```text
//! kernel ──INIT──▶ keeper            InitRequest::parse
//! kernel ◀─reply── keeper            InitReply::negotiate, encode
//!                  keeper ──text──▶ worker        Handshake, as text
//!                                   worker ──▶ fuser: InitRequest::encode of what was agreed
//! ```
//!
//! Source: include/uapi/linux/fuse.h (`fuse_in_header`, `fuse_init_in`, `fuse_init_out`). All
//! numbers are in the byte order of the machine.

use std::{fmt, str::FromStr};

/// Length of `fuse_in_header`, in bytes.
const IN_HEADER_LEN: usize = 40;
/// Length of `fuse_out_header`, in bytes.
pub(crate) const OUT_HEADER_LEN: usize = 16;
/// Length of `fuse_init_in` before 7.36 added the upper half of the flags, in bytes.
const INIT_IN_SHORT_LEN: usize = 16;
/// Length of an INIT request as kernels since 7.36 send it, in bytes.
const REQUEST_LEN: usize = IN_HEADER_LEN + 64;
/// Length of an INIT reply, in bytes.
pub(crate) const REPLY_LEN: usize = OUT_HEADER_LEN + 64;

/// `FUSE_INIT`.
const OPCODE_INIT: u32 = 26;
/// The protocol's major version.
const MAJOR: u32 = 7;
/// Newest minor version whose messages the fuser crate writes.
const NEWEST_MINOR: u32 = 40;
/// Oldest minor version that has what peel relies on: `FUSE_NO_OPENDIR_SUPPORT` (7.29, Linux 5.1).
const OLDEST_MINOR: u32 = 29;

/// The feature bits of INIT that peel asks for or looks at (`FUSE_*` in fuse.h).
pub mod flags {
    /// Reads of one file may be under way at the same time.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// LOOKUP of `.` and `..` works on any inode number, so that file handles can be opened again
    /// after the kernel forgot the inode. Overlays use them to keep `st_ino` over a copy-up.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Listing a directory brings the attributes along. Always, as `READDIRPLUS_AUTO` is not asked
    /// for: with that, a directory of more than 32 KiB of entries that is listed as a whole before
    /// its files are looked at (find, ls -l, du, os.scandir) costs a LOOKUP a file. First walk of
    /// 100,000 files by find: 0.48 x ext4 without it, 2.7 x with it. The price is paid by who only
    /// lists: 1.0 x ext4 in the place of 0.46 x.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// `open` may be answered ENOSYS, once, which ends OPEN and RELEASE requests.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// Lookups and listings of one directory may run at the same time.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The kernel enforces the ACLs of the image, as it does on an unpacked tree.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` of the reply holds.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symlinks are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// `opendir` may be answered ENOSYS, once; listings are cached then.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// The upper half of the flags holds.
    pub const INIT_EXT: u64 = 1 << 30;
    /// The kernel understands `FUSE_NOTIFY_RESEND` (Linux 6.9).
    pub const HAS_RESEND: u64 = 1 << 39;
    /// The mount can be idmapped (Linux 6.12); needs `default_permissions`.
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// What peel asks for. None of these can be added to a connection later.
///
/// Left out on purpose: `AUTO_INVAL_DATA`, as it looks at the time of a file whose content cannot
/// change before each read; `HANDLE_KILLPRIV` and `WRITEBACK_CACHE`, as nothing is written;
/// `PASSTHROUGH`, see fuse/PASSTHROUGH.md; `OVER_IO_URING` (Linux 6.14), which the fuser crate does
/// not speak, and whose queues end with the process that made them.
const WANTED: u64 = flags::ASYNC_READ
    | flags::EXPORT_SUPPORT
    | flags::DO_READDIRPLUS
    | flags::NO_OPEN_SUPPORT
    | flags::PARALLEL_DIROPS
    | flags::POSIX_ACL
    | flags::MAX_PAGES
    | flags::CACHE_SYMLINKS
    | flags::NO_OPENDIR_SUPPORT
    | flags::INIT_EXT
    | flags::HAS_RESEND
    | flags::ALLOW_IDMAP;

/// Read-ahead and other background requests that the kernel keeps under way at most. On two cores
/// it gains little over the kernel's default of 12: 256 MiB, cold, take 1.22 in the place of 1.34 s
/// for one reader, 0.80 in the place of 0.84 s for four (medians of 3). It is for machines with
/// more: the pool has up to 16 threads, and each should find the next read queued. More than this
/// only moves the queue into the worker.
const MAX_BACKGROUND: u16 = 64;
/// Background requests from which on the kernel holds back new ones: its usual three quarters.
const CONGESTION_THRESHOLD: u16 = 48;
/// Longest read, in pages: the kernel's own limit (`fs.fuse.max_pages_limit`), 1 MiB.
const MAX_PAGES: u16 = 256;
/// Longest write, in bytes: the least that the kernel takes, as nothing is ever written.
const MAX_WRITE: u32 = 4096;
/// Longest read-ahead that is asked for, in bytes. The kernel grants 128 KiB; the rest is raised
/// through sysfs.
const MAX_READAHEAD: u32 = 1 << 20;
/// Granularity of times, in nanoseconds.
const TIME_GRANULARITY: u32 = 1;

/// Why an INIT request or a stored handshake is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// Shorter than its kind of message.
    #[error("INIT message is cut short: expected {expected} bytes, found {found}")]
    Short {
        /// Bytes that were needed.
        expected: usize,
        /// Bytes that were there.
        found: usize,
    },
    /// Another request than INIT came first.
    #[error("expected request {OPCODE_INIT} (INIT), found request {found}")]
    NotInit {
        /// The opcode that came.
        found: u32,
    },
    /// A kernel from before what peel needs.
    #[error("kernel speaks FUSE {major}.{minor}, expected {MAJOR}.{OLDEST_MINOR} or newer")]
    TooOld {
        /// Major version of the kernel.
        major: u32,
        /// Minor version of the kernel.
        minor: u32,
    },
    /// A kernel with a newer major version; it has been told ours and asks again.
    #[error("kernel speaks FUSE {major}, expected {MAJOR}")]
    TooNew {
        /// Major version of the kernel.
        major: u32,
    },
    /// Text that is no handshake.
    #[error("not a FUSE handshake: {reason}: {text:?}")]
    Text {
        /// What is wrong.
        reason: &'static str,
        /// The text.
        text: String,
    },
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitRequest {
    /// Id under which the kernel waits for the reply.
    pub unique: u64,
    /// Major version of the kernel's protocol.
    pub major: u32,
    /// Minor version of the kernel's protocol.
    pub minor: u32,
    /// Longest read-ahead that the kernel would do, in bytes.
    pub max_readahead: u32,
    /// Features that the kernel has; see [`flags`].
    pub flags: u64,
}

impl InitRequest {
    /// Parses a message as read from /dev/fuse.
    pub fn parse(message: &[u8]) -> Result<Self, InitError> {
        let short = |expected| InitError::Short { expected, found: message.len() };
        let u32_at = |at: usize| {
            let bytes = message.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_ne_bytes).ok_or(short(IN_HEADER_LEN + INIT_IN_SHORT_LEN))
        };
        let opcode = u32_at(4)?;
        if opcode != OPCODE_INIT {
            return Err(InitError::NotInit { found: opcode });
        }
        // The id is two halves only for this reader; in memory it is one number
        let unique: [u8; 8] =
            message.get(8..16).and_then(|b| b.try_into().ok()).ok_or(short(IN_HEADER_LEN))?;
        let low = u32_at(IN_HEADER_LEN + 12)?;
        let mut all = u64::from(low);
        if all & flags::INIT_EXT != 0 {
            all |= u64::from(u32_at(IN_HEADER_LEN + 16)?) << 32;
        }
        Ok(Self {
            unique: u64::from_ne_bytes(unique),
            major: u32_at(IN_HEADER_LEN)?,
            minor: u32_at(IN_HEADER_LEN + 4)?,
            max_readahead: u32_at(IN_HEADER_LEN + 8)?,
            flags: all,
        })
    }

    /// The message that a kernel with these features would send.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        put(&mut out, 0, &(REQUEST_LEN as u32).to_ne_bytes());
        put(&mut out, 4, &OPCODE_INIT.to_ne_bytes());
        put(&mut out, 8, &self.unique.to_ne_bytes());
        put(&mut out, IN_HEADER_LEN, &self.major.to_ne_bytes());
        put(&mut out, IN_HEADER_LEN + 4, &self.minor.to_ne_bytes());
        put(&mut out, IN_HEADER_LEN + 8, &self.max_readahead.to_ne_bytes());
        put(&mut out, IN_HEADER_LEN + 12, &(self.flags as u32).to_ne_bytes());
        put(&mut out, IN_HEADER_LEN + 16, &((self.flags >> 32) as u32).to_ne_bytes());
        out
    }
}

/// What peel answers to INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitReply {
    /// Minor version that both sides speak.
    pub minor: u32,
    /// Longest read-ahead, in bytes.
    pub max_readahead: u32,
    /// Features that are on; see [`flags`].
    pub flags: u64,
    /// Background requests under way at most.
    pub max_background: u16,
    /// Background requests from which on the kernel holds back new ones.
    pub congestion_threshold: u16,
    /// Longest write, in bytes.
    pub max_write: u32,
    /// Granularity of times, in nanoseconds.
    pub time_gran: u32,
    /// Longest read, in pages.
    pub max_pages: u16,
}

impl InitReply {
    /// Chooses the answer to what the kernel offers.
    ///
    /// # Errors
    /// [`InitError::TooOld`] ends the attempt; after [`InitError::TooNew`] the kernel is sent
    /// [`version_only`](Self::version_only) and asks again.
    pub fn negotiate(request: &InitRequest) -> Result<Self, InitError> {
        let InitRequest { major, minor, .. } = *request;
        if major > MAJOR {
            return Err(InitError::TooNew { major });
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            return Err(InitError::TooOld { major, minor });
        }
        Ok(Self {
            minor: minor.min(NEWEST_MINOR),
            max_readahead: request.max_readahead.min(MAX_READAHEAD),
            flags: request.flags & WANTED,
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION_THRESHOLD,
            max_write: MAX_WRITE,
            time_gran: TIME_GRANULARITY,
            max_pages: MAX_PAGES,
        })
    }

    /// The answer to a kernel with a newer major version: ours, and nothing else.
    pub fn version_only(unique: u64) -> [u8; REPLY_LEN] {
        let mut out = reply_header(unique);
        put(&mut out, OUT_HEADER_LEN + 4, &NEWEST_MINOR.to_ne_bytes());
        out
    }

    /// The message to write to /dev/fuse.
    pub fn encode(&self, unique: u64) -> [u8; REPLY_LEN] {
        let mut out = reply_header(unique);
        put(&mut out, OUT_HEADER_LEN + 4, &self.minor.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 8, &self.max_readahead.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 12, &(self.flags as u32).to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 16, &self.max_background.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 18, &self.congestion_threshold.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 20, &self.max_write.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 24, &self.time_gran.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 28, &self.max_pages.to_ne_bytes());
        put(&mut out, OUT_HEADER_LEN + 32, &((self.flags >> 32) as u32).to_ne_bytes());
        out
    }
}

fn reply_header(unique: u64) -> [u8; REPLY_LEN] {
    let mut out = [0; REPLY_LEN];
    put(&mut out, 0, &(REPLY_LEN as u32).to_ne_bytes());
    put(&mut out, 8, &unique.to_ne_bytes());
    put(&mut out, OUT_HEADER_LEN, &MAJOR.to_ne_bytes());
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What kernel and keeper agreed on, for every worker that adopts the connection.
///
/// As text it is `v1` and eleven hexadecimal numbers between dots: fit for an argument or an
/// environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// What the kernel offered.
    pub request: InitRequest,
    /// What it was answered.
    pub reply: InitReply,
}

impl Handshake {
    /// Whether requests that a dead worker had taken can be had again. Without it (Linux before
    /// 6.9) their callers wait until the connection ends.
    pub fn can_resend(&self) -> bool {
        self.reply.flags & flags::HAS_RESEND != 0
    }

    /// Whether mounts of the connection's file system may map ids. Without it (Linux before 6.12)
    /// the kernel refuses them.
    pub fn maps_ids(&self) -> bool {
        self.reply.flags & flags::ALLOW_IDMAP != 0
    }

    /// The request that makes a FUSE library believe just what the kernel was told.
    pub(crate) fn synthetic_request(&self) -> InitRequest {
        InitRequest {
            unique: 1,
            major: MAJOR,
            minor: self.reply.minor,
            max_readahead: self.reply.max_readahead,
            flags: self.reply.flags,
        }
    }
}

const TEXT_VERSION: &str = "v1";
const TEXT_FIELDS: usize = 12;

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, reply } = self;
        write!(
            f,
            "{TEXT_VERSION}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}.{:x}",
            request.minor,
            request.max_readahead,
            request.flags,
            reply.minor,
            reply.max_readahead,
            reply.flags,
            reply.max_background,
            reply.congestion_threshold,
            reply.max_write,
            reply.time_gran,
            reply.max_pages,
        )
    }
}

impl FromStr for Handshake {
    type Err = InitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| InitError::Text { reason, text: text.chars().take(200).collect() };
        let mut fields = text.split('.');
        if fields.next() != Some(TEXT_VERSION) {
            return Err(wrong("unknown version"));
        }
        if text.split('.').count() != TEXT_FIELDS {
            return Err(wrong("wrong number of fields"));
        }
        let mut number = || {
            let field = fields.next().filter(|f| f.bytes().all(|b| b.is_ascii_hexdigit()));
            let number = field.and_then(|f| u64::from_str_radix(f, 16).ok());
            number.ok_or(wrong("field is no hexadecimal number"))
        };
        let large = |_| wrong("field is too large");
        let handshake = Self {
            request: InitRequest {
                unique: 0,
                major: MAJOR,
                minor: number()?.try_into().map_err(large)?,
                max_readahead: number()?.try_into().map_err(large)?,
                flags: number()?,
            },
            reply: InitReply {
                minor: number()?.try_into().map_err(large)?,
                max_readahead: number()?.try_into().map_err(large)?,
                flags: number()?,
                max_background: number()?.try_into().map_err(large)?,
                congestion_threshold: number()?.try_into().map_err(large)?,
                max_write: number()?.try_into().map_err(large)?,
                time_gran: number()?.try_into().map_err(large)?,
                max_pages: number()?.try_into().map_err(large)?,
            },
        };
        let Self { request, reply } = &handshake;
        if reply.flags & !request.flags != 0 {
            return Err(wrong("features that were not offered"));
        }
        if reply.minor > request.minor || !(OLDEST_MINOR..=NEWEST_MINOR).contains(&reply.minor) {
            return Err(wrong("impossible version"));
        }
        Ok(handshake)
    }
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
