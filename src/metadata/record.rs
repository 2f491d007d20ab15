//! What the store holds: one JSON document a record, each with its version in `v`.
//!
//! Key of a record: `<table>/<key>`; numbers as 20 decimal digits, so that they sort. A name that
//! has to be unique beside the key stands under `index/<table>/<name>` and holds the record's id.

use std::{collections::BTreeMap, path::PathBuf};

use peel_index::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::text;
use crate::oci::Descriptor;

/// Version of the documents this code writes; it reads this one and those before.
pub(super) const RECORD_VERSION: u64 = 1;

/// What an image's name points at: an index or a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct TargetDescriptor {
    /// Media type of the target.
    pub media_type: String,
    /// Digest of the target.
    #[serde(with = "text::digest")]
    pub digest: Digest,
    /// Size of the target in bytes.
    pub size: u64,
    /// Annotations of the descriptor, such as those of an image layout's entry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl TargetDescriptor {
    /// The same as a descriptor.
    pub fn descriptor(&self) -> Descriptor {
        let annotations = self.annotations.clone();
        Descriptor { annotations, ..Descriptor::new(&self.media_type, self.digest, self.size) }
    }
}

/// The image of another platform than the one that is mounted, pulled with its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct OtherPlatform {
    /// Its manifest.
    #[serde(with = "text::digest")]
    pub manifest: Digest,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// Its config.
    #[serde(with = "text::digest")]
    pub config: Digest,
    /// Its platform, as in `linux/arm64`.
    pub platform: String,
    /// Its layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// chainID of all layers; none for an image without layers.
    #[serde(with = "text::digest_option", default)]
    pub chain_id: Option<Digest>,
}

/// One layer of an image, as its manifest and config name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct LayerRef {
    /// Digest of the blob.
    #[serde(with = "text::digest")]
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
    /// Digest of the uncompressed tar.
    #[serde(with = "text::digest")]
    pub diff_id: Digest,
}

/// An image: a name and everything that was resolved from it when it was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ImageRecord {
    /// Canonical reference; the key.
    pub name: String,
    /// What the name points at.
    pub target: TargetDescriptor,
    /// Indexes between the target and the manifest, which are stored as well.
    #[serde(with = "text::digests", default)]
    pub indexes: Vec<Digest>,
    /// The manifest that was chosen for the platform.
    #[serde(with = "text::digest")]
    pub manifest: Digest,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// The image's config.
    #[serde(with = "text::digest")]
    pub config: Digest,
    /// The platform of the manifest, as in `linux/amd64`.
    pub platform: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// chainID of all layers; none for an image without layers.
    #[serde(with = "text::digest_option", default)]
    pub chain_id: Option<Digest>,
    /// Images of other platforms that the target names, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherPlatform>,
    /// Blobs that the target names beside the images, such as attestations.
    #[serde(with = "text::digests", default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<Digest>,
    /// When the name first came, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// When the record last changed, in nanoseconds since 1970.
    pub updated_at_ns: i64,
    /// Labels by key.
    pub labels: BTreeMap<String, String>,
    /// When it was last mounted, in nanoseconds since 1970; 0 where never.
    #[serde(default)]
    pub mounted_at_ns: i64,
    /// Never removed to make room.
    #[serde(default)]
    pub pinned: bool,
}

impl ImageRecord {
    /// The layers of all its platforms.
    pub fn all_layers(&self) -> impl Iterator<Item = &LayerRef> {
        self.layers.iter().chain(self.others.iter().flat_map(|other| &other.layers))
    }

    /// diffIDs of the layers of all its platforms.
    pub fn diff_ids(&self) -> impl Iterator<Item = Digest> {
        self.all_layers().map(|layer| layer.diff_id)
    }

    /// Everything that it is made of, some of it more than once.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let own = [self.target.digest, self.manifest, self.config].into_iter();
        let others = self.others.iter().flat_map(|other| [other.manifest, other.config]);
        let layers = self.all_layers().map(|layer| layer.digest);
        let further = self.indexes.iter().chain(&self.attached).copied();
        own.chain(others).chain(further).chain(layers)
    }

    /// Keeps what belongs to the name and not to what it pointed at before.
    pub fn take_over(&mut self, old: Self) {
        self.created_at_ns = old.created_at_ns;
        self.labels = old.labels;
        self.mounted_at_ns = old.mounted_at_ns;
        self.pinned = old.pinned;
    }
}

/// What a rootfs was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsKind {
    /// `peel mount`.
    Mount,
    /// `peel bundle`.
    Bundle,
    /// `peel run`.
    Run,
}

