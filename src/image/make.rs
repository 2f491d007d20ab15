//! Images that are made here: a base with a layer more, or with its layers compressed otherwise.
//!
//! Everything is written before anything is named; then, with GC kept away, blobs go to their
//! places, layers are indexed, and the record comes last.

use std::io;

use peel_index::{Digest, chain_id};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Images, labels,
    layer::{Compression, Unplaced},
};
use crate::{
    failure::{Class, Failure},
    metadata::{ImageRecord, LABEL_UNCOMPRESSED, LayerRef, TargetDescriptor, now_ns},
    oci::{
        LayerCompression, LayerKind, MAX_CONFIG_SIZE, MEDIA_TYPE_DOCKER_CONFIG,
        MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_MANIFEST, Reference,
        references,
    },
    snapshot::{Upper, tarball},
};

/// What an upper is made an image with.
pub struct CommitOptions<'a> {
    /// Name of the new image.
    pub name: String,
    /// The image below.
    pub base: ImageRecord,
    /// How many of its layers are below, from the lowest.
    pub layers: usize,
    /// What was written.
    pub upper: &'a Upper,
    /// How the new layer is compressed.
    pub compression: Compression,
    /// When, as RFC 3339 has it.
    pub created: String,
    /// By whom; empty for nobody.
    pub author: String,
    /// What for; empty for nothing.
    pub message: String,
    /// Changes of the config, as in a Dockerfile: `CMD ["x"]`, `ENV A=1`, …
    pub changes: Vec<String>,
}

/// A layer of an image that is being made.
enum NewLayer {
    Kept(LayerRef),
    Made(Unplaced),
}

/// All of an image that is being made.
struct NewImage<'a> {
    name: String,
    base: &'a ImageRecord,
    layers: Vec<NewLayer>,
    config: Vec<u8>,
    oci: bool,
}

fn is_oci(manifest_type: &str) -> bool {
    !manifest_type.contains("docker")
}

impl Images {
    /// Makes an image of what was written over another. Blocks; not for a task.
    ///
    /// # Errors
    /// Where the upper cannot be read, the changes make no sense, or the disk is full.
    pub fn commit(&self, options: CommitOptions<'_>) -> Result<ImageRecord, Failure> {
        let base = &options.base;
        let key = format!("commit {} {}", options.name, now_ns());
        let mut config = self.config_value(base)?;
        change_config(&mut config, &options)?;
        let made = self
            .store
            .make_layer(&key, options.compression, |out| Ok(tarball::write(options.upper, out)?))?;
        let below = base.layers.get(..options.layers).unwrap_or_default();
        let diff_ids: Vec<_> =
            below.iter().map(|layer| layer.diff_id).chain([made.diff_id]).collect();
        set_diff_ids(&mut config, &diff_ids);
        let layers = below.iter().cloned().map(NewLayer::Kept).chain([NewLayer::Made(made)]);
        self.place(NewImage {
            name: options.name.clone(),
            base,
            layers: layers.collect(),
            config: config.to_string().into_bytes(),
            oci: is_oci(&base.manifest_type),
        })
    }

    /// Makes an image of the same layers, compressed otherwise. Blocks; not for a task.
    ///
    /// # Errors
    /// Where a layer cannot be read, or the disk is full.
    pub fn recompress(
        &self,
        base: &ImageRecord,
        name: &str,
        compression: Compression,
        oci: bool,
    ) -> Result<ImageRecord, Failure> {
        self.ensure_indexed(&base.layers)?;
        // Docker has no name for what zstd compresses
        let oci = oci || is_oci(&base.manifest_type) || compression == Compression::Zstd;
        let mut layers = Vec::new();
        for (number, layer) in base.layers.iter().enumerate() {
            let kind = LayerKind::from_media_type(&layer.media_type);
            let is_so = kind.is_some_and(|kind| {
                matches!(
                    (kind.compression, compression),
                    (LayerCompression::Plain, Compression::None)
                        | (LayerCompression::Gzip, Compression::Gzip)
                        | (LayerCompression::Zstd, Compression::Zstd)
                )
            });
            if is_so {
                let media_type = compression.media_type(oci).to_owned();
                layers.push(NewLayer::Kept(LayerRef { media_type, ..layer.clone() }));
                continue;
            }
            let key = format!("convert {name} {number} {}", now_ns());
            let made = self.store.make_layer(&key, compression, |out| {
                let tar = self.store.layers.tar(&layer.diff_id)?;
                let mut tar = tar.ok_or_else(|| {
                    Failure::new(Class::NotFound, format!("layer {} has no index", layer.digest))
                })?;
                let copied = io::copy(&mut tar, out);
                copied.map(drop).map_err(|e| {
                    Failure::io(&e, format!("cannot convert layer {}: {e}", layer.digest))
                })
            })?;
            if made.diff_id != layer.diff_id {
                let message = format!(
                    "layer {} unpacks to another diffID: expected {}, found {}",
                    layer.digest, layer.diff_id, made.diff_id
                );
                return Err(Failure::new(Class::BadData, message).hint("pull the image again"));
            }
            layers.push(NewLayer::Made(made));
        }
        let config = self.document(&base.config)?;
        self.place(NewImage { name: name.to_owned(), base, layers, config, oci })
    }

