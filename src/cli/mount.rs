//! `mount`, `umount`, `mounts`, `snapshots`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;
use serde_json::json;

use super::{
    Context,
    args::{MountArgs, SnapshotsCommand, UmountArgs},
    images,
    output::{self, age, note, or_dash},
};
use crate::{
    api::{self, MountKind},
    client::{self, Client, bytes_path, mounts, path_bytes},
    failure::{Class, Failure},
    mountinfo,
};

pub(super) async fn mount(context: &Context, args: MountArgs) -> Result<(), Failure> {
    let reference = images::canonical(&args.reference)?;
    refuse_mount_point(&args.target)?;
    let mut client = context.connect().await?;
    images::ensure(&mut client, &reference, args.platform).await?;
    let target = MadeDir::at(&args.target)?;
    let request = api::PrepareMountRequest {
        reference: reference.clone(),
        target: path_bytes(target.path()),
        writable: args.rw,
        name: args.name.unwrap_or_default(),
        kind: MountKind::Mount.into(),
        mount_ns: namespace()?,
        suid: args.suid,
        dev: args.dev,
        created_target: target.made,
        bundle_dir: Vec::new(),
        layers: args.layers.unwrap_or(0),
    };
    let mounted = Mounted::make(&mut client, request, target.path()).await?;
    if let Err(failure) = mounted.confirm(&mut client).await {
        // The first failure is the one to tell
        let _ = mounted.undo(&mut client, target.path()).await;
        return Err(failure);
    }
    let writes = match (mounted.snapshot.as_str(), mounted.resumed) {
        ("", _) => "read-only".to_owned(),
        (name, false) => format!("writable, snapshot {name}"),
        (name, true) => format!("writable, snapshot {name} resumed"),
    };
    note(format_args!("mounted {reference} on {} ({writes})", target.keep().display()));
    Ok(())
}

/// Inode number of this process's mount namespace.
pub(super) fn namespace() -> Result<u64, Failure> {
    mountinfo::namespace().map_err(|e| Failure::io(&e, format!("cannot read /proc: {e}")))
}

/// A directory to mount on must not hide another mount.
pub(super) fn refuse_mount_point(target: &Path) -> Result<(), Failure> {
    let Ok(canonical) = fs::canonicalize(target) else { return Ok(()) };
    let found = mountinfo::on(&canonical)
        .map_err(|e| Failure::io(&e, format!("cannot read /proc/self/mountinfo: {e}")))?;
    let Some(found) = found else { return Ok(()) };
    let message = format!(
        "{} is already a mount point: expected a plain directory, found a mount of type {}",
        canonical.display(),
        found.fs_type
    );
    let hint = format!("unmount it with: peel umount {}", target.display());
    Err(Failure::new(Class::Conflict, message).hint(hint))
}

/// A directory that is removed again unless it is kept, where it was made here.
pub(super) struct MadeDir {
    path: PathBuf,
    made: bool,
    keep: bool,
}

impl MadeDir {
    /// The canonical path of a directory, made where it is missing.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => {
                let message = format!("cannot create the directory {}: {e}", path.display());
                return Err(Failure::io(&e, message).hint("is its parent directory there?"));
            }
        };
        let checked = fs::canonicalize(path).and_then(|canonical| {
            let is_dir = fs::metadata(&canonical)?.is_dir();
            if is_dir { Ok(canonical) } else { Err(io::ErrorKind::NotADirectory.into()) }
        });
        match checked {
            Ok(path) => Ok(Self { path, made, keep: false }),
            Err(e) => {
                let message = format!("cannot mount on {}: {e}", path.display());
                Err(Failure::io(&e, message).hint("name a directory"))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.path.clone()
    }
}

