//! Entries of a tar, one after the other, applied to the tree of their layer.
//!
//! What happens follows containerd's `archive.Apply` onto an empty upper directory; decisions on
//! what that leaves open are in `index/MERGE.md`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use super::{
    arena::{Arena, implicit_directory},
    error::{BuildError, EntryProblem},
};
use crate::{
    attr::{FileKind, MAX_FILE_SIZE, PERMISSION_MASK, TYPE_MASK, makedev},
    format::{
        ExtentRecord, IMPLICIT, InodeRecord, LOWER_LINK, MAX_NAME, MAX_XATTR_NAME, MAX_XATTR_VALUE,
        NameId, OPAQUE, SPARSE, has_valid_form, is_free_of_separators,
    },
    layer::ROOT,
    path::{CleanPath, MAX_LINKS, MAX_STEPS, clean, printable},
    tar::{EntryKind, TarEntry},
};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Longest path, and longest link target, in bytes (`PATH_MAX`). It holds for where a path leads,
/// too, so no directory is deeper than 2048.
const MAX_PATH: usize = 4096;

/// Most bytes of the names of one inode's extended attributes (`XATTR_LIST_MAX`), a zero after each.
const MAX_XATTR_NAMES: usize = 64 << 10;

/// Most bytes of all extended attributes of one inode. No file system takes so many, but each header
/// of a file can add to them.
const MAX_XATTRS: usize = 1 << 20;

/// Most work that a layer may cost beyond what its entries cost by themselves; see [`Effort`].
const MAX_EFFORT: u64 = 1 << 26;

/// What each entry adds to [`MAX_EFFORT`]: an honest layer, however large, stays below it.
const EFFORT_PER_ENTRY: u64 = 64;

/// Bytes of a symlink's target, and of extended attributes, that cost as much as a name.
const BYTES_PER_STEP: usize = 16;

const CAPABILITY: &[u8] = b"security.capability";

/// Mode of every symlink: Linux has no other.
const SYMLINK_MODE: u32 = 0o777;

/// The tree of one layer.
pub(super) struct LayerTree {
    pub(super) arena: Arena,
    /// Hard links into lower layers by cleaned target path.
    lower_links: HashMap<NameId, u32>,
    last_parent: LastParent,
    effort: Effort,
}

/// Counts what symlinks and extended attributes cost beyond the entry that leads to them: an entry
/// can take thousands of steps through symlinks, or have a megabyte of attributes merged, and a
/// layer of millions of such entries would take days. The limit is about ten seconds.
struct Effort {
    left: u64,
    max: u64,
}

impl Effort {
    fn new(max: u64) -> Self {
        Self { left: max, max }
    }

    fn grant(&mut self, steps: u64) {
        self.left += steps;
        self.max += steps;
    }

    fn spend(&mut self, steps: usize) -> Result<(), EntryProblem> {
        match self.left.checked_sub(steps as u64) {
            Some(left) => self.left = left,
            None => return Err(EntryProblem::Effort { expected: self.max }),
        }
        Ok(())
    }
}

/// The directory that the last entry was put in: most entries follow others of their directory.
/// Holds until a name loses its inode; new names do not change where a path leads.
#[derive(Default)]
struct LastParent {
    /// The path before its last slash, as the tar has it; empty for none.
    path: Vec<u8>,
    number: u32,
    /// Length of the cleaned path, a slash after it included.
    len: usize,
}

impl LastParent {
    fn find<'e>(&self, path: &'e [u8]) -> Option<(u32, &'e [u8])> {
        let (parent, base) = split_last(path)?;
        let is_plain = has_valid_form(base)
            && is_free_of_separators(base)
            && !base.starts_with(WHITEOUT_META)
            && self.len + base.len() <= MAX_PATH;
        (parent == self.path && is_plain).then_some((self.number, base))
    }

    fn set(&mut self, path: &[u8], number: u32, len: usize) {
        self.clear();
        if let Some((parent, _)) = split_last(path) {
            self.path.extend_from_slice(parent);
            (self.number, self.len) = (number, len);
        }
    }

    fn clear(&mut self) {
        self.path.clear();
    }
}

