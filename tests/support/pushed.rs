//! An image in a registry, and what containerd's clients say of its layers.

use std::fs;

use peel_index::Digest;
use serde_json::{Value, json};

use super::{
    Peel,
    image::{Layer, Layout, busybox},
    registry::Registry,
};

/// An image of layers over busybox, as `team/box:1` in a registry.
pub struct Pushed {
    pub name: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Digests and sizes of the blobs, the lowest first.
    pub layers: Vec<(String, u64)>,
    pub diff_ids: Vec<String>,
    /// The chainID of each layer with those below it.
    pub chains: Vec<String>,
}

impl Pushed {
    /// Puts `layers` over busybox; a container of it runs `command` in a shell.
    pub fn new(peel: &Peel, registry: &Registry, layers: Vec<Layer>, command: &str) -> Self {
        let mut layout = Layout::new(peel.path("layout"));
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh", "-c", command] });
        let layers = std::iter::once(busybox()).chain(layers).collect();
        let manifest = layout.image("box", layers, config);
        registry.push(&layout.reference("box"), "team/box:1", &[]);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let config = layout.blob_path(&text(&manifest["config"]["digest"]));
        let config: Value =
            serde_json::from_slice(&fs::read(config).expect("config")).expect("JSON");
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("diffIDs").iter();
        let diff_ids: Vec<_> = diff_ids.map(text).collect();
        let digests: Vec<Digest> = diff_ids.iter().map(|id| id.parse().expect("digest")).collect();
        let chain = |len| peel_index::chain_id(&digests[..len]).expect("layers").to_string();
        let layers = manifest["layers"].as_array().expect("layers").iter();
        Self {
            name: format!("{}/team/box:1", registry.host),
            manifest: registry.raw("team/box:1", &[]).0,
            layers: layers
                .map(|layer| (text(&layer["digest"]), layer["size"].as_u64().expect("size")))
                .collect(),
            chains: (1..=digests.len()).map(chain).collect(),
            diff_ids,
        }
    }

    /// Three layers, the highest of which hides a file of the one below.
    pub fn of_three(peel: &Peel, registry: &Registry) -> Self {
        let middle = Layer::new().dir("data", 0o755).file("data/one", 0o644, "one").file(
            "data/gone",
            0o644,
            "gone",
        );
        let top = Layer::new().file("data/two", 0o600, "two").whiteout("data/gone");
        Self::new(peel, registry, vec![middle, top], "cat /data/*")
    }
}
