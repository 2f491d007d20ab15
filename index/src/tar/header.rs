//! One header block of 512 bytes, as it stands: no PAX records, no long names.
//!
//! ```text
//!   0 name[100]  100 mode[8]  108 uid[8]  116 gid[8]  124 size[12]  136 mtime[12]
//! 148 checksum[8]  156 typeflag[1]  157 linkname[100]                      ── V7 ends here
//! 257 magic[6] 263 version[2] 265 uname[32] 297 gname[32] 329 devmajor[8] 337 devminor[8]
//! 345 prefix[155]                                                          ── ustar
//! 345 prefix[131] 476 atime[12] 488 ctime[12] 508 "tar\0"                  ── star
//! 345 atime[12] 357 ctime[12] 386 4 × {offset[12] length[12]} 482 more[1] 483 realsize[12] ── GNU
//! ```

use super::error::Fault;

/// Length of a block in bytes.
pub(super) const BLOCK: usize = 512;

/// A block of the archive.
pub(super) type Block = [u8; BLOCK];

/// Which fields there are behind those of V7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    /// Also the blocks of PAX archives.
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header block that every entry needs, checked.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) format: Format,
    pub(super) typeflag: u8,
    pub(super) link: &'a [u8],
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// At most `i64::MAX`.
    pub(super) size: u64,
    pub(super) mtime: i64,
    block: &'a Block,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a Block) -> Result<Self, Fault> {
        verify_checksum(block)?;
        let number = |field, range: std::ops::Range<usize>| field_number(field, &block[range]);
        let size = number("size", 124..136)?;
        Ok(Self {
            format: format(block),
            typeflag: block[156],
            link: c_string(&block[157..257]),
            mode: (number("mode", 100..108)? & 0o7777) as u32,
            uid: owner(number("uid", 108..116)?)
                .ok_or_else(|| Fault::number("uid", OWNER, &block[108..116]))?,
            gid: owner(number("gid", 116..124)?)
                .ok_or_else(|| Fault::number("gid", OWNER, &block[116..124]))?,
            size: u64::try_from(size)
                .map_err(|_| Fault::number("size", "a size of 0 or more", &block[124..136]))?,
            mtime: number("mtime", 136..148)?,
            block,
        })
    }

    /// Prefix and name.
    pub(super) fn path(&self) -> Vec<u8> {
        let (prefix, name) = (self.prefix(), name(self.block));
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), Fault> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        let number = |field, range: std::ops::Range<usize>| {
            let bytes = &self.block[range];
            u32::try_from(field_number(field, bytes)?)
                .map_err(|_| Fault::number(field, "0 to 4294967295", bytes))
        };
        Ok((number("devmajor", 329..337)?, number("devminor", 337..345)?))
    }

    /// Real size of an old GNU sparse file.
    pub(super) fn real_size(&self) -> Result<u64, Fault> {
        let bytes = &self.block[483..495];
        u64::try_from(field_number("realsize", bytes)?)
            .map_err(|_| Fault::number("realsize", "a size of 0 or more", bytes))
    }

    /// Runs of an old GNU sparse file, and whether an extension block follows.
    pub(super) fn sparse_runs(&self) -> (&'a [u8], bool) {
        (&self.block[386..482], self.block[482] != 0)
    }

    fn prefix(&self) -> &'a [u8] {
        match self.format {
            Format::V7 => &[],
            Format::Ustar => c_string(&self.block[345..500]),
            Format::Star => c_string(&self.block[345..476]),
            Format::Gnu => self.misplaced_prefix().unwrap_or_default(),
        }
    }

    /// The prefix that Go before 1.8 wrote into GNU headers, over atime and ctime
    /// (golang.org/issue/12594). Recognised as Go does: no numbers there, but ASCII.
    fn misplaced_prefix(&self) -> Option<&'a [u8]> {
        let bad_time = |bytes: &[u8]| bytes[0] != 0 && field_number("time", bytes).is_err();
        if !bad_time(&self.block[345..357]) && !bad_time(&self.block[357..369]) {
            return None;
        }
        Some(c_string(&self.block[345..500])).filter(|prefix| prefix.is_ascii())
    }
}

/// Runs of an extension block of an old GNU sparse file, and whether another one follows.
pub(super) fn extension_runs(block: &Block) -> (&[u8], bool) {
    (&block[..504], block[504] != 0)
}

/// The name field alone; good enough to name an entry whose header is in doubt.
pub(super) fn name(block: &Block) -> &[u8] {
    c_string(&block[..100])
}

/// Bytes up to the first NUL, or all.
pub(super) fn c_string(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

pub(super) const OWNER: &str = "-2147483648 to 4294967295";

/// An owner as `lchown(2)` takes it from containerd: modulo 2^32, where -1 leaves the owner alone,
/// which is root for a file that root has just made. `None` past 32 bits, where containerd would
/// cut an id down to some other user's, or root's.
pub(super) fn owner(id: i64) -> Option<u32> {
    let id = u32::try_from(id).or_else(|_| i32::try_from(id).map(|id| id as u32)).ok()?;
    Some(if id == u32::MAX { 0 } else { id })
}

/// A number in a field of at most 12 bytes.
pub(super) fn field_number(field: &'static str, bytes: &[u8]) -> Result<i64, Fault> {
    let (number, expected) = match bytes.first() {
        Some(first) if first & 0x80 != 0 => (base256(bytes), "a base-256 number of 64 bits"),
        _ => (octal(bytes), "an octal number"),
    };
    number.ok_or_else(|| Fault::number(field, expected, bytes))
}

/// Octal digits between blanks; a blank field is 0. Spaces and NULs are blanks, and what follows a
/// NUL does not count, as in Go.
fn octal(bytes: &[u8]) -> Option<i64> {
    let start = bytes.iter().position(|byte| !matches!(byte, 0 | b' ')).unwrap_or(bytes.len());
    let mut number: i64 = 0;
    let mut rest = bytes[start..].iter();
    for &byte in rest.by_ref() {
        match byte {
            b'0'..=b'7' => number = number.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            0 => return Some(number),
            b' ' => break,
            _ => return None,
        }
    }
    rest.take_while(|&&byte| byte != 0).all(|&byte| byte == b' ').then_some(number)
}

/// Big-endian two's complement of which the top bit says only that it is one (GNU, star).
fn base256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes[0] & 0x40 != 0;
    let mut number = if negative { -1_i64 } else { 0 };
    for (index, &byte) in bytes.iter().enumerate() {
        let byte = match index {
            0 if !negative => byte & 0x7f,
            _ => byte,
        };
        if number != number << 8 >> 8 {
            return None;
        }
        number = number << 8 | i64::from(byte);
    }
    Some(number)
}

fn format(block: &Block) -> Format {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..512] == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// The sum of all bytes, those of the checksum itself taken as spaces. POSIX sums unsigned bytes;
/// old Sun tars summed signed ones.
fn verify_checksum(block: &Block) -> Result<(), Fault> {
    let stated = octal(&block[148..156])
        .ok_or_else(|| Fault::number("checksum", "an octal number", &block[148..156]))?;
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let unsigned = sum(block) - sum(&block[148..156]) + 8 * u32::from(b' ');
    if stated == i64::from(unsigned) {
        return Ok(());
    }
    let summed = block[..148].iter().chain(&block[156..]);
    let high = summed.filter(|&&byte| byte >= 0x80).count() as i64;
    if stated == i64::from(unsigned) - 256 * high {
        return Ok(());
    }
    Err(Fault::Checksum { expected: unsigned, found: stated.unsigned_abs() })
}
