//! The store of indexes and trees, over real files.

mod cut;
mod reading;
mod starting;

use std::fs;

use peel_fuse::FileSource as _;
use peel_index::{Algorithm, LayerBuilder, NodeId};

use super::*;
use crate::content::Expected;

struct Fixture {
    root: tempfile::TempDir,
    content: Arc<ContentStore>,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let content = ContentStore::open(&root.path().join("content")).expect("content store");
        Self { root, content: Arc::new(content) }
    }

    fn open(&self) -> Result<Layers, LayersError> {
        self.open_with(1 << 20)
    }

    fn open_with(&self, cache_bytes: u64) -> Result<Layers, LayersError> {
        Layers::open(self.root.path(), Arc::clone(&self.content), cache_bytes)
    }

    /// Stores a layer with one file and installs its index.
    fn install(&self, layers: &Layers, name: &str, body: &[u8], slot: u32) -> Digest {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, body).expect("append");
        self.store(layers, &tar.into_inner().expect("finish"), slot)
    }

    /// Stores a layer's blob and installs its index.
    fn store(&self, layers: &Layers, blob: &[u8], slot: u32) -> Digest {
        let mut ingest = self.content.begin("layer", Expected::default()).expect("ingest");
        ingest.write(blob).expect("write");
        ingest.commit().expect("commit");
        let mut builder = LayerBuilder::new(Algorithm::Sha256);
        builder.push(blob).expect("push");
        let built = builder.finish().expect("a layer");
        let mut copy = layers.new_copy().expect("copy");
        copy.append(&built.copy_rest).expect("append");
        layers.install_layer(&built, copy, self::slot(slot)).expect("installed");
        built.diff_id
    }
}

fn slot(number: u32) -> Slot {
    Slot::new(number).expect("a slot")
}

fn read(layers: &Layers, tree: Slot, name: &str) -> Result<Vec<u8>, peel_fuse::ReadError> {
    let tree = layers.tree(tree).expect("the tree");
    let entry = tree.lookup(1, name.as_bytes()).expect("the entry");
    let NodeId::Layer { slot, number } = entry.node else { panic!("not of a layer") };
    let mut out = Vec::new();
    layers.read(slot, number, 0, 1 << 20, &mut out).map(|()| out)
}

#[test]
fn what_is_installed_is_served_and_found_again_from_the_files_alone() {
    let fixture = Fixture::new();
    let body = vec![7; 100_000];
    {
        let layers = fixture.open().expect("open");
        let diff_id = fixture.install(&layers, "file", &body, 5);
        let tree = layers.build_tree(&[diff_id], slot(9)).expect("tree");
        assert_eq!(tree.slot(), slot(9));
        assert_eq!(read(&layers, slot(9), "file").expect("read"), body);
        assert!(layers.tree(slot(5)).is_none(), "a layer is no tree");
        assert!(layers.layer(slot(9)).is_none(), "a tree is no layer");
    }
    let layers = fixture.open().expect("open again");
    assert_eq!(layers.highest_slot(), Some(slot(9)));
    assert_eq!(read(&layers, slot(9), "file").expect("read"), body);
    assert_eq!(layers.cache_stats().misses, 1);
    read(&layers, slot(9), "file").expect("read");
    assert_eq!(layers.cache_stats().misses, 1, "from the span cache");
}

#[test]
fn a_flipped_bit_in_a_blob_is_an_error_and_never_wrong_bytes() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let diff_id = fixture.install(&layers, "file", &[7; 1000], 1);
    layers.build_tree(&[diff_id], slot(2)).expect("tree");
    let blob = layers.layer_by_diff_id(&diff_id).expect("index").expect("index").blob();
    let path = fixture.content.path(&blob);
    let mut bytes = fs::read(&path).expect("read");
    bytes[700] ^= 1;
    fs::remove_file(&path).expect("remove");
    fs::write(&path, bytes).expect("write");
    let layers = fixture.open().expect("open again");
    let error = read(&layers, slot(2), "file").expect_err("damaged");
    let told = crate::failure::chain(&error);
    assert!(told.contains("expected") && told.contains(&diff_id.to_string()), "{told}");
}

