//! Marks and sweeps over real stores.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    content::Expected,
    metadata::{LABEL_CALL, LABEL_GC_REF, LABEL_GC_ROOT, LABEL_PULL, LeaseRecord},
};

struct Place {
    metadata: Metadata,
    content: Arc<ContentStore>,
    layers: Layers,
    snapshots: Snapshots,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let content = ContentStore::open(&dir.path().join("content")).expect("content");
        let content = Arc::new(content);
        Self {
            metadata: Metadata::open(&dir.path().join("metadata")).expect("metadata").metadata,
            layers: Layers::open(dir.path(), Arc::clone(&content), 1 << 20).expect("layers"),
            snapshots: Snapshots::open(dir.path()).expect("snapshots"),
            content,
            _dir: dir,
        }
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        let mut ingest = self.content.begin("x", Expected::default()).expect("begin");
        ingest.write(bytes).expect("write");
        ingest.commit().expect("commit").digest
    }

    fn lease(&self, id: &str, label: &str, expires_at_ns: i64, blobs: &[Digest]) {
        let lease = LeaseRecord {
            id: id.to_owned(),
            created_at_ns: 0,
            expires_at_ns: Some(expires_at_ns),
            labels: BTreeMap::from([(label.to_owned(), String::new())]),
            blobs: blobs.to_vec(),
            diff_ids: Vec::new(),
        };
        self.metadata.put_lease(&lease).expect("lease");
    }

    fn label(&self, digest: &Digest, key: &str, value: String) {
        let labels = [(key.to_owned(), Some(value))];
        let labelled = self.metadata.transaction(|tx| tx.label_content(digest, labels));
        labelled.expect("label");
    }

    /// What goes at a time, with these leases running.
    fn sweep(&self, now_ns: i64, running: &[&str]) -> Vec<(Kind, String)> {
        let Self { metadata, content, layers, snapshots, .. } = self;
        let stores = Stores { metadata, content, layers, snapshots };
        let running = running.iter().map(|id| (*id).to_owned()).collect();
        let held = HashSet::new();
        let roots = Roots { held: &held, running: &running, in_use: &|_| false, now_ns };
        let garbage = Garbage::find(stores, roots).expect("mark");
        let items = garbage.items().into_iter().map(|item| (item.kind, item.id)).collect();
        garbage.sweep(stores).expect("sweep");
        items
    }
}

#[test]
fn leases_keep_what_they_name() {
    let place = Place::new();
    let (small, large) = (place.put(b"small"), place.put(&vec![1; 1 << 20]));
    let mine = place.put(b"mine");
    place.lease("pull", LABEL_PULL, 100, &[small, large, Digest::sha256(b"not here")]);
    place.lease("call", LABEL_CALL, 100, &[small]);
    place.lease("user", "name", 50, &[mine]);
    assert_eq!(place.sweep(10, &["pull", "call"]), []);
    let gone = |kind, id: &str| (kind, id.to_owned());
    assert_eq!(place.sweep(20, &["pull"]), [gone(Kind::Lease, "call")]);
    // It has broken off: what is large may be gone on with, for a while
    assert_eq!(place.sweep(30, &[]), [gone(Kind::Blob, &small.to_string())]);
    let expected = [gone(Kind::Blob, &mine.to_string()), gone(Kind::Lease, "user")];
    assert_eq!(place.sweep(60, &[]), expected);
    let expected = [gone(Kind::Blob, &large.to_string()), gone(Kind::Lease, "pull")];
    assert_eq!(place.sweep(100, &[]), expected);
    assert_eq!(place.metadata.leases().expect("leases"), []);
}

#[test]
fn labels_lead_from_blob_to_blob() {
    let place = Place::new();
    let [root, child, grandchild, other] = ["a", "b", "c", "d"].map(|n| place.put(n.as_bytes()));
    place.label(&root, LABEL_GC_ROOT, "now".to_owned());
    place.label(&root, &format!("{LABEL_GC_REF}.m.0"), child.to_string());
    place.label(&child, &format!("{LABEL_GC_REF}.l.3"), grandchild.to_string());
    // A ring of garbage, and a label that only looks like a reference
    place.label(&other, &format!("{LABEL_GC_REF}.config"), other.to_string());
    place.label(&child, &format!("{LABEL_GC_REF}ual"), other.to_string());
    assert_eq!(place.sweep(1, &[]), [(Kind::Blob, other.to_string())]);
    assert_eq!(place.metadata.content(&other).expect("read"), None);
    assert!(place.metadata.content(&child).expect("read").is_some());
    let labels = [(LABEL_GC_ROOT.to_owned(), None)];
    place.metadata.transaction(|tx| tx.label_content(&root, labels)).expect("label");
    assert_eq!(place.sweep(1, &[]).len(), 3);
    assert_eq!(place.metadata.contents().expect("read"), []);
}
