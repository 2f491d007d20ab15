//! What processes still use of mounts that are in no mountinfo any more, after `umount -l`.
//!
//! A directory or file of the FUSE mount says by its inode number which tree or layer it belongs to.
//! An overlay that was detached says nothing: where there is one that no mountinfo knows, everything
//! counts as used.
//!
//! Files are only looked at with what the kernel has in memory (`AT_STATX_DONT_SYNC`): a process may
//! sit in a file system that does not answer.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use peel_index::{NodeId, Slot};
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

/// What is in use.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Slots of trees and layers of ours.
    pub(super) slots: HashSet<Slot>,
    /// Some process is in a detached file system that may be an overlay over one of ours.
    pub(super) unknown: bool,
}

/// Device numbers of a mount namespace's mounts, and their ids.
#[derive(Default)]
struct Known {
    devices: HashSet<(u32, u32)>,
    ids: HashSet<u64>,
}

impl Known {
    fn read(process: &Path) -> Option<Self> {
        let text = fs::read(process.join("mountinfo")).ok()?;
        let mut known = Self::default();
        for line in text.split(|b| *b == b'\n') {
            let mut fields = line.split(|b| *b == b' ').map(String::from_utf8_lossy);
            known.ids.extend(fields.next().and_then(|id| id.parse::<u64>().ok()));
            let device = fields.nth(1);
            let device = device.as_deref().and_then(|device| device.split_once(':'));
            known.devices.extend(
                device.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))),
            );
        }
        Some(known)
    }
}

fn look(path: &Path) -> Option<Statx> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    // The link's end is looked at without leave of its file system
    statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted).ok()
}

fn device(found: &Statx) -> (u32, u32) {
    (found.stx_dev_major, found.stx_dev_minor)
}

/// Looks through all processes. `lower` is the FUSE mount.
pub(super) fn scan(lower: &Path) -> Used {
    let mut used = Used::default();
    let Some(own) = look(lower).map(|found| device(&found)) else { return used };
    let mut namespaces: HashMap<u64, Known> = HashMap::new();
    let mut suspects = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        let Ok(namespace) = fs::metadata(process.join("ns/mnt")).map(|found| found.ino()) else {
            continue;
        };
        let known = match namespaces.entry(namespace) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let Some(known) = Known::read(&process) else { continue };
                place.insert(known)
            }
        };
        for path in places(&process) {
            let Some(found) = look(&path) else { continue };
            if device(&found) == own {
                let slot = match NodeId::from_raw(found.stx_ino) {
                    Some(NodeId::Layer { slot, .. } | NodeId::Tree { slot, .. }) => Some(slot),
                    _ => None,
                };
                used.slots.extend(slot);
            } else if found.stx_dev_major == 0
                && !known.ids.contains(&found.stx_mnt_id)
                && may_be_detached(&path, &found)
            {
                suspects.push(device(&found));
            }
        }
    }
    let is_known = |device| namespaces.values().any(|known| known.devices.contains(device));
    used.unknown = suspects.iter().any(|device| !is_known(device));
    used
}

/// Where a process is and what it has open.
fn places(process: &Path) -> Vec<PathBuf> {
    let mut places = ["cwd", "root"].map(|name| process.join(name)).to_vec();
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    places.extend(open.map(|entry| entry.path()));
    places
}

/// Pipes, sockets and files in memory are in no mountinfo either.
fn may_be_detached(path: &Path, found: &Statx) -> bool {
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Directory => true,
        FileType::RegularFile => fs::read_link(path).is_ok_and(|link| {
            let of_memory = ["/memfd:", "/SYSV", "/[", "/dev/zero", "anon_inode:"];
            !of_memory.iter().any(|name| link.as_os_str().as_bytes().starts_with(name.as_bytes()))
        }),
        _ => false,
    }
}
