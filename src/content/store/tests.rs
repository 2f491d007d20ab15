use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::{
    content::OciLayout,
    oci::{MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_MANIFEST, Platform},
};

fn store() -> (tempfile::TempDir, ContentStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ContentStore::open(&dir.path().join("content")).unwrap();
    (dir, store)
}

fn expecting(bytes: &[u8]) -> Expected {
    Expected { digest: Some(Digest::sha256(bytes)), size: Some(bytes.len() as u64) }
}

fn put(store: &ContentStore, bytes: &[u8]) -> Digest {
    let mut ingest = store.begin("put", expecting(bytes)).unwrap();
    ingest.write(bytes).unwrap();
    ingest.commit().unwrap().digest
}

/// Nothing is being written, and there are as many blobs as said.
fn assert_holds(store: &ContentStore, blobs: usize) {
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
    assert_eq!(store.blobs().unwrap().map(Result::unwrap).count(), blobs);
}

/// Whether the tests that need `what` run; says so where they do not.
fn skip(what: &str, present: bool) -> bool {
    if present {
        return false;
    }
    assert!(std::env::var_os("PEEL_REQUIRE_TOOLS").is_none(), "{what} is required");
    eprintln!("SKIPPED: {what} is not available");
    true
}

fn tool(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok()
}

#[test]
fn a_blob_comes_in_and_can_be_read() {
    let (_dir, store) = store();
    let digest = Digest::sha256(b"hello world");
    assert_eq!(store.info(&digest).unwrap(), None);
    let mut ingest = store.begin("layer", expecting(b"hello world")).unwrap();
    ingest.write(b"hello ").unwrap();
    assert!(!store.contains(&digest).unwrap());
    ingest.write(b"world").unwrap();
    assert_eq!(ingest.written(), 11);
    assert_eq!(ingest.commit().unwrap(), BlobInfo { digest, size: 11 });
    assert_eq!(store.info(&digest).unwrap(), Some(BlobInfo { digest, size: 11 }));
    assert_eq!(store.read_blob(&digest, 11).unwrap(), b"hello world");
    let text = io::read_to_string(store.open_blob(&digest).unwrap()).unwrap();
    assert_eq!(text, "hello world");
    assert!(store.path(&digest).ends_with(format!("blobs/sha256/{}", digest.hex())));
    assert!(fs::metadata(store.path(&digest)).unwrap().permissions().readonly());
    assert_holds(&store, 1);
    assert!(store.remove(&digest).unwrap());
    assert!(!store.remove(&digest).unwrap());
    assert_holds(&store, 0);
}

#[test]
fn nothing_need_be_known_beforehand() {
    let (_dir, store) = store();
    let mut ingest = store.begin("../../etc/passwd", Expected::default()).unwrap();
    ingest.write(b"x").unwrap();
    assert_eq!(ingest.commit().unwrap().digest, Digest::sha256(b"x"));
    assert_holds(&store, 1);
}

#[test]
fn sha512_has_its_own_directory() {
    let (_dir, store) = store();
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(b"x");
    let digest = hasher.finish();
    let expected = Expected { digest: Some(digest), size: None };
    let mut ingest = store.begin("x", expected).unwrap();
    ingest.write(b"x").unwrap();
    assert_eq!(ingest.commit().unwrap().digest, digest);
    assert!(store.path(&digest).starts_with(store.root().join("blobs/sha512")));
    assert_eq!(store.read_blob(&digest, 10).unwrap(), b"x");
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let (_dir, store) = store();
    let expected = Expected { digest: Some(Digest::sha256(b"right")), size: Some(5) };
    let mut ingest = store.begin("layer", expected).unwrap();
    ingest.write(b"wrong").unwrap();
    let error = ingest.commit().unwrap_err();
    let ContentError::Digest { expected, found, .. } = error else { panic!("{error}") };
    assert_eq!((*expected, *found), (Digest::sha256(b"right"), Digest::sha256(b"wrong")));
    assert_holds(&store, 0);
}

