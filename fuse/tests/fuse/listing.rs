//! What a tree looks like through the kernel.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use rustix::{fs as sys, io::Errno};

/// All that can be seen of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u64,
    pub(crate) rdev: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    /// Path that comes first among those of the same inode.
    pub(crate) first: String,
    /// Content of a file, target of a symlink.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// Everything below a directory by its path in it, the directory itself as the empty path.
pub(crate) fn tree(root: &Path) -> std::io::Result<BTreeMap<String, Seen>> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut queue = vec![String::new()];
    while let Some(name) = queue.pop() {
        let path = root.join(&name);
        let path = if name.is_empty() { root } else { &path };
        let meta = fs::symlink_metadata(path)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let child = entry.file_name().into_string().expect("tests use UTF-8");
                let child = if name.is_empty() { child } else { format!("{name}/{child}") };
                let listed = (entry.file_type()?, rustix::fs::DirEntryExt::ino(&entry));
                let stat = fs::symlink_metadata(root.join(&child))?;
                assert_eq!(listed, (stat.file_type(), stat.ino()), "{child}");
                queue.push(child);
            }
        }
        let content = match () {
            () if kind.is_file() => fs::read(path)?,
            () if kind.is_symlink() => fs::read_link(path)?.into_os_string().into_encoded_bytes(),
            () => Vec::new(),
        };
        let letters = [
            ('f', kind.is_file()),
            ('d', kind.is_dir()),
            ('l', kind.is_symlink()),
            ('c', kind.is_char_device()),
            ('b', kind.is_block_device()),
            ('p', kind.is_fifo()),
        ];
        first
            .entry(meta.ino())
            .and_modify(|f: &mut String| *f = name.clone().min(f.clone()))
            .or_insert_with(|| name.clone());
        found.insert(
            name,
            (
                meta.ino(),
                Seen {
                    kind: letters.iter().find(|(_, is)| *is).map_or('?', |(letter, _)| *letter),
                    mode: meta.mode() & 0o7777,
                    uid: meta.uid(),
                    gid: meta.gid(),
                    nlink: meta.nlink(),
                    rdev: meta.rdev(),
                    size: meta.size(),
                    mtime: (meta.mtime(), meta.mtime_nsec()),
                    first: String::new(),
                    content,
                    xattrs: xattrs(path)?,
                },
            ),
        );
    }
    let named = |(ino, seen): (u64, Seen)| Seen { first: first[&ino].clone(), ..seen };
    Ok(found.into_iter().map(|(name, seen)| (name, named(seen))).collect())
}

fn xattrs(path: &Path) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let len = sys::llistxattr(path, &mut names)?;
    let names = names[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut found = BTreeMap::new();
    for name in names {
        let name = String::from_utf8(name.to_vec()).expect("tests use UTF-8");
        let mut value = vec![0; 64 << 10];
        let len = sys::lgetxattr(path, &name, &mut value)?;
        value.truncate(len);
        // The length alone, as most tools ask first
        assert_eq!(sys::lgetxattr_query(path, &name), Ok(len));
        if len > 1 {
            assert_eq!(sys::lgetxattr(path, &name, &mut [0; 1]), Err(Errno::RANGE));
        }
        found.insert(name, value);
    }
    Ok(found)
}
