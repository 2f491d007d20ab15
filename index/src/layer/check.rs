//! The checks of a layer index at open, beyond checksums.
//!
//! Ranges of entries and extents must follow each other in order of inode, so each record belongs
//! to one inode and the whole costs time in proportion to the file, however hostile it is. A
//! directory must have a higher number than its parent and one name, so directories form a tree.

use super::{Layer, ROOT, spans};
use crate::{
    attr::{FileKind, MAX_FILE_SIZE, PERMISSION_MASK, TYPE_MASK},
    codec::{SPAN_MAX, SpanSource},
    format::{
        ExtentRecord, FormatError, HIDES_LOWER, IMPLICIT, InodeRecord, LOWER_LINK, LOWER_LINK_KIND,
        LayerDirent, OPAQUE, SPARSE, Section, SpanRecord, WHITEOUT_KIND, XattrSets, has_valid_form,
        slice,
    },
};

/// Longest target of a symlink or path of a lower link in bytes.
pub(crate) const MAX_TARGET: u32 = 4096;

/// Most inodes of a layer: numbers are 32 bits, and 0 and the highest one stay free.
const MAX_INODES: usize = u32::MAX as usize - 1;

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// Checks everything but checksums and META.
pub(super) fn check(layer: &Layer) -> Result<(), FormatError> {
    let inodes: &[InodeRecord] = layer.file.checked_records(Section::Inodes)?;
    let dirents: &[LayerDirent] = layer.file.checked_records(Section::Dirents)?;
    let extents: &[ExtentRecord] = layer.file.checked_records(Section::Extents)?;
    let sets = XattrSets::check(layer.file.section(Section::Xattrs))?;
    if inodes.is_empty() || inodes.len() > MAX_INODES {
        return Err(FormatError::Section { section: Section::Inodes.name() });
    }
    check_spans(layer)?;

    let names = layer.names();
    let targets = layer.file.section(Section::Targets);
    let mut checker = InodeChecker {
        tar_len: layer.tar_len,
        extents,
        targets,
        sets,
        extent: 0,
        lower_links: 0,
        directories: Vec::new(),
    };
    let mut kinds = vec![0u8; inodes.len()];
    let mut names_left = vec![0u32; inodes.len()];
    for ((number, inode), (kind, left)) in
        (1..).zip(inodes).zip(kinds.iter_mut().zip(&mut names_left))
    {
        (*kind, *left) = checker.check(number, inode)?;
    }
    if checker.extent != extents.len() {
        return Err(Section::Extents.bad(checker.extent as u64, "extents left over"));
    }
    if checker.lower_links != layer.lower_links {
        return Err(Section::Meta.bad(0, "wrong count of lower links"));
    }

    let mut dirent = 0;
    for directory in &checker.directories {
        let bad = |problem| Section::Inodes.bad(u64::from(directory.number), problem);
        let end = dirent + directory.count as usize;
        let children = dirents.get(dirent..end).filter(|_| directory.first == dirent as u64);
        let children = children.ok_or(bad("entries out of range"))?;
        let subdirectories =
            check_entries(names, dirent, directory.number, children, &kinds, &mut names_left)?;
        if directory.nlink != subdirectories.saturating_add(2) {
            return Err(bad("link count differs from subdirectories"));
        }
        dirent = end;
    }
    if dirent != dirents.len() {
        return Err(Section::Dirents.bad(dirent as u64, "entries left over"));
    }
    match names_left.iter().position(|left| *left != 0) {
        Some(index) => Err(Section::Inodes.bad(index as u64 + 1, "fewer names than links")),
        None => Ok(()),
    }
}

/// A directory that passed, but for its entries.
struct Directory {
    number: u32,
    first: u64,
    count: u32,
    nlink: u32,
}

/// The first pass: inodes by themselves. Entries are checked in a second one against what this one
/// leaves, 5 bytes an inode, so that the records themselves are read but once.
struct InodeChecker<'a> {
    tar_len: u64,
    extents: &'a [ExtentRecord],
    targets: &'a [u8],
    sets: XattrSets,
    /// The next extent that no file has claimed.
    extent: usize,
    lower_links: u32,
    directories: Vec<Directory>,
}

