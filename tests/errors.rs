//! Bad input: one clear error, a hint, an exit code, and nothing left behind.

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::process::CommandExt as _,
    thread,
};

use serde_json::{Value, json};
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    run, walk,
};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn sample(peel: &Peel) -> (Layout, Value) {
    let mut layout = Layout::new(peel.path("layout"));
    let layer = Layer::new().file("a", 0o644, noise(3, 300_000));
    let manifest = layout.image("v1", vec![layer], json!({}));
    (layout, manifest)
}

/// Nothing of a failed pull stays.
#[track_caller]
fn nothing_left(peel: &Peel) {
    assert_eq!(peel.json(["images", "--json"]), json!([]));
    for dir in ["content/blobs", "content/ingest", "layers", "trees", "snapshots"] {
        let files: Vec<_> = walk(&peel.root().join(dir)).filter(|p| p.is_file()).collect();
        assert!(files.is_empty(), "{dir}: {files:?}");
    }
}

#[track_caller]
fn expect(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
    assert!(error.contains("hint: "), "no hint in: {error}");
}

#[test]
fn references_that_name_nothing() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let (layout, _) = sample(&peel);
    expect(&peel.peel(["pull", "UPPER/Case"]).fails(2), &["UPPER/Case"]);
    let missing = peel.peel(["pull", &layout.reference("v2")]).fails(3);
    expect(&missing, &["v2", "v1"]);
    let nowhere = peel.peel(["pull", "oci:/no/such/layout:x"]).fails(3);
    expect(&nowhere, &["/no/such/layout"]);
    let unreachable = peel.peel(["pull", "localhost:1/a/b:c"]).fails(6);
    expect(&unreachable, &["localhost:1"]);
    expect(&peel.peel(["rm", "nginx"]).fails(3), &["docker.io/library/nginx:latest"]);
    expect(&peel.peel(["inspect", "nginx"]).fails(3), &["docker.io/library/nginx:latest"]);
    nothing_left(&peel);
}

#[test]
fn a_wrong_digest() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let (layout, manifest) = sample(&peel);
    let digest = manifest["layers"][0]["digest"].as_str().expect("digest");
    let path = layout.blob_path(digest);
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).expect("write");
    let error = peel.peel(["pull", &layout.reference("v1")]).fails(5);
    expect(&error, &["wrong digest", digest, "expected", "found"]);
    nothing_left(&peel);
}

#[test]
fn a_truncated_gzip_and_a_size_that_lies() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let (mut layout, manifest) = sample(&peel);
    let path = layout.blob_path(manifest["layers"][0]["digest"].as_str().expect("digest"));
    let bytes = fs::read(&path).expect("read");
    let cut = layout.blob(GZIP, &bytes[..bytes.len() / 2]);
    let diff_id = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    layout.manifest("cut", vec![cut.clone()], &[diff_id.to_owned()], json!({}));
    let error = peel.peel(["pull", &layout.reference("cut")]).fails(5);
    expect(&error, &["cut off", cut["digest"].as_str().expect("digest")]);
    nothing_left(&peel);

    let mut lying = manifest["layers"][0].clone();
    lying["size"] = json!(bytes.len() + 1);
    layout.manifest("lying", vec![lying], &[diff_id.to_owned()], json!({}));
    let error = peel.peel(["pull", &layout.reference("lying")]).fails(5);
    expect(&error, &["size", "expected", "found"]);
    nothing_left(&peel);

    let honest = manifest["layers"][0].clone();
    layout.manifest("other", vec![honest], &[diff_id.to_owned()], json!({}));
    let error = peel.peel(["pull", &layout.reference("other")]).fails(5);
    expect(&error, &["diffID", diff_id]);
    nothing_left(&peel);
}

#[test]
fn manifests_that_are_none() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    for (tag, text) in [("html", "<html>no</html>"), ("list", "[1, 2]"), ("empty", "{}")] {
        let descriptor = layout.blob(manifest_type, text.as_bytes());
        let digest = descriptor["digest"].as_str().expect("digest").to_owned();
        layout.tag(tag, descriptor);
        let error = peel.peel(["pull", &layout.reference(tag)]).fails(5);
        expect(&error, &[&digest]);
        nothing_left(&peel);
    }
}

#[test]
fn a_registry_that_does_not_speak_the_protocol() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let host = listener.local_addr().expect("address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten().take(20) {
            let mut stream = stream;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let body = "<html>captive portal</html>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let error = peel.peel(["pull", &format!("{host}/a/b:c")]).fails(5);
    expect(&error, &[&host]);
    nothing_left(&peel);
}

#[test]
fn no_fuse_and_no_runc() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let (layout, _) = sample(&peel);
    // In a mount namespace of its own, /dev/fuse is hidden by /dev/null
    let script = "mount --bind /dev/null /dev/fuse && exec \"$0\" daemon";
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_peel"));
    command.env("PEEL_ROOT", peel.root()).env("PEEL_STATE", peel.state());
    expect(&run(&mut command).fails(6), &["/dev/fuse"]);

    let mut command = peel.command();
    command.env("PATH", peel.dir()).args(["run", &layout.reference("v1"), "true"]);
    command.arg0("peel");
    expect(&run(&mut command).fails(125), &["runc"]);
    nothing_left(&peel);
}

#[test]
fn a_root_that_is_no_directory_and_another_roots_daemon() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    fs::write(peel.path("file"), "").expect("write");
    let error = run(peel.command().env("PEEL_ROOT", peel.path("file")).arg("images"));
    assert_ne!(error.code, Some(0));
    assert!(error.stderr.contains("error: ") && error.stderr.contains("file"), "{error:?}");

    peel.peel(["images"]).ok();
    let error = run(peel.command().env("PEEL_ROOT", peel.path("root2")).arg("images")).fails(4);
    expect(&error, &["root2", "--state"]);
}
