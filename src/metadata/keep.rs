//! What keeps content that no image names, and what is known of content itself.

use std::collections::BTreeMap;

use peel_index::Digest;
use serde::{Deserialize, Serialize};

use super::{Metadata, MetadataError, Transaction, record::Record, text, transaction::View as _};

/// Label of content that is a root by itself; source: containerd's garbage collection.
pub const LABEL_GC_ROOT: &str = "containerd.io/gc.root";
/// Beginning of labels by which content keeps other content; same source.
pub const LABEL_GC_REF: &str = "containerd.io/gc.ref.content";
/// Label of a layer: digest of its uncompressed tar.
pub const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Beginning of labels that name repositories, by host, from which content came.
pub const LABEL_SOURCE: &str = "containerd.io/distribution.source";
/// Label of a lease: the name that is being pulled.
pub const LABEL_PULL: &str = "peel.pull";
/// Label of a lease that is of no use once its call has ended.
pub const LABEL_CALL: &str = "peel.call";

/// Keeps content from being taken for garbage for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct LeaseRecord {
    /// The key.
    pub id: String,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// When it ends, in nanoseconds since 1970; never where there is none.
    pub expires_at_ns: Option<i64>,
    /// Labels by key.
    pub labels: BTreeMap<String, String>,
    /// Blobs that it keeps, whether or not they are here yet.
    #[serde(with = "text::digests")]
    pub blobs: Vec<Digest>,
    /// Layer indexes that it keeps, by diffID.
    #[serde(with = "text::digests")]
    pub diff_ids: Vec<Digest>,
}

impl LeaseRecord {
    /// Whether it has ended by a time in nanoseconds since 1970.
    pub fn has_expired(&self, now_ns: i64) -> bool {
        self.expires_at_ns.is_some_and(|end| end <= now_ns)
    }
}

/// What is known of a blob beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ContentRecord {
    /// The blob; the key.
    #[serde(with = "text::digest")]
    pub digest: Digest,
    /// Labels by key, those of containerd's names among them.
    pub labels: BTreeMap<String, String>,
}

fn lease_key(id: &str) -> Vec<u8> {
    format!("{}/{id}", LeaseRecord::TABLE).into_bytes()
}

fn content_key(digest: &Digest) -> Vec<u8> {
    format!("{}/{digest}", ContentRecord::TABLE).into_bytes()
}

impl Record for LeaseRecord {
    const TABLE: &'static str = "leases";

    fn key(&self) -> Vec<u8> {
        lease_key(&self.id)
    }
}

impl Record for ContentRecord {
    const TABLE: &'static str = "content";

    fn key(&self) -> Vec<u8> {
        content_key(&self.digest)
    }
}

impl Metadata {
    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, MetadataError> {
        self.shared.list()
    }

    /// Adds a lease or replaces the one of its id.
    pub fn put_lease(&self, lease: &LeaseRecord) -> Result<(), MetadataError> {
        self.transaction(|tx| tx.put_lease(lease))
    }

    /// Removes a lease; returns what it was, `None` where there was none.
    pub fn remove_lease(&self, id: &str) -> Result<Option<LeaseRecord>, MetadataError> {
        self.transaction(|tx| tx.remove_lease(id))
    }

    /// What is known of all content, by digest.
    pub fn contents(&self) -> Result<Vec<ContentRecord>, MetadataError> {
        self.shared.list()
    }

    /// What is known of a blob.
    pub fn content(&self, digest: &Digest) -> Result<Option<ContentRecord>, MetadataError> {
        self.shared.load(&content_key(digest))
    }
}

impl Transaction<'_> {
    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, MetadataError> {
        self.list()
    }

    /// Adds a lease or replaces the one of its id.
    pub fn put_lease(&mut self, lease: &LeaseRecord) -> Result<(), MetadataError> {
        self.put(lease)
    }

    /// Removes a lease; returns what it was, `None` where there was none.
    pub fn remove_lease(&mut self, id: &str) -> Result<Option<LeaseRecord>, MetadataError> {
        self.remove(lease_key(id))
    }

    /// Adds labels to a blob's; one without a value is taken away.
    pub fn label_content(
        &mut self,
        digest: &Digest,
        labels: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<ContentRecord, MetadataError> {
        let found = self.load(&content_key(digest))?;
        let fresh = || ContentRecord { digest: *digest, labels: BTreeMap::new() };
        let mut record: ContentRecord = found.unwrap_or_else(fresh);
        for (key, value) in labels {
            match value {
                Some(value) => record.labels.insert(key, value),
                None => record.labels.remove(&key),
            };
        }
        self.put(&record)?;
        Ok(record)
    }

    /// Forgets what is known of a blob; returns what that was.
    pub fn remove_content(
        &mut self,
        digest: &Digest,
    ) -> Result<Option<ContentRecord>, MetadataError> {
        self.remove(content_key(digest))
    }
}
