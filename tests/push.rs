//! Pushes: byte for byte what was pulled, no more than is missing, and over a bad network.

mod support;

use std::{fs, process::Command};

use serde_json::{Value, json};
use support::{
    Peel,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy},
    registry::{Registry, can_serve},
    run,
};

/// An image of three layers.
fn single(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("a", 0o644, noise(41, 3_000_000)),
        Layer::new().file("b", 0o644, noise(42, 100_000)),
        Layer::new().file("c", 0o644, "c"),
    ];
    layout.image("v1", layers, json!({}));
    layout
}

/// An index of two platforms and what is no image beside them.
fn several(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("several"));
    let mut entries = Vec::new();
    for arch in ["amd64", "arm64"] {
        let layers = vec![
            Layer::new().file("shared", 0o644, noise(43, 200_000)),
            Layer::new().file("arch", 0o644, arch),
        ];
        layout.image("part", layers, json!({}));
        let index = fs::read(layout.dir.join("index.json")).expect("read");
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        let entry = index["manifests"].as_array().and_then(|m| m.last()).expect("entry");
        let mut entry = entry.clone();
        entry["platform"] = json!({ "os": "linux", "architecture": arch });
        entry["annotations"] = json!({ "of": arch });
        entries.push(entry);
    }
    // As build tools attach what they know of a build
    let config = layout.blob("application/vnd.oci.image.config.v1+json", b"{}");
    let statement = layout.blob("application/vnd.in-toto+json", b"{\"_type\":\"statement\"}");
    let attestation = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [statement],
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = layout.blob(media_type, attestation.to_string().as_bytes());
    entry["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    entries.push(entry);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": entries,
        "annotations": { "kept": "yes" },
    });
    let descriptor = layout.blob(media_type, index.to_string().as_bytes());
    layout.tag("all", descriptor);
    layout
}

/// Requests of a kind that a proxy saw.
fn count(proxy: &Proxy, method: &str, part: &str) -> usize {
    proxy.seen().iter().filter(|r| r.method == method && r.path.contains(part)).count()
}

#[test]
fn what_was_pulled_is_pushed_byte_for_byte() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    registry.push(&single(&peel).reference("v1"), "team/app:v1", &[]);
    registry.push(&single(&peel).reference("v1"), "team/docker:v1", &["--format", "v2s2"]);
    let other = Registry::start();
    for name in ["team/app:v1", "team/docker:v1"] {
        let source = format!("{}/{name}", registry.host);
        let target = format!("{}/copy/{name}", other.host);
        let (digest, raw) = registry.raw(name, &[]);
        assert_eq!(peel.peel(["pull", "-q", &source]).ok().trim(), digest);
        let pushed = peel.peel(["push", &source, &target]);
        assert!(pushed.stderr.contains("pushing"), "{pushed:?}");
        assert_eq!(pushed.ok().trim(), digest);
        assert_eq!(other.raw(&format!("copy/{name}"), &[]), (digest.clone(), raw));
        // And round again, with nothing left of the first
        peel.peel(["rm", &source]).ok();
        assert_eq!(peel.peel(["pull", "-q", &target]).ok().trim(), digest);
        peel.peel(["mount", &target, "m"]).ok();
        assert!(fs::read(peel.path("m/a")).expect("read") == noise(41, 3_000_000));
        peel.peel(["umount", "m"]).ok();
        // By its own name, and by that and its digest
        assert_eq!(peel.peel(["push", &target]).ok().trim(), digest);
        let named = format!("{}/copy/{}@{digest}", other.host, name.replace(":v1", ""));
        assert_eq!(peel.peel(["push", &target, &named]).ok().trim(), digest);
    }
    let name = format!("{}/copy/team/app:v1", other.host);
    let wrong = format!("{}/x@sha256:{}", other.host, "0".repeat(64));
    let error = peel.peel(["push", &name, &wrong]).fails(4);
    assert!(error.contains("expected sha256:0000") && error.contains("hint: "), "{error}");
    let error = peel.peel(["push", &name, "oci:somewhere:v1"]).fails(2);
    assert!(error.contains("expected an image of a registry"), "{error}");
    peel.peel(["push", "not.here/app:v1"]).fails(3);
}

