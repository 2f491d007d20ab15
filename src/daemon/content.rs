//! Blobs one by one, and an image in Docker's words.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
};

use peel_index::Digest;
use serde_json::{Value, json};

use super::{
    engine::Engine,
    export::{ChunkStream, Chunks},
};
use crate::{
    api,
    content::{BlobInfo, Expected},
    failure::{Class, Failure},
    image::LEASE_NS,
    metadata::{ImageRecord, LeaseRecord, now_ns},
    oci::Reference,
};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

fn digest_of(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|e| {
        Failure::new(Class::Usage, format!("malformed digest {text:?}: {e}"))
            .hint("as in sha256: and 64 hexadecimal digits")
    })
}

fn changes(labels: Vec<api::Label>) -> impl Iterator<Item = (String, Option<String>)> {
    labels.into_iter().map(|label| (label.key, Some(label.value).filter(|v| !v.is_empty())))
}

impl Engine {
    /// All blobs with their labels, by digest.
    pub(super) fn list_content(&self) -> Result<Value, Failure> {
        let known = self.metadata.contents()?.into_iter();
        let known: HashMap<_, _> = known.map(|known| (known.digest, known.labels)).collect();
        let mut blobs = self.content.blobs()?.collect::<Result<Vec<_>, _>>()?;
        blobs.sort_by_key(|blob| blob.digest.to_string());
        let described = blobs.iter().map(|blob| {
            json!({
                "digest": blob.digest.to_string(),
                "size": blob.size,
                "labels": known.get(&blob.digest),
            })
        });
        Ok(described.collect())
    }

    pub(super) fn has_content(&self, digest: &Digest) -> Result<BlobInfo, Failure> {
        let missing = || {
            Failure::new(Class::NotFound, format!("no such blob here: {digest}"))
                .hint("list them with: peel content ls")
        };
        self.content.info(digest)?.ok_or_else(missing)
    }

