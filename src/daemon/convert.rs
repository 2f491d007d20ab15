//! Records as the API and the command line show them.

use std::{fs::File, io::Read as _, os::unix::ffi::OsStrExt as _, path::Path};

use serde_json::{Value, json};

use super::engine::Engine;
use crate::{
    api,
    bundle::{self, BundleError, BundleFile, BundleImage, BundleOptions, HostFiles, Network},
    failure::{Class, Failure, chain},
    image::PullEvent,
    layers::LayersError,
    metadata::{ImageRecord, RootfsKind},
    oci::ImageConfig,
};

/// Longest file below `/etc` that is looked into: 1 MiB.
const ETC_MAX: u64 = 1 << 20;

pub(super) fn image(image: &ImageRecord) -> api::Image {
    api::Image {
        name: image.name.clone(),
        target: image.target.digest.to_string(),
        manifest: image.manifest.to_string(),
        config: image.config.to_string(),
        platform: image.platform.clone(),
        chain_id: image.chain_id.map(|id| id.to_string()).unwrap_or_default(),
        layers: image.layers.len().try_into().unwrap_or(u32::MAX),
        size: image.layers.iter().map(|layer| layer.size).sum(),
        created_at_ns: image.created_at_ns,
        updated_at_ns: image.updated_at_ns,
    }
}

pub(super) fn event(event: PullEvent) -> api::pull_event::Event {
    use crate::image::Stage;
    use api::{layer_progress, pull_event::Event};
    let layer = |progress: crate::image::LayerProgress| api::LayerProgress {
        index: progress.index.try_into().unwrap_or(u32::MAX),
        digest: progress.digest.to_string(),
        stage: match progress.stage {
            Stage::Waiting => layer_progress::Stage::Waiting,
            Stage::Running => layer_progress::Stage::Running,
            Stage::Done => layer_progress::Stage::Done,
            Stage::Exists => layer_progress::Stage::Exists,
            Stage::Mounted => layer_progress::Stage::Mounted,
        }
        .into(),
        received: progress.received,
        size: progress.size,
        indexed: progress.indexed,
    };
    match event {
        PullEvent::Resolved { name, manifest, layers } => Event::Resolved(api::Resolved {
            name,
            manifest: manifest.to_string(),
            layers: layers.into_iter().map(layer).collect(),
        }),
        PullEvent::Layer(progress) => Event::Layer(layer(progress)),
    }
}

fn mount_kind(kind: RootfsKind) -> i32 {
    match kind {
        RootfsKind::Mount => api::MountKind::Mount,
        RootfsKind::Bundle => api::MountKind::Bundle,
        RootfsKind::Run => api::MountKind::Run,
    }
    .into()
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn mounts(engine: &Engine) -> Result<Vec<api::Mount>, Failure> {
    let snapshots = engine.metadata.snapshots()?;
    let mounts = engine.live_mounts()?.into_iter().map(|(record, live)| {
        let snapshot = snapshots.iter().find(|s| Some(s.id) == record.snapshot);
        api::Mount {
            id: record.id,
            target: bytes(&record.target),
            image: record.image,
            writable: record.writable,
            snapshot: snapshot.map(|s| s.name.clone()).unwrap_or_default(),
            kind: mount_kind(record.kind),
            created_at_ns: record.created_at_ns,
            tree_slot: record.tree_slot,
            bundle_dir: record.bundle_dir.as_deref().map(bytes).unwrap_or_default(),
            created_target: record.created_target,
            live,
        }
    });
    Ok(mounts.collect())
}

pub(super) fn snapshots(engine: &Engine) -> Result<Vec<api::Snapshot>, Failure> {
    let mounts = engine.live_mounts()?;
    let snapshots = engine.metadata.snapshots()?.into_iter().map(|record| {
        let usage = engine.snapshots.usage(record.id)?;
        let mount = mounts.iter().find(|(m, live)| *live && m.snapshot == Some(record.id));
        Ok(api::Snapshot {
            name: record.name,
            image: record.image,
            kind: mount_kind(record.kind),
            created_at_ns: record.created_at_ns,
            bytes: usage.bytes,
            inodes: usage.inodes,
            target: mount.map(|(m, _)| bytes(&m.target)).unwrap_or_default(),
        })
    });
    snapshots.collect()
}

/// What is there, and what is wrong with it: a damaged file is built anew at the next mount, and is
/// no reason to know nothing of its image.
fn found<T>(opened: Result<Option<T>, LayersError>) -> (Option<T>, Option<String>) {
    match opened {
        Ok(found) => (found, None),
        Err(error) => (None, Some(chain(&error))),
    }
}

/// Everything known of an image.
pub(super) fn inspect(engine: &Engine, image: &ImageRecord) -> Result<Value, Failure> {
    let document = |digest| -> Result<Value, Failure> {
        let bytes = engine.images.document(digest)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Failure::new(Class::BadData, format!("{digest} is no JSON: {e}")))
    };
    let layers = image.layers.iter().map(|layer| {
        let (index, damage) = found(engine.layers.layer_by_diff_id(&layer.diff_id));
        json!({
            "digest": layer.digest.to_string(),
            "media_type": layer.media_type,
            "size": layer.size,
            "diff_id": layer.diff_id.to_string(),
            "index": index.map(|index| json!({
                "slot": index.slot().number(),
                "tar_size": index.tar_len(),
                "inodes": index.inode_count(),
                "spans": index.span_count(),
                "copy_size": index.copy_len(),
            })),
            "damage": damage,
        })
    });
    let (tree, damage) = found(engine.layers.tree_by_chain_id(image.chain_id));
    Ok(json!({
        "name": image.name,
        "digest": image.target.digest.to_string(),
        "platform": image.platform,
        "chain_id": image.chain_id.map(|id| id.to_string()),
        "tree_slot": tree.map(|tree| tree.slot().number()),
        "damage": damage,
        "created_at_ns": image.created_at_ns,
        "updated_at_ns": image.updated_at_ns,
        "mounted_at_ns": image.mounted_at_ns,
        "pinned": image.pinned,
        "labels": image.labels,
        "layers": layers.collect::<Vec<Value>>(),
        "manifest": { "digest": image.manifest.to_string(), "content": document(&image.manifest)? },
        "config": { "digest": image.config.to_string(), "content": document(&image.config)? },
    }))
}