#[test]
fn an_index_is_pushed_as_a_whole() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = several(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("all"), "team/all:v1", &[]);
    let other = Registry::start();
    let source = format!("{}/team/all:v1", registry.host);
    let target = format!("{}/team/all:v1", other.host);
    let (digest, raw) = registry.raw("team/all:v1", &[]);

    // One platform alone goes as its manifest
    peel.peel(["pull", "-q", "--platform", "linux/arm64", &source]).ok();
    let pushed = peel.peel(["push", &source, &format!("{}/team/one:v1", other.host)]);
    assert!(pushed.stderr.contains("one platform alone"), "{pushed:?}");
    let manifest = pushed.ok();
    assert_eq!(peel.json(["inspect", &source])["manifest"]["digest"], manifest.trim());
    assert_eq!(other.raw("team/one:v1", &[]).0, manifest.trim());
    let error = peel.peel(["push", "--all-platforms", &source, &target]).fails(3);
    assert!(error.contains("peel pull --all-platforms"), "{error}");

    let pulled = peel.peel(["pull", "--all-platforms", "--platform", "linux/arm64", &source]);
    assert_eq!(pulled.ok().trim(), digest);
    peel.peel(["mount", &source, "m"]).ok();
    assert_eq!(fs::read(peel.path("m/arch")).expect("read"), b"arm64");
    peel.peel(["umount", "m"]).ok();
    assert_eq!(peel.peel(["push", "--all-platforms", &source, &target]).ok().trim(), digest);
    assert_eq!(other.raw("team/all:v1", &[]), (digest.clone(), raw));

    // The content is an image layout that others copy as a whole
    let content = format!("oci:{}:{source}", peel.root().join("content").display());
    let copy = peel.path("copy");
    let copied = format!("oci:{}:all", copy.display());
    let mut skopeo = Command::new("skopeo");
    run(skopeo.args(["--insecure-policy", "copy", "--all", &content, &copied])).ok();
    let index = fs::read(copy.join("index.json")).expect("read");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["manifests"][0]["digest"], digest);
    // Everything goes with it
    peel.peel(["rm", &source]).ok();
    assert_eq!(fs::read_dir(peel.root().join("content/blobs/sha256")).expect("list").count(), 0);
}

#[test]
fn no_more_is_sent_than_is_missing() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = single(&peel);
    let registry = Registry::start();
    let proxy = Proxy::start(&registry.host, |_| Fault::None);
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    let target = |name: &str| format!("{}/{name}", proxy.host);
    let digest = peel.peel(["push", &layout.reference("v1"), &target("one:v1")]).ok();
    assert_eq!(count(&proxy, "POST", "/blobs/uploads/"), 4, "three layers and a config");
    assert_eq!(count(&proxy, "PATCH", "/blobs/uploads/"), 1, "the others go with their end");
    // Again: nothing to send
    assert_eq!(peel.peel(["push", &layout.reference("v1"), &target("one:v1")]).ok(), digest);
    assert_eq!(count(&proxy, "POST", "/blobs/uploads/"), 4);
    // To another repository of the same registry: taken from the first
    peel.peel(["pull", "-q", &target("one:v1")]).ok();
    let pushed = peel.peel(["push", &target("one:v1"), &target("two:v1")]);
    assert!(pushed.stderr.contains("taken from another repository"), "{pushed:?}");
    assert_eq!(pushed.ok(), digest);
    assert_eq!(count(&proxy, "POST", "mount="), 4);
    assert_eq!(count(&proxy, "PATCH", "/blobs/uploads/"), 1);
    assert_eq!(registry.raw("two:v1", &[]).0, digest.trim());
}

#[test]
fn an_upload_that_breaks_goes_on() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = single(&peel);
    let registry = Registry::start();
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    let broken = std::sync::atomic::AtomicUsize::new(0);
    let proxy = Proxy::start(&registry.host, move |r| {
        use std::sync::atomic::Ordering::SeqCst;
        match r.method.as_str() {
            "PATCH" if broken.fetch_add(1, SeqCst) < 2 => Fault::CutRequest(1_200_000),
            "POST" if r.earlier == 0 => Fault::Status(500, Vec::new()),
            "PUT" if r.path.contains("/manifests/") && r.earlier == 0 => {
                Fault::Status(429, vec![("Retry-After".to_owned(), "1".to_owned())])
            }
            _ => Fault::None,
        }
    });
    let target = format!("{}/app:v1", proxy.host);
    let digest = peel.peel(["push", &layout.reference("v1"), &target]).ok();
    assert_eq!(registry.raw("app:v1", &[]).0, digest.trim());
    assert_eq!(count(&proxy, "PATCH", "uploads/"), 3);

    let proxy = Proxy::start(&registry.host, |r| match r.method.as_str() {
        "PATCH" => Fault::CutRequest(1000),
        _ => Fault::None,
    });
    let target = format!("{}/other:v1", proxy.host);
    let error = peel.peel(["push", &layout.reference("v1"), &target]).fails(6);
    assert!(error.contains("upload of blob sha256:") && error.contains("hint: "), "{error}");
}
