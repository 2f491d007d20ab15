//! From the tree of a layer to the sections of its file.
//!
//! Living inodes are numbered anew without gaps, in the order in which they came up in the tar.

use zerocopy::IntoBytes;

use super::{
    BUILDER_VERSION, BuildError,
    arena::{Arena, Link},
};
use crate::{
    attr::FileKind,
    codec::Decoded,
    format::{
        Begun, ExtentRecord, FileType, HIDES_LOWER, InodeRecord, LOWER_LINK, LOWER_LINK_KIND,
        LayerDirent, LayerMeta, NameId, SPARSE, Sealed, Section, SpanRecord, WHITEOUT_KIND,
    },
    layer::span_record,
};

/// Seals a layer. `meta` lacks only the count of lower links, which is filled in here.
///
/// # Errors
/// When content of a file lies outside the tar.
pub(super) fn seal(
    arena: Arena,
    mut meta: LayerMeta,
    decoded: Decoded,
) -> Result<Sealed, BuildError> {
    let numbers = new_numbers(&arena);
    let mut sections = Sections::default();
    for number in (1..=arena.inodes.len() as u32).filter(|n| numbers[*n as usize] != 0) {
        sections.add(&arena, &numbers, number, meta.tar_len.get())?;
    }
    let Sections { inodes, dirents, extents, lower_links } = sections;
    drop(numbers);
    meta.lower_links = lower_links.into();
    let Arena { names, targets, xattrs, .. } = arena;
    let Decoded { spans, windows, windows_taken, windows_checksum, .. } = decoded;
    let mut records = Vec::with_capacity(spans.len() * size_of::<SpanRecord>());
    spans.iter().for_each(|span| records.extend_from_slice(span_record(span).as_bytes()));
    let sections = vec![
        (Section::Meta, meta.as_bytes().to_vec()),
        (Section::Inodes, inodes),
        (Section::Dirents, dirents),
        (Section::Names, names.into_bytes()),
        (Section::Targets, targets.into_bytes()),
        (Section::Xattrs, xattrs.into_bytes()),
        (Section::Extents, extents),
        (Section::Spans, records),
        (Section::Windows, windows),
    ];
    let begun = Begun { elsewhere: windows_taken, checksum: windows_checksum };
    Ok(Sealed::with_begun(FileType::Layer, BUILDER_VERSION, sections, Some(begun)))
}

/// New number by old one; 0 for dead inodes.
fn new_numbers(arena: &Arena) -> Vec<u32> {
    let mut next = 0;
    let number = |inode: &InodeRecord| match inode.nlink.get() {
        0 => 0,
        _ => {
            next += 1;
            next
        }
    };
    std::iter::once(0).chain(arena.inodes.iter().map(number)).collect()
}

#[derive(Default)]
struct Sections {
    inodes: Vec<u8>,
    dirents: Vec<u8>,
    extents: Vec<u8>,
    lower_links: u32,
}

impl Sections {
    fn add(
        &mut self,
        arena: &Arena,
        numbers: &[u32],
        number: u32,
        tar_len: u64,
    ) -> Result<(), BuildError> {
        let mut inode = arena.inode(number).clone();
        match arena.kind(number) {
            Some(FileKind::Directory) => self.add_directory(arena, numbers, number, &mut inode),
            Some(FileKind::Regular) if inode.flags.get() & SPARSE != 0 => {
                let first = inode.data.get() as usize;
                let own = &arena.extents[first..first + inode.count.get() as usize];
                inode.data = ((self.extents.len() / size_of::<ExtentRecord>()) as u64).into();
                self.extents.extend_from_slice(own.as_bytes());
                for extent in own {
                    check_content(extent.tar_offset.get(), extent.len.get(), tar_len)?;
                }
            }
            Some(FileKind::Regular) => {
                check_content(inode.data.get(), inode.size.get(), tar_len)?;
            }
            Some(FileKind::Symlink) => place_target(arena, &mut inode),
            None if inode.flags.get() & LOWER_LINK != 0 => {
                place_target(arena, &mut inode);
                self.lower_links += 1;
            }
            _ => {}
        }
        self.inodes.extend_from_slice(inode.as_bytes());
        Ok(())
    }

    fn add_directory(
        &mut self,
        arena: &Arena,
        numbers: &[u32],
        number: u32,
        inode: &mut InodeRecord,
    ) {
        let mut children: Vec<(&[u8], &Link)> = arena
            .children(number)
            .map(|link| arena.link(link))
            .filter(|link| link.inode != 0 || link.is_whiteout)
            .map(|link| (arena.names.name(link.name), link))
            .collect();
        children.sort_unstable_by_key(|(name, _)| *name);
        let mut subdirectories = 0;
        inode.data = ((self.dirents.len() / size_of::<LayerDirent>()) as u64).into();
        inode.size = 0.into();
        inode.count = (children.len() as u32).into();
        for (_, link) in children {
            let (kind, flags) = match link.inode {
                0 => (WHITEOUT_KIND, 0),
                inode => match arena.kind(inode) {
                    Some(FileKind::Directory) => {
                        subdirectories += 1;
                        let flags = if link.is_whiteout { HIDES_LOWER } else { 0 };
                        (FileKind::Directory.code(), flags)
                    }
                    Some(kind) => (kind.code(), 0),
                    None => (LOWER_LINK_KIND, 0),
                },
            };
            let (name_offset, name_len) = arena.names.place(link.name);
            let entry = LayerDirent {
                name_offset: name_offset.into(),
                inode: numbers[link.inode as usize].into(),
                name_len: (name_len as u16).into(),
                kind,
                flags,
            };
            self.dirents.extend_from_slice(entry.as_bytes());
        }
        inode.nlink = (2 + subdirectories).into();
    }
}

fn place_target(arena: &Arena, inode: &mut InodeRecord) {
    let (offset, _) = arena.targets.place(NameId::from_number(inode.data.get() as u32));
    inode.data = u64::from(offset).into();
}

fn check_content(tar_offset: u64, len: u64, tar_len: u64) -> Result<(), BuildError> {
    let found = tar_offset.saturating_add(len);
    if found > tar_len { Err(BuildError::Content { expected: tar_len, found }) } else { Ok(()) }
}