impl Drop for MadeDir {
    fn drop(&mut self) {
        if self.made && !self.keep {
            // Only ever an empty directory that was made a moment ago
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// What a prepared and performed mount is known by.
pub(super) struct Mounted {
    pub(super) id: u64,
    pub(super) snapshot: String,
    pub(super) resumed: bool,
}

impl Mounted {
    /// Prepares and performs; a failure leaves neither a mount nor a record.
    pub(super) async fn make(
        client: &mut Client,
        request: api::PrepareMountRequest,
        target: &Path,
    ) -> Result<Self, Failure> {
        let prepared = client.prepare_mount(request).await?.into_inner();
        let mounted =
            Self { id: prepared.id, snapshot: prepared.snapshot, resumed: prepared.resumed };
        let performed = mounts::perform(&prepared.mounts, target).or_else(|error| {
            // Another command made the directory, lost it to this one and took it away again
            match error.kind() {
                io::ErrorKind::NotFound if fs::create_dir(target).is_ok() => {
                    mounts::perform(&prepared.mounts, target)
                }
                _ => Err(error),
            }
        });
        if let Err(error) = performed {
            // The first failure is the one to tell
            let _ = mounted.release(client, !mounted.resumed).await;
            return Err(explain(&error));
        }
        Ok(mounted)
    }

    /// Tells the daemon that the mount is there.
    pub(super) async fn confirm(&self, client: &mut Client) -> Result<(), Failure> {
        let request = api::ConfirmMountRequest { id: self.id };
        client::again(async || client.confirm_mount(request).await).await.map(|_| ())
    }

    async fn release(&self, client: &mut Client, remove_snapshot: bool) -> Result<(), Failure> {
        let request = api::ReleaseMountRequest { id: self.id, remove_snapshot };
        client::again(async || client.release_mount(request).await).await.map(|_| ())
    }

    /// Takes a mount back after a later step failed.
    pub(super) async fn undo(&self, client: &mut Client, target: &Path) -> Result<(), Failure> {
        mounts::unmount_target(target, true).map_err(|e| explain(&e))?;
        self.release(client, !self.resumed).await
    }
}

fn explain(error: &mounts::MountError) -> Failure {
    let failure = Failure::io(&io::Error::from(error.kind()), error);
    match error.kind() {
        io::ErrorKind::PermissionDenied => failure.hint("mounting needs root (CAP_SYS_ADMIN)"),
        io::ErrorKind::ResourceBusy => {
            failure.hint("something still uses it; find it with: fuser -vm DIR; or detach: --lazy")
        }
        io::ErrorKind::NotFound => failure.hint(
            "the daemon's mount is not visible here: is this another mount namespace than its own?",
        ),
        _ => failure,
    }
}

/// A path as the daemon recorded it; the mount itself is not looked into, it may not answer.
fn recorded_path(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let resolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => fs::canonicalize(parent).map(|p| p.join(name)),
        _ => Ok(absolute.clone()),
    };
    let resolved = resolved.unwrap_or(absolute);
    if resolved.is_symlink() { fs::canonicalize(&resolved).unwrap_or(resolved) } else { resolved }
}

/// The record of what is mounted on a path.
pub(super) async fn find(client: &mut Client, path: &Path) -> Result<Option<api::Mount>, Failure> {
    let all = client::again(async || client.list_mounts(api::ListMountsRequest {}).await).await?;
    let all = all.mounts;
    let wanted = [recorded_path(path), fs::canonicalize(path).unwrap_or_default()];
    Ok(all.into_iter().rfind(|m| wanted.iter().any(|path| bytes_path(&m.target) == path)))
}

pub(super) async fn umount(context: &Context, args: UmountArgs) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    output::for_all(args.targets, async |target| {
        let Some(mount) = find(&mut client, &target).await? else {
            let message = format!("{} is not a mount of peel", target.display());
            return Err(Failure::new(Class::NotFound, message).hint("list them with: peel mounts"));
        };
        if mount.kind() == MountKind::Bundle {
            let bundle = bytes_path(&mount.bundle_dir).display();
            let message = format!("{} belongs to a bundle", target.display());
            let hint = format!("take the bundle away with: peel bundle rm {bundle}");
            return Err(Failure::new(Class::Conflict, message).hint(hint));
        }
        let snapshot = unmount(&mut client, &mount, args.rm, args.lazy).await?;
        let path = bytes_path(&mount.target).display();
        match (snapshot.as_str(), args.rm) {
            ("", _) => note(format_args!("unmounted {path}")),
            (name, true) => note(format_args!("unmounted {path}, snapshot {name} removed")),
            (name, false) => note(format_args!("unmounted {path}, snapshot {name} kept")),
        }
        Ok(())
    })
    .await
}

/// Unmounts what is recorded, and forgets the record; the name of its snapshot.
pub(super) async fn unmount(
    client: &mut Client,
    mount: &api::Mount,
    remove_snapshot: bool,
    lazy: bool,
) -> Result<String, Failure> {
    let target = bytes_path(&mount.target);
    let mounted = mountinfo::on(target)
        .map_err(|e| Failure::io(&e, format!("cannot read /proc/self/mountinfo: {e}")))?;
    if let Some(mounted) = mounted {
        if mounted.source != "peel" {
            let message = format!(
                "{} is covered by another mount: expected peel's on top, found one of type {}",
                target.display(),
                mounted.fs_type
            );
            return Err(Failure::new(Class::Conflict, message)
                .hint(format!("unmount that first: umount {}", target.display())));
        }
        mounts::unmount_target(target, lazy).map_err(|e| explain(&e))?;
    } else if mount.live {
        let message = format!("{} is mounted in another mount namespace", target.display());
        return Err(Failure::new(Class::Conflict, message).hint("unmount it there"));
    }
    if mount.created_target {
        // It was made for the mount; what somebody has put there since stays
        let _ = fs::remove_dir(target);
    }
    let request = api::ReleaseMountRequest { id: mount.id, remove_snapshot };
    match client::again(async || client.release_mount(request).await).await {
        Ok(released) => Ok(released.snapshot),
        // Another command has listed the mounts meanwhile, and the record went with the mount
        Err(failure) if failure.class == Class::NotFound => {
            let name = mount.snapshot.clone();
            if remove_snapshot && !name.is_empty() {
                let request = api::RemoveSnapshotRequest { name: name.clone() };
                client.remove_snapshot(request).await?;
            }
            Ok(name)
        }
        Err(failure) => Err(failure),
    }
}

pub(super) async fn list(context: &Context, json: bool) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let all = client.list_mounts(api::ListMountsRequest {}).await?.into_inner().mounts;
    if json {
        return output::json(&all.iter().map(mount_json).collect());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|m| {
            [
                bytes_path(&m.target).display().to_string(),
                m.image.clone(),
                if m.writable { "rw" } else { "ro" }.to_owned(),
                or_dash(&m.snapshot),
                kind_name(m.kind()).to_owned(),
                age(m.created_at_ns),
            ]
        })
        .collect();
    output::table(["TARGET", "IMAGE", "MODE", "SNAPSHOT", "KIND", "MOUNTED"], &rows)
}