#[test]
fn a_wrong_size_leaves_nothing() {
    let (_dir, store) = store();
    let mut short = store.begin("short", expecting(b"four")).unwrap();
    short.write(b"fou").unwrap();
    let error = short.commit().unwrap_err();
    assert!(matches!(error, ContentError::Size { expected: 4, found: 3, .. }), "{error}");
    let mut long = store.begin("long", expecting(b"four")).unwrap();
    let error = long.write(b"fourty").unwrap_err();
    assert!(matches!(error, ContentError::Size { expected: 4, found: 6, .. }), "{error}");
    drop(long);
    assert_holds(&store, 0);
}

#[test]
fn a_caller_that_hashes_is_believed_but_compared() {
    let (_dir, store) = store();
    let (right, wrong) = (Digest::sha256(b"right"), Digest::sha256(b"wrong"));
    let begin = |key| {
        let mut ingest = store.begin(key, expecting(b"right")).unwrap().hashed_by_caller();
        ingest.write(b"right").unwrap();
        ingest
    };
    assert!(matches!(begin("a").commit_verified(wrong), Err(ContentError::Digest { .. })));
    assert_holds(&store, 0);
    assert_eq!(begin("b").commit_verified(right).unwrap().digest, right);
    // Without the caller's word the file is read again
    assert_eq!(begin("c").commit().unwrap().digest, right);
    // With a hash of its own the ingest does not take a wrong word
    let mut own = store.begin("d", Expected::default()).unwrap();
    own.write(b"right").unwrap();
    assert!(matches!(own.commit_verified(wrong), Err(ContentError::Digest { .. })));
    assert_holds(&store, 1);
}

#[test]
fn one_ingest_a_key() {
    let (_dir, store) = store();
    let first = store.begin("layer", Expected::default()).unwrap();
    let error = store.begin("layer", Expected::default()).unwrap_err();
    assert!(matches!(&error, ContentError::Busy { key } if key == "layer"), "{error}");
    let other = store.begin("other", Expected::default()).unwrap();
    first.abort();
    drop(store.begin("layer", Expected::default()).unwrap());
    drop(other);
    assert_holds(&store, 0);
}

/// What a process that was killed leaves of an ingest.
fn crashed(store: &ContentStore, key: &str, bytes: &[u8]) -> PathBuf {
    let dir = store.root().join("ingest").join(Digest::sha256(key.as_bytes()).hex());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("ref"), key).unwrap();
    fs::write(dir.join("data"), bytes).unwrap();
    dir.join("data")
}

#[test]
fn what_a_crash_left_goes_on_or_is_removed_at_open() {
    let (_dir, store) = store();
    let kept = put(&store, b"kept");
    let large = vec![7; 3 << 20];
    let expected = expecting(&large);
    crashed(&store, "small", b"half");
    crashed(&store, "layer", &large[..2 << 20]);
    let old = crashed(&store, "old", &large);
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    File::options().write(true).open(old).unwrap().set_modified(yesterday).unwrap();
    fs::create_dir(store.root().join("ingest/empty")).unwrap();
    fs::write(store.root().join("ingest/file"), "x").unwrap();

    let store = ContentStore::open(store.root()).unwrap();
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 1);
    assert!(store.contains(&kept).unwrap());
    let mut ingest = store.resume("layer", expected).unwrap();
    assert_eq!(ingest.written(), 2 << 20);
    let mut again = Vec::new();
    let replayed = ingest.replay(|part| {
        again.extend_from_slice(part);
        Ok::<_, ContentError>(())
    });
    replayed.unwrap();
    assert_eq!(again, large[..2 << 20]);
    ingest.write(&large[2 << 20..]).unwrap();
    assert_eq!(ingest.commit().unwrap().digest, Digest::sha256(&large));
    assert_holds(&store, 2);
}

