//! The store as its callers see it: what survives, what is refused, what is restored.

mod crash;
mod recovery;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use peel_index::Digest;
use tempfile::TempDir;

use super::*;

fn open(dir: &Path) -> Opened {
    Metadata::open(dir).expect("open")
}

/// Opens a store that has to be sound.
fn open_sound(dir: &Path) -> Metadata {
    let opened = open(dir);
    assert_eq!(opened.recovered, None);
    opened.metadata
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

fn image(name: &str) -> ImageRecord {
    let digest = Digest::sha256(name.as_bytes());
    let layer = LayerRef {
        digest,
        size: u64::MAX,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        diff_id: Digest::sha256(b"diff"),
    };
    ImageRecord {
        name: name.to_owned(),
        target: TargetDescriptor {
            media_type: "index".to_owned(),
            digest,
            size: 1,
            annotations: std::collections::BTreeMap::new(),
        },
        indexes: Vec::new(),
        manifest: Digest::sha256(b"manifest"),
        manifest_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        config: Digest::sha256(b"config"),
        platform: "linux/amd64".to_owned(),
        layers: vec![layer; 3],
        chain_id: Some(digest),
        others: Vec::new(),
        attached: Vec::new(),
        created_at_ns: -1,
        updated_at_ns: i64::MAX,
        labels: [("k\"\n".to_owned(), "v\u{0}ü".to_owned())].into(),
        mounted_at_ns: 7,
        pinned: true,
    }
}

fn snapshot(id: u64, name: &str) -> SnapshotRecord {
    SnapshotRecord {
        id,
        name: name.to_owned(),
        image: "docker.io/library/nginx:latest".to_owned(),
        chain_id: None,
        tree_slot: 7,
        kind: RootfsKind::Run,
        created_at_ns: 5,
    }
}

fn mount(id: u64, mount_ns: u64, target: impl Into<PathBuf>) -> MountRecord {
    MountRecord {
        id,
        target: target.into(),
        image: "i".to_owned(),
        chain_id: Some(Digest::sha256(b"chain")),
        tree_slot: 1,
        snapshot: Some(u64::MAX),
        writable: true,
        kind: RootfsKind::Mount,
        boot_id: "b".to_owned(),
        mount_ns,
        state: MountState::Pending,
        created_at_ns: 6,
        bundle_dir: Some(OsStr::from_bytes(b"/bundle\xff").into()),
        created_target: true,
    }
}

/// Every kind of record, a counter and some slots.
fn fill(metadata: &Metadata) {
    for name in ["docker.io/library/a:1", "docker.io/library/b:2"] {
        metadata.put_image(&image(name)).expect("image");
    }
    let id = metadata.next_id(IdKind::Snapshot).expect("id");
    metadata.put_snapshot(&snapshot(id, "name")).expect("snapshot");
    let target = OsStr::from_bytes(b"/mnt/\xfe:,\\\n");
    let id = metadata.next_id(IdKind::Mount).expect("id");
    metadata.put_mount(&mount(id, 9, target)).expect("mount");
    metadata.slots().allocate().expect("slot");
}

fn contents(metadata: &Metadata) -> (Vec<ImageRecord>, Vec<SnapshotRecord>, Vec<MountRecord>) {
    let all = (metadata.images(), metadata.snapshots(), metadata.mounts());
    (all.0.expect("images"), all.1.expect("snapshots"), all.2.expect("mounts"))
}

fn aside(dir: &Path, what: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    entries.filter(|path| path.display().to_string().contains(what)).collect()
}

#[test]
fn records_come_back_as_they_were() {
    let dir = temporary();
    let before = {
        let metadata = open_sound(dir.path());
        fill(&metadata);
        contents(&metadata)
    };
    assert_eq!((before.0.len(), before.1.len(), before.2.len()), (2, 1, 1));
    let metadata = open_sound(dir.path());
    assert_eq!(contents(&metadata), before);
    let (images, snapshots, mounts) = before;
    assert_eq!(images[0], image("docker.io/library/a:1"));
    assert_eq!(metadata.image(&images[1].name).expect("image"), Some(images[1].clone()));
    assert_eq!(metadata.image("docker.io/library/a").expect("image"), None);
    assert_eq!(metadata.snapshot(1).expect("snapshot"), Some(snapshots[0].clone()));
    assert_eq!(metadata.snapshot_named("name").expect("snapshot"), Some(snapshots[0].clone()));
    assert_eq!(metadata.snapshot_named("nam").expect("snapshot"), None);
    let target = &mounts[0].target;
    assert_eq!(metadata.mount_at(9, target).expect("mount"), Some(mounts[0].clone()));
    assert_eq!(metadata.mount_at(8, target).expect("mount"), None);
    assert_eq!(metadata.mounts_on(target).expect("mounts"), mounts);
}

#[test]
fn removal_frees_names() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    fill(&metadata);
    let removed = metadata.remove_image("docker.io/library/a:1").expect("remove");
    assert_eq!(removed, Some(image("docker.io/library/a:1")));
    assert_eq!(metadata.remove_image("docker.io/library/a:1").expect("remove"), None);
    assert_eq!(metadata.remove_snapshot(1).expect("remove").map(|s| s.id), Some(1));
    assert_eq!(metadata.snapshot_named("name").expect("snapshot"), None);
    metadata.put_snapshot(&snapshot(2, "name")).expect("the name is free");
    assert_eq!(metadata.remove_mount(1).expect("remove").map(|m| m.id), Some(1));
    assert_eq!(metadata.remove_mount(1).expect("remove"), None);
    let left = contents(&metadata);
    assert_eq!((left.0.len(), left.1.len(), left.2.len()), (1, 1, 0));
}

