//! Copies out of an image: what cp(1) would do, with links that lead nowhere but where they say.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, Timespec, Timestamps, mknodat, openat, utimensat};

use super::look::again;
use crate::failure::{Class, Failure};

/// Longest list of names, and longest value, that the kernel gives for extended attributes.
const XATTR_MAX: usize = 64 << 10;

/// Extended attributes of an open file.
pub(super) fn xattrs(file: &File) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let path = again(file);
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::listxattr(&path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { continue };
        let mut value = vec![0; XATTR_MAX];
        match rustix::fs::getxattr(&path, name.as_c_str(), &mut value) {
            Ok(len) => {
                value.truncate(len);
                found.push((name, value));
            }
            Err(rustix::io::Errno::NODATA) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// One copy.
struct Copier {
    archive: bool,
    /// Inodes with several names: where the first copy is.
    seen: HashMap<u64, PathBuf>,
}

/// Copies what `from` stands for to `target`: into it where it is a directory.
pub(super) fn out(
    from: &File,
    name: Option<&OsStr>,
    target: &Path,
    archive: bool,
) -> Result<(), Failure> {
    let mut target = target.to_owned();
    let is_dir = from.metadata().is_ok_and(|found| found.is_dir());
    if target.is_dir() {
        if let Some(name) = name {
            target.push(name);
        } else if !is_dir {
            return Err(Failure::new(Class::Usage, "expected a name to copy to"));
        }
    }
    Copier { archive, seen: HashMap::new() }.copy(from, &target)
}

impl Copier {
    fn copy(&mut self, from: &File, target: &Path) -> Result<(), Failure> {
        let failed = |e: io::Error| {
            let message = format!("cannot copy to {}: {e}", target.display());
            let failure = Failure::io(&e, message);
            match e.kind() {
                io::ErrorKind::AlreadyExists => failure.hint("name another place, or remove it"),
                _ => failure,
            }
        };
        let found = from.metadata().map_err(failed)?;
        let kind = FileType::from_raw_mode(found.mode());
        if kind != FileType::Directory
            && found.nlink() > 1
            && let Some(first) = self.seen.get(&found.ino())
        {
            return fs::hard_link(first, target).map_err(failed);
        }
        match kind {
            FileType::Directory => return self.directory(from, target),
            FileType::RegularFile => file(from, target).map_err(failed)?,
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from.as_fd(), "", Vec::new());
                let link = link.map_err(|e| failed(e.into()))?;
                std::os::unix::fs::symlink(OsStr::from_bytes(link.as_bytes()), target)
                    .map_err(failed)?;
            }
            _ if self.archive => {
                let mode = Mode::from_raw_mode(found.mode() & 0o7777);
                mknodat(CWD, target, kind, mode, found.rdev()).map_err(|e| failed(e.into()))?;
            }
            _ => {
                super::output::note(format_args!("{}: no file, left out", target.display()));
                return Ok(());
            }
        }
        if found.nlink() > 1 {
            self.seen.insert(found.ino(), target.to_owned());
        }
        self.attributes(from, target).map_err(failed)
    }

    fn directory(&mut self, from: &File, target: &Path) -> Result<(), Failure> {
        let failed =
            |e: io::Error| Failure::io(&e, format!("cannot copy to {}: {e}", target.display()));
        match fs::create_dir(target) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
            made => made.map_err(failed)?,
        }
        for entry in fs::read_dir(again(from)).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = openat(from.as_fd(), &name, flags, Mode::empty());
            let child = File::from(child.map_err(|e| failed(e.into()))?);
            self.copy(&child, &target.join(name))?;
        }
        self.attributes(from, target).map_err(failed)
    }

    fn attributes(&self, from: &File, target: &Path) -> io::Result<()> {
        let found = from.metadata()?;
        let is_link = found.is_symlink();
        if self.archive {
            std::os::unix::fs::lchown(target, Some(found.uid()), Some(found.gid()))?;
        }
        if !is_link {
            // After the owner, which takes set-user-ID bits away
            let mode = if self.archive { 0o7777 } else { 0o777 };
            fs::set_permissions(target, Permissions::from_mode(found.mode() & mode))?;
        }
        if self.archive && (found.is_file() || found.is_dir()) {
            for (name, value) in xattrs(from)? {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(target, name.as_c_str(), &value, flags)?;
            }
        }
        let time = Timespec { tv_sec: found.mtime(), tv_nsec: found.mtime_nsec() };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Copies content; holes stay holes, as far as whole chunks of zeros show them.
fn file(from: &File, target: &Path) -> io::Result<()> {
    let source = File::open(again(from))?;
    let out = File::options().write(true).create_new(true).mode(0o600).open(target)?;
    let len = source.metadata()?.len();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let n = source.read_at(&mut chunk, at)?;
        if n == 0 {
            break;
        }
        if chunk[..n].iter().any(|byte| *byte != 0) {
            out.write_all_at(&chunk[..n], at)?;
        }
        at += n as u64;
    }
    out.set_len(len)
}