/// What stands before and after the last slash but for those at the end; `None` where either is
/// empty or more than a name is left out by cleaning.
fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let slash = path[..end].iter().rposition(|byte| *byte == b'/')?;
    let (parent, base) = (&path[..slash], &path[slash + 1..end]);
    (!parent.is_empty() && has_valid_form(base)).then_some((parent, base))
}

/// Where a path leads.
enum Place {
    Directory(u32),
    /// Not in this layer; the path that would have to be, without a leading slash.
    Elsewhere(Vec<u8>),
}

impl LayerTree {
    pub(super) fn new() -> Self {
        Self {
            arena: Arena::new(),
            lower_links: HashMap::new(),
            last_parent: LastParent::default(),
            effort: Effort::new(MAX_EFFORT),
        }
    }

    /// The same, with another limit than [`MAX_EFFORT`] and nothing for an entry.
    #[cfg(test)]
    pub(super) fn with_effort(max: u64) -> Self {
        Self { effort: Effort::new(max), ..Self::new() }
    }

    /// Applies an entry.
    pub(super) fn apply(&mut self, entry: &TarEntry) -> Result<(), BuildError> {
        self.effort.grant(EFFORT_PER_ENTRY);
        self.place(entry).map_err(|problem| BuildError::Entry {
            path: printable(&entry.path),
            offset: entry.header_offset,
            problem,
        })
    }