impl InodeChecker<'_> {
    /// Gives the kind that entries must say, and how many there must be.
    fn check(&mut self, number: u32, inode: &InodeRecord) -> Result<(u8, u32), FormatError> {
        let bad = |problem| Section::Inodes.bad(u64::from(number), problem);
        let (mode, flags) = (inode.mode.get(), inode.flags.get());
        let (size, data, count) = (inode.size.get(), inode.data.get(), inode.count.get());
        if inode.mtime_nsec.get() >= NANOS_PER_SEC || !self.sets.contains(inode.xattrs.get()) {
            return Err(bad("nanoseconds or extended attributes out of range"));
        }
        if mode & !(TYPE_MASK | PERMISSION_MASK) != 0 || size > MAX_FILE_SIZE {
            return Err(bad("mode or size out of range"));
        }
        let is_text = || {
            (1..=MAX_TARGET).contains(&count)
                && slice(self.targets, data, count.into()).is_some_and(|text| !text.contains(&0))
        };
        let kind = FileKind::from_mode(mode);
        let (allowed, is_right) = match kind {
            Some(FileKind::Directory) => {
                let nlink = inode.nlink.get();
                self.directories.push(Directory { number, first: data, count, nlink });
                (IMPLICIT | OPAQUE, size == 0)
            }
            Some(FileKind::Regular) if flags & SPARSE != 0 => {
                (SPARSE, self.claim_extents(data, count, size))
            }
            Some(FileKind::Regular) => {
                let is_inside = data.checked_add(size).is_some_and(|end| end <= self.tar_len);
                (0, count == 0 && is_inside)
            }
            Some(FileKind::Symlink) => (0, is_text() && size == u64::from(count)),
            Some(FileKind::CharDevice | FileKind::BlockDevice) => (0, size == 0 && count == 0),
            Some(FileKind::Fifo) => (0, size == 0 && count == 0 && data == 0),
            None => {
                let is_link = mode & TYPE_MASK == 0 && flags & LOWER_LINK != 0;
                self.lower_links = self.lower_links.saturating_add(1);
                (LOWER_LINK, is_link && size == 0 && is_text())
            }
        };
        if !is_right {
            return Err(bad("size, data or type out of range"));
        }
        if flags & !allowed != 0 {
            return Err(bad("flag that its type does not have"));
        }
        let names = match (kind, number) {
            (Some(FileKind::Directory), ROOT) => 0,
            (Some(FileKind::Directory), _) => 1,
            (_, ROOT) => return Err(bad("the root is no directory")),
            _ => inode.nlink.get(),
        };
        if names == 0 && number != ROOT {
            return Err(bad("no link"));
        }
        Ok((kind.map_or(LOWER_LINK_KIND, FileKind::code), names))
    }

    fn claim_extents(&mut self, first: u64, count: u32, size: u64) -> bool {
        let end = self.extent.saturating_add(count as usize);
        let Some(claimed) = self.extents.get(self.extent..end) else { return false };
        if first != self.extent as u64 {
            return false;
        }
        self.extent = end;
        let mut last = 0;
        for extent in claimed {
            let (logical, len) = (extent.logical.get(), extent.len.get());
            let (Some(end), Some(tar_end)) =
                (logical.checked_add(len), extent.tar_offset.get().checked_add(len))
            else {
                return false;
            };
            if len == 0 || logical < last || end > size || tar_end > self.tar_len {
                return false;
            }
            last = end;
        }
        true
    }
}

/// The second pass: the entries of a directory, of which the first has the given position. Gives
/// the number of subdirectories.
fn check_entries(
    names: &[u8],
    position: usize,
    number: u32,
    entries: &[LayerDirent],
    kinds: &[u8],
    names_left: &mut [u32],
) -> Result<u32, FormatError> {
    let mut subdirectories = 0;
    let mut last: &[u8] = &[];
    for (position, entry) in (position..).zip(entries) {
        let bad = |problem| Section::Dirents.bad(position as u64, problem);
        let (offset, len) = (entry.name_offset.get(), entry.name_len.get());
        let name = slice(names, offset.into(), len.into());
        let name = name.filter(|name| has_valid_form(name)).ok_or(bad("invalid name"))?;
        if name <= last {
            return Err(bad("names not ascending"));
        }
        last = name;
        let target = entry.inode.get();
        if entry.kind == WHITEOUT_KIND {
            if target != 0 || entry.flags != 0 {
                return Err(bad("whiteout with an inode or flags"));
            }
            continue;
        }
        let index = target.checked_sub(1).ok_or(bad("no inode"))? as usize;
        let (Some(kind), Some(left)) = (kinds.get(index), names_left.get_mut(index)) else {
            return Err(bad("inode out of range"));
        };
        if entry.kind != *kind {
            return Err(bad("kind differs from its inode"));
        }
        let is_directory = *kind == FileKind::Directory.code();
        if is_directory && target <= number {
            return Err(bad("subdirectory numbered before its parent"));
        }
        if entry.flags & !(if is_directory { HIDES_LOWER } else { 0 }) != 0 {
            return Err(bad("unknown flag"));
        }
        subdirectories += u32::from(is_directory);
        *left = left.checked_sub(1).ok_or(bad("more names than links"))?;
    }
    Ok(subdirectories)
}

fn check_spans(layer: &Layer) -> Result<(), FormatError> {
    let records: &[SpanRecord] = layer.file.checked_records(Section::Spans)?;
    if u32::try_from(records.len()).is_err() {
        return Err(FormatError::Section { section: Section::Spans.name() });
    }
    let windows = layer.file.section(Section::Windows);
    let mut tar_end = 0u64;
    for (index, record) in (0..).zip(records) {
        let bad = |problem| Section::Spans.bad(index, problem);
        let span = spans::span(record).ok_or(bad("unknown code"))?;
        if record.reserved.get() != 0 || span.tar_offset != tar_end {
            return Err(bad("not contiguous"));
        }
        if span.tar_len == 0 || span.tar_len > SPAN_MAX {
            return Err(bad("length out of range"));
        }
        tar_end = tar_end.checked_add(span.tar_len.into()).ok_or(bad("past the end"))?;
        let source_len = match span.source {
            SpanSource::Blob => layer.blob_len,
            SpanSource::Copy => layer.copy_len,
        };
        let end = span.offset.checked_add(span.len.into());
        if end.is_none_or(|end| end > source_len) {
            return Err(bad("compressed range out of range"));
        }
        if slice(windows, span.window_offset, span.window_len.into()).is_none() {
            return Err(bad("window out of range"));
        }
    }
    if tar_end != layer.tar_len {
        return Err(Section::Spans.bad(records.len() as u64, "spans do not cover the tar"));
    }
    Ok(())
}
