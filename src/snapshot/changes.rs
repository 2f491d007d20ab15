//! What an upper changes of the tree below it.
//!
//! The upper says what changed; what it changed to is read from an overlay of both, which nobody
//! else sees: a file of the upper may have only its attributes there (metacopy), and a directory
//! that was renamed only says where its content is (redirect).
//!
//! The upper may be in use by a container, which is not trusted: every step is taken from an open
//! directory, and no link is followed.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use super::SnapshotError;

/// Directories within each other that are entered, at three descriptors each.
const MAX_DEPTH: usize = 256;

/// How a path changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there, and is another or has other attributes now.
    Changed,
    /// It is gone.
    Deleted,
}

impl ChangeKind {
    /// One letter, as `docker diff` prints it.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// One change.
pub struct Change<'a> {
    /// How.
    pub kind: ChangeKind,
    /// The path, relative to the root.
    pub path: &'a Path,
    /// What is there now; `None` for what is gone.
    pub found: Option<Found>,
    /// A directory that hides all that was in one of its name.
    pub opaque: bool,
}

/// A file as the overlay shows it.
pub struct Found {
    /// Opened with `O_PATH`.
    pub file: File,
    /// Its attributes.
    pub metadata: Metadata,
}

impl Found {
    /// The same file for reading; regular files only.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(&self) -> io::Result<File> {
        File::open(again(&self.file))
    }

    /// Extended attributes, those of overlayfs left out.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn xattrs(&self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        if !self.metadata.is_file() && !self.metadata.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = xattrs(&self.file)?;
        found.retain(|(name, _)| {
            let name = name.as_encoded_bytes();
            !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
        });
        found.sort();
        Ok(found)
    }
}

/// A path to an open file by which it can be opened again.
fn again(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Longest list of names, and longest value, that the kernel gives.
const XATTR_MAX: usize = 64 << 10;

fn xattrs(file: &File) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = again(file);
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::listxattr(&path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = OsString::from_vec(name.to_vec());
        if let Some(value) = xattr(file, &name)? {
            found.push((name, value));
        }
    }
    Ok(found)
}

fn xattr(file: &File, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_MAX];
    match rustix::fs::getxattr(again(file), name, &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// An upper, and the tree below it.
pub struct Upper {
    upper: File,
    lower: File,
    merged: File,
    path: PathBuf,
}

fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// An overlay of directories, topmost first, that is mounted nowhere.
fn overlay(dirs: &[&Path]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "peel")?;
    for dir in dirs {
        fsconfig_set_string(context.as_fd(), "lowerdir+", *dir)?;
    }
    for (key, value) in
        [("index", "off"), ("metacopy", "on"), ("redirect_dir", "on"), ("xino", "off")]
    {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

impl Upper {
    /// Opens an upper over the directory that shows its tree, and over the layer between them where
    /// there is one: what that brings is no change.
    ///
    /// # Errors
    /// Where one cannot be opened, or no overlay can be made of them.
    pub fn open(upper: &Path, init: Option<&Path>, lower: &Path) -> Result<Self, SnapshotError> {
        let failed = SnapshotError::of("read", upper);
        let dirs: Vec<_> = [Some(upper), init, Some(lower)].into_iter().flatten().collect();
        let merged =
            overlay(&dirs).map_err(|e| SnapshotError::of("make an overlay of", upper)(e.into()))?;
        Ok(Self {
            upper: open_dir(upper).map_err(&failed)?,
            lower: open_dir(lower).map_err(&failed)?,
            merged: File::from(merged),
            path: upper.to_owned(),
        })
    }

    /// Gives `each` every change, directories before what is in them and names bytewise.
    ///
    /// # Errors
    /// Those of `each`, and where something cannot be read.
    pub fn changes<E: From<SnapshotError>>(
        &self,
        each: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walk = Walk { upper: self, each };
        let dirs = Dirs { upper: &self.upper, merged: &self.merged, lower: Some(&self.lower) };
        walk.directory(dirs, Path::new(""), 0)
    }
}

/// One directory, wherever it is; the lower one only where it shows through.
#[derive(Clone, Copy)]
struct Dirs<'a> {
    upper: &'a File,
    merged: &'a File,
    lower: Option<&'a File>,
}

struct Walk<'a, E> {
    upper: &'a Upper,
    each: &'a mut dyn FnMut(Change<'_>) -> Result<(), E>,
}

