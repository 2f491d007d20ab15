//! containerd's snapshots service over the [`Snapshotter`](crate::snapshotter::Snapshotter).
//!
//! Codes are what containerd's callers look for; source: containerd's `errdefs/grpc.go`. What takes
//! long, fetching and merging, happens in Prepare: Commit and Update run within a transaction of
//! containerd's database.

use std::{collections::BTreeMap, sync::Arc};

use prost_types::Timestamp;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    call::{self, Answer},
    engine::Engine,
    mounts::root_of,
    remote::{self, Wanted},
};
use crate::{
    api::containerd::{
        services::snapshots::v1::{self as wire, snapshots_server::Snapshots},
        types,
    },
    failure::Failure,
    metadata::{KeyedKind, KeyedSnapshot, LayerRef},
    snapshot::Usage,
    snapshotter::{Filters, MergedTree, Mount, REF_LABEL, Removed, SnapshotterError, Trees},
};

/// Snapshots in one message of a list: 4 MiB is the most that a gRPC client takes by default, and
/// keys and labels may have some KiB each.
const LIST_CHUNK: usize = 64;

/// See the module.
pub(super) struct SnapshotsService {
    pub(super) engine: Arc<Engine>,
}

impl From<SnapshotterError> for Status {
    fn from(error: SnapshotterError) -> Self {
        let message = error.to_string();
        match error {
            SnapshotterError::NotFound(_) | SnapshotterError::NoParent(_) => {
                Self::not_found(message)
            }
            SnapshotterError::Exists(_) => Self::already_exists(message),
            SnapshotterError::Invalid(_) => Self::invalid_argument(message),
            SnapshotterError::Precondition(_) => Self::failed_precondition(message),
            SnapshotterError::Failed(failure) => failure.into(),
        }
    }
}

impl Trees for Engine {
    fn merged(&self, layers: &[LayerRef]) -> Result<MergedTree, Failure> {
        let tree = self.tree_of_layers(layers)?;
        let root = root_of(&tree)?;
        let path = self.paths.lower().join(tree.slot().to_string());
        Ok(MergedTree { path, uid: root.uid, gid: root.gid, maps_ids: self.maps_ids })
    }
}

impl SnapshotsService {
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Engine) -> Result<T, SnapshotterError> + Send + 'static,
    ) -> Answer<T> {
        call::blocking(&self.engine, call).await
    }

    async fn create(
        &self,
        kind: KeyedKind,
        key: String,
        parent: String,
        labels: BTreeMap<String, String>,
    ) -> Answer<Vec<types::Mount>> {
        self.blocking(move |engine| {
            let mounts = {
                let _busy = engine.busy();
                engine.refuse_while_stopping()?;
                engine.snapshotter.prepare(engine, kind, &key, some(&parent), labels)?
            };
            engine.sweep_if_due();
            Ok(mounts.into_iter().map(wire_mount).collect())
        })
        .await
    }

    /// Whether there is a committed snapshot now that is the layer which the labels name.
    async fn layer(&self, parent: &str, labels: &BTreeMap<String, String>) -> bool {
        let Some(target) = labels.get(REF_LABEL) else { return false };
        if self.engine.snapshotter.has_layer(some(parent), target) {
            return true;
        }
        let Some(wanted) = Wanted::of(labels) else { return false };
        match self.fetch(parent, wanted, labels).await {
            Ok(added) => {
                let counters = &self.engine.counters;
                let counter =
                    if added { &counters.layers_taken } else { &counters.layers_declined };
                counter.add();
                added
            }
            Err(error) => {
                self.engine.counters.layers_declined.add();
                tracing::warn!(target, %error, "cannot index a layer; containerd unpacks it");
                false
            }
        }
    }

    async fn fetch(
        &self,
        parent: &str,
        wanted: Result<Wanted, Failure>,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, Failure> {
        let wanted = wanted?;
        let below = self.engine.snapshotter.below(some(parent))?;
        if !below.uppers.is_empty() {
            // A layer below it could not be had: containerd has unpacked that, and does the rest
            return Ok(false);
        }
        let _busy = self.engine.busy_owned().await;
        let layer = remote::fetch(&self.engine, &wanted, &below.layers).await?;
        let (parent, labels) = (parent.to_owned(), labels.clone());
        let target = labels.get(REF_LABEL).cloned().unwrap_or_default();
        self.blocking(move |engine| {
            let usage = engine.layer_usage(&layer);
            engine.snapshotter.add_layer(some(&parent), &target, layer, usage, labels)
        })
        .await?;
        Ok(true)
    }
}

impl Engine {
    /// What a layer takes on disk: its blob and its index.
    pub(super) fn layer_usage(&self, layer: &LayerRef) -> Usage {
        let index = self.layers.index_len(&layer.diff_id).unwrap_or(0);
        Usage { bytes: layer.size.saturating_add(index), inodes: 2 }
    }