#[test]
fn the_tar_of_a_layer_comes_back() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let diff_id = fixture.install(&layers, "file", &body, 1);
    let mut tar = layers.tar(&diff_id).expect("index").expect("index");
    let (mut bytes, len) = (Vec::new(), tar.tar_len());
    tar.read_to_end(&mut bytes).expect("read");
    assert_eq!(Digest::sha256(&bytes), diff_id);
    assert_eq!(bytes.len() as u64, len);
    assert_eq!(tar.read(&mut [0; 9]).expect("at the end"), 0);
    assert!(layers.tar(&Digest::sha256(b"")).expect("none").is_none());

    let blob = layers.layer_by_diff_id(&diff_id).expect("index").expect("index").blob();
    fs::write(fixture.content.path(&blob), &bytes[..2_000_000]).expect("cut off");
    let mut tar = layers.tar(&diff_id).expect("index").expect("index");
    let told = crate::failure::chain(&tar.read_to_end(&mut bytes).expect_err("cut off"));
    assert!(told.contains("1048576..2097152") && told.contains(&diff_id.to_string()), "{told}");
}

#[test]
fn a_damaged_index_is_an_error_and_a_foreign_file_goes() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let diff_id = fixture.install(&layers, "file", b"body", 3);
    let path = fixture.root.path().join("layers").join(file_name(&diff_id));
    let good = fs::read(&path).expect("read");
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    fs::write(&path, &bad).expect("write");
    let stray = fixture.root.path().join("layers/stray");
    fs::write(&stray, "x").expect("write");
    let layers = fixture.open().expect("headers are whole");
    assert!(!stray.exists());
    let error = layers.layer_by_diff_id(&diff_id).expect_err("damaged");
    assert!(matches!(error, LayersError::Format { .. }), "{error}");

    // A header that cannot be read: the file goes, to be built again
    fs::write(&path, &good[..40]).expect("write");
    let layers = fixture.open().expect("open");
    assert!(layers.layer_by_diff_id(&diff_id).expect("none").is_none());
    assert!(!path.exists());
}

#[test]
fn files_of_one_slot_all_go_and_others_stay() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let twice = [("one", b"1"), ("two", b"2"), ("three", b"3")];
    let twice = twice.map(|(name, body)| fixture.install(&layers, name, body, 4));
    let other = fixture.install(&layers, "other", b"4", 5);
    let layers = fixture.open().expect("open");
    for diff_id in twice {
        assert!(layers.layer_by_diff_id(&diff_id).expect("none").is_none());
    }
    assert!(layers.layer_by_diff_id(&other).expect("whole").is_some());
    assert_eq!(layers.highest_slot(), Some(slot(5)));
}

#[test]
fn what_is_removed_is_gone() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let diff_id = fixture.install(&layers, "file", b"body", 1);
    let chain = peel_index::chain_id(&[diff_id]);
    layers.build_tree(&[diff_id], slot(2)).expect("tree");
    assert!(layers.remove_tree(chain).expect("removed") > 0);
    assert!(layers.remove_layer(&diff_id).expect("removed") > 0);
    assert_eq!(layers.remove_layer(&diff_id).expect("gone already"), 0);
    assert!(layers.tree(slot(2)).is_none());
    let missing = layers.build_tree(&[diff_id], slot(3)).expect_err("no index");
    assert!(matches!(missing, LayersError::Missing(_)), "{missing}");
}

/// Lets a file look as if an older version had made it.
fn age(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    bytes[16..20].copy_from_slice(&1u32.to_le_bytes());
    let checksum = blake3::hash(&bytes[..96]);
    bytes[96..128].copy_from_slice(checksum.as_bytes());
    fs::remove_file(path).expect("remove");
    fs::write(path, bytes).expect("write");
}

#[test]
fn files_of_an_older_version_are_served_until_they_are_made_anew() {
    let fixture = Fixture::new();
    let root = fixture.root.path();
    let diff_id = {
        let layers = fixture.open().expect("open");
        let diff_id = fixture.install(&layers, "file", b"body", 1);
        let tree = layers.build_tree(&[diff_id], slot(2)).expect("tree");
        assert!(layers.layer_is_current(&diff_id) && layers.tree_is_current(&tree));
        diff_id
    };
    let chain = peel_index::chain_id(&[diff_id]);
    age(&root.join("layers").join(file_name(&diff_id)));
    age(&root.join("trees").join(tree_name(chain)));

    let layers = fixture.open().expect("open");
    assert!(!layers.layer_is_current(&diff_id));
    let old = layers.tree_by_chain_id(chain).expect("opens").expect("is there");
    assert!(!layers.tree_is_current(&old));
    assert_eq!(read(&layers, slot(2), "file").expect("served as it is"), b"body");

    fixture.install(&layers, "file", b"body", 3);
    assert!(layers.layer_is_current(&diff_id));
    assert!(!layers.tree_is_current(&old), "made of the index in slot 1");
    let new = layers.build_tree(&[diff_id], slot(4)).expect("tree");
    assert!(layers.tree_is_current(&new));
    assert_eq!(new.slot(), slot(4), "not the slot of another numbering");
    assert_eq!(read(&layers, slot(4), "file").expect("served"), b"body");
}