#[test]
fn an_ingest_is_kept_where_that_is_worth_it() {
    let (_dir, store) = store();
    let large = vec![1; 2 << 20];
    let began = |resume| match resume {
        true => store.resume("layer", expecting(&large)).unwrap(),
        false => store.begin("layer", expecting(&large)).unwrap(),
    };
    let mut ingest = began(false);
    ingest.write(b"little").unwrap();
    ingest.keep();
    assert_holds(&store, 0);
    let mut ingest = began(true);
    assert_eq!(ingest.written(), 0);
    ingest.write(&large[..1_500_000]).unwrap();
    ingest.keep();
    let busy = began(true);
    assert_eq!(busy.written(), 1_500_000);
    store.sweep_ingests().unwrap();
    let error = store.resume("layer", expecting(&large)).unwrap_err();
    assert!(matches!(error, ContentError::Busy { .. }), "{error}");
    busy.keep();
    store.sweep_ingests().unwrap();
    // Bytes that went bad since are found at the end
    let data = store.root().join("ingest").join(Digest::sha256(b"layer").hex()).join("data");
    let file = File::options().write(true).open(&data).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", 700_000).unwrap();
    let mut ingest = began(true);
    ingest.write(&large[1_500_000..]).unwrap();
    assert!(matches!(ingest.commit(), Err(ContentError::Digest { .. })));
    assert_holds(&store, 0);
    // What is longer than the blob is of no use
    crashed(&store, "layer", &[0; 3 << 20]);
    assert_eq!(began(true).written(), 0);
    assert_holds(&store, 0);
}

#[test]
fn a_damaged_blob_is_found_and_repaired() {
    let (_dir, store) = store();
    let digest = put(&store, b"content");
    fs::remove_file(store.path(&digest)).unwrap();
    fs::write(store.path(&digest), b"damaged").unwrap();
    let error = store.read_blob(&digest, 100).unwrap_err();
    assert!(matches!(error, ContentError::Digest { .. }) && error.is_bad_data(), "{error}");
    assert!(error.to_string().contains(&digest.hex()), "{error}");
    assert_eq!(put(&store, b"content"), digest);
    assert_eq!(store.read_blob(&digest, 100).unwrap(), b"content");
}

#[test]
fn reads_are_bounded_and_missing_blobs_named() {
    let (_dir, store) = store();
    let digest = put(&store, b"content");
    let error = store.read_blob(&digest, 6).unwrap_err();
    assert!(matches!(error, ContentError::TooLarge { limit: 6, found: 7, .. }), "{error}");
    let absent = Digest::sha256(b"absent");
    for error in [store.read_blob(&absent, 6).unwrap_err(), store.open_blob(&absent).unwrap_err()] {
        assert!(error.to_string().contains(&format!("blob {absent} is missing")), "{error}");
    }
}

#[test]
fn foreign_files_among_the_blobs_are_passed_over() {
    let (_dir, store) = store();
    put(&store, b"content");
    let dir = store.root().join("blobs/sha256");
    fs::write(dir.join("notes.txt"), "x").unwrap();
    fs::create_dir(dir.join(Digest::sha256(b"dir").hex())).unwrap();
    assert_holds(&store, 1);
}

/// A tmpfs of 1 MiB; detached when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_told_with_figures_and_leaves_nothing() {
    let disk = SmallDisk::new();
    if skip("mounting a tmpfs (root)", disk.is_some()) {
        return;
    }
    let disk = disk.unwrap();
    let store = ContentStore::open(&disk.0.path().join("content")).unwrap();
    let size = 2 << 20;
    let error = store.begin("known", Expected { digest: None, size: Some(size) }).unwrap_err();
    let ContentError::NoSpace { needed: Some(needed), available, .. } = error else {
        panic!("{error}")
    };
    assert!(needed == size && available > 0 && available <= 1 << 20, "{available}");
    assert!(error.hint().is_some());

    let mut ingest = store.begin("unknown", Expected::default()).unwrap();
    let chunk = vec![7; 256 << 10];
    let error = (0..8).find_map(|_| ingest.write(&chunk).err()).expect("the disk gets full");
    assert!(matches!(error, ContentError::NoSpace { needed: None, .. }), "{error}");
    drop(ingest);
    assert_holds(&store, 0);
    put(&store, b"there is space again");
}

/// An image without layers, which is enough for a tool to read.
fn image(store: &ContentStore) -> Descriptor {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Labels":{"who":"peel"}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config_digest = put(store, config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_OCI_MANIFEST,
        "config": {
            "mediaType": MEDIA_TYPE_OCI_CONFIG,
            "digest": config_digest.to_string(),
            "size": config.len(),
        },
        "layers": [],
    })
    .to_string();
    let digest = put(store, manifest.as_bytes());
    Descriptor::new(MEDIA_TYPE_OCI_MANIFEST, digest, manifest.len() as u64)
}

