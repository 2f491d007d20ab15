//! Reading /proc/self/mountinfo, which names mounts without asking their file systems anything.
//!
//! Source: proc_pid_mountinfo(5).

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountInfo {
    /// Device number of the mount's files, `st_dev`.
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Directory inside the file system that is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// Type of the file system, with subtype.
    pub(crate) fs_type: String,
}

/// The mounts on exactly `target`, an absolute path without symlinks, lowest first.
pub(crate) fn mounts_on(target: &Path) -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mounts = text.split(|&b| b == b'\n').filter_map(parse_line);
    Ok(mounts.filter(|m| m.mount_point == target).collect())
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&b| b == b' ').skip(2);
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    // Optional fields of unknown number end with a lone hyphen
    let fs_type = fields.skip_while(|f| *f != b"-").nth(1)?;
    Some(MountInfo {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root,
        mount_point,
        fs_type: String::from_utf8(fs_type.to_vec()).ok()?,
    })
}

/// Undoes the kernel's `\ooo` for blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let octal = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        if octal.is_some() {
            rest = &tail[3..];
        }
        out.push(octal.unwrap_or(*first));
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = b"36 35 0:58 / /run/peel/lower ro,relatime shared:5 master:1 - fuse.peel peel \
            ro,user_id=0,group_id=0,default_permissions,allow_other";
        let mount = parse_line(line).expect("well formed");
        assert_eq!((mount.major, mount.minor), (0, 58));
        assert_eq!(mount.root, Path::new("/"));
        assert_eq!(mount.mount_point, Path::new("/run/peel/lower"));
        assert_eq!(mount.fs_type, "fuse.peel");

        let bare = b"22 1 254:0 /sub\\040dir /a\\134b\\012c rw - ext4 /dev/vda rw";
        let mount = parse_line(bare).expect("well formed");
        assert_eq!(mount.root, Path::new("/sub dir"));
        assert_eq!(mount.mount_point, Path::new("/a\\b\nc"));
    }

    #[test]
    fn what_is_no_line_is_skipped() {
        for line in ["", "1 2", "1 2 x:y / /a rw - t s o", "1 2 0:1 / /a rw shared:1 fuse"] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn odd_escapes_stay() {
        for text in ["\\", "\\0", "\\04", "\\400", "\\0a1"] {
            assert_eq!(unescape(text.as_bytes()), Path::new(text));
        }
    }

    #[test]
    fn our_own_mounts() {
        let root = mounts_on(Path::new("/proc")).expect("readable");
        assert_eq!(root.last().map(|m| m.fs_type.as_str()), Some("proc"));
    }
}
