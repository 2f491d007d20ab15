//! Archives: written for other tools and read from them, with the same digests everywhere.

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually, has_tool,
    image::{Layer, Layout, noise},
    registry::{Registry, can_serve},
    run,
};

fn layout(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = || {
        vec![
            Layer::new().dir("d", 0o755).file("d/a", 0o644, noise(71, 400_000)),
            Layer::new().file("b", 0o600, "b").whiteout("d/none"),
        ]
    };
    layout.image("v1", layers(), json!({ "Env": ["A=1"] }));
    layout.image("v2", layers(), json!({ "Env": ["A=2"] }));
    layout
}

fn skopeo(args: &[&str]) -> String {
    run(Command::new("skopeo").arg("--insecure-policy").args(args)).ok()
}

fn digest_of(raw: &str) -> String {
    peel_index::Digest::sha256(raw.as_bytes()).to_string()
}

#[track_caller]
fn shows_the_image(peel: &Peel, name: &str) {
    peel.peel(["mount", name, "m"]).ok();
    assert!(fs::read(peel.path("m/d/a")).expect("read") == noise(71, 400_000));
    assert_eq!(fs::read_to_string(peel.path("m/b")).expect("read"), "b");
    peel.peel(["umount", "m"]).ok();
}

#[test]
fn an_export_is_read_by_others_and_comes_back_the_same() {
    if !can_serve() || !has_tool("umoci") {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    registry.push(&layout.reference("v1"), "team/docker:v2", &["--format", "v2s2"]);
    let names = ["team/app:v1", "team/docker:v2"].map(|name| format!("{}/{name}", registry.host));
    let [app, docker] = &names;
    for name in &names {
        peel.peel(["pull", "-q", name]).ok();
    }
    let said = peel.peel(["export", "-o", "both.tar", app, docker]);
    assert!(said.stderr.contains("exported"), "{said:?}");
    said.ok();
    let both = peel.path("both.tar");
    let both = both.to_str().expect("text");
    for (name, tag) in [("team/app:v1", "v1"), ("team/docker:v2", "v2")] {
        let raw = match tag {
            "v1" => skopeo(&["inspect", "--raw", &format!("oci-archive:{both}:{tag}")]),
            // skopeo looks for manifests of OCI alone in a layout
            _ => registry.raw(name, &[]).1,
        };
        assert_eq!(digest_of(&raw), registry.raw(name, &[]).0);
        // As Docker reads it: the same config, so the same image
        let docker = format!("docker-archive:{both}:{}/{name}", registry.host);
        let config = skopeo(&["inspect", "--raw", "--config", &docker]);
        let image: Value = serde_json::from_str(&raw).expect("JSON");
        assert_eq!(digest_of(&config), image["config"]["digest"]);
    }

    // Into a store that is new; what it exports is the same, byte for byte
    let fresh = Peel::new();
    let imported = fresh.peel(["import", "-q", both]).ok();
    assert_eq!(imported.lines().collect::<Vec<_>>(), [app.as_str(), docker.as_str()]);
    for name in &names {
        let digest = |peel: &Peel| peel.json(["inspect", name])["digest"].clone();
        assert_eq!(digest(&fresh), digest(&peel));
        shows_the_image(&fresh, name);
    }
    fresh.peel(["save", "-o", "again.tar", app, docker]).ok();
    assert!(fs::read(fresh.path("again.tar")).expect("read") == fs::read(both).expect("read"));
    let piped = support::output(fresh.command().args(["export", docker, app]));
    assert!(piped.status.success() && piped.stdout == fs::read(both).expect("read"));

    // A layout for umoci
    fresh.peel(["export", "--format", "oci", "-o", "dir", app]).ok();
    let unpacked = fresh.path("unpacked");
    let image = format!("{}:v1", fresh.path("dir").display());
    run(Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&unpacked)).ok();
    assert!(fs::read(unpacked.join("d/a")).expect("read") == noise(71, 400_000));
    let error = fresh.peel(["export", "--format", "oci", "-o", "dir", app]).fails(4);
    assert!(error.contains("not empty"), "{error}");
    fresh.peel(["export", "--format", "oci", app]).fails(2);
    fresh.peel(["export", "-o", "none.tar", "not.here/x:1"]).fails(3);
    assert!(!fresh.path("none.tar").exists());
}

