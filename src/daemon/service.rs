//! The gRPC service: each call on the blocking pool, each answer from the [`Engine`].

use std::{os::unix::ffi::OsStrExt as _, sync::Arc, time::Duration};

use peel_fuse::metrics::Metrics;
use rustix::process::{Pid, Signal};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    call::{self, Answer},
    content, convert,
    engine::Engine,
    export::{self, ChunkStream},
    heir::Keeper,
    scrub::Scrubbed,
    stats,
    transfer::{self, EventStream},
};
use crate::{
    api::{self, peel_server::Peel},
    failure::Failure,
    stats::Stats,
};

/// How long `peel gc` waits for its turn.
const GC_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Service {
    pub(super) engine: Arc<Engine>,
    pub(super) stop: Arc<Notify>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) restarts: u64,
    pub(super) started_at_ns: i64,
    pub(super) fuse: Arc<Metrics>,
}

impl Service {
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Answer<T> {
        call::blocking(&self.engine, call).await
    }

    /// All statistics as of now.
    pub(super) async fn collect(&self) -> Result<Stats, Status> {
        let (restarts, started_at_ns) = (self.restarts, self.started_at_ns);
        let fuse = Arc::clone(&self.fuse);
        let collected = self.blocking(move |engine| {
            stats::collect(engine, fuse.snapshot(), restarts, started_at_ns)
        });
        Ok(collected.await?.into_inner())
    }
}

#[tonic::async_trait]
impl Peel for Service {
    async fn status(&self, _: Request<api::StatusRequest>) -> Answer<api::StatusResponse> {
        let (restarts, worker_started_at_ns) = (self.restarts, self.started_at_ns);
        let keeper_pid = self.keeper.pid();
        self.blocking(move |engine| {
            let mounts = engine.live_mounts()?;
            Ok(api::StatusResponse {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                keeper_pid,
                worker_pid: std::process::id(),
                restarts,
                mounts: mounts.iter().filter(|(_, live)| *live).count() as u64,
                images: engine.metadata.images()?.len() as u64,
                snapshots: engine.metadata.snapshots()?.len() as u64,
                root: engine.paths.root().as_os_str().as_bytes().to_vec(),
                state: engine.paths.state().as_os_str().as_bytes().to_vec(),
                worker_started_at_ns,
                unserved: engine.unserved(&mounts),
                containerd_root: engine.containerd_root.as_os_str().as_bytes().to_vec(),
                maps_ids: engine.maps_ids,
            })
        })
        .await
    }

    async fn stats(&self, _: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        Ok(Response::new(self.collect().await?.into()))
    }

    async fn stop(&self, request: Request<api::StopRequest>) -> Answer<api::StopResponse> {
        let (force, keeper_pid) = (request.into_inner().force, self.keeper.pid());
        let answer = self
            .blocking(move |engine| {
                engine.set_stopping(true);
                engine.unmount_all(force).inspect_err(|_| engine.set_stopping(false))?;
                Ok(api::StopResponse { keeper_pid })
            })
            .await?;
        self.stop.notify_one();
        Ok(answer)
    }

    type PullStream = EventStream;

    async fn pull(&self, request: Request<api::PullRequest>) -> Answer<Self::PullStream> {
        Ok(Response::new(transfer::pull(Arc::clone(&self.engine), request.into_inner())))
    }

    type PushStream = EventStream;

    async fn push(&self, request: Request<api::PushRequest>) -> Answer<Self::PushStream> {
        Ok(Response::new(transfer::push(Arc::clone(&self.engine), request.into_inner())))
    }

    type ImportStream = EventStream;

    async fn import(&self, request: Request<api::ImportRequest>) -> Answer<Self::ImportStream> {
        Ok(Response::new(transfer::import(Arc::clone(&self.engine), request.into_inner())))
    }

    type ExportStream = ChunkStream;

