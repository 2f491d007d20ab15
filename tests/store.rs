//! What is done with images that are here: names, labels, checks, room.

mod support;

use std::{fs, thread, time::Duration};

use serde_json::{Value, json};
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    run,
};

/// Images that share a layer of 300 kB, each with 200 kB of its own.
fn layout(peel: &Peel, images: u64) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    for n in 0..images {
        let layers = vec![
            Layer::new().file("shared", 0o644, noise(81, 300_000)),
            Layer::new().file("own", 0o644, noise(90 + n, 200_000)),
        ];
        layout.image(&format!("v{n}"), layers, json!({ "User": format!("{n}") }));
    }
    layout
}

/// Two of them, pulled.
fn pulled(peel: &Peel) -> [String; 2] {
    let layout = layout(peel, 2);
    let references = ["v0", "v1"].map(|tag| layout.reference(tag));
    for reference in &references {
        peel.peel(["pull", "-q", reference]).ok();
    }
    references
}

fn names(peel: &Peel) -> Vec<String> {
    let images = peel.json(["images", "--json"]);
    let images = images.as_array().expect("list").iter();
    images.map(|image| image["name"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn names_come_and_go() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let [first, second] = pulled(&peel);
    let said = peel.peel(["tag", &first, "mine"]);
    assert!(said.stderr.contains("tagged docker.io/library/mine:latest"), "{said:?}");
    said.ok();
    peel.peel(["rm", &first]).ok();
    peel.peel(["mount", "mine", "m"]).ok();
    assert!(fs::read(peel.path("m/own")).expect("read") == noise(90, 200_000));
    peel.peel(["umount", "m"]).ok();
    // To another image: what it stood for goes
    peel.peel(["label", "mine", "kept=yes"]).ok();
    peel.peel(["tag", &second, "mine"]).ok();
    assert_eq!(peel.json(["inspect", "mine"])["digest"], peel.json(["inspect", &second])["digest"]);
    assert_eq!(peel.peel(["label", "mine"]).ok(), "kept=yes\n");
    assert_eq!(peel.json(["gc", "--json"])["items"], json!([]));
    assert_eq!(names(&peel), ["docker.io/library/mine:latest".to_owned(), second.clone()]);
    peel.peel(["tag", &second, "oci:x:y"]).fails(2);
    peel.peel(["tag", "nothing", "mine"]).fails(3);

    peel.peel(["label", &second, "a=1", "b=x=y"]).ok();
    assert_eq!(peel.peel(["label", &second, "a="]).ok(), "b=x=y\n");
    assert_eq!(peel.json(["inspect", &second])["labels"], json!({ "b": "x=y" }));
    peel.peel(["label", &second, "=1"]).fails(2);
    // Labels are the name's: they stay when it is pulled again
    peel.peel(["pull", "-q", &second]).ok();
    assert_eq!(peel.peel(["label", &second]).ok(), "b=x=y\n");
}

#[test]
fn history_is_told() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![Layer::new().file("a", 0o644, "a"), Layer::new().file("b", 0o644, "b")];
    let manifest = layout.image("plain", layers, json!({}));
    let path = layout.blob_path(manifest["config"]["digest"].as_str().expect("text"));
    let mut config: Value = serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON");
    let long = format!("RUN {}", "x".repeat(100));
    config["history"] = json!([
        { "created": "2024-01-02T03:04:05Z", "created_by": "ADD rootfs" },
        { "created_by": "ENV A=1", "empty_layer": true },
        { "created_by": long, "comment": "buildkit" },
    ]);
    let bytes = serde_json::to_vec(&config).expect("JSON");
    let mut manifest = manifest;
    manifest["config"] = layout.blob("application/vnd.oci.image.config.v1+json", &bytes);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = layout.blob(media_type, manifest.to_string().as_bytes());
    layout.tag("v1", descriptor);
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    let steps = peel.json(["history", "--json", &layout.reference("v1")]);
    assert_eq!(steps[0]["created_by"], long);
    assert_eq!(steps[0]["layer"], manifest["layers"][1]["digest"]);
    assert_eq!(steps[1]["layer"], Value::Null);
    assert_eq!(steps[2]["size"], manifest["layers"][0]["size"]);
    let table = peel.peel(["history", &layout.reference("v1")]).ok();
    assert!(table.contains('…') && table.contains("buildkit") && table.contains("0 B"), "{table}");
    assert!(peel.peel(["history", "--no-trunc", &layout.reference("v1")]).ok().contains(&long));
}

#[test]
fn what_is_missing_is_found() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let [first, second] = pulled(&peel);
    assert!(peel.peel(["check"]).ok().contains("complete"));
    let layer = peel.json(["inspect", &first])["layers"][1]["digest"].clone();
    let layer = layer.as_str().expect("text");
    let blob = peel.root().join("content/blobs").join(layer.replacen(':', "/", 1));
    fs::remove_file(&blob).expect("remove");
    let ran = peel.peel(["check", "--json"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let found: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(found[0]["complete"], false);
    assert_eq!(found[0]["missing"][0]["digest"], layer);
    assert_eq!(found[1]["complete"], true);
    let error = peel.peel(["check", &first]).fails(5);
    assert!(error.contains(layer) && error.contains("hint: "), "{error}");
    peel.peel(["check", &second]).ok();
    peel.peel(["pull", "-q", &first]).ok();
    peel.peel(["check"]).ok();
}

#[test]
fn room_is_counted_and_made() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 3);
    let all = ["v0", "v1", "v2"].map(|tag| layout.reference(tag));
    for reference in &all {
        peel.peel(["pull", "-q", reference]).ok();
    }
    let df = peel.json(["df", "--json"]);
    let image = &df["images"][0];
    let of = |name: &str| image[name].as_u64().expect("number");
    assert_eq!(of("size"), of("shared") + of("unique"));
    assert!((200_000..300_000).contains(&of("unique")), "{df}");
    assert!((300_000..400_000).contains(&of("shared")), "{df}");
    assert_eq!(df["totals"]["garbage"]["size"], 0);
    let blobs = peel.root().join("content/blobs/sha256");
    let on_disk: u64 = fs::read_dir(blobs)
        .expect("list")
        .map(|entry| entry.expect("entry").metadata().expect("metadata").len())
        .sum();
    assert_eq!(df["totals"]["blobs"]["size"], on_disk);
    assert!(peel.peel(["df"]).ok().contains("UNIQUE"));

    peel.peel(["mount", &all[1], "m"]).ok();
    peel.peel(["pin", &all[2]]).ok();
    let dry: Value = peel.json(["prune", "--dry-run", "--json"]);
    assert_eq!(dry["images"], json!([all[0]]));
    assert_eq!(dry["freed"], image["unique"]);
    assert_eq!(
        peel.json(["prune", "--dry-run", "--json", "--unused-for", "1d"])["images"],
        json!([])
    );
    let error = peel.peel(["prune"]).fails(2);
    assert!(error.contains("--force"), "{error}");
    assert_eq!(peel.peel(["prune", "--force"]).ok(), format!("{}\n", all[0]));
    assert_eq!(names(&peel), all[1..]);
    peel.peel(["umount", "m"]).ok();
    peel.peel(["unpin", &all[2]]).ok();
    peel.peel(["prune", "--force"]).ok();
    assert_eq!(peel.json(["df", "--json"])["totals"]["blobs"]["size"], 0);
}