#[test]
fn names_and_targets_are_unique() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    metadata.put_snapshot(&snapshot(1, "one")).expect("put");
    metadata.put_snapshot(&snapshot(2, "two")).expect("put");
    let error = metadata.put_snapshot(&snapshot(2, "one")).expect_err("taken");
    assert!(matches!(error, MetadataError::Taken { expected: 2, found: 1, .. }), "{error}");
    assert!(!error.is_fatal());
    metadata.put_snapshot(&snapshot(1, "uno")).expect("renamed");
    assert_eq!(metadata.snapshot_named("one").expect("snapshot"), None);
    metadata.put_snapshot(&snapshot(2, "one")).expect("free again");

    metadata.put_mount(&mount(1, 4, "/a")).expect("put");
    metadata.put_mount(&mount(2, 5, "/a")).expect("another namespace");
    metadata.put_mount(&mount(3, 4, "/a/b")).expect("another directory");
    let error = metadata.put_mount(&mount(4, 4, "/a")).expect_err("taken");
    assert!(matches!(error, MetadataError::Taken { expected: 4, found: 1, .. }), "{error}");
    let on: Vec<u64> =
        metadata.mounts_on(Path::new("/a")).expect("on").iter().map(|m| m.id).collect();
    assert_eq!(on, [1, 2]);
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    fill(&metadata);
    let before = contents(&metadata);
    let generation = metadata.generation().expect("generation");
    let failed = metadata.transaction(|tx| {
        let id = tx.next_id(IdKind::Snapshot)?;
        tx.put_snapshot(&snapshot(id, "new"))?;
        tx.remove_image("docker.io/library/a:1")?;
        // Its own changes are there for itself
        assert_eq!((tx.images()?.len(), tx.snapshots()?.len()), (1, 2));
        assert_eq!(tx.snapshot_named("new")?, tx.snapshot(id)?);
        assert_eq!(tx.image("docker.io/library/a:1")?, None);
        assert_eq!(tx.mount_at(9, &before.2[0].target)?, tx.mount(1)?);
        // … and for nobody else
        assert_eq!(metadata.images()?.len(), 2);
        tx.put_snapshot(&snapshot(77, "name"))
    });
    assert!(matches!(failed, Err(MetadataError::Taken { .. })));
    assert_eq!(contents(&metadata), before);
    assert_eq!(metadata.generation().expect("generation"), generation);
    assert_eq!(metadata.next_id(IdKind::Snapshot).expect("id"), 2);

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        metadata.transaction(|tx| -> Result<(), MetadataError> {
            tx.remove_image("docker.io/library/b:2")?;
            panic!("within a transaction")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(contents(&metadata), before);
    metadata.transaction(|tx| tx.remove_image("docker.io/library/b:2")).expect("goes on");
    assert_eq!(metadata.images().expect("images").len(), 1);
}

#[test]
fn no_change_writes_nothing() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    fill(&metadata);
    let generation = metadata.generation().expect("generation");
    metadata.put_image(&image("docker.io/library/a:1")).expect("put");
    metadata.remove_image("none").expect("remove");
    metadata.raise_id(IdKind::Mount, 1).expect("raise");
    assert_eq!(metadata.generation().expect("generation"), generation);
}

