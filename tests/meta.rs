//! Blobs and records one by one; what an image looks like to those who know Docker.

mod support;

use std::{fs, process::Stdio};

use peel_index::Digest;
use serde_json::{Value, json};
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    registry::{Registry, can_serve},
};

fn layout(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers =
        vec![Layer::new().file("a", 0o644, noise(21, 100_000)), Layer::new().file("b", 0o644, "b")];
    layout.image("v1", layers, json!({ "Env": ["A=1"], "Cmd": ["sh"] }));
    layout
}

#[test]
fn content_has_the_labels_that_containerd_gives_it() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    registry.push(&layout(&peel).reference("v1"), "team/app:v1", &[]);
    let reference = format!("{}/team/app:v1", registry.host);
    peel.peel(["pull", "-q", &reference]).ok();
    let image = peel.json(["inspect", &reference]);
    let listed = peel.json(["content", "ls", "--json"]);
    let labels = |digest: &Value| {
        let blobs = listed.as_array().expect("list").iter();
        let blob = blobs.clone().find(|blob| blob["digest"] == *digest).expect("blob");
        blob["labels"].clone()
    };
    let source = format!("containerd.io/distribution.source.{}", registry.host);
    let manifest = labels(&image["manifest"]["digest"]);
    assert_eq!(manifest["containerd.io/gc.ref.content.config"], image["config"]["digest"]);
    assert_eq!(manifest["containerd.io/gc.ref.content.l.1"], image["layers"][1]["digest"]);
    let layer = labels(&image["layers"][0]["digest"]);
    assert_eq!(layer["containerd.io/uncompressed"], image["layers"][0]["diff_id"]);
    for labels in [&manifest, &layer, &labels(&image["config"]["digest"])] {
        assert_eq!(labels[&source], "team/app");
    }
    assert!(peel.peel(["content", "ls"]).ok().contains("containerd.io/uncompressed="));
    let layer = image["layers"][1]["digest"].as_str().expect("text");
    peel.peel(["content", "get", "-o", "layer", layer]).ok();
    let got = fs::read(peel.path("layer")).expect("read");
    assert_eq!(Digest::sha256(&got).to_string(), layer);
    let error = peel.peel(["content", "rm", layer]).fails(4);
    assert!(error.contains(&reference), "{error}");
    // One that was spoilt is not passed on as if it were well
    let path = peel.root().join("content/blobs").join(layer.replacen(':', "/", 1));
    let mut bytes = fs::read(&path).expect("read");
    bytes[20] ^= 1;
    fs::remove_file(&path).expect("remove");
    fs::write(&path, bytes).expect("write");
    let error = peel.peel(["content", "get", layer]).fails(5);
    assert!(error.contains("damaged"), "{error}");
    peel.peel(["content", "rm", "--force", layer]).ok();
    peel.peel(["check", &reference]).fails(5);
}

#[test]
fn blobs_come_and_go() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    fs::write(peel.path("one"), "one").expect("write");
    let one = Digest::sha256(b"one").to_string();
    assert_eq!(peel.peel(["content", "ingest", "one"]).ok().trim(), one);
    let two = Digest::sha256(b"two").to_string();
    let mut command = peel.command();
    let reference = format!("containerd.io/gc.ref.content.0={one}");
    let args = ["content", "ingest", "--label", "containerd.io/gc.root=yes", "--label", &reference];
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = child.as_mut().expect("start");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"two").expect("write");
    assert!(child.wait().expect("wait").success());
    assert_eq!(peel.peel(["content", "get", &two]).ok(), "two");
    let error = peel.peel(["content", "ingest", "--expected-digest", &two, "one"]).fails(5);
    assert!(error.contains("wrong digest"), "{error}");
    peel.peel(["content", "ingest", "--expected-size", "4", "one"]).fails(5);
    peel.peel(["content", "ingest", "--expected-digest", "x", "one"]).fails(2);

    // Leased for a day; then what a root refers to stays
    assert_eq!(peel.json(["gc", "--json"])["items"], json!([]));
    peel.peel(["content", "label", &one, "mine=1"]).ok();
    assert_eq!(peel.peel(["content", "label", &one, "a=b"]).ok(), "a=b\nmine=1\n");
    peel.peel(["content", "rm", &one]).ok();
    peel.peel(["content", "get", &one]).fails(3);
    peel.peel(["content", "rm", &one]).fails(3);
    assert_eq!(peel.peel(["content", "get", &two]).ok(), "two");
}