#[test]
fn archives_of_others_are_read() {
    if !can_mount() || !has_tool("skopeo") {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let at = |name: &str| peel.path(name).display().to_string();
    let (docker, oci) = (at("docker.tar"), at("My image.tar"));
    let from = layout.reference("v1");
    skopeo(&["copy", "-q", &from, &format!("docker-archive:{docker}:team/app:1")]);
    skopeo(&["copy", "-q", &from, &format!("oci-archive:{oci}:v1")]);

    assert_eq!(peel.peel(["load", "-q", "-i", &docker]).ok(), "docker.io/team/app:1\n");
    shows_the_image(&peel, "team/app:1");
    assert_eq!(peel.peel(["import", "-q", &oci]).ok(), "localhost/my-image:v1\n");
    let name = peel.peel(["import", "-q", "--name", "a.example/x:3", &oci]).ok();
    assert_eq!(name, "a.example/x:3\n");
    shows_the_image(&peel, "a.example/x:3");
    let original = peel.json(["inspect", "localhost/my-image:v1"])["digest"].clone();
    assert_eq!(peel.json(["inspect", "a.example/x:3"])["digest"], original);
    peel.peel(["pull", "-q", &from]).ok();
    assert_eq!(peel.json(["inspect", &from])["digest"], original);

    // By their references, without a name of their own
    for reference in [format!("docker-archive:{docker}"), format!("oci-archive:{oci}:v1")] {
        peel.peel(["pull", "-q", &reference]).ok();
        shows_the_image(&peel, &reference);
    }
    let error = peel.peel(["pull", &format!("oci-archive:{oci}:v9")]).fails(3);
    assert!(error.contains("v9") && error.contains("v1"), "{error}");

    // Compressed as a whole, and from standard input
    run(Command::new("gzip").args(["-k", &docker])).ok();
    let fresh = Peel::new();
    let mut load = fresh.command();
    let stdin = fs::File::open(format!("{docker}.gz")).expect("open");
    let loaded = load.args(["load", "-q"]).arg("-").stdin(stdin).output().expect("load");
    assert_eq!(String::from_utf8_lossy(&loaded.stdout), "docker.io/team/app:1\n", "{loaded:?}");
    shows_the_image(&fresh, "team/app:1");

    if has_tool("zstd") {
        run(Command::new("zstd").args(["-q", "-k", &docker])).ok();
        let fresh = Peel::new();
        let loaded = fresh.peel(["load", "-q", "-i", &format!("{docker}.zst")]).ok();
        assert_eq!(loaded, "docker.io/team/app:1\n");
        shows_the_image(&fresh, "team/app:1");
    }

    // What peel writes in Docker's older way is read by skopeo
    fresh.peel(["export", "--format", "docker-archive", "-o", "old.tar", "team/app:1"]).ok();
    let old = format!("docker-archive:{}", fresh.path("old.tar").display());
    let config = skopeo(&["inspect", "--raw", "--config", &old]);
    assert_eq!(fresh.json(["inspect", "team/app:1"])["config"]["digest"], digest_of(&config));
    fs::write(peel.path("bad.tar"), "no archive").expect("write");
    let error = peel.peel(["import", "bad.tar"]).fails(5);
    assert!(error.contains("expected a tar"), "{error}");
    peel.peel(["import", "nothing.tar"]).fails(3);
}

#[test]
fn all_platforms_go_together() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let mut entries = Vec::new();
    for arch in ["amd64", "arm64"] {
        layout.image("part", vec![Layer::new().file("arch", 0o644, arch)], json!({ "User": arch }));
        let index = fs::read(layout.dir.join("index.json")).expect("read");
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        let mut entry =
            index["manifests"].as_array().and_then(|m| m.last()).expect("entry").clone();
        entry["platform"] = json!({ "os": "linux", "architecture": arch });
        entry["annotations"] = Value::Null;
        entry.as_object_mut().expect("object").remove("annotations");
        entries.push(entry);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let descriptor = layout.blob(media_type, index.to_string().as_bytes());
    layout.tag("all", descriptor.clone());
    let reference = layout.reference("all");
    peel.peel(["pull", "-q", "--platform", "linux/amd64", &reference]).ok();
    let error = peel.peel(["export", "--all-platforms", "-o", "x.tar", &reference]).fails(3);
    assert!(error.contains("not every platform"), "{error}");
    peel.peel(["export", "-o", "one.tar", &reference]).ok();
    peel.peel(["pull", "-q", "--platform", "linux/amd64", "--all-platforms", &reference]).ok();
    peel.peel(["export", "-o", "all.tar", &reference]).ok();

    let fresh = Peel::new();
    let all = peel.path("all.tar").display().to_string();
    let import = ["import", "-q", "--all-platforms", "--name", "x.example/all:1", &all];
    fresh.peel(import).ok();
    assert_eq!(fresh.json(["inspect", "x.example/all:1"])["digest"], descriptor["digest"]);
    fresh.peel(["export", "--all-platforms", "-o", "again.tar", "x.example/all:1"]).ok();
    let one = peel.path("one.tar").display().to_string();
    fresh.peel(["import", "-q", "--name", "x.example/one:1", &one]).ok();
    let platform = &fresh.json(["inspect", "x.example/one:1"])["platform"];
    assert_eq!(platform, "linux/amd64");
}

/// A containerd of one's own, gone when dropped.
struct Containerd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("peel-ctr-").tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let disabled = ["grpc.v1.cri", "snapshotter.v1.devmapper", "tracing.processor.v1.otlp"];
        let disabled = disabled.map(|name| format!("io.containerd.{name}"));
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("sock"),
            path("ttrpc")
        );
        fs::write(path("config.toml"), config).expect("write");
        let child = Command::new("containerd")
            .args(["--config", &path("config.toml"), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd");
        let own = Self { child, dir };
        eventually("containerd answers", || run(&mut own.ctr(&["version"])).code == Some(0));
        own
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.dir.path().join("sock")).args(args);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn containerd_takes_and_gives_the_same() {
    if !can_mount() || !has_tool("containerd") || !has_tool("ctr") {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    peel.peel(["tag", &layout.reference("v1"), "a.example/team/app:v1"]).ok();
    peel.peel(["export", "-o", "ours.tar", "a.example/team/app:v1"]).ok();
    let containerd = Containerd::start();
    let at = |name: &str| peel.path(name).display().to_string();
    run(&mut containerd.ctr(&["images", "import", "--no-unpack", &at("ours.tar")])).ok();
    let listed = run(&mut containerd.ctr(&["images", "ls"])).ok();
    let digest = peel.json(["inspect", "a.example/team/app:v1"])["digest"].clone();
    let digest = digest.as_str().expect("text");
    let line = listed.lines().find(|line| line.starts_with("a.example/team/app:v1"));
    assert!(line.is_some_and(|line| line.contains(digest)), "{listed}");
    let export = ["images", "export", &at("theirs.tar"), "a.example/team/app:v1"];
    run(&mut containerd.ctr(&export)).ok();
    let fresh = Peel::new();
    let imported = fresh.peel(["import", "-q", &at("theirs.tar")]).ok();
    assert_eq!(imported, "a.example/team/app:v1\n");
    assert_eq!(fresh.json(["inspect", "a.example/team/app:v1"])["digest"], digest);
    shows_the_image(&fresh, "a.example/team/app:v1");

    // An archive as Docker wrote it gets the manifest that containerd makes up for it
    fresh
        .peel(["export", "--format", "docker-archive", "-o", "old.tar", "a.example/team/app:v1"])
        .ok();
    let old = fresh.path("old.tar").display().to_string();
    run(&mut containerd.ctr(&["images", "import", "--no-unpack", &old])).ok();
    peel.peel(["import", "-q", &old]).ok();
    let listed = run(&mut containerd.ctr(&["images", "ls"])).ok();
    let ours = peel.json(["inspect", "a.example/team/app:v1"])["digest"].clone();
    assert!(listed.contains(ours.as_str().expect("text")), "{ours} {listed}");
    assert!(Path::new(&old).exists());
}