fn kind_name(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Mount => "mount",
        MountKind::Bundle => "bundle",
        MountKind::Run => "run",
    }
}

fn mount_json(mount: &api::Mount) -> serde_json::Value {
    json!({
        "id": mount.id,
        "target": bytes_path(&mount.target).to_string_lossy(),
        "image": mount.image,
        "writable": mount.writable,
        "snapshot": (!mount.snapshot.is_empty()).then_some(&mount.snapshot),
        "kind": kind_name(mount.kind()),
        "tree_slot": mount.tree_slot,
        "live": mount.live,
        "created_at_ns": mount.created_at_ns,
    })
}

pub(super) async fn snapshots(context: &Context, command: SnapshotsCommand) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    match command {
        SnapshotsCommand::Ls(json) => list_snapshots(&mut client, json.json).await,
        SnapshotsCommand::Rm { names } => {
            output::for_all(names, async |name| {
                client.remove_snapshot(api::RemoveSnapshotRequest { name: name.clone() }).await?;
                note(format_args!("removed snapshot {name}"));
                Ok(())
            })
            .await
        }
    }
}

async fn list_snapshots(client: &mut Client, json: bool) -> Result<(), Failure> {
    let request = api::ListSnapshotsRequest {};
    let all = client.list_snapshots(request).await?.into_inner().snapshots;
    if json {
        let documents = all.iter().map(|s| {
            let target = bytes_path(&s.target).to_string_lossy();
            json!({
                "name": s.name,
                "image": s.image,
                "kind": kind_name(s.kind()),
                "bytes": s.bytes,
                "inodes": s.inodes,
                "target": (!s.target.is_empty()).then_some(target),
                "created_at_ns": s.created_at_ns,
            })
        });
        return output::json(&documents.collect());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|s| {
            [
                s.name.clone(),
                s.image.clone(),
                HumanBytes(s.bytes).to_string(),
                s.inodes.to_string(),
                or_dash(&bytes_path(&s.target).to_string_lossy()),
                age(s.created_at_ns),
            ]
        })
        .collect();
    output::table(["SNAPSHOT", "IMAGE", "SIZE", "INODES", "MOUNTED ON", "CREATED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_made_here_goes_unless_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("m");
        drop(MadeDir::at(&path).expect("made"));
        assert!(!path.exists());
        MadeDir::at(&path).expect("made").keep();
        assert!(path.exists());
        drop(MadeDir::at(&path).expect("there already"));
        assert!(path.exists());
        fs::write(dir.path().join("f"), "").expect("write");
        assert!(MadeDir::at(&dir.path().join("f")).is_err());
        assert!(MadeDir::at(&dir.path().join("no/such")).is_err());
    }

    #[test]
    fn the_root_is_a_mount_point() {
        let failure = refuse_mount_point(Path::new("/")).expect_err("a mount point");
        assert_eq!(failure.class, Class::Conflict);
        let dir = tempfile::tempdir().expect("temporary directory");
        refuse_mount_point(dir.path()).expect("a plain directory");
    }

    #[test]
    fn recorded_paths_follow_symlinks() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = fs::canonicalize(dir.path()).expect("canonical");
        fs::create_dir(real.join("a")).expect("directory");
        std::os::unix::fs::symlink("a", real.join("b")).expect("symlink");
        assert_eq!(recorded_path(&real.join("b")), real.join("a"));
        assert_eq!(recorded_path(&real.join("a/../a")), real.join("a"));
    }
}