impl Engine {
    /// The runc config of a mount that was made for a bundle.
    pub(super) fn bundle_config(
        &self,
        request: api::BundleConfigRequest,
    ) -> Result<api::BundleConfigResponse, Failure> {
        let mount = self.mount(request.id)?;
        let image = self.find_image(&mount.image)?;
        let config = self.images.config(&image)?;
        let rootfs = self.readable_rootfs(&mount);
        let file = |name: &str| {
            bundle::rootfs_file(&rootfs, name, ETC_MAX).map_err(|e| {
                Failure::io(&e, format!("cannot read /{name} of {}: {e}", mount.image))
            })
        };
        let (passwd, group) = (file("etc/passwd")?, file("etc/group")?);
        let given = |text: String| (!text.is_empty()).then_some(text);
        let options = BundleOptions {
            args: request.args,
            entrypoint: (!request.entrypoint.is_empty()).then_some(request.entrypoint),
            env: request.env,
            cwd: given(request.cwd),
            user: given(request.user),
            hostname: given(request.hostname),
            terminal: request.terminal,
            readonly_rootfs: request.read_only,
            network: if request.host_network { Network::Host } else { Network::None },
            files: true,
            ..BundleOptions::default()
        };
        let (image, passwd, group) = (bundle_image(config), passwd.as_deref(), group.as_deref());
        let spec = bundle::config_json(&image, passwd, group, &options)?;
        let files = bundle::files(options.hostname.as_deref(), options.network, &host_files());
        let file =
            |BundleFile { name, content }| api::BundleFile { name: name.to_owned(), content };
        Ok(api::BundleConfigResponse {
            json: bundle::to_json(&spec)?,
            files: files.into_iter().map(file).collect(),
        })
    }

    /// The mounted rootfs where this process sees it, else the image's tree below it.
    fn readable_rootfs(&self, mount: &crate::metadata::MountRecord) -> std::path::PathBuf {
        match crate::mountinfo::on(&mount.target) {
            Ok(Some(found)) if found.source == "peel" => mount.target.clone(),
            _ => self.paths.lower().join(mount.tree_slot.to_string()),
        }
    }
}

/// As containers see them; what the host lacks is empty.
fn host_files() -> HostFiles {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(ETC_MAX).read_to_end(&mut bytes));
        if let Err(error) = read {
            tracing::warn!(path, %error, "cannot read what containers are to see of it");
        }
        bytes
    };
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    HostFiles { hosts: read("/etc/hosts"), resolv_conf: read("/etc/resolv.conf"), hostname: name }
}

fn bundle_image(config: ImageConfig) -> BundleImage {
    BundleImage {
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        working_dir: config.working_dir,
        user: config.user,
        labels: config.labels,
        stop_signal: config.stop_signal,
        exposed_ports: config.exposed_ports.into_iter().collect(),
        os: Some(config.platform.os().to_owned()),
        architecture: Some(config.platform.architecture().to_owned()),
        variant: config.platform.variant().map(str::to_owned),
        author: config.author,
        created: config.created,
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Self {
        let failure = Self::new(Class::Usage, chain(&error));
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