#[test]
fn a_store_is_kept_to_its_size() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 5);
    let at = |n: usize| layout.reference(&format!("v{n}"));
    // Three images: 300 kB together and 200 kB each, and what describes them
    run(peel.command().env("PEEL_MAX_SIZE", "930000").arg("images")).ok();
    for n in 0..3 {
        peel.peel(["pull", "-q", &at(n)]).ok();
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(names(&peel).len(), 3);
    peel.peel(["mount", &at(0), "m"]).ok();
    peel.peel(["umount", "m"]).ok();
    peel.peel(["pull", "-q", &at(3)]).ok();
    assert_eq!(names(&peel), [at(0), at(2), at(3)], "the first was mounted since");
    peel.peel(["pin", &at(2)]).ok();
    peel.peel(["mount", &at(3), "m"]).ok();
    peel.peel(["pull", "-q", &at(4)]).ok();
    assert_eq!(names(&peel), [at(2), at(3), at(4)]);
    peel.peel(["umount", "m"]).ok();
}

#[test]
fn what_was_just_pulled_stays_however_large() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 2);
    let at = |n: usize| layout.reference(&format!("v{n}"));
    run(peel.command().env("PEEL_MAX_SIZE", "100000").arg("images")).ok();
    peel.peel(["pull", "-q", &at(0)]).ok();
    assert_eq!(names(&peel), [at(0)], "it is alone, and larger than the store may be");
    peel.peel(["pull", "-q", &at(1)]).ok();
    assert_eq!(names(&peel), [at(1)]);
    assert!(peel.peel(["logs"]).ok().contains("the store is too large"));
}
