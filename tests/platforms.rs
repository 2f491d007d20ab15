//! Images as they come: of many platforms, of Docker's making, odd ones, and what is none.

mod support;

use std::fs;

use peel_index::{Algorithm, Hasher};
use serde_json::{Value, json};
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy},
    registry::{Registry, can_serve},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The entry of the last image that was put into a layout.
fn last(layout: &Layout) -> Value {
    let index = fs::read(layout.dir.join("index.json")).expect("read");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let mut entry = index["manifests"].as_array().and_then(|m| m.last()).expect("entry").clone();
    entry.as_object_mut().expect("object").remove("annotations");
    entry
}

/// An image whose only file says where it is for.
fn of(layout: &mut Layout, platform: &Value) -> Value {
    let text = platform.to_string();
    layout.image("part", vec![Layer::new().file("for", 0o644, text)], json!({}));
    let mut entry = last(layout);
    entry["platform"] = platform.clone();
    entry
}

fn index(layout: &mut Layout, tag: &str, media_type: &str, entries: &[Value]) -> Value {
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let descriptor = layout.blob(media_type, index.to_string().as_bytes());
    layout.tag(tag, descriptor.clone());
    descriptor
}

/// What the image that is mounted says it is for.
fn mounted(peel: &Peel, reference: &str, platform: &str) -> Value {
    peel.peel(["pull", "-q", "--platform", platform, reference]).ok();
    peel.peel(["mount", reference, "m"]).ok();
    let text = fs::read(peel.path("m/for")).expect("read");
    peel.peel(["umount", "m"]).ok();
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn the_best_variant_is_chosen_through_nested_indexes() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let platform = |arch: &str, variant: &str| match variant {
        "" => json!({ "os": "linux", "architecture": arch }),
        variant => json!({ "os": "linux", "architecture": arch, "variant": variant }),
    };
    let arms = ["v5", "v6", "v7"].map(|v| of(&mut layout, &platform("arm", v)));
    let inner = index(&mut layout, "inner", INDEX, &arms);
    let entries = [
        of(&mut layout, &platform("amd64", "")),
        of(&mut layout, &platform("amd64", "v3")),
        of(&mut layout, &platform("arm64", "v8")),
        inner,
    ];
    index(&mut layout, "all", INDEX, &entries);
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    index(&mut layout, "docker", list, &entries);
    for tag in ["all", "docker"] {
        let reference = layout.reference(tag);
        // By containerd's order: an older variant runs, a newer one does not
        let table = [
            ("linux/amd64", platform("amd64", "")),
            ("linux/amd64/v2", platform("amd64", "")),
            ("linux/amd64/v4", platform("amd64", "v3")),
            ("linux/arm64", platform("arm64", "v8")),
            ("linux/arm/v7", platform("arm", "v7")),
            ("linux/arm/v6", platform("arm", "v6")),
        ];
        for (wanted, expected) in table {
            assert_eq!(mounted(&peel, &reference, wanted), expected, "{wanted}");
        }
        peel.peel(["pull", "--all-platforms", &reference]).ok();
        let error = peel.peel(["pull", "--platform", "linux/s390x", &reference]).fails(3);
        assert!(error.contains("linux/arm/v7") || error.contains("linux/arm64"), "{error}");
    }
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let blob = layout.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart");
    let empty = layout.blob("application/vnd.oci.empty.v1+json", b"{}");
    let mut put = |tag: &str, media_type: &str, document: Value| {
        let descriptor = layout.blob(media_type, document.to_string().as_bytes());
        layout.tag(tag, descriptor);
        layout.reference(tag)
    };
    let chart = put(
        "chart",
        MANIFEST,
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": {
            "mediaType": "application/vnd.cncf.helm.config.v1+json",
            "digest": empty["digest"], "size": 2 }, "layers": [blob.clone()] }),
    );
    let artifact = put(
        "artifact",
        MANIFEST,
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/x-sbom",
            "config": empty, "layers": [blob.clone()] }),
    );
    let old = put(
        "old",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        json!({ "schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [] }),
    );
    let encrypted = put(
        "encrypted",
        MANIFEST,
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": {
            "mediaType": CONFIG, "digest": empty["digest"], "size": 2 }, "layers": [{
            "mediaType": format!("{GZIP}+encrypted"), "digest": blob["digest"], "size": 5 }] }),
    );
    let table = [
        (chart, "no container image: expected an image config, found: application/vnd.cncf.helm"),
        (artifact, "found: text/x-sbom"),
        (old, "found: Docker schema 1"),
        (encrypted, "expected a tar layer"),
    ];
    for (reference, expected) in table {
        let error = peel.peel(["pull", &reference]).fails(5);
        assert!(error.contains(expected) && error.contains("hint: "), "{error}");
    }
}

fn sha512(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(bytes);
    hasher.finish().to_string()
}