    fn config_value(&self, image: &ImageRecord) -> Result<Value, Failure> {
        let bytes = self.document(&image.config)?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(Class::BadData, format!("config {} is no JSON: {e}", image.config))
        })?;
        match value.is_object() {
            true => Ok(value),
            false => {
                let message = format!("config {} is no JSON object", image.config);
                Err(Failure::new(Class::BadData, message))
            }
        }
    }

    /// Puts everything in its place.
    fn place(&self, image: NewImage<'_>) -> Result<ImageRecord, Failure> {
        let NewImage { name, base, layers, config, oci } = image;
        let store = &self.store;
        if config.len() as u64 > MAX_CONFIG_SIZE {
            return Err(Failure::new(Class::BadData, "the image's config would be too large"));
        }
        let _no_sweep = self.gate.blocking_read();
        let mut placed = Vec::new();
        for layer in layers {
            let layer = match layer {
                NewLayer::Kept(layer) => layer,
                NewLayer::Made(Unplaced { ingest, diff_id, compression }) => {
                    let blob = ingest.commit()?;
                    let media_type = compression.media_type(oci).to_owned();
                    LayerRef { digest: blob.digest, size: blob.size, media_type, diff_id }
                }
            };
            let flight = self.flight(layer.diff_id);
            let _alone = flight.blocking_lock();
            if !matches!(store.layers.layer_by_diff_id(&layer.diff_id), Ok(Some(_))) {
                store.index_local(&layer, &CancellationToken::new())?;
            }
            placed.push(layer);
        }
        let config_digest = Digest::sha256(&config);
        store.put(&config_digest, &config)?;
        let (manifest_type, config_type) = match oci {
            true => (MEDIA_TYPE_OCI_MANIFEST, MEDIA_TYPE_OCI_CONFIG),
            false => (MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_DOCKER_CONFIG),
        };
        let described = |media_type: &str, digest: &Digest, size: u64| json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": described(config_type, &config_digest, config.len() as u64),
            "layers": placed
                .iter()
                .map(|layer| described(&layer.media_type, &layer.digest, layer.size))
                .collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&manifest);
        store.put(&digest, &manifest)?;
        let diff_ids: Vec<_> = placed.iter().map(|layer| layer.diff_id).collect();
        let now = now_ns();
        let mut record = ImageRecord {
            name,
            target: TargetDescriptor {
                media_type: manifest_type.to_owned(),
                digest,
                size: manifest.len() as u64,
                annotations: Default::default(),
            },
            indexes: Vec::new(),
            manifest: digest,
            manifest_type: manifest_type.to_owned(),
            config: config_digest,
            platform: base.platform.clone(),
            layers: placed,
            chain_id: chain_id(&diff_ids),
            others: Vec::new(),
            attached: Vec::new(),
            created_at_ns: now,
            updated_at_ns: now,
            labels: Default::default(),
            mounted_at_ns: 0,
            pinned: false,
        };
        let refers = labels::of_children(&references(digest, &manifest)?);
        store.metadata.transaction(|tx| {
            if let Some(old) = tx.image(&record.name)? {
                record.take_over(old);
            }
            tx.put_image(&record)?;
            tx.label_content(&digest, refers.into_iter().map(|(k, v)| (k, Some(v))))?;
            for layer in &record.layers {
                let label = (LABEL_UNCOMPRESSED.to_owned(), Some(layer.diff_id.to_string()));
                tx.label_content(&layer.digest, [label])?;
            }
            Ok::<_, Failure>(())
        })?;
        store.write_index()?;
        Ok(record)
    }
}

/// The name of an image that is made here.
///
/// # Errors
/// Where it is none of a registry's, or names a digest.
pub fn new_name(name: &str) -> Result<String, Failure> {
    match name.parse::<Reference>()? {
        Reference::Registry(name) if name.digest().is_none() => Ok(name.to_string()),
        other => {
            let message = format!("cannot name an image {other}: expected a name and a tag");
            Err(Failure::new(Class::Usage, message).hint("as in: example.com/x:1"))
        }
    }
}

fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value[key].is_object() {
        value[key] = json!({});
    }
    value[key].as_object_mut().expect("made an object just now")
}

fn set_diff_ids(config: &mut Value, diff_ids: &[Digest]) {
    let diff_ids: Vec<_> = diff_ids.iter().map(Digest::to_string).collect();
    config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
}