    fn place(&mut self, entry: &TarEntry) -> Result<(), EntryProblem> {
        let Some((parent, base)) = self.find_parent(entry)? else {
            return Ok(());
        };
        if base == WHITEOUT_OPAQUE {
            let inode = self.arena.inode_mut(parent);
            inode.flags = (inode.flags.get() | OPAQUE).into();
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(EntryProblem::Whiteout);
            }
            let link = self.arena.find_or_add(parent, hidden)?;
            self.arena.link_mut(link).is_whiteout = true;
            return Ok(());
        }
        let kind = match entry.kind {
            EntryKind::Directory => return self.place_directory(parent, base, entry),
            EntryKind::HardLink => return self.place_hard_link(parent, base, entry),
            EntryKind::GlobalHeader => {
                if let Some(link) = self.arena.find(parent, base) {
                    self.detach(link);
                }
                return Ok(());
            }
            EntryKind::File => FileKind::Regular,
            EntryKind::Symlink => FileKind::Symlink,
            EntryKind::CharDevice => FileKind::CharDevice,
            EntryKind::BlockDevice => FileKind::BlockDevice,
            EntryKind::Fifo => FileKind::Fifo,
        };
        let inode = self.new_inode(kind, entry)?;
        let link = self.arena.find_or_add(parent, base)?;
        self.detach(link);
        let number = self.arena.add(inode)?;
        self.arena.attach(link, number);
        self.set_header(number, entry)
    }

    /// Directory and name of an entry; `None` for one that is ignored, and for the root, whose
    /// header this applies.
    fn find_parent<'e>(
        &mut self,
        entry: &'e TarEntry,
    ) -> Result<Option<(u32, &'e [u8])>, EntryProblem> {
        if let Some(found) = self.last_parent.find(&entry.path) {
            return Ok(Some(found));
        }
        let path = clean(&entry.path);
        let len = check_path(&path)?;
        let Some((base, parents)) = path.names.split_last() else {
            // Only a directory can be the root; like containerd, take no notice of anything else
            if entry.kind == EntryKind::Directory {
                self.set_header(ROOT, entry)?;
            }
            return Ok(None);
        };
        let is_meta = |name: &&[u8]| name.starts_with(WHITEOUT_META);
        if parents.iter().any(is_meta) || (is_meta(base) && *base != WHITEOUT_OPAQUE) {
            return Ok(None);
        }
        let parent = self.make_parents(parents)?;
        let len = len.max(self.arena.path_len(parent) + 1 + base.len());
        check_len(len)?;
        self.last_parent.set(&entry.path, parent, len - base.len());
        Ok(Some((parent, base)))
    }

    /// Takes the inode away from a link, and with a directory all that is below it.
    fn detach(&mut self, link: u32) {
        if self.arena.link(link).inode != 0 {
            self.last_parent.clear();
            self.arena.detach(link);
        }
    }

    fn place_directory(
        &mut self,
        parent: u32,
        base: &[u8],
        entry: &TarEntry,
    ) -> Result<(), EntryProblem> {
        let link = self.arena.find_or_add(parent, base)?;
        let mut number = self.arena.link(link).inode;
        if number == 0 || !self.arena.is_directory(number) {
            self.detach(link);
            number = self.arena.add(implicit_directory())?;
            self.arena.attach(link, number);
        }
        self.set_header(number, entry)
    }

    fn place_hard_link(
        &mut self,
        parent: u32,
        base: &[u8],
        entry: &TarEntry,
    ) -> Result<(), EntryProblem> {
        check_link(&entry.link)?;
        let directory_link = || EntryProblem::DirectoryLink { target: printable(&entry.link) };
        let path = clean(&entry.link);
        let (name, parents) = path.names.split_last().ok_or_else(directory_link)?;
        let target = match self.walk(parents, false)? {
            Place::Directory(directory) if directory == parent && name == &base => return Ok(()),
            Place::Directory(directory) => {
                let link = self.arena.find(directory, name);
                match link.map_or(0, |link| self.arena.link(link).inode) {
                    0 => Err(join(self.arena.path(directory), name)),
                    number => Ok(number),
                }
            }
            Place::Elsewhere(path) => Err(join(path, name)),
        };
        let number = match target {
            Ok(number) if self.arena.is_directory(number) => return Err(directory_link()),
            Ok(number) => number,
            Err(path) => self.lower_link(&path)?,
        };
        let link = self.arena.find_or_add(parent, base)?;
        if self.arena.link(link).inode != number {
            self.detach(link);
            self.arena.attach(link, number);
        }
        self.set_header(number, entry)
    }

    /// The inode that stands for a path of the lower layers.
    fn lower_link(&mut self, path: &[u8]) -> Result<u32, EntryProblem> {
        if path.len() > MAX_PATH {
            return Err(EntryProblem::Link { found: path.len() });
        }
        let target = self.arena.targets.intern(path)?;
        if let Some(number) = self.lower_links.get(&target)
            && self.arena.inode(*number).nlink.get() != 0
        {
            return Ok(*number);
        }
        let number = self.arena.add(InodeRecord {
            flags: LOWER_LINK.into(),
            data: u64::from(target.number()).into(),
            count: (path.len() as u32).into(),
            ..InodeRecord::default()
        })?;
        self.lower_links.insert(target, number);
        Ok(number)
    }

    /// A new inode of a kind that is neither directory nor hard link, without its header.
    fn new_inode(&mut self, kind: FileKind, entry: &TarEntry) -> Result<InodeRecord, EntryProblem> {
        let mut inode = InodeRecord { mode: kind.type_bits().into(), ..InodeRecord::default() };
        match kind {
            FileKind::Regular => self.set_content(&mut inode, entry)?,
            FileKind::Symlink => {
                check_link(&entry.link)?;
                let target = self.arena.targets.intern(&entry.link)?;
                inode.data = u64::from(target.number()).into();
                inode.count = (entry.link.len() as u32).into();
                inode.size = (entry.link.len() as u64).into();
            }
            FileKind::CharDevice | FileKind::BlockDevice => {
                inode.data = makedev(entry.rdev_major, entry.rdev_minor).into();
            }
            FileKind::Fifo | FileKind::Directory => {}
        }
        Ok(inode)
    }

    fn set_content(
        &mut self,
        inode: &mut InodeRecord,
        entry: &TarEntry,
    ) -> Result<(), EntryProblem> {
        let wrong = || EntryProblem::Size { size: entry.size };
        if entry.size > MAX_FILE_SIZE {
            return Err(wrong());
        }
        inode.size = entry.size.into();
        match entry.data[..] {
            [] if entry.size == 0 => return Ok(()),
            [only] if only.logical == 0 && only.len == entry.size => {
                inode.data = only.tar_offset.into();
                return Ok(());
            }
            _ => {}
        }
        inode.flags = SPARSE.into();
        inode.data = (self.arena.extents.len() as u64).into();
        let mut last = 0;
        for extent in entry.data.iter().filter(|extent| extent.len != 0) {
            let end = extent.logical.checked_add(extent.len).ok_or_else(wrong)?;
            if extent.logical < last || end > entry.size {
                return Err(wrong());
            }
            last = end;
            self.arena.add_extent(ExtentRecord {
                logical: extent.logical.into(),
                tar_offset: extent.tar_offset.into(),
                len: extent.len.into(),
            })?;
        }
        let count = self.arena.extents.len() as u64 - inode.data.get();
        inode.count = u32::try_from(count).map_err(|_| wrong())?.into();
        Ok(())
    }

    /// Applies what the header says about an inode: mode, owner, time, extended attributes.
    fn set_header(&mut self, number: u32, entry: &TarEntry) -> Result<(), EntryProblem> {
        let kind = self.arena.kind(number);
        let xattrs = self.merge_xattrs(number, kind, entry)?;
        let inode = self.arena.inode_mut(number);
        let permissions = match kind {
            Some(FileKind::Symlink) => SYMLINK_MODE,
            _ => entry.mode & PERMISSION_MASK,
        };
        inode.mode = (inode.mode.get() & TYPE_MASK | permissions).into();
        inode.flags = (inode.flags.get() & !IMPLICIT).into();
        inode.uid = entry.uid.into();
        inode.gid = entry.gid.into();
        inode.mtime_sec = entry.mtime_sec.into();
        inode.mtime_nsec = entry.mtime_nsec.min(999_999_999).into();
        inode.header = entry.header_offset.into();
        inode.xattrs = xattrs.into();
        Ok(())
    }

    /// The set that an inode has after a header: setxattr(2) keeps the attributes that it does not
    /// name, but for a file's capabilities, which the chown(2) before it drops.
    fn merge_xattrs(
        &mut self,
        number: u32,
        kind: Option<FileKind>,
        entry: &TarEntry,
    ) -> Result<u32, EntryProblem> {
        let old = self.arena.inode(number).xattrs.get();
        if old == 0 && entry.xattrs.is_empty() {
            return Ok(0);
        }
        let own: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.effort.spend((self.arena.xattrs.set(old).byte_len() + own) / BYTES_PER_STEP)?;
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = self
            .arena
            .xattrs
            .set(old)
            .filter(|(name, _)| kind == Some(FileKind::Directory) || *name != CAPABILITY)
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        for (name, value) in &entry.xattrs {
            check_xattr(name, value)?;
            if is_shown(name, kind) {
                xattrs.insert(name.clone(), value.clone());
            }
        }
        check_xattrs(&xattrs)?;
        Ok(self.arena.xattrs.intern(xattrs.iter().map(|(n, v)| (&n[..], &v[..])))?)
    }

    /// The directory at a path, made with its parents where this layer has none.
    fn make_parents(&mut self, names: &[&[u8]]) -> Result<u32, EntryProblem> {
        match self.walk(names, true)? {
            Place::Directory(number) => Ok(number),
            Place::Elsewhere(path) => Err(EntryProblem::NotDirectory { path: printable(&path) }),
        }
    }

    /// Follows a path through directories and symlinks of this layer, never out of its root.
    /// Missing directories are made, or end the walk with [`Place::Elsewhere`].
    fn walk(&mut self, names: &[&[u8]], create: bool) -> Result<Place, EntryProblem> {
        let mut current = ROOT;
        let mut rest: Vec<Cow<'_, [u8]>> = names.iter().rev().map(|n| Cow::Borrowed(*n)).collect();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = rest.pop() {
            steps += 1;
            if links > MAX_LINKS || steps > MAX_STEPS {
                return Err(EntryProblem::Links);
            }
            let mut number = 0;
            if create {
                check_name(&name)?;
                check_len(self.arena.path_len(current) + 1 + name.len())?;
                let link = self.arena.find_or_add(current, &name)?;
                if self.arena.link(link).inode == 0 {
                    let directory = self.arena.add(implicit_directory())?;
                    self.arena.attach(link, directory);
                }
                number = self.arena.link(link).inode;
            } else if let Some(link) = self.arena.find(current, &name) {
                number = self.arena.link(link).inode;
            }
            if number == 0 {
                let missing = join(self.arena.path(current), &name);
                return Ok(Place::Elsewhere(rest.iter().rev().fold(missing, |p, n| join(p, n))));
            }
            match self.arena.kind(number) {
                Some(FileKind::Directory) => current = number,
                Some(FileKind::Symlink) => {
                    links += 1;
                    let text = self.arena.target(number);
                    let target = clean(text);
                    self.effort.spend(1 + target.names.len() + text.len() / BYTES_PER_STEP)?;
                    rest.extend(target.names.iter().rev().map(|name| Cow::Owned(name.to_vec())));
                    if target.is_absolute {
                        current = ROOT;
                    }
                    // Not more ups than there are directories above
                    let mut ups = target.ups;
                    while ups > 0 && current != ROOT {
                        current = self.arena.parent(current);
                        ups -= 1;
                    }
                }
                _ => {
                    let path = printable(&join(self.arena.path(current), &name));
                    return Err(EntryProblem::NotDirectory { path });
                }
            }
        }
        Ok(Place::Directory(current))
    }
}

