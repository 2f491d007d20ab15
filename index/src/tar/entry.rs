//! One entry out of a header block and the records and long names that stand before it.

use super::{
    EntryKind, TarEntry,
    error::Fault,
    header::{Format, Header},
    pax::Records,
    sparse::{Layout, Map},
};

/// What stands before a header block and belongs to its entry.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Where the first header of the next entry begins, if it has begun.
    pub(super) begin: Option<u64>,
    pub(super) records: Records,
    pub(super) long_name: Vec<u8>,
    pub(super) long_link: Vec<u8>,
}

impl Pending {
    /// The entry without its extents, its `size` being that of the stored content, and how that
    /// content makes the file. `name` is set to the entry's path as soon as that is known.
    pub(super) fn entry(
        self,
        header: &Header<'_>,
        block_offset: u64,
        name: &mut Vec<u8>,
    ) -> Result<(TarEntry, Layout), Fault> {
        let records = self.records;
        let mut path = first(records.path, self.long_name, || header.path());
        name.clone_from(&path);
        let kind = kind(header, &path)?;
        let link = match kind {
            EntryKind::HardLink | EntryKind::Symlink => {
                let header = || header.link.to_vec();
                first(records.linkpath, self.long_link, header)
            }
            _ => Vec::new(),
        };
        let (rdev_major, rdev_minor) = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => header.device()?,
            _ => (0, 0),
        };
        let size = match kind {
            EntryKind::File => records.size.unwrap_or(header.size),
            _ => 0,
        };
        let layout = match records.sparse {
            _ if header.typeflag == b'S' => Layout::Blocks(Map::new(header.real_size()?)),
            Some(sparse) => {
                let layout = sparse.layout(size)?;
                if !matches!(layout, Layout::Plain) {
                    if kind != EntryKind::File {
                        return Err(Fault::sparse("a regular file", format_args!("{kind:?}")));
                    }
                    if !sparse.name.is_empty() {
                        path = sparse.name;
                        name.clone_from(&path);
                    }
                }
                layout
            }
            None => Layout::Plain,
        };
        let (mtime_sec, mtime_nsec) = records.mtime.unwrap_or((header.mtime, 0));
        let entry = TarEntry {
            path,
            kind,
            link,
            mode: header.mode,
            uid: records.uid.unwrap_or(header.uid),
            gid: records.gid.unwrap_or(header.gid),
            mtime_sec,
            mtime_nsec,
            rdev_major,
            rdev_minor,
            size,
            header_offset: self.begin.unwrap_or(block_offset),
            data: Vec::new(),
            xattrs: records.xattrs,
        };
        Ok((entry, layout))
    }
}

impl TarEntry {
    /// The entry of a global PAX header.
    pub(super) fn global(path: Vec<u8>, header_offset: u64) -> Self {
        Self {
            path,
            kind: EntryKind::GlobalHeader,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime_sec: 0,
            mtime_nsec: 0,
            rdev_major: 0,
            rdev_minor: 0,
            size: 0,
            header_offset,
            data: Vec::new(),
            xattrs: Vec::new(),
        }
    }
}

/// A path or link target: the entry's GNU long name, its own record, the header.
fn first(record: Option<Vec<u8>>, long: Vec<u8>, header: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    if long.is_empty() { record.unwrap_or_else(header) } else { long }
}

/// The table of the module's documentation.
fn kind(header: &Header<'_>, path: &[u8]) -> Result<EntryKind, Fault> {
    Ok(match header.typeflag {
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' => EntryKind::File,
        b'S' if header.format == Format::Gnu => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        found => return Err(Fault::UnsupportedType { found }),
    })
}
