//! Pulls through a real registry, Debian's docker-registry, filled by skopeo.

mod support;

use std::{fs, process::Command};

use serde_json::json;
use support::{
    Peel, can_mount, has_tool,
    image::{Layer, Layout, noise},
    registry::Registry,
    run, walk,
};

#[test]
fn pull_by_tag_and_by_digest_and_again() {
    if !can_mount() || !has_tool("docker-registry") || !has_tool("skopeo") {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("a", 0o644, noise(11, 3 << 20)),
        Layer::new().file("b", 0o644, "b").whiteout("a"),
        Layer::new().file("c", 0o644, noise(12, 200_000)),
    ];
    layout.image("v1", layers, json!({}));
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);

    let reference = format!("{}/team/app:v1", registry.host);
    let pulled = peel.peel(["pull", &reference]);
    assert!(pulled.stderr.contains("3 layers"), "{pulled:?}");
    let digest = pulled.ok().trim().to_owned();
    let images = peel.json(["images", "--json"]);
    assert_eq!(images[0]["name"], reference);
    assert_eq!(images[0]["digest"], digest);

    peel.peel(["mount", &reference, "m"]).ok();
    let names: Vec<_> = walk(&peel.path("m")).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read(peel.path("m/c")).expect("read"), noise(12, 200_000));

    let by_digest = format!("{}/team/app@{digest}", registry.host);
    assert_eq!(peel.peel(["pull", &by_digest]).ok().trim(), digest);
    let found = peel.json(["inspect", &by_digest]);
    assert_eq!(found["manifest"]["digest"], digest);

    let missing = peel.peel(["pull", &format!("{}/team/app:v9", registry.host)]).fails(3);
    assert!(missing.contains("v9") && missing.contains("hint: "), "{missing}");

    // What was pulled is a layout that other tools read
    let content = format!("oci:{}:{reference}", peel.root().join("content").display());
    let seen = run(Command::new("skopeo").args(["inspect", "--raw", &content]));
    let raw: serde_json::Value = serde_json::from_str(&seen.ok()).expect("JSON");
    assert_eq!(raw["layers"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_tag_that_moves_is_pulled_anew_and_mounts_keep_the_old() {
    if !can_mount() || !has_tool("docker-registry") || !has_tool("skopeo") {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("one", vec![Layer::new().file("v", 0o644, "one")], json!({}));
    layout.image("two", vec![Layer::new().file("v", 0o644, "two")], json!({}));
    let registry = Registry::start();
    let reference = format!("{}/app:latest", registry.host);
    registry.push(&layout.reference("one"), "app:latest", &[]);
    peel.peel(["mount", &reference, "old"]).ok();
    registry.push(&layout.reference("two"), "app:latest", &[]);
    peel.peel(["pull", &reference]).ok();
    peel.peel(["mount", &reference, "new"]).ok();
    assert_eq!(fs::read(peel.path("old/v")).expect("read"), b"one");
    assert_eq!(fs::read(peel.path("new/v")).expect("read"), b"two");
    assert_eq!(peel.json(["images", "--json"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_multi_platform_index_gives_the_platform_asked_for() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let mut entries = Vec::new();
    for arch in ["amd64", "arm64", "s390x"] {
        layout.image("part", vec![Layer::new().file("arch", 0o644, arch)], json!({}));
        let index = fs::read(layout.dir.join("index.json")).expect("read");
        let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
        let mut entry =
            index["manifests"].as_array().and_then(|m| m.last()).expect("entry").clone();
        entry["platform"] = json!({ "os": "linux", "architecture": arch });
        entry.as_object_mut().expect("object").remove("annotations");
        entries.push(entry);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let descriptor = layout.blob(media_type, index.to_string().as_bytes());
    layout.tag("all", descriptor);
    let reference = layout.reference("all");
    peel.peel(["pull", "--platform", "linux/s390x", &reference]).ok();
    peel.peel(["mount", &reference, "m"]).ok();
    assert_eq!(fs::read(peel.path("m/arch")).expect("read"), b"s390x");
    let none = peel.peel(["pull", "--platform", "linux/riscv64", &reference]).fails(3);
    assert!(none.contains("linux/riscv64") && none.contains("linux/arm64"), "{none}");
    let malformed = peel.peel(["pull", "--platform", "nonsense", &reference]).fails(2);
    assert!(malformed.contains("nonsense"), "{malformed}");
}