fn child(dir: &File, name: &OsStr) -> io::Result<Found> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(dir.as_fd(), name, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    Ok(Found { file, metadata })
}

fn names(dir: &File) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(again(dir))?.map(|entry| Ok(entry?.file_name())).collect()
}

impl<E: From<SnapshotError>> Walk<'_, E> {
    fn failed(&self, path: &Path) -> impl Fn(io::Error) -> E + use<E> {
        let path = self.upper.path.join(path);
        move |e| E::from(SnapshotError::of("read", &path)(e))
    }

    fn directory(&mut self, dirs: Dirs<'_>, path: &Path, depth: usize) -> Result<(), E> {
        let failed = self.failed(path);
        if depth > MAX_DEPTH {
            return Err(failed(io::Error::other("too many directories within each other")));
        }
        for name in names(dirs.upper).map_err(&failed)? {
            let path = path.join(&name);
            let failed = self.failed(&path);
            let above = match child(dirs.upper, &name) {
                Ok(above) => above,
                // Gone since the directory was read
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            let below = dirs.lower.and_then(|lower| child(lower, &name).ok());
            let kind = if below.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
            if is_whiteout(&above.metadata) {
                if below.is_some() {
                    let kind = ChangeKind::Deleted;
                    (self.each)(Change { kind, path: &path, found: None, opaque: false })?;
                }
                continue;
            }
            let found = match child(dirs.merged, &name) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            if !above.metadata.is_dir() || !found.metadata.is_dir() {
                let found = Some(found);
                (self.each)(Change { kind, path: &path, found, opaque: false })?;
                continue;
            }
            let says = |name: &str| xattr(&above.file, OsStr::new(name)).map_err(&failed);
            let moved = says("trusted.overlay.redirect")?.is_some();
            let opaque = says("trusted.overlay.opaque")?.as_deref() == Some(b"y");
            let below = below.filter(|below| below.metadata.is_dir());
            let hides = (moved || opaque) && below.is_some();
            let again = child(dirs.merged, &name).map_err(&failed)?;
            (self.each)(Change { kind, path: &path, found: Some(found), opaque: hides })?;
            match moved {
                true => self.everything(&again.file, &path, depth + 1)?,
                false => {
                    let lower = below.as_ref().filter(|_| !opaque).map(|below| &below.file);
                    let dirs = Dirs { upper: &above.file, merged: &again.file, lower };
                    self.directory(dirs, &path, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// All that a directory shows, which came with it.
    fn everything(&mut self, dir: &File, path: &Path, depth: usize) -> Result<(), E> {
        let failed = self.failed(path);
        if depth > MAX_DEPTH {
            return Err(failed(io::Error::other("too many directories within each other")));
        }
        for name in names(dir).map_err(&failed)? {
            let path = path.join(&name);
            let failed = self.failed(&path);
            let found = child(dir, &name).map_err(&failed)?;
            let is_dir = found.metadata.is_dir();
            let kind = ChangeKind::Added;
            (self.each)(Change { kind, path: &path, found: Some(found), opaque: false })?;
            if is_dir {
                let found = child(dir, &name).map_err(&failed)?;
                self.everything(&found.file, &path, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// How overlayfs marks what is gone.
fn is_whiteout(found: &Metadata) -> bool {
    FileType::from_raw_mode(found.mode()) == FileType::CharacterDevice && found.rdev() == 0
}