/// History, author and time of a commit, and what the user changes.
fn change_config(config: &mut Value, options: &CommitOptions<'_>) -> Result<(), Failure> {
    config["created"] = options.created.clone().into();
    if !options.author.is_empty() {
        config["author"] = options.author.clone().into();
    }
    if let Some(config) = config.as_object_mut() {
        // Docker's word on the container that made the base
        for key in ["container", "container_config", "id", "parent"] {
            config.shift_remove(key);
        }
    }
    for change in &options.changes {
        apply(object(config, "config"), change)?;
    }
    let mut step = json!({ "created": options.created, "created_by": "peel commit" });
    if !options.author.is_empty() {
        step["author"] = options.author.clone().into();
    }
    if !options.message.is_empty() {
        step["comment"] = options.message.clone().into();
    }
    let mut history = match config["history"].take() {
        Value::Array(history) => history,
        _ => Vec::new(),
    };
    // Steps whose layers are not below say nothing of this image
    let (mut left, all) = (options.layers, options.base.layers.len());
    history.retain(|step| {
        if step["empty_layer"] == true {
            return left > 0 || options.layers == all;
        }
        let is_below = left > 0;
        left = usize::saturating_sub(left, 1);
        is_below
    });
    history.push(step);
    config["history"] = history.into();
    Ok(())
}

/// One instruction of a Dockerfile that changes a config.
///
/// Source: OCI image-spec, config.md, and Docker's reference of `docker commit --change`.
fn apply(config: &mut Map<String, Value>, change: &str) -> Result<(), Failure> {
    let malformed = |expected: &str| {
        let message = format!("malformed change: expected {expected}, found {change:?}");
        let hint =
            "there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR";
        Failure::new(Class::Usage, message).hint(hint)
    };
    let (name, value) = change.trim().split_once(char::is_whitespace).unwrap_or((change, ""));
    let value = value.trim();
    let list = || -> Result<Value, Failure> {
        match value.starts_with('[') {
            true => serde_json::from_str::<Vec<String>>(value)
                .map(Value::from)
                .map_err(|_| malformed("a JSON list of texts")),
            false if value.is_empty() => Ok(json!([])),
            false => Ok(json!(["/bin/sh", "-c", value])),
        }
    };
    let pair = || value.split_once('=').ok_or_else(|| malformed("NAME=VALUE"));
    let plain = |text: &str| text.trim_matches('"').to_owned();
    let set_of = |config: &mut Map<String, Value>, key: &str, names: Vec<String>| {
        let entry = config.entry(key).or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        for name in names {
            entry[name] = json!({});
        }
    };
    match name.to_ascii_uppercase().as_str() {
        "CMD" => drop(config.insert("Cmd".to_owned(), list()?)),
        "ENTRYPOINT" => drop(config.insert("Entrypoint".to_owned(), list()?)),
        "USER" => drop(config.insert("User".to_owned(), value.into())),
        "WORKDIR" => drop(config.insert("WorkingDir".to_owned(), value.into())),
        "STOPSIGNAL" => drop(config.insert("StopSignal".to_owned(), value.into())),
        "ENV" => {
            let (name, value) = pair()?;
            let entry = config.entry("Env").or_insert_with(|| json!([]));
            let mut env = match entry.take() {
                Value::Array(env) => env,
                _ => Vec::new(),
            };
            let start = format!("{name}=");
            env.retain(|known| !known.as_str().is_some_and(|known| known.starts_with(&start)));
            env.push(format!("{start}{}", plain(value)).into());
            *entry = env.into();
        }
        "LABEL" => {
            let (name, value) = pair()?;
            let labels = config.entry("Labels").or_insert_with(|| json!({}));
            if !labels.is_object() {
                *labels = json!({});
            }
            labels[plain(name)] = plain(value).into();
        }
        "EXPOSE" => {
            let ports = value.split_whitespace();
            let ports = ports.map(|port| match port.contains('/') {
                true => port.to_owned(),
                false => format!("{port}/tcp"),
            });
            set_of(config, "ExposedPorts", ports.collect());
        }
        "VOLUME" => {
            let paths = match value.starts_with('[') {
                true => serde_json::from_str(value).map_err(|_| malformed("a JSON list"))?,
                false => value.split_whitespace().map(str::to_owned).collect(),
            };
            set_of(config, "Volumes", paths);
        }
        _ => return Err(malformed("an instruction that changes a config")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_a_config() {
        let mut config = json!({ "Env": ["A=1", "B=2"], "Labels": null, "User": "old" });
        let config = config.as_object_mut().unwrap();
        for change in [
            "ENV A=x y",
            r#"CMD ["a", "b"]"#,
            "ENTRYPOINT echo hi",
            "LABEL k=\"v w\"",
            "USER ann",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "WORKDIR /w",
            "stopsignal SIGINT",
        ] {
            apply(config, change).unwrap();
        }
        let expected = json!({
            "Env": ["B=2", "A=x y"],
            "Labels": { "k": "v w" },
            "User": "ann",
            "Cmd": ["a", "b"],
            "Entrypoint": ["/bin/sh", "-c", "echo hi"],
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Volumes": { "/data": {} },
            "WorkingDir": "/w",
            "StopSignal": "SIGINT",
        });
        assert_eq!(Value::Object(config.clone()), expected);
        for bad in ["RUN x", "ENV A", "CMD [1]", "VOLUME [", "", "LABEL"] {
            assert_eq!(apply(config, bad).unwrap_err().class, Class::Usage, "{bad}");
        }
    }
}
