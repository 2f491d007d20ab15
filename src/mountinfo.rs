//! What is mounted, from `/proc/<pid>/mountinfo`.
//!
//! Source: proc_pid_mountinfo(5).

use std::{
    collections::HashSet,
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Device number of the file system, `major:minor`.
    pub device: String,
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Type, with its subtype after a dot.
    pub fs_type: String,
    /// The source as its mounter named it.
    pub source: OsString,
    /// Optional fields, such as `shared:1`.
    pub propagation: Vec<String>,
    /// Options of the super block, not unescaped.
    pub super_options: Vec<u8>,
}

impl MountEntry {
    /// Whether it is of a kind that peel mounts.
    pub fn may_be_ours(&self) -> bool {
        self.fs_type.starts_with("fuse") || self.fs_type == "overlay"
    }

    /// The values of an option of the super block, unescaped.
    pub fn super_option(&self, name: &str) -> impl Iterator<Item = OsString> {
        let options = self.super_options.split(|b| *b == b',');
        // A comma within a value is escaped
        options.filter_map(move |option| {
            let value = option.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(unescape(value))
        })
    }
}

/// Parses mountinfo; lines of another shape are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    fields.next()?;
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => propagation.push(String::from_utf8_lossy(field).into_owned()),
        }
    }
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let super_options = fields.next().unwrap_or_default().to_vec();
    Some(MountEntry {
        device,
        root: root.into(),
        target: target.into(),
        fs_type,
        source,
        propagation,
        super_options,
    })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(u8::is_ascii_digit));
        let value = octal.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// A path as overlayfs wants it for `upperdir` and `workdir`: it takes a backslash out of these, and
/// not out of `lowerdir+`.
///
/// Source: `ovl_parse_param` in the kernel's fs/overlayfs/params.c.
pub fn overlay_path(path: &[u8]) -> Vec<u8> {
    path.split(|b| *b == b'\\').collect::<Vec<_>>().join(&b"\\\\"[..])
}

/// What this process sees mounted.
///
/// # Errors
/// Where proc cannot be read.
pub fn own() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount on exactly this path in the caller's namespace.
///
/// # Errors
/// Where proc cannot be read.
pub fn on(target: &Path) -> io::Result<Option<MountEntry>> {
    Ok(own()?.into_iter().rfind(|m| m.target == target))
}

/// Inode number of the caller's mount namespace.
///
/// # Errors
/// Where proc cannot be read.
pub fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/mnt")?.ino())
}

/// What any process of this machine sees mounted of kinds that peel mounts, each namespace once.
///
/// Namespaces that cannot be looked into (a process that just ended, one of another user) are left
/// out, so an absence proves nothing about them. Other kinds of mounts are left out because a host
/// of hundreds of containers has tens of thousands of them.
pub fn all_namespaces() -> Vec<(u64, MountEntry)> {
    let mut seen = HashSet::new();
    let mut mounts = Vec::new();
    if let (Ok(namespace), Ok(entries)) = (namespace(), own()) {
        seen.insert(namespace);
        mounts.extend(entries.into_iter().filter(MountEntry::may_be_ours).map(|m| (namespace, m)));
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        let Ok(namespace) = fs::metadata(process.join("ns/mnt")).map(|m| m.ino()) else { continue };
        if !seen.contains(&namespace)
            && let Ok(text) = fs::read(process.join("mountinfo"))
        {
            seen.insert(namespace);
            mounts.extend(
                parse(&text).into_iter().filter(MountEntry::may_be_ours).map(|m| (namespace, m)),
            );
        }
    }
    mounts
}

/// Identifies this boot of the machine.
///
/// # Errors
/// Where proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw\n\
            40 27 0:31 / /run/peel/lower ro - fuse.peel peel ro,user_id=0\n\
            broken line\n\n\
            41 27 0:32 / /a\\134b rw - overlay overlay rw,upperdir=/x\\040\\054y,workdir=/x\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(
            mounts.iter().map(MountEntry::may_be_ours).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert_eq!(mounts[0].target, Path::new("/mnt 2"));
        assert_eq!(mounts[0].propagation, ["master:1", "shared:7"]);
        assert_eq!(mounts[1].fs_type, "fuse.peel");
        assert_eq!(mounts[1].source, "peel");
        assert_eq!(mounts[2].target, Path::new("/a\\b"));
        assert_eq!(mounts[2].device, "0:32");
        assert_eq!(mounts[2].super_option("upperdir").collect::<Vec<_>>(), ["/x ,y"]);
        assert_eq!(mounts[2].super_option("rw").count(), 0);
    }

    #[test]
    fn backslashes_are_doubled() {
        assert_eq!(overlay_path(br"/a\b\\c:d"), br"/a\\b\\\\c:d");
        assert_eq!(overlay_path(b"/plain"), b"/plain");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(on(Path::new("/")).expect("mountinfo").is_some());
        assert_eq!(on(Path::new("/no/such/place")).expect("mountinfo"), None);
        let own = namespace().expect("namespace");
        assert!(all_namespaces().iter().all(|(n, m)| *n != own || m.may_be_ours()));
    }
}
