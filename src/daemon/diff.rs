//! containerd's diff service: a layer is applied to a snapshot of peel's by indexing its blob.
//!
//! ```text
//! Prepare(extract-…) ─▶ mounts ─▶ Apply(blob, mounts) ─▶ Commit(chainID)
//!                                   │ blob in containerd's store ─▶ indexed, linked or copied
//!                                   └ anything else: Unimplemented, and the next differ unpacks it
//! ```
//! containerd asks its differs in their order, and the next one only after that code; source: `local`
//! in its `services/diff/local.go`. Only snapshots made for unpacking are taken: whoever applies a
//! layer to one of another kind may have it mounted, and look there at once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use peel_index::Digest;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    call::{self, Answer},
    engine::Engine,
};
use crate::{
    api::containerd::{
        services::diff::v1::{self as wire, diff_server::Diff},
        types,
    },
    failure::{Class, Failure},
    metadata::{KeyedSnapshot, LayerRef},
    snapshotter::Below,
};

/// How keys of snapshots for unpacking begin; source: `UnpackKeyPrefix` in containerd's
/// `snapshots/snapshotter.go`.
const UNPACK_KEY: &str = "extract-";

/// Media type of the tar that a layer unpacks from.
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// See the module.
pub(super) struct DiffService {
    pub(super) engine: Arc<Engine>,
}

/// A layer to be applied, and where to.
struct Wanted {
    digest: Digest,
    size: u64,
    media_type: String,
    blob: PathBuf,
    key: String,
}

impl DiffService {
    /// The snapshot that mounts show, where it is one to be unpacked into.
    fn snapshot(&self, mounts: &[types::Mount]) -> Result<Option<(KeyedSnapshot, Below)>, Failure> {
        let Some(upper) = written(mounts) else { return Ok(None) };
        let found = self.engine.snapshotter.active_in(upper)?;
        Ok(found.filter(|(snapshot, _)| is_for_unpacking(&snapshot.key)))
    }

    fn wanted(
        &self,
        request: wire::ApplyRequest,
        snapshot: &KeyedSnapshot,
        below: &Below,
    ) -> Result<Wanted, Failure> {
        let cannot = |what: &str| Failure::new(Class::Usage, what);
        let blob = request.diff.ok_or_else(|| cannot("no descriptor"))?;
        if !request.payloads.is_empty() {
            return Err(cannot("it is to be processed before it is unpacked"));
        }
        if !below.uppers.is_empty() {
            return Err(cannot("it stands on a layer that was unpacked"));
        }
        if snapshot.layer.is_none() && !self.engine.snapshots.is_empty(snapshot.id)? {
            return Err(cannot("something has been written to the snapshot"));
        }
        let digest: Digest = blob.digest.parse().map_err(|e| Failure::new(Class::Usage, e))?;
        let size = u64::try_from(blob.size).map_err(|_| cannot("a negative size"))?;
        let own = || self.engine.content.path(&digest);
        let found = self.engine.containerd_blob(&digest).or_else(|| own().is_file().then(own));
        let blob_path = found.ok_or_else(|| {
            Failure::new(Class::NotFound, format!("blob {digest} is not in containerd's directory"))
                .hint("name that with: peel daemon --containerd-root DIR")
        })?;
        let (media_type, key) = (blob.media_type, snapshot.key.clone());
        Ok(Wanted { digest, size, media_type, blob: blob_path, key })
    }

    /// Indexes a layer and has the snapshot become it; gives the layer and the length of its tar.
    async fn index(&self, wanted: &Wanted) -> Result<(LayerRef, u64), Failure> {
        let Wanted { digest, size, ref media_type, ref blob, .. } = *wanted;
        let cancel = CancellationToken::new();
        // Where nobody waits for the answer any more
        let _call_off = cancel.clone().drop_guard();
        let images = &self.engine.images;
        let layer = images.adopt_layer(blob, digest, size, media_type, &cancel).await?;
        let index = self.engine.layers.layer_by_diff_id(&layer.diff_id)?;
        let lost = || Failure::new(Class::Other, format!("the index of layer {digest} is gone"));
        Ok((layer, index.ok_or_else(lost)?.tar_len()))
    }