    async fn export(&self, request: Request<api::ExportRequest>) -> Answer<Self::ExportStream> {
        Ok(Response::new(export::export(Arc::clone(&self.engine), request.into_inner())))
    }

    async fn tag_image(&self, request: Request<api::TagImageRequest>) -> Answer<api::Image> {
        let api::TagImageRequest { reference, target } = request.into_inner();
        self.blocking(move |engine| Ok(convert::image(&engine.tag(&reference, &target)?))).await
    }

    async fn label_image(
        &self,
        request: Request<api::LabelImageRequest>,
    ) -> Answer<api::LabelImageResponse> {
        let api::LabelImageRequest { reference, set, unset } = request.into_inner();
        self.blocking(move |engine| {
            let labels = engine.label_image(&reference, set, &unset)?.into_iter().collect();
            Ok(api::LabelImageResponse { labels })
        })
        .await
    }

    async fn pin_image(
        &self,
        request: Request<api::PinImageRequest>,
    ) -> Answer<api::PinImageResponse> {
        let api::PinImageRequest { reference, pinned } = request.into_inner();
        self.blocking(move |engine| {
            Ok(api::PinImageResponse { name: engine.pin_image(&reference, pinned)? })
        })
        .await
    }

    async fn check_images(
        &self,
        request: Request<api::CheckImagesRequest>,
    ) -> Answer<api::Document> {
        let references = request.into_inner().references;
        self.blocking(move |engine| {
            let images = match references.as_slice() {
                [] => engine.metadata.images()?,
                named => named.iter().map(|r| engine.find_image(r)).collect::<Result<_, _>>()?,
            };
            let checked: Result<Vec<_>, _> =
                images.iter().map(|image| engine.check_image(image)).collect();
            Ok(api::Document { json: serde_json::Value::from(checked?).to_string() })
        })
        .await
    }

    async fn prune_images(
        &self,
        request: Request<api::PruneImagesRequest>,
    ) -> Answer<api::PruneImagesResponse> {
        let api::PruneImagesRequest { unused_seconds, dry_run } = request.into_inner();
        self.blocking(move |engine| {
            let (names, freed) = engine.prune(Duration::from_secs(unused_seconds), dry_run)?;
            Ok(api::PruneImagesResponse { names, freed })
        })
        .await
    }

    async fn commit_image(&self, request: Request<api::CommitImageRequest>) -> Answer<api::Image> {
        let request = request.into_inner();
        self.blocking(move |engine| Ok(convert::image(&engine.commit(request)?))).await
    }

    async fn convert_image(
        &self,
        request: Request<api::ConvertImageRequest>,
    ) -> Answer<api::Image> {
        let request = request.into_inner();
        self.blocking(move |engine| Ok(convert::image(&engine.convert(&request)?))).await
    }