#[test]
fn the_index_is_read_back() {
    let (_dir, store) = store();
    let mut one = image(&store);
    one.platform = Some(Platform::new("linux", "arm", Some("v6")));
    one.annotations.insert("k".to_owned(), "v".to_owned());
    let other = image(&store);
    store.write_index(&[("a:1".to_owned(), one.clone()), ("b".to_owned(), other)]).unwrap();
    // Opening again changes nothing
    let store = ContentStore::open(store.root()).unwrap();
    let layout = OciLayout::open(store.root()).unwrap();
    let names: Vec<_> = layout.entries().map(|(name, _)| name.unwrap().to_owned()).collect();
    assert_eq!(names, ["a:1", "b"]);
    let (_, found) = layout.entries().next().unwrap();
    one.annotations.insert(ANNOTATION_REF_NAME.to_owned(), "a:1".to_owned());
    assert_eq!(*found, one);
    store.write_index(&[]).unwrap();
    assert_eq!(OciLayout::open(store.root()).unwrap().entries().count(), 0);
}

#[test]
fn a_store_of_a_newer_layout_is_refused() {
    let (_dir, store) = store();
    fs::write(store.root().join(LAYOUT_FILE), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let error = ContentStore::open(store.root()).unwrap_err();
    assert!(error.to_string().contains("2.0.0"), "{error}");
}

#[test]
fn skopeo_and_umoci_read_the_store_in_place() {
    let (dir, store) = store();
    let name = "docker.io/library/nginx:1.27";
    let image = image(&store);
    store.write_index(&[(name.to_owned(), image.clone()), ("x".to_owned(), image)]).unwrap();
    if !skip("skopeo", tool("skopeo")) {
        for tag in [name, "x"] {
            let source = format!("oci:{}:{tag}", store.root().display());
            let output = Command::new("skopeo").args(["inspect", &source]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains(r#""who": "peel""#), "{text}{errors}");
        }
    }
    if !skip("umoci", tool("umoci")) {
        let source = format!("{}:{name}", store.root().display());
        let output = Command::new("umoci")
            .args(["unpack", "--rootless", "--image", &source])
            .arg(dir.path().join("bundle"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn anothers_file_is_linked() {
    let (dir, store) = store();
    let bytes = b"a blob of another program's";
    let digest = Digest::sha256(bytes);
    let theirs = dir.path().join("theirs");
    fs::write(&theirs, bytes).unwrap();
    let file = File::open(&theirs).unwrap();
    assert!(store.can_link(&file));
    assert!(!store.is_own(&digest, &file), "there is none here");
    // What lies there is damaged, and a crash has left its name
    put(&store, b"x");
    fs::rename(store.path(&Digest::sha256(b"x")), store.path(&digest)).unwrap();
    fs::write(store.root().join(format!("ingest/link-{}", digest.hex())), "").unwrap();
    for round in ["once", "again"] {
        assert!(store.link(&digest, &file).unwrap(), "{round}");
        assert!(store.is_own(&digest, &file), "{round}");
        assert_eq!(store.read_blob(&digest, 100).unwrap(), bytes, "{round}");
        assert_holds(&store, 1);
    }
    // A repair puts another file in its place, and leaves theirs alone
    assert_eq!(put(&store, bytes), digest);
    assert!(!store.is_own(&digest, &file));
    assert!(store.remove(&digest).unwrap());
    assert_eq!(fs::read(&theirs).unwrap(), bytes);
    // A file without a name cannot get one, and the store is as it was
    fs::remove_file(&theirs).unwrap();
    assert!(!store.link(&digest, &file).unwrap());
    assert_holds(&store, 0);
}

#[test]
fn a_file_elsewhere_is_not_linked() {
    let (_dir, store) = store();
    let file = File::open("/proc/self/exe").unwrap();
    let digest = Digest::sha256(b"elsewhere");
    let proc = File::open("/proc/self/status").unwrap();
    assert!(!store.can_link(&proc), "another file system");
    assert!(!store.link(&digest, &proc).unwrap());
    assert!(!store.is_own(&digest, &file));
    assert_holds(&store, 0);
}