    async fn apply_to(&self, wanted: Wanted) -> Result<types::Descriptor, Declined> {
        let _busy = self.engine.busy_owned().await;
        let (layer, tar_len) = self.index(&wanted).await.map_err(Declined::Layer)?;
        let diff_id = layer.diff_id;
        call::blocking(&self.engine, move |engine| {
            let usage = engine.layer_usage(&layer);
            engine.snapshotter.apply(&wanted.key, layer, usage)
        })
        .await
        .map_err(Declined::Snapshot)?;
        Ok(types::Descriptor {
            media_type: TAR.to_owned(),
            digest: diff_id.to_string(),
            size: i64::try_from(tar_len).unwrap_or(i64::MAX),
            ..types::Descriptor::default()
        })
    }
}

/// Why a layer was not applied.
enum Declined {
    /// It cannot be indexed, but perhaps be unpacked.
    Layer(Failure),
    /// The snapshot is not what it was.
    Snapshot(Status),
}

fn is_for_unpacking(key: &str) -> bool {
    // containerd puts its namespace and a number before it
    key.rsplit('/').next().is_some_and(|own| own.starts_with(UNPACK_KEY))
}

/// The directory that is written to through mounts.
fn written(mounts: &[types::Mount]) -> Option<&Path> {
    let [mount] = mounts else { return None };
    let path = match mount.r#type.as_str() {
        "overlay" => mount.options.iter().find_map(|option| option.strip_prefix("upperdir="))?,
        "bind" if !mount.options.iter().any(|option| option == "ro") => mount.source.as_str(),
        _ => return None,
    };
    Some(Path::new(path))
}

#[tonic::async_trait]
impl Diff for DiffService {
    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Answer<wire::ApplyResponse> {
        let request = request.into_inner();
        let snapshot = self.snapshot(&request.mounts).map_err(Status::from)?;
        let Some((snapshot, below)) = snapshot else {
            // Those of other snapshotters come along here too
            return Err(Status::unimplemented("no snapshot of peel's to unpack a layer into"));
        };
        let counters = &self.engine.counters;
        let applied = match self.wanted(request, &snapshot, &below) {
            Ok(wanted) => self.apply_to(wanted).await,
            Err(failure) => Err(Declined::Layer(failure)),
        };
        match applied {
            Ok(applied) => {
                counters.layers_taken.add();
                Ok(Response::new(wire::ApplyResponse { applied: Some(applied) }))
            }
            Err(Declined::Layer(error)) => {
                counters.layers_declined.add();
                tracing::warn!(snapshot = snapshot.key, %error, "cannot index a layer; containerd unpacks it");
                Err(Status::unimplemented(error.message))
            }
            Err(Declined::Snapshot(status)) => Err(status),
        }
    }

    /// The differ that containerd has itself compares the mounts, whoever has made them.
    async fn diff(&self, _: Request<wire::DiffRequest>) -> Answer<wire::DiffResponse> {
        Err(Status::unimplemented("peel compares no mounts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to() {
        let mount = |kind: &str, source: &str, options: &[&str]| types::Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..types::Mount::default()
        };
        let bind = mount("bind", "/r/snapshots/1/fs", &["rw", "rbind"]);
        assert_eq!(written(std::slice::from_ref(&bind)), Some(Path::new("/r/snapshots/1/fs")));
        let options = ["index=off", "workdir=/r/2/work", "upperdir=/r/2/fs", "lowerdir=/l/1"];
        let overlay = mount("overlay", "overlay", &options);
        assert_eq!(written(std::slice::from_ref(&overlay)), Some(Path::new("/r/2/fs")));
        for none in [
            vec![],
            vec![bind, overlay],
            vec![mount("bind", "/r/snapshots/1/fs", &["ro", "rbind"])],
            vec![mount("overlay", "overlay", &["lowerdir=/a:/b"])],
            vec![mount("ext4", "/dev/vda", &["rw"])],
        ] {
            assert_eq!(written(&none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_for_unpacking() {
        for (key, expected) in [
            ("default/12/extract-123-abc= sha256:00", true),
            ("extract-123 sha256:00", true),
            ("default/12/container", false),
            ("default/extract-1/container", false),
            ("", false),
        ] {
            assert_eq!(is_for_unpacking(key), expected, "{key}");
        }
    }
}