    async fn list_changes(
        &self,
        request: Request<api::ListChangesRequest>,
    ) -> Answer<api::ListChangesResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            let changes = engine.changes(&request.snapshot)?.into_iter();
            let changes = changes.map(|(kind, path)| api::PathChange {
                kind: kind.to_string(),
                path: path.into_os_string().into_encoded_bytes(),
            });
            Ok(api::ListChangesResponse { changes: changes.collect() })
        })
        .await
    }

    async fn disk_usage(&self, _: Request<api::DiskUsageRequest>) -> Answer<api::Document> {
        self.blocking(|engine| Ok(api::Document { json: engine.disk_usage()?.to_string() })).await
    }

    async fn give_credentials(
        &self,
        request: Request<api::GiveCredentialsRequest>,
    ) -> Answer<api::GiveCredentialsResponse> {
        self.engine.questions.answer(request.into_inner())?;
        Ok(Response::new(api::GiveCredentialsResponse {}))
    }

    async fn list_images(
        &self,
        _: Request<api::ListImagesRequest>,
    ) -> Answer<api::ListImagesResponse> {
        self.blocking(|engine| {
            let images = engine.metadata.images()?.iter().map(convert::image).collect();
            Ok(api::ListImagesResponse { images })
        })
        .await
    }

    async fn inspect_image(
        &self,
        request: Request<api::InspectImageRequest>,
    ) -> Answer<api::InspectImageResponse> {
        let api::InspectImageRequest { reference, docker } = request.into_inner();
        self.blocking(move |engine| {
            let image = engine.find_image(&reference)?;
            let found = match docker {
                true => engine.docker_view(&image)?,
                false => convert::inspect(engine, &image)?,
            };
            let json = format!("{found:#}");
            Ok(api::InspectImageResponse { image: Some(convert::image(&image)), json })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<api::RemoveImageRequest>,
    ) -> Answer<api::RemoveImageResponse> {
        let reference = request.into_inner().reference;
        self.blocking(move |engine| {
            let (name, freed) = engine.remove_image(&reference)?;
            Ok(api::RemoveImageResponse { name, freed })
        })
        .await
    }

    async fn list_content(&self, _: Request<api::ListContentRequest>) -> Answer<api::Document> {
        self.blocking(|engine| Ok(api::Document { json: engine.list_content()?.to_string() })).await
    }

    type GetContentStream = ChunkStream;

    async fn get_content(
        &self,
        request: Request<api::GetContentRequest>,
    ) -> Answer<Self::GetContentStream> {
        let digest = request.into_inner().digest;
        Ok(Response::new(content::get(Arc::clone(&self.engine), digest)))
    }

    async fn ingest_content(
        &self,
        request: Request<api::IngestContentRequest>,
    ) -> Answer<api::IngestContentResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            let blob = engine.ingest_content(request)?;
            let (digest, size) = (blob.digest.to_string(), blob.size);
            Ok(api::IngestContentResponse { digest, size })
        })
        .await
    }

    async fn label_content(
        &self,
        request: Request<api::LabelContentRequest>,
    ) -> Answer<api::LabelContentResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            Ok(api::LabelContentResponse { labels: engine.label_content(request)? })
        })
        .await
    }

    async fn remove_content(
        &self,
        request: Request<api::RemoveContentRequest>,
    ) -> Answer<api::RemoveContentResponse> {
        let api::RemoveContentRequest { digest, force } = request.into_inner();
        self.blocking(move |engine| {
            engine.remove_content(&digest, force)?;
            Ok(api::RemoveContentResponse {})
        })
        .await
    }

    async fn list_leases(&self, _: Request<api::ListLeasesRequest>) -> Answer<api::Document> {
        self.blocking(|engine| Ok(api::Document { json: engine.list_leases()?.to_string() })).await
    }

    async fn create_lease(
        &self,
        request: Request<api::CreateLeaseRequest>,
    ) -> Answer<api::CreateLeaseResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            Ok(api::CreateLeaseResponse { id: engine.create_lease(request)? })
        })
        .await
    }

    async fn remove_lease(
        &self,
        request: Request<api::RemoveLeaseRequest>,
    ) -> Answer<api::RemoveLeaseResponse> {
        let id = request.into_inner().id;
        self.blocking(move |engine| {
            engine.remove_lease(&id)?;
            Ok(api::RemoveLeaseResponse {})
        })
        .await
    }

    async fn dump_metadata(&self, _: Request<api::DumpMetadataRequest>) -> Answer<api::Document> {
        self.blocking(|engine| Ok(api::Document { json: engine.metadata.dump()? })).await
    }

    async fn collect_garbage(
        &self,
        request: Request<api::CollectGarbageRequest>,
    ) -> Answer<api::CollectGarbageResponse> {
        let dry_run = request.into_inner().dry_run;
        self.blocking(move |engine| {
            let (items, freed) = engine.collect_now(dry_run, GC_PATIENCE)?;
            let items = items.into_iter().map(|item| api::GarbageItem {
                kind: item.kind.name().to_owned(),
                id: item.id,
                bytes: item.bytes,
            });
            Ok(api::CollectGarbageResponse { items: items.collect(), freed })
        })
        .await
    }

    async fn find_tree(
        &self,
        request: Request<api::FindTreeRequest>,
    ) -> Answer<api::FindTreeResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            let (image, path) = engine.find_tree(&request.reference, request.layers)?;
            let path = path.into_os_string().into_encoded_bytes();
            Ok(api::FindTreeResponse { name: image.name, path })
        })
        .await
    }

    async fn locate_file(&self, request: Request<api::LocateFileRequest>) -> Answer<api::Document> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            let json = engine.locate(&request.reference, request.inode)?.to_string();
            Ok(api::Document { json })
        })
        .await
    }

    type ScrubStream = UnboundedReceiverStream<Result<api::ScrubEvent, Status>>;

    async fn scrub(&self, request: Request<api::ScrubRequest>) -> Answer<Self::ScrubStream> {
        let request = request.into_inner();
        let engine = Arc::clone(&self.engine);
        // Unbounded, but a few events a file at most
        let (events, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let say = |event| events.send(Ok(api::ScrubEvent { event: Some(event) })).is_ok();
            match engine.scrub(&request, runtime, &say) {
                Ok(Scrubbed { totals, restart }) => {
                    say(api::scrub_event::Event::Done(totals));
                    if restart {
                        tracing::warn!("starting again, to restore the metadata");
                        // As by any other SIGTERM: what is under way is finished
                        let own = rustix::process::getpid();
                        let _ = rustix::process::kill_process(own, Signal::TERM);
                    }
                }
                Err(failure) => {
                    tracing::error!(error = %failure, "scrub failed");
                    let _ = events.send(Err(failure.into()));
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn prepare_mount(
        &self,
        request: Request<api::PrepareMountRequest>,
    ) -> Answer<api::PrepareMountResponse> {
        // 0 stands for a process that this one cannot see
        let client = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| Pid::from_raw(info.peer_cred?.pid()?));
        let request = request.into_inner();
        self.blocking(move |engine| engine.prepare_mount(&request, client)).await
    }

    async fn confirm_mount(
        &self,
        request: Request<api::ConfirmMountRequest>,
    ) -> Answer<api::ConfirmMountResponse> {
        let id = request.into_inner().id;
        self.blocking(move |engine| {
            engine.confirm_mount(id)?;
            Ok(api::ConfirmMountResponse {})
        })
        .await
    }

    async fn release_mount(
        &self,
        request: Request<api::ReleaseMountRequest>,
    ) -> Answer<api::ReleaseMountResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| {
            let snapshot = engine.release_mount(request.id, request.remove_snapshot)?;
            Ok(api::ReleaseMountResponse { snapshot })
        })
        .await
    }

    async fn list_mounts(
        &self,
        _: Request<api::ListMountsRequest>,
    ) -> Answer<api::ListMountsResponse> {
        self.blocking(|engine| Ok(api::ListMountsResponse { mounts: convert::mounts(engine)? }))
            .await
    }

    async fn bundle_config(
        &self,
        request: Request<api::BundleConfigRequest>,
    ) -> Answer<api::BundleConfigResponse> {
        let request = request.into_inner();
        self.blocking(move |engine| engine.bundle_config(request)).await
    }

    async fn list_snapshots(
        &self,
        _: Request<api::ListSnapshotsRequest>,
    ) -> Answer<api::ListSnapshotsResponse> {
        self.blocking(|engine| {
            Ok(api::ListSnapshotsResponse { snapshots: convert::snapshots(engine)? })
        })
        .await
    }

    async fn remove_snapshot(
        &self,
        request: Request<api::RemoveSnapshotRequest>,
    ) -> Answer<api::RemoveSnapshotResponse> {
        let name = request.into_inner().name;
        self.blocking(move |engine| {
            engine.remove_snapshot_named(&name)?;
            Ok(api::RemoveSnapshotResponse {})
        })
        .await
    }
}