/// Puts a blob under its other digest.
fn put_sha512(layout: &Layout, media_type: &str, bytes: &[u8]) -> Value {
    let digest = sha512(bytes);
    fs::create_dir_all(layout.dir.join("blobs/sha512")).expect("directory");
    fs::write(layout.blob_path(&digest), bytes).expect("write");
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

#[test]
fn digests_of_sha512_data_in_descriptors_and_empty_layers() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    // An empty tar, as Docker makes of a step that changes nothing, twice
    let layers = vec![Layer::new(), Layer::new().file("a", 0o644, noise(51, 50_000)), Layer::new()];
    let manifest = layout.image("sha256", layers, json!({}));
    peel.peel(["pull", "-q", &layout.reference("sha256")]).ok();

    let read = |of: &Value| fs::read(layout.blob_path(of["digest"].as_str().expect("text")));
    let blobs: Vec<_> = manifest["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|l| read(l).expect("read"))
        .collect();
    let config = read(&manifest["config"]).expect("read");
    let layers: Vec<_> = blobs.iter().map(|bytes| put_sha512(&layout, GZIP, bytes)).collect();
    let other = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": put_sha512(&layout, CONFIG, &config), "layers": layers,
        "annotations": { "kept": "yes" } });
    let descriptor = put_sha512(&layout, MANIFEST, other.to_string().as_bytes());
    layout.tag("sha512", descriptor.clone());
    let reference = layout.reference("sha512");
    let digest = peel.peel(["pull", "-q", &reference]).ok();
    assert_eq!(digest.trim(), descriptor["digest"]);
    peel.peel(["mount", &reference, "m"]).ok();
    assert!(fs::read(peel.path("m/a")).expect("read") == noise(51, 50_000));
    peel.peel(["umount", "m"]).ok();
    let stored = fs::read_dir(peel.root().join("content/blobs/sha512")).expect("list").count();
    assert_eq!(stored, 4, "manifest, config, two layers of which one is there twice");
    // A wrong one is found as well
    let path = layout.blob_path(descriptor["digest"].as_str().expect("text"));
    let mut bytes = fs::read(&path).expect("read");
    bytes[10] ^= 1;
    fs::write(&path, bytes).expect("write");
    let error = peel.peel(["pull", &reference]).fails(5);
    assert!(error.contains("sha512:"), "{error}");

    // Content that the descriptors carry themselves is not looked for elsewhere
    let encode =
        |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let mut inline = manifest.clone();
    inline["config"]["data"] = json!(encode(&config));
    for (layer, bytes) in inline["layers"].as_array_mut().expect("layers").iter_mut().zip(&blobs) {
        layer["data"] = json!(encode(bytes));
    }
    let descriptor = layout.blob(MANIFEST, inline.to_string().as_bytes());
    layout.tag("inline", descriptor);
    for of in [&manifest["config"], &manifest["layers"][0], &manifest["layers"][1]] {
        fs::remove_file(layout.blob_path(of["digest"].as_str().expect("text"))).expect("remove");
    }
    let fresh = Peel::new();
    fresh.peel(["pull", "-q", &layout.reference("inline")]).ok();
    fresh.peel(["mount", &layout.reference("inline"), "m"]).ok();
    assert!(fs::read(fresh.path("m/a")).expect("read") == noise(51, 50_000));
    fresh.peel(["umount", "m"]).ok();
}

#[test]
fn foreign_layers_come_from_their_urls_and_are_not_pushed() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("a", 0o644, noise(61, 2_000_000)),
        Layer::new().file("b", 0o644, "b"),
    ];
    let mut manifest = layout.image("v1", layers, json!({}));
    let registry = Registry::with_urls();
    registry.push(&layout.reference("v1"), "elsewhere:v1", &[]);
    // Where the layer may be had: a proxy that breaks once
    let digest = manifest["layers"][0]["digest"].as_str().expect("text").to_owned();
    let shop = Proxy::start(&registry.host, |r| match r.earlier {
        0 => Fault::Cut(1_000_000),
        _ => Fault::None,
    });
    let url = format!("http://{}/v2/elsewhere/blobs/{digest}", shop.host);
    manifest["layers"][0]["mediaType"] =
        json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:1/nothing", url]);
    let descriptor = layout.blob(MANIFEST, manifest.to_string().as_bytes());
    layout.tag("foreign", descriptor.clone());

    let source = Proxy::start(&registry.host, |_| Fault::None);
    let reference = format!("{}/foreign:v1", source.host);
    // Put there by hand: no tool pushes such a layer
    peel.peel(["pull", "-q", &layout.reference("foreign")]).ok();
    let pushed = peel.peel(["push", &layout.reference("foreign"), &reference]).ok();
    assert_eq!(pushed.trim(), descriptor["digest"]);
    assert!(!source.seen().iter().any(|r| r.path.contains(&digest)), "a foreign layer stays here");
    peel.peel(["rm", &layout.reference("foreign")]).ok();

    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["mount", &reference, "m"]).ok();
    assert!(fs::read(peel.path("m/a")).expect("read") == noise(61, 2_000_000));
    peel.peel(["umount", "m"]).ok();
    assert_eq!(shop.seen().len(), 2);
    assert!(shop.seen().iter().all(|r| !r.headers.contains_key("authorization")));
    assert!(!source.seen().iter().any(|r| r.path.contains(&digest)));
}