/// An upper: the writable part over an image's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct SnapshotRecord {
    /// Number of its directory under `snapshots/`; the key.
    pub id: u64,
    /// Unique name.
    pub name: String,
    /// Canonical reference of the image below it.
    pub image: String,
    /// chainID of the image's layers.
    #[serde(with = "text::digest_option", default)]
    pub chain_id: Option<Digest>,
    /// Slot of the tree below it.
    pub tree_slot: u32,
    /// What it was made for.
    pub kind: RootfsKind,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: i64,
}

/// How far a mount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// Handed to a client that has not yet said that it mounted.
    Pending,
    /// Mounted.
    Mounted,
}

/// A mount that a client performed, as last heard of. Never a proof that it still exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct MountRecord {
    /// The key.
    pub id: u64,
    /// Canonical path of the mount point; unique within its mount namespace.
    #[serde(with = "text::path")]
    pub target: PathBuf,
    /// Canonical reference of the image.
    pub image: String,
    /// chainID of the image's layers.
    #[serde(with = "text::digest_option", default)]
    pub chain_id: Option<Digest>,
    /// Slot of the tree that it shows.
    pub tree_slot: u32,
    /// The snapshot above the tree, where there is one.
    pub snapshot: Option<u64>,
    /// Whether it can be written to.
    pub writable: bool,
    /// What it was made for.
    pub kind: RootfsKind,
    /// `/proc/sys/kernel/random/boot_id` at the time: no mount outlives its boot.
    pub boot_id: String,
    /// Inode number of the mount namespace it was made in.
    pub mount_ns: u64,
    /// How far it has come.
    pub state: MountState,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// The bundle it belongs to.
    #[serde(with = "text::path_option", default)]
    pub bundle_dir: Option<PathBuf>,
    /// Whether the target directory was made for this mount, and goes with it.
    #[serde(default)]
    pub created_target: bool,
}

/// What is counted: numbers that are never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// Numbers of snapshots.
    Snapshot,
    /// Numbers of mounts.
    Mount,
}

impl IdKind {
    /// Every counter.
    pub const ALL: [Self; 2] = [Self::Snapshot, Self::Mount];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Mount => "mount",
        }
    }
}

/// The copy of the slots' high-water mark.
pub(super) const SLOT_COUNTER: &str = "slot";

/// A second name of a record that no other may have.
pub(super) struct Unique {
    /// What it is, for people.
    pub(super) what: &'static str,
    /// Its key in the store.
    pub(super) key: Vec<u8>,
    /// The record's id.
    pub(super) id: u64,
}

/// A kind of record.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// The table's name, as it stands in keys and in the export.
    const TABLE: &'static str;

    /// The record's full key.
    fn key(&self) -> Vec<u8>;

    /// The record's unique second name, where its kind has one.
    fn unique(&self) -> Option<Unique> {
        None
    }
}

pub(super) fn image_key(name: &str) -> Vec<u8> {
    format!("{}/{name}", ImageRecord::TABLE).into_bytes()
}

pub(super) fn id_key<R: Record>(id: u64) -> Vec<u8> {
    format!("{}/{id:020}", R::TABLE).into_bytes()
}

pub(super) fn counter_key(name: &str) -> Vec<u8> {
    format!("counter/{name}").into_bytes()
}

pub(super) fn snapshot_name_key(name: &str) -> Vec<u8> {
    format!("index/snapshots/{name}").into_bytes()
}

pub(super) fn mount_target_key(mount_ns: u64, target: &std::path::Path) -> Vec<u8> {
    let mut key = format!("index/mounts/{mount_ns:020}").into_bytes();
    key.extend_from_slice(target.as_os_str().as_encoded_bytes());
    key
}

impl Record for ImageRecord {
    const TABLE: &'static str = "images";

    fn key(&self) -> Vec<u8> {
        image_key(&self.name)
    }
}

impl Record for SnapshotRecord {
    const TABLE: &'static str = "snapshots";

    fn key(&self) -> Vec<u8> {
        id_key::<Self>(self.id)
    }

    fn unique(&self) -> Option<Unique> {
        let key = snapshot_name_key(&self.name);
        Some(Unique { what: "snapshot name", key, id: self.id })
    }
}

impl Record for MountRecord {
    const TABLE: &'static str = "mounts";

    fn key(&self) -> Vec<u8> {
        id_key::<Self>(self.id)
    }

    fn unique(&self) -> Option<Unique> {
        let key = mount_target_key(self.mount_ns, &self.target);
        Some(Unique { what: "mount target", key, id: self.id })
    }
}