    /// Puts a file's bytes in; leased for a day.
    pub(super) fn ingest_content(
        &self,
        request: api::IngestContentRequest,
    ) -> Result<BlobInfo, Failure> {
        let expected = Expected {
            digest: match request.expected_digest.as_str() {
                "" => None,
                digest => Some(digest_of(digest)?),
            },
            size: request.expected_size,
        };
        let path = Path::new(OsStr::from_bytes(&request.path));
        let failed = |e| Failure::io(&e, format!("cannot read {}: {e}", path.display()));
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mut ingest = self.content.begin(&format!("content {}", now_ns()), expected)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).map_err(failed)? {
                0 => break,
                n => ingest.write(&chunk[..n])?,
            }
        }
        let _busy = self.busy();
        let blob = ingest.commit()?;
        let now = now_ns();
        let lease = LeaseRecord {
            id: format!("content-{now}"),
            created_at_ns: now,
            expires_at_ns: Some(now.saturating_add(LEASE_NS)),
            labels: BTreeMap::new(),
            blobs: vec![blob.digest],
            diff_ids: Vec::new(),
        };
        self.metadata.transaction(|tx| {
            tx.put_lease(&lease)?;
            tx.label_content(&blob.digest, changes(request.labels))?;
            Ok::<_, Failure>(())
        })?;
        Ok(blob)
    }

    /// Changes a blob's labels; gives all of them.
    pub(super) fn label_content(
        &self,
        request: api::LabelContentRequest,
    ) -> Result<Vec<api::Label>, Failure> {
        let digest = digest_of(&request.digest)?;
        self.has_content(&digest)?;
        let labels = changes(request.labels);
        let record = self.metadata.transaction(|tx| tx.label_content(&digest, labels))?;
        let labels = record.labels.into_iter();
        Ok(labels.map(|(key, value)| api::Label { key, value }).collect())
    }

    /// Removes a blob, though an image needs it where `force`.
    pub(super) fn remove_content(&self, digest: &str, force: bool) -> Result<(), Failure> {
        let digest = digest_of(digest)?;
        self.has_content(&digest)?;
        let images = self.metadata.images()?;
        let user = images.iter().find(|image| image.blobs().any(|blob| blob == digest));
        if let Some(image) = user.filter(|_| !force) {
            let message = format!("image {} needs {digest}", image.name);
            return Err(Failure::new(Class::Conflict, message)
                .hint(format!("remove the image: peel rm {}", image.name)));
        }
        self.content.remove(&digest)?;
        self.metadata.transaction(|tx| {
            for mut lease in tx.leases()? {
                if lease.blobs.contains(&digest) {
                    lease.blobs.retain(|blob| *blob != digest);
                    tx.put_lease(&lease)?;
                }
            }
            tx.remove_content(&digest)?;
            Ok::<_, Failure>(())
        })
    }

    /// An image as `docker image inspect` describes it, and where its layers and what was written
    /// over them can be seen.
    pub(super) fn docker_view(&self, image: &ImageRecord) -> Result<Value, Failure> {
        let config: Value = serde_json::from_slice(&self.images.document(&image.config)?)
            .map_err(|e| Failure::new(Class::BadData, format!("{}: {e}", image.config)))?;
        let same = self.metadata.images()?.into_iter();
        let names: Vec<_> =
            same.filter(|i| i.config == image.config).map(|i| (i.name, i.target.digest)).collect();
        let repository = |name: &str| match name.parse() {
            Ok(Reference::Registry(reference)) => Some(reference.repository().to_string()),
            _ => None,
        };
        let digests = names
            .iter()
            .filter_map(|(name, digest)| Some(format!("{}@{digest}", repository(name)?)));
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let chains = (1..=diff_ids.len()).filter_map(|n| peel_index::chain_id(&diff_ids[..n]));
        let slots: HashMap<_, _> = self.layers.tree_slots().into_iter().collect();
        let lower = |chain: &Option<Digest>| {
            let slot = slots.get(chain)?;
            Some(self.paths.lower().join(slot.to_string()).display().to_string())
        };
        let mounts = self.live_mounts()?;
        let snapshots = self.metadata.snapshots()?.into_iter();
        let snapshots = snapshots.filter(|s| s.image == image.name).map(|snapshot| {
            let mount = mounts.iter().find(|(m, live)| *live && m.snapshot == Some(snapshot.id));
            let init = self.snapshots.init(snapshot.id).map(|dir| dir.display().to_string());
            let lowers: Vec<_> = init.into_iter().chain(lower(&snapshot.chain_id)).collect();
            let bundle = mount.and_then(|(m, _)| m.bundle_dir.as_deref());
            let file = |name: &str| {
                bundle
                    .map(|dir| dir.join(name))
                    .filter(|p| p.exists())
                    .map(|p| p.display().to_string())
            };
            json!({
                "Name": snapshot.name,
                "HostnamePath": file("hostname"),
                "HostsPath": file("hosts"),
                "ResolvConfPath": file("resolv.conf"),
                "GraphDriver": { "Name": "overlay2", "Data": {
                    "LowerDir": (!lowers.is_empty()).then(|| lowers.join(":")),
                    "UpperDir": self.snapshots.upper(snapshot.id).display().to_string(),
                    "WorkDir": self.snapshots.work(snapshot.id).display().to_string(),
                    "MergedDir": mount.map(|(m, _)| m.target.display().to_string()),
                } },
            })
        });
        let views = mounts
            .iter()
            .filter(|(mount, live)| *live && mount.image == image.name && mount.snapshot.is_none());
        let views: Vec<_> = views.map(|(m, _)| m.target.display().to_string()).collect();
        let size: u64 = image.layers.iter().map(|layer| layer.size).sum();
        let text = |key: &str| config[key].clone();
        Ok(json!([{
            "Id": image.config.to_string(),
            "RepoTags": names.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "RepoDigests": digests.collect::<Vec<_>>(),
            "Created": text("created"),
            "Author": text("author"),
            "Architecture": text("architecture"),
            "Variant": text("variant"),
            "Os": text("os"),
            "Size": size,
            "Config": text("config"),
            "GraphDriver": { "Name": "peel", "Data": {
                "LowerDir": lower(&image.chain_id),
                "MergedDir": views,
            } },
            "RootFS": {
                "Type": "layers",
                "Layers": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>(),
            },
            "ChainIDs": chains.map(|chain| chain.to_string()).collect::<Vec<_>>(),
            "Snapshots": snapshots.collect::<Vec<_>>(),
        }]))
    }
}

/// A blob in chunks, verified: the last chunk comes only where all were good.
pub(super) fn get(engine: Arc<Engine>, digest: String) -> ChunkStream {
    super::export::stream(move |chunks| send(&engine, &digest, chunks))
}

fn send(engine: &Engine, digest: &str, mut chunks: Chunks) -> Result<(), Failure> {
    use std::io::Write as _;
    let digest = digest_of(digest)?;
    engine.has_content(&digest)?;
    let mut file = engine.content.open_blob(&digest)?;
    let failed = |e| Failure::io(&e, format!("cannot read blob {digest}: {e}"));
    let mut hasher = peel_index::Hasher::new(digest.algorithm());
    let (mut held, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let n = file.read(&mut chunk).map_err(failed)?;
        if n == 0 {
            break;
        }
        hasher.update(&chunk[..n]);
        chunks.write_all(&held).map_err(failed)?;
        held = chunk[..n].to_vec();
    }
    let found = hasher.finish();
    if found != digest {
        let message = format!("blob {digest} is damaged: found {found}");
        return Err(Failure::new(Class::BadData, message).hint("pull its image again"));
    }
    chunks.write_all(&held).and_then(|()| chunks.flush()).map_err(failed)
}
