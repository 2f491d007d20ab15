//! Snapshots by key, as containerd's snapshotters have them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Metadata,
    error::MetadataError,
    record::{LayerRef, Record},
    transaction::{Transaction, View as _},
};

/// What can be done with a snapshot by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyedKind {
    /// Read, never written and never committed.
    View,
    /// Written, until it is committed.
    Active,
    /// Immutable; others stand on it.
    Committed,
}

/// A snapshot by key: a directory that is written to, or a layer that peel has indexed.
///
/// Source: `snapshots.Info` of containerd's `snapshots/snapshotter.go`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct KeyedSnapshot {
    /// The key, or the name once it is committed.
    pub key: String,
    /// Number of its directory under `snapshots/`, if it has one.
    pub id: u64,
    /// Key of the committed snapshot below it.
    #[serde(default)]
    pub parent: Option<String>,
    /// What can be done with it.
    pub kind: KeyedKind,
    /// The layer that it is, or of an active one will be once it is committed. A committed one has
    /// no directory then; neither has anything below it.
    #[serde(default)]
    pub layer: Option<LayerRef>,
    /// Labels by key.
    pub labels: BTreeMap<String, String>,
    /// When it was made or committed, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// When a label last changed, in nanoseconds since 1970.
    pub updated_at_ns: i64,
    /// Disk use in bytes, as of the commit, or of the layer that an active one will be.
    #[serde(default)]
    pub bytes: u64,
    /// Inodes, in the same way.
    #[serde(default)]
    pub inodes: u64,
}

impl KeyedSnapshot {
    /// Whether it is a layer, of which nothing lies on disk but its blob and index.
    pub fn is_layer(&self) -> bool {
        self.layer.is_some() && self.kind == KeyedKind::Committed
    }
}

impl Record for KeyedSnapshot {
    const TABLE: &'static str = "keyed_snapshots";

    fn key(&self) -> Vec<u8> {
        keyed_key(&self.key)
    }
}

fn keyed_key(key: &str) -> Vec<u8> {
    format!("{}/{key}", KeyedSnapshot::TABLE).into_bytes()
}

impl Metadata {
    /// All snapshots by key, in the order of their keys.
    pub fn keyed_snapshots(&self) -> Result<Vec<KeyedSnapshot>, MetadataError> {
        self.shared.list()
    }
}

impl Transaction<'_> {
    /// Adds a snapshot by key or replaces the one of its key.
    pub fn put_keyed(&mut self, snapshot: &KeyedSnapshot) -> Result<(), MetadataError> {
        self.put(snapshot)
    }

    /// Removes a snapshot by key; returns what it was, `None` where there was none.
    pub fn remove_keyed(&mut self, key: &str) -> Result<Option<KeyedSnapshot>, MetadataError> {
        self.remove(keyed_key(key))
    }
}