/// Whether an extended attribute is set: containerd sets no `trusted.*` and ignores namespaces that
/// a file system does not have; overlayfs would take `user.overlay.*` for its own; only files and
/// directories can have `user.*`.
fn is_shown(name: &[u8], kind: Option<FileKind>) -> bool {
    let has_user = !matches!(
        kind,
        Some(FileKind::Symlink | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo)
    );
    name.starts_with(b"security.")
        || name.starts_with(b"system.posix_acl_")
        || (has_user && name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn check_xattr(name: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
    if !(1..=MAX_XATTR_NAME).contains(&name.len()) || name.contains(&0) {
        return Err(EntryProblem::XattrName { found: name.len() });
    }
    if value.len() > MAX_XATTR_VALUE {
        return Err(EntryProblem::XattrValue { found: value.len() });
    }
    Ok(())
}

/// Checks all extended attributes of an inode together.
fn check_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), EntryProblem> {
    let names: usize = xattrs.keys().map(|name| name.len() + 1).sum();
    let found = names + xattrs.values().map(Vec::len).sum::<usize>();
    if names > MAX_XATTR_NAMES || found > MAX_XATTRS {
        return Err(EntryProblem::Xattrs { found });
    }
    Ok(())
}

fn check_len(found: usize) -> Result<(), EntryProblem> {
    if found > MAX_PATH { Err(EntryProblem::Path { found }) } else { Ok(()) }
}

/// The length of a cleaned path, a slash before it included.
fn check_path(path: &CleanPath<'_>) -> Result<usize, EntryProblem> {
    let found = path.names.iter().map(|name| name.len() + 1).sum::<usize>();
    check_len(found)?;
    path.names.iter().try_for_each(|name| check_name(name))?;
    Ok(found)
}

fn check_name(name: &[u8]) -> Result<(), EntryProblem> {
    if name.len() > MAX_NAME {
        return Err(EntryProblem::Name { found: name.len() });
    }
    if name.contains(&0) { Err(EntryProblem::Nul) } else { Ok(()) }
}

fn check_link(target: &[u8]) -> Result<(), EntryProblem> {
    match target.len() {
        0 => Err(EntryProblem::EmptyLink),
        found if found > MAX_PATH => Err(EntryProblem::Link { found }),
        _ if target.contains(&0) => Err(EntryProblem::Nul),
        _ => Ok(()),
    }
}

fn join(mut path: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
