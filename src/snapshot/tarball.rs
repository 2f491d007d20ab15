//! Changes as the tar of a layer.
//!
//! Source: OCI image-spec, layer.md, and PAX in POSIX.1-2017 pax(1). The same upper gives the same
//! bytes: names are sorted, and nothing is written that a copy would change (times of access and of
//! change, names of users, inode and device numbers).

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::Metadata,
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use super::{
    SnapshotError,
    changes::{Change, Found, Upper},
};

/// Marks a name of a lower layer as gone.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all of a directory's lower content.
const OPAQUE: &str = ".wh..wh..opq";
/// Longest names in a header's own fields.
const NAME_MAX: usize = 100;
/// Largest number in seven octal digits: owners above it need a record.
const ID_MAX: u32 = 0o7_777_777;
/// Largest number in eleven octal digits: sizes and times.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// Writes the changes of an upper as the tar of a layer.
///
/// # Errors
/// Where something cannot be read or written, or cannot stand in a layer.
pub fn write(upper: &Upper, out: &mut dyn Write) -> Result<(), SnapshotError> {
    let mut writer = Writer { tar: tar::Builder::new(out), links: HashMap::new() };
    upper.changes(&mut |change: Change<'_>| {
        let path = change.path.to_owned();
        writer.change(change).map_err(SnapshotError::of("write to a layer", &path))
    })?;
    writer.tar.finish().map_err(SnapshotError::of("end a layer of", Path::new("an upper")))
}

struct Writer<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    /// The first path of each inode that has several.
    links: HashMap<u64, PathBuf>,
}

impl Writer<'_> {
    fn change(&mut self, change: Change<'_>) -> io::Result<()> {
        let name = change.path.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(WHITEOUT) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its name would hide another file in a layer",
            ));
        }
        let Some(found) = change.found else {
            let mut marker = WHITEOUT.to_vec();
            marker.extend_from_slice(name.as_bytes());
            let dir = change.path.parent().unwrap_or(Path::new(""));
            return self.empty(&dir.join(OsStr::from_bytes(&marker)));
        };
        self.file(change.path, &found)?;
        if change.opaque {
            self.empty(&change.path.join(OPAQUE))?;
        }
        Ok(())
    }

    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        self.entry(header, Records::default(), path.as_os_str().as_bytes(), io::empty())
    }

    fn file(&mut self, path: &Path, found: &Found) -> io::Result<()> {
        let Metadatas { mut header, mut records } = attributes(&found.metadata);
        let mut name = path.as_os_str().as_bytes().to_vec();
        let kind = FileType::from_raw_mode(found.metadata.mode());
        let is_dir = kind == FileType::Directory;
        if !is_dir && found.metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&found.metadata.ino()).cloned() {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                set_link(&mut header, &mut records, first.as_os_str().as_bytes());
                return self.entry(header, records, &name, io::empty());
            }
            self.links.insert(found.metadata.ino(), path.to_owned());
        }
        for (key, value) in found.xattrs()? {
            let mut record = b"SCHILY.xattr.".to_vec();
            record.extend_from_slice(key.as_bytes());
            records.add(&record, &value);
        }
        let mut size = 0;
        match kind {
            FileType::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                name.push(b'/');
            }
            FileType::RegularFile => {
                header.set_entry_type(tar::EntryType::Regular);
                size = found.metadata.len();
            }
            FileType::Symlink => {
                header.set_entry_type(tar::EntryType::Symlink);
                use std::os::fd::AsFd as _;
                let target = rustix::fs::readlinkat(found.file.as_fd(), "", Vec::new())?;
                set_link(&mut header, &mut records, target.as_bytes());
            }
            FileType::Fifo => header.set_entry_type(tar::EntryType::Fifo),
            FileType::CharacterDevice | FileType::BlockDevice => {
                let is_char = kind == FileType::CharacterDevice;
                header.set_entry_type(match is_char {
                    true => tar::EntryType::Char,
                    false => tar::EntryType::Block,
                });
                let device = found.metadata.rdev();
                header.set_device_major(rustix::fs::major(device))?;
                header.set_device_minor(rustix::fs::minor(device))?;
            }
            // A socket is of no use without the process that listens
            _ => return Ok(()),
        }
        set_size(&mut header, &mut records, size);
        if size == 0 {
            return self.entry(header, records, &name, io::empty());
        }
        let content = Exactly { file: found.open()?, left: size };
        self.entry(header, records, &name, content)
    }

    /// One entry, after its records where there are any.
    fn entry(
        &mut self,
        mut header: tar::Header,
        mut records: Records,
        name: &[u8],
        content: impl Read,
    ) -> io::Result<()> {
        let short = &name[..name.len().min(NAME_MAX)];
        if name.len() > NAME_MAX || !name.is_ascii() {
            records.add(b"path", name);
        }
        if !records.0.is_empty() {
            let mut extra = tar::Header::new_ustar();
            extra.set_entry_type(tar::EntryType::XHeader);
            extra.set_mode(0o644);
            extra.set_uid(0);
            extra.set_gid(0);
            extra.set_mtime(0);
            extra.set_size(records.0.len() as u64);
            set_name(&mut extra, b"PaxHeaders/x");
            extra.set_cksum();
            self.tar.append(&extra, records.0.as_slice())?;
        }
        set_name(&mut header, short);
        header.set_cksum();
        self.tar.append(&header, content)
    }
}