#[test]
fn ids_count_on() {
    let dir = temporary();
    {
        let metadata = open_sound(dir.path());
        let ids: Vec<u64> = (0..3).map(|_| metadata.next_id(IdKind::Mount).expect("id")).collect();
        assert_eq!(ids, [1, 2, 3]);
        metadata.raise_id(IdKind::Mount, 10).expect("raise");
        metadata.raise_id(IdKind::Mount, 5).expect("raise");
    }
    let metadata = open_sound(dir.path());
    assert_eq!(metadata.next_id(IdKind::Mount).expect("id"), 11);
    assert_eq!(metadata.next_id(IdKind::Snapshot).expect("id"), 1);
}

#[test]
fn a_second_open_is_refused() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    let error = Metadata::open(dir.path()).expect_err("locked");
    assert!(matches!(error, MetadataError::Locked { .. }), "{error}");
    let text = format!("metadata is in use by another process: {:?}", dir.path().join("lock"));
    assert_eq!(error.to_string(), text);
    drop(metadata);
    open_sound(dir.path());
}

#[test]
fn oversized_records_are_refused() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    let error = metadata.put_image(&image(&"n".repeat(9 << 10))).expect_err("key");
    assert!(matches!(error, MetadataError::TooLong { what: "key", .. }), "{error}");
    assert!(error.to_string().len() < 400);
    let mut large = image("large");
    large.labels.insert("k".to_owned(), "v".repeat(5 << 20));
    let error = metadata.put_image(&large).expect_err("record");
    assert!(matches!(error, MetadataError::TooLong { what: "record", .. }), "{error}");
    large.labels.insert("k".to_owned(), "v".repeat(3 << 20));
    metadata.put_image(&large).expect("within the bound");
    drop(metadata);
    let metadata = open_sound(dir.path());
    assert_eq!(metadata.image("large").expect("image"), Some(large));
}

#[test]
fn the_export_is_written_when_something_changed() {
    let dir = temporary();
    let path = dir.path().join("export.json");
    {
        let metadata = open_sound(dir.path());
        assert!(!metadata.export_if_dirty().expect("export"));
        assert!(!path.exists());
        fill(&metadata);
        assert!(metadata.export_if_dirty().expect("export"));
        assert!(!metadata.export_if_dirty().expect("export"));
    }
    let metadata = open_sound(dir.path());
    assert!(!metadata.export_if_dirty().expect("export"), "nothing changed across the restart");
    let text = fs::read_to_string(&path).expect("export");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["records"]["images"][0]["name"], "docker.io/library/a:1");
    assert_eq!(value["records"]["images"][0]["v"], 1);
    assert_eq!(value["records"]["mounts"][0]["target"]["hex"], "2f6d6e742ffe3a2c5c0a");
    assert_eq!(value["records"]["snapshots"][0]["kind"], "run");
    assert_eq!(value["records"]["counters"]["slot"], 16);
    metadata.remove_mount(1).expect("remove");
    assert!(metadata.export_if_dirty().expect("export"));
    assert_eq!(aside(dir.path(), ".new"), [] as [PathBuf; 0]);
}

#[test]
fn readers_are_not_refused_while_a_change_is_written() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                metadata.images()?;
                metadata.generation()?;
            }
            Ok::<_, MetadataError>(())
        });
        for n in 0..20 {
            metadata.put_image(&image(&n.to_string())).expect("put");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        reader.join().expect("thread").expect("read");
    });
}
