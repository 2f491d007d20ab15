//! Debian's containerd with peel as its snapshotter.

use std::{
    collections::HashMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use peel::api::containerd::{
    services::{
        diff::v1::{ApplyRequest, diff_client::DiffClient},
        snapshots::v1::{self as wire, snapshots_client::SnapshotsClient},
    },
    types::{Descriptor, Mount},
};
use tonic::{Request, Status, transport::Channel};

use super::{Peel, Ran, can_mount, cri::channel, eventually, has_tool, registry::can_serve, run};

/// Whether a containerd can run on a daemon here, with images of a registry.
pub fn can_run_containerd() -> bool {
    can_mount() && can_serve() && has_containerd()
}

/// Whether containerd and what it needs are there.
fn has_containerd() -> bool {
    ["containerd", "ctr", "runc", "busybox"].iter().all(|tool| has_tool(tool))
}

/// A containerd of one's own, ended with its containers when dropped.
pub struct Containerd {
    child: Child,
    dir: PathBuf,
}

impl Containerd {
    /// One beside a daemon, whose snapshotter it has as `peel`; CRI uses it.
    pub fn start(peel: &Peel) -> Self {
        Self::with_sandbox(peel, "none:none")
    }

    /// The same with an image for the containers that hold pods' namespaces.
    pub fn with_sandbox(peel: &Peel, sandbox: &str) -> Self {
        let dir = peel.path("containerd");
        fs::create_dir_all(&dir).expect("directory");
        let quoted = |path: PathBuf| format!("{:?}", path.to_str().expect("UTF-8"));
        let config = format!(
            r#"version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = {socket}
[ttrpc]
address = {ttrpc}
[proxy_plugins.peel]
type = "snapshot"
address = {peel}
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = {sandbox:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "peel"
disable_snapshot_annotations = false
"#,
            root = quoted(dir.join("root")),
            state = quoted(dir.join("state")),
            socket = quoted(dir.join("containerd.sock")),
            ttrpc = quoted(dir.join("ttrpc.sock")),
            peel = quoted(peel.state().join("peel.sock")),
        );
        fs::write(dir.join("config.toml"), config).expect("write");
        let log = fs::File::create(dir.join("log")).expect("log");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(dir.join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd");
        let containerd = Self { child, dir };
        eventually("containerd answers", || {
            UnixStream::connect(containerd.socket()).is_ok()
                && containerd.ctr(&["version"]).code == Some(0)
        });
        containerd
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Runs `ctr`.
    pub fn ctr(&self, args: &[&str]) -> Ran {
        run(Command::new("ctr").arg("--address").arg(self.socket()).args(args))
    }

    /// Where it has a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let blobs = self.dir.join("root/io.containerd.content.v1.content/blobs");
        blobs.join(digest.replacen(':', "/", 1))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("log")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for namespace in ["default", "k8s.io", "other"] {
            let listed = self.ctr(&["-n", namespace, "tasks", "ls", "-q"]).stdout;
            for task in listed.split_whitespace() {
                self.ctr(&["-n", namespace, "tasks", "rm", "-f", task]);
            }
        }
        // It may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A blob as a descriptor says it.
pub fn descriptor(digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: digest.to_owned(),
        size: i64::try_from(size).expect("a size"),
        ..Descriptor::default()
    }
}

/// Has peel's diff service apply a layer.
pub async fn apply(peel: &Peel, blob: Descriptor, mounts: &[Mount]) -> Result<Descriptor, Status> {
    let mut client = DiffClient::new(channel(&peel.state().join("peel.sock")).await);
    let request =
        ApplyRequest { diff: Some(blob), mounts: mounts.to_vec(), ..ApplyRequest::default() };
    Ok(client.apply(request).await?.into_inner().applied.expect("a descriptor"))
}

/// A snapshots service: peel's own, or containerd's in front of it.
pub struct Snapshots {
    client: SnapshotsClient<Channel>,
    namespace: &'static str,
}

impl Snapshots {
    /// The service behind a socket, in a namespace of containerd's.
    pub async fn connect(socket: &Path, namespace: &'static str) -> Self {
        Self { client: SnapshotsClient::new(channel(socket).await), namespace }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().expect("ASCII");
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }

    pub async fn prepare(
        &mut self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let labels: HashMap<_, _> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let request = self.request(wire::PrepareSnapshotRequest {
            snapshotter: "peel".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        });
        Ok(self.client.prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(wire::ViewSnapshotRequest {
            snapshotter: "peel".to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        });
        Ok(self.client.view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self
            .request(wire::MountsRequest { snapshotter: "peel".to_owned(), key: key.to_owned() });
        Ok(self.client.mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(
        &mut self,
        name: &str,
        key: &str,
        labels: &[(&str, &str)],
    ) -> Result<(), Status> {
        let labels: HashMap<_, _> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let request = self.request(wire::CommitSnapshotRequest {
            snapshotter: "peel".to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
        });
        self.client.commit(request).await.map(|_| ())
    }

    pub async fn stat(&mut self, key: &str) -> Result<wire::Info, Status> {
        let request = self.request(wire::StatSnapshotRequest {
            snapshotter: "peel".to_owned(),
            key: key.to_owned(),
        });
        Ok(self.client.stat(request).await?.into_inner().info.expect("info"))
    }

    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<wire::Info>, Status> {
        let request = self.request(wire::ListSnapshotsRequest {
            snapshotter: "peel".to_owned(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        });
        let mut stream = self.client.list(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = stream.message().await? {
            all.extend(part.info);
        }
        Ok(all)
    }

    pub async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = self.request(wire::RemoveSnapshotRequest {
            snapshotter: "peel".to_owned(),
            key: key.to_owned(),
        });
        self.client.remove(request).await.map(|_| ())
    }

    pub async fn usage(&mut self, key: &str) -> Result<(i64, i64), Status> {
        let request = self
            .request(wire::UsageRequest { snapshotter: "peel".to_owned(), key: key.to_owned() });
        let usage = self.client.usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }
}