    /// Removes the directory of a snapshot that has no record any more. One that is still mounted
    /// stays for GC, and so does one that cannot be removed now.
    fn discard_upper(&self, id: u64) {
        let upper = self.snapshots.upper(id);
        if self.uppers_in_use()(&upper) {
            tracing::info!(path = %upper.display(), "still mounted; removed later");
            return;
        }
        if let Err(error) = self.snapshots.remove(id) {
            tracing::warn!(%error, "cannot remove the directory of a snapshot");
        }
    }
}

fn some(parent: &str) -> Option<&str> {
    (!parent.is_empty()).then_some(parent)
}

fn wire_mount(mount: Mount) -> types::Mount {
    let Mount { kind, source, options } = mount;
    types::Mount { r#type: kind.to_owned(), source, target: String::new(), options }
}

fn timestamp(ns: i64) -> Option<Timestamp> {
    let nanos = i32::try_from(ns.rem_euclid(1_000_000_000)).ok()?;
    Some(Timestamp { seconds: ns.div_euclid(1_000_000_000), nanos })
}

fn info(snapshot: KeyedSnapshot) -> wire::Info {
    let kind = match snapshot.kind {
        KeyedKind::View => wire::Kind::View,
        KeyedKind::Active => wire::Kind::Active,
        KeyedKind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: snapshot.key,
        parent: snapshot.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: timestamp(snapshot.created_at_ns),
        updated_at: timestamp(snapshot.updated_at_ns),
        labels: snapshot.labels.into_iter().collect(),
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Answer<wire::PrepareSnapshotResponse> {
        let wire::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        if self.layer(&parent, &labels).await {
            let target = labels.get(REF_LABEL).map(String::as_str).unwrap_or_default();
            return Err(Status::already_exists(format!("layer {target} is here already")));
        }
        let mounts = self.create(KeyedKind::Active, key, parent, labels).await?.into_inner();
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Answer<wire::ViewSnapshotResponse> {
        let wire::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let mounts = self.create(KeyedKind::View, key, parent, labels).await?.into_inner();
        Ok(Response::new(wire::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Answer<wire::MountsResponse> {
        let key = request.into_inner().key;
        self.blocking(move |engine| {
            let _busy = engine.busy();
            let mounts = engine.snapshotter.mounts(engine, &key)?;
            Ok(wire::MountsResponse { mounts: mounts.into_iter().map(wire_mount).collect() })
        })
        .await
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Answer<()> {
        let wire::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let commit = self.blocking(move |engine| {
            engine.snapshotter.commit(&name, &key, labels.into_iter().collect())
        });
        if let Some(emptied) = commit.await?.into_inner() {
            let engine = Arc::clone(&self.engine);
            // containerd's database waits for the answer; what goes wrong stands in the log
            drop(tokio::task::spawn_blocking(move || engine.discard_upper(emptied)));
        }
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.blocking(move |engine| {
            let Removed { directory, layer } = engine.snapshotter.remove(&key)?;
            if let Some(id) = directory {
                engine.discard_upper(id);
            }
            if layer {
                // Trees, indexes and blobs: when containerd has removed all that it wants to
                engine.note_garbage();
            }
            Ok(())
        })
        .await
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Answer<wire::StatSnapshotResponse> {
        let key = request.into_inner().key;
        self.blocking(move |engine| {
            let found = info(engine.snapshotter.stat(&key)?);
            Ok(wire::StatSnapshotResponse { info: Some(found) })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Answer<wire::UpdateSnapshotResponse> {
        let wire::UpdateSnapshotRequest { info: given, update_mask, .. } = request.into_inner();
        let given = given.ok_or_else(|| Status::invalid_argument("no info to update"))?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        self.blocking(move |engine| {
            let labels = given.labels.into_iter().collect();
            let updated = engine.snapshotter.update(&given.name, labels, &paths)?;
            Ok(wire::UpdateSnapshotResponse { info: Some(info(updated)) })
        })
        .await
    }

    type ListStream = ReceiverStream<Result<wire::ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let listed = self.blocking(move |engine| Ok(engine.snapshotter.list(&filters)));
        let mut listed = listed.await?.into_inner().into_iter().map(info);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let info: Vec<_> = listed.by_ref().take(LIST_CHUNK).collect();
                // A client that has gone away wants no more
                if info.is_empty()
                    || sender.send(Ok(wire::ListSnapshotsResponse { info })).await.is_err()
                {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Answer<wire::UsageResponse> {
        let key = request.into_inner().key;
        self.blocking(move |engine| {
            let usage = engine.snapshotter.usage(&key)?;
            let number = |n| i64::try_from(n).unwrap_or(i64::MAX);
            Ok(wire::UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) })
        })
        .await
    }

    async fn cleanup(&self, _: Request<wire::CleanupRequest>) -> Answer<()> {
        self.blocking(|engine| {
            engine.collect_garbage()?;
            Ok(())
        })
        .await
    }
}
