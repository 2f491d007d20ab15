//! Damage, loss and versions: what is noticed, what comes back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

/// A closed store with every kind of record and its export, and what it holds.
fn exported_store(dir: &Path) -> (Vec<ImageRecord>, Vec<SnapshotRecord>, Vec<MountRecord>) {
    let before = {
        let metadata = open_sound(dir);
        fill(&metadata);
        metadata.export_if_dirty().expect("export");
        contents(&metadata)
    };
    // sled writes its first snapshot file when it opens what is there
    drop(open_sound(dir));
    before
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Overwrites bytes in the middle of each of sled's files of that name's beginning.
fn damage(database: &Path, prefix: &str) {
    let mut count = 0;
    for path in files_in(database) {
        if !path.file_name().expect("name").to_string_lossy().starts_with(prefix) {
            continue;
        }
        let mut bytes = fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        for byte in &mut bytes[middle..middle + 4] {
            *byte ^= 0x55;
        }
        fs::write(&path, bytes).expect("write");
        count += 1;
    }
    assert!(count > 0, "no file {prefix}* in {database:?}");
}

#[test]
fn damage_is_restored_from_the_export() {
    for prefix in ["snap.", "conf"] {
        let dir = temporary();
        let before = exported_store(dir.path());
        damage(&dir.path().join("db"), prefix);
        let Opened { metadata, recovered } = open(dir.path());
        let recovered = recovered.expect("recovered");
        assert!(matches!(recovered.cause, Cause::Damaged { .. }), "{prefix}: {recovered}");
        assert!(matches!(recovered.source, RestoredFrom::Export { records: 4, .. }), "{recovered}");
        assert_eq!(
            recovered.moved_to.into_iter().collect::<Vec<_>>(),
            aside(dir.path(), "corrupt")
        );
        assert_eq!(contents(&metadata), before);
        assert_eq!(metadata.snapshot_named("name").expect("index").map(|s| s.id), Some(1));
        assert_eq!(metadata.next_id(IdKind::Snapshot).expect("id"), 2);
        assert!(metadata.export_if_dirty().expect("export"));
        drop(metadata);
        open_sound(dir.path());
    }
}

#[test]
fn no_flipped_bit_changes_a_record() {
    let dir = temporary();
    let before = exported_store(dir.path());
    let database = dir.path().join("db");
    let mut noticed = 0;
    let mut flips = 0;
    for path in files_in(&database) {
        let good = fs::read(&path).expect("read");
        // The log is zeros but for its beginning
        let used = good.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        for at in (0..used).step_by((used / 40).max(1)) {
            let copy = temporary();
            let copy = copy.path().join("metadata");
            copy_dir(dir.path(), &copy);
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let name = path.file_name().expect("name");
            fs::write(copy.join("db").join(name), bad).expect("write");
            let Opened { metadata, recovered } = open(&copy);
            assert_eq!(contents(&metadata), before, "{path:?} byte {at}: {recovered:?}");
            flips += 1;
            noticed += u32::from(recovered.is_some());
        }
    }
    println!("{noticed} of {flips} flips noticed, the others in bytes that mean nothing");
    assert!(noticed > 0);
}

#[test]
fn a_store_taken_back_is_noticed() {
    let dir = temporary();
    let old = dir.path().join("old");
    let database = dir.path().join("db");
    let after = {
        let metadata = open_sound(dir.path());
        fill(&metadata);
        drop(metadata);
        copy_dir(&database, &old);
        let metadata = open_sound(dir.path());
        metadata.remove_mount(1).expect("remove");
        metadata.put_image(&image("late")).expect("put");
        contents(&metadata)
    };
    let take_back = || {
        fs::remove_dir_all(&database).expect("remove");
        copy_dir(&old, &database);
    };
    take_back();
    let Opened { metadata, recovered } = open(dir.path());
    let recovered = recovered.expect("recovered");
    let Cause::RolledBack { expected, found } = recovered.cause else { panic!("{recovered}") };
    assert_eq!(expected, found + 2);
    assert_eq!((recovered.source, recovered.moved_to), (RestoredFrom::Kept, None));
    assert_eq!(metadata.images().expect("images").len(), 2);
    metadata.remove_mount(1).expect("remove");
    metadata.put_image(&image("late")).expect("put");
    metadata.export_if_dirty().expect("export");
    drop(metadata);
    open_sound(dir.path());

    // With an export that is newer than what the database holds, the export wins
    take_back();
    let Opened { metadata, recovered } = open(dir.path());
    let recovered = recovered.expect("recovered");
    assert!(matches!(recovered.source, RestoredFrom::Export { records: 4, .. }), "{recovered}");
    assert_eq!(contents(&metadata), after);
    drop(metadata);
    open_sound(dir.path());
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("directory");
    for entry in fs::read_dir(from).expect("list").map(|entry| entry.expect("entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[test]
fn a_missing_database_is_restored() {
    let dir = temporary();
    let before = {
        let metadata = open_sound(dir.path());
        fill(&metadata);
        metadata.export_if_dirty().expect("export");
        contents(&metadata)
    };
    fs::remove_dir_all(dir.path().join("db")).expect("remove");
    let Opened { metadata, recovered } = open(dir.path());
    let recovered = recovered.expect("recovered");
    assert_eq!((recovered.cause, recovered.moved_to), (Cause::Missing, None));
    assert_eq!(contents(&metadata), before);
    drop(metadata);
    fs::remove_dir_all(dir.path().join("db")).expect("remove");
    fs::remove_file(dir.path().join("export.json")).expect("remove");
    let Opened { metadata, recovered } = open(dir.path());
    assert_eq!(recovered.expect("recovered").source, RestoredFrom::Nothing);
    assert_eq!(metadata.images().expect("images"), []);
    drop(metadata);
    open_sound(dir.path());
}

#[test]
fn every_damaged_export_is_refused() {
    let dir = temporary();
    let path = dir.path().join("export.json");
    {
        let metadata = open_sound(dir.path());
        fill(&metadata);
        metadata.export_if_dirty().expect("export");
    }
    let good = fs::read(&path).expect("read");
    let generation_at = find(&good, b"\"generation\"");
    let records_at = find(&good, b"\"records\"");
    for at in (records_at..good.len() - 4).step_by(97) {
        let mut bad = good.clone();
        // White space is no part of what is summed
        let at = at + bad[at..].iter().position(|b| !b.is_ascii_whitespace()).expect("text");
        bad[at] ^= 1;
        fs::write(&path, &bad).expect("write");
        let found = export::read(&path).expect("read");
        assert!(matches!(found, export::Found::Damaged(_)), "byte {at}");
    }
    for len in [0, 1, generation_at, good.len() - 3] {
        fs::write(&path, &good[..len]).expect("write");
        assert!(matches!(export::read(&path).expect("read"), export::Found::Damaged(_)), "{len}");
    }
    // Beside a sound database it is replaced at the next export
    let metadata = open_sound(dir.path());
    assert!(metadata.export_if_dirty().expect("export"));
    assert!(matches!(export::read(&path).expect("read"), export::Found::Export(_)));
    drop(metadata);
    // With a damaged database nothing is left, and both are kept for whoever can read them
    fs::write(&path, &good[..50]).expect("write");
    damage(&dir.path().join("db"), "snap.");
    let Opened { metadata, recovered } = open(dir.path());
    assert_eq!(recovered.expect("recovered").source, RestoredFrom::Nothing);
    assert_eq!(contents(&metadata), (vec![], vec![], vec![]));
    assert_eq!(aside(dir.path(), "corrupt").len(), 2);
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("present")
}

#[test]
fn a_newer_store_is_left_alone() {
    let dir = temporary();
    let path = dir.path().join("export.json");
    {
        let metadata = open_sound(dir.path());
        fill(&metadata);
        metadata.export_if_dirty().expect("export");
        let mut writer = metadata.shared.writer().expect("writer");
        let changes = [(b"images/new".to_vec(), Some(br#"{"v":2,"name":7}"#.to_vec()))];
        metadata.shared.commit(&mut writer, changes.into()).expect("commit");
    }
    let error = Metadata::open(dir.path()).expect_err("newer");
    assert!(matches!(error, MetadataError::Newer { expected: 1, found: 2, .. }), "{error}");
    assert_eq!(aside(dir.path(), "corrupt"), [] as [PathBuf; 0]);
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replacen("\"version\": 1", "\"version\": 3", 1)).expect("write");
    let error = Metadata::open(dir.path()).expect_err("newer");
    assert!(matches!(error, MetadataError::Newer { expected: 1, found: 3, .. }), "{error}");
}

#[test]
fn a_record_that_does_not_parse_is_damage() {
    for value in [&b"{"[..], br#"{"name":"x"}"#, br#"{"v":1,"name":"x"}"#, b"[]", b"7"] {
        let dir = temporary();
        {
            let metadata = open_sound(dir.path());
            fill(&metadata);
            metadata.export_if_dirty().expect("export");
            let mut writer = metadata.shared.writer().expect("writer");
            let changes = [(b"images/x".to_vec(), Some(value.to_vec()))];
            metadata.shared.commit(&mut writer, changes.into()).expect("commit");
            drop(writer);
            let error = metadata.images().expect_err("damaged");
            assert!(error.is_fatal(), "{error}");
        }
        let Opened { metadata, recovered } = open(dir.path());
        let recovered = recovered.expect("recovered").to_string();
        assert!(recovered.contains("images/x"), "{recovered}");
        assert_eq!(metadata.images().expect("images").len(), 2);
    }
}

#[test]
fn a_large_store_is_restored_in_one_commit() {
    let dir = temporary();
    {
        let metadata = open_sound(dir.path());
        let all = (0..3000).map(|n| image(&format!("docker.io/library/image:{n}")));
        let put = |tx: &mut Transaction<'_>| all.into_iter().try_for_each(|i| tx.put_image(&i));
        metadata.transaction(put).expect("put");
        metadata.export_if_dirty().expect("export");
    }
    fs::remove_dir_all(dir.path().join("db")).expect("remove");
    let Opened { metadata, recovered } = open(dir.path());
    let source = recovered.expect("recovered").source;
    assert!(matches!(source, RestoredFrom::Export { records: 3000, .. }));
    drop(metadata);
    assert_eq!(open_sound(dir.path()).images().expect("images").len(), 3000);
}

/// A file system of a few megabytes.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let dir = temporary();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=16m")) {
            Ok(()) => Some(Self(dir)),
            Err(e) => {
                let required = std::env::var_os("PEEL_REQUIRE_TOOLS").is_some_and(|v| v == "1");
                assert!(!required, "cannot mount a tmpfs ({e}), and PEEL_REQUIRE_TOOLS=1");
                eprintln!("SKIPPED: cannot mount a tmpfs: {e}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_refused_before_anything_changes() {
    let Some(disk) = SmallDisk::new() else { return };
    let dir = disk.0.path().join("metadata");
    let metadata = open_sound(&dir);
    fill(&metadata);
    let ballast = disk.0.path().join("ballast");
    let fill_disk = |left: u64| {
        let stat = rustix::fs::statvfs(disk.0.path()).expect("statvfs");
        let free = stat.f_bavail * stat.f_frsize;
        fs::write(&ballast, vec![1; usize::try_from(free.saturating_sub(left)).expect("size")])
            .expect("ballast");
    };
    fill_disk(0);
    let before = contents(&metadata);
    let error = metadata.put_image(&image("new")).expect_err("full");
    assert!(matches!(error, MetadataError::NoSpace { .. }), "{error}");
    assert!(!error.is_fatal());
    assert_eq!(contents(&metadata), before);
    // Removing is how space comes back; and the store opens on a full disk
    metadata.remove_image("docker.io/library/a:1").expect("remove");
    drop(metadata);
    let metadata = open_sound(&dir);
    assert_eq!(metadata.images().expect("images").len(), 1);
    fs::remove_file(&ballast).expect("remove");
    metadata.put_image(&image("new")).expect("there is room again");
}