fn set_name(header: &mut tar::Header, name: &[u8]) {
    let field = &mut header.as_old_mut().name;
    field.fill(0);
    field[..name.len()].copy_from_slice(name);
}

fn set_link(header: &mut tar::Header, records: &mut Records, target: &[u8]) {
    let short = &target[..target.len().min(NAME_MAX)];
    if target.len() > NAME_MAX || !target.is_ascii() {
        records.add(b"linkpath", target);
    }
    let field = &mut header.as_old_mut().linkname;
    field.fill(0);
    field[..short.len()].copy_from_slice(short);
}

fn set_size(header: &mut tar::Header, records: &mut Records, size: u64) {
    if size > SIZE_MAX {
        records.add(b"size", size.to_string().as_bytes());
    }
    header.set_size(size);
}

/// Records of a PAX header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// `<length> <key>=<value>\n`, the length's own digits included.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }
}

struct Metadatas {
    header: tar::Header,
    records: Records,
}

fn attributes(found: &Metadata) -> Metadatas {
    let (mut header, mut records) = (tar::Header::new_ustar(), Records::default());
    header.set_mode(found.mode() & 0o7777);
    for (key, id) in [("uid", found.uid()), ("gid", found.gid())] {
        if id > ID_MAX {
            records.add(key.as_bytes(), id.to_string().as_bytes());
        }
        match key {
            "uid" => header.set_uid(id.min(ID_MAX).into()),
            _ => header.set_gid(id.min(ID_MAX).into()),
        }
    }
    let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
    header.set_mtime(u64::try_from(seconds).unwrap_or(0).min(SIZE_MAX));
    if nanoseconds != 0 || seconds < 0 || seconds.unsigned_abs() > SIZE_MAX {
        records.add(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    Metadatas { header, records }
}

/// A time in decimal, as PAX has it: below zero the fraction counts away from it.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let (sign, whole, fraction) = match (seconds < 0, nanoseconds) {
        (true, 1..) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        (true, _) => ("-", seconds.unsigned_abs(), 0),
        (false, n) => ("", seconds.unsigned_abs(), n),
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// As many bytes as were announced, whatever becomes of the file: zeros after its end.
struct Exactly {
    file: std::fs::File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let n = match self.file.read(&mut out[..most])? {
            0 => {
                out[..most].fill(0);
                most
            }
            n => n,
        };
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        let table: [(&[u8], &[u8], &[u8]); 3] = [
            (b"a", b"b", b"6 a=b\n"),
            (b"path", b"12345", b"14 path=12345\n"),
            (b"k", &[b'x'; 93], &[b"99 k=".as_slice(), &[b'x'; 93], b"\n"].concat()),
        ];
        for (key, value, expected) in table {
            let mut records = Records::default();
            records.add(key, value);
            assert_eq!(records.0, expected);
        }
        // Where one more digit makes it longer
        let mut records = Records::default();
        records.add(b"k", &[b'x'; 94]);
        assert!(records.0.starts_with(b"101 k=") && records.0.len() == 101);
    }

    #[test]
    fn times_are_exact() {
        let table = [
            (5, 0, "5"),
            (5, 500_000_000, "5.5"),
            (0, 1, "0.000000001"),
            (-1, 0, "-1"),
            (-1, 500_000_000, "-0.5"),
            (-2, 750_000_000, "-1.25"),
            (i64::MIN, 0, "-9223372036854775808"),
        ];
        for (seconds, nanoseconds, expected) in table {
            assert_eq!(time(seconds, nanoseconds), expected);
        }
    }
}