#[test]
fn records_are_dumped_and_restored() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["mount", "--rw", "--name", "w", &reference, "m"]).ok();
    fs::write(peel.path("m/written"), "kept").expect("write");
    peel.peel(["umount", "m"]).ok();
    let text = peel.peel(["metadata", "dump"]).ok();
    for line in ["metadata (generation ", "├── images", "└── w", "│       ├── platform: linux/"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let dump = peel.peel(["metadata", "dump", "--json"]).ok();
    fs::write(peel.path("dump.json"), &dump).expect("write");
    peel.peel(["tag", &reference, "later:1"]).ok();
    let error = peel.peel(["metadata", "restore", "dump.json"]).fails(4);
    assert!(error.contains("daemon stop"), "{error}");
    peel.peel(["daemon", "stop"]).ok();
    fs::write(peel.path("bad.json"), dump.replacen("linux/", "linux-", 1)).expect("write");
    let error = peel.peel(["metadata", "restore", "bad.json"]).fails(5);
    assert!(error.contains("checksum"), "{error}");
    peel.peel(["metadata", "restore", "nothing.json"]).fails(5);
    let said = peel.peel(["metadata", "restore", "dump.json"]);
    assert!(said.stderr.contains("what was there is in"), "{said:?}");
    said.ok();
    let images = peel.json(["images", "--json"]);
    assert_eq!(images.as_array().map(Vec::len), Some(1), "as it was at the time");
    peel.peel(["mount", "--rw", "--name", "w", &reference, "m"]).ok();
    assert_eq!(fs::read_to_string(peel.path("m/written")).expect("read"), "kept");
    assert!(fs::read(peel.path("m/a")).expect("read") == noise(21, 100_000));
    peel.peel(["umount", "m"]).ok();
}

#[test]
fn an_image_in_the_words_of_docker() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["tag", &reference, "app:1"]).ok();
    peel.peel(["mount", "--rw", "--name", "w", "app:1", "m"]).ok();
    let ours = peel.json(["inspect", "app:1"]);
    let docker = &peel.json(["inspect", "--format", "docker", "app:1"])[0];
    assert_eq!(docker["Id"], ours["config"]["digest"]);
    assert_eq!(docker["Config"]["Cmd"], json!(["sh"]));
    assert!(
        docker["RepoTags"].as_array().expect("list").contains(&json!("docker.io/library/app:1"))
    );
    let diff_ids: Vec<_> =
        ours["layers"].as_array().expect("layers").iter().map(|l| l["diff_id"].clone()).collect();
    assert_eq!(docker["RootFS"]["Layers"], json!(diff_ids));
    assert_eq!(docker["ChainIDs"][0], diff_ids[0]);
    assert_eq!(docker["ChainIDs"][1], ours["chain_id"]);
    let lower = docker["GraphDriver"]["Data"]["LowerDir"].as_str().expect("text");
    assert_eq!(fs::read_to_string(format!("{lower}/b")).expect("read"), "b");
    let written = &docker["Snapshots"][0]["GraphDriver"]["Data"];
    assert_eq!(written["MergedDir"], peel.path("m").display().to_string());
    fs::write(peel.path("m/new"), "new").expect("write");
    let upper = written["UpperDir"].as_str().expect("text");
    assert_eq!(fs::read_to_string(format!("{upper}/new")).expect("read"), "new");
    assert!(fs::metadata(written["WorkDir"].as_str().expect("text")).expect("work").is_dir());
    peel.peel(["umount", "--rm", "m"]).ok();

    assert!(peel.peel(["completion", "bash"]).ok().contains("_peel"));
    assert!(peel.peel(["man"]).ok().contains(".TH"));
}
