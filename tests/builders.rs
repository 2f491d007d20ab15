//! Images as buildah, podman, skopeo and umoci make, keep and take them: the same digests everywhere.

mod support;

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use support::{
    Peel, has_tool,
    image::{Layer, Layout, noise},
    registry::{Registry, can_serve},
    run, walk,
};

/// buildah and podman with a store of their own, without a network and without systemd.
struct Builder {
    dir: tempfile::TempDir,
}

impl Builder {
    fn new() -> Option<Self> {
        let able = can_serve() && ["buildah", "podman", "busybox"].iter().all(|t| has_tool(t));
        let dir = tempfile::Builder::new().prefix("peel-builder-").tempdir().expect("directory");
        able.then_some(Self { dir })
    }

    fn command(&self, tool: &str, args: &[&str]) -> String {
        let mut command = Command::new(tool);
        command.args(["--storage-driver", "vfs"]);
        command.arg("--root").arg(self.dir.path().join("store"));
        command.arg("--runroot").arg(self.dir.path().join("run"));
        command.current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        run(command.args(args)).ok().trim().to_owned()
    }

    fn buildah(&self, args: &[&str]) -> String {
        self.command("buildah", args)
    }

    fn podman(&self, args: &[&str]) -> String {
        self.command("podman", args)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// An image of two layers, the second of which takes a file of the first away; in two formats.
    fn build(&self) {
        let input = self.dir.path().join("input");
        fs::create_dir_all(input.join("d/deep")).expect("directory");
        for (name, seed, len) in [("d/deep/a", 1, 300_000), ("d/gone", 2, 10), ("tool", 3, 500)] {
            fs::write(input.join(name), noise(seed, len)).expect("write");
        }
        std::os::unix::fs::symlink("deep/a", input.join("d/link")).expect("symlink");
        let base = self.buildah(&["from", "scratch"]);
        self.buildah(&["copy", &base, "/bin/busybox", "/bin/busybox"]);
        self.buildah(&["copy", "--chown", "1:2", &base, "input", "/srv"]);
        self.buildah(&["copy", "--chmod", "4750", &base, "input/tool", "/bin/tool"]);
        self.buildah(&["commit", "-q", &base, "base"]);
        let top = self.buildah(&["from", "localhost/base"]);
        let remove = ["--isolation", "chroot", &top, "--", "/bin/busybox", "rm", "/srv/d/gone"];
        self.buildah(&[&["run"][..], &remove[..]].concat());
        self.buildah(&["config", "--env", "A=1", "--cmd", "/bin/busybox true", &top]);
        self.buildah(&["commit", "-q", &top, "app:oci"]);
        self.buildah(&["commit", "-q", "--format", "docker", &top, "app:docker"]);
    }

    /// What an image's files look like to buildah.
    fn files(&self, image: &str) -> Vec<String> {
        let container = self.buildah(&["from", image]);
        let root = self.buildah(&["mount", &container]);
        let files = files(Path::new(&root));
        self.buildah(&["rm", &container]);
        files
    }
}

/// Names, modes, owners, sizes and contents of all files.
fn files(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut files: Vec<_> = walk(root)
        .map(|path| {
            let found = path.symlink_metadata().expect("stat");
            let content = match () {
                () if found.is_file() => {
                    peel_index::Digest::sha256(&fs::read(&path).expect("read")).hex()
                }
                () if found.is_symlink() => format!("{:?}", fs::read_link(&path).expect("link")),
                () => String::new(),
            };
            let name = path.strip_prefix(root).expect("below").display();
            format!("{name} {:o} {}:{} {content}", found.mode(), found.uid(), found.gid())
        })
        .collect();
    files.sort();
    files
}

fn peel_files(peel: &Peel, reference: &str) -> Vec<String> {
    peel.peel(["mount", reference, "m"]).ok();
    let files = files(&peel.path("m"));
    peel.peel(["umount", "m"]).ok();
    files
}

fn config_of(peel: &Peel, reference: &str) -> String {
    let digest = &peel.json(["inspect", reference])["config"]["digest"];
    digest.as_str().expect("text").to_owned()
}

#[test]
fn what_buildah_builds_goes_through_peel_and_back_unchanged() {
    let Some(builder) = Builder::new() else { return };
    builder.build();
    let peel = Peel::new();
    let (first, second) = (Registry::start(), Registry::start());
    for tag in ["oci", "docker"] {
        let image = format!("localhost/app:{tag}");
        let id = builder.podman(&["image", "inspect", "--format", "{{.Id}}", &image]);
        let expected = builder.files(&image);
        assert!(
            expected.iter().any(|line| line.starts_with("bin/tool 104750 0:0")),
            "{expected:?}"
        );
        assert!(!expected.iter().any(|line| line.contains("gone")), "{expected:?}");

        // By a registry: pulled, pushed on, and taken by podman from there
        let source = format!("{}/team/app:{tag}", first.host);
        let target = format!("{}/copy/app:{tag}", second.host);
        builder.buildah(&[
            "push",
            "-q",
            "--tls-verify=false",
            &image,
            &format!("docker://{source}"),
        ]);
        let digest = first.raw(&format!("team/app:{tag}"), &[]).0;
        assert_eq!(peel.peel(["pull", "-q", &source]).ok().trim(), digest);
        assert_eq!(peel_files(&peel, &source), expected, "{tag}");
        assert_eq!(peel.peel(["push", &source, &target]).ok().trim(), digest);
        assert_eq!(second.raw(&format!("copy/app:{tag}"), &[]).0, digest);
        assert_eq!(config_of(&peel, &source), format!("sha256:{id}"));
        let other = Builder::new().expect("as before");
        let pulled = other.podman(&["pull", "-q", "--tls-verify=false", &target]);
        assert_eq!(pulled, id, "{tag}");
        let seen = other.podman(&["image", "inspect", "--format", "{{.Digest}}", &target]);
        assert_eq!(seen, digest);
        assert_eq!(other.files(&target), expected);

        // By archives of buildah's and podman's, and of peel's for podman
        let made = [
            ("oci-archive", builder.path(&format!("{tag}.oci"))),
            ("docker-archive", builder.path(&format!("{tag}.docker"))),
        ];
        for (kind, archive) in &made {
            builder.buildah(&["push", "-q", &image, &format!("{kind}:{archive}:app:{tag}")]);
            let saved = builder.path(&format!("{tag}.{kind}.saved"));
            builder.podman(&["save", "-q", "--format", kind, "-o", &saved, &image]);
            for archive in [archive, &saved] {
                let fresh = Peel::new();
                let imported = fresh.peel(["import", "-q", archive]).ok();
                let name = imported.lines().next().expect("a name");
                assert_eq!(peel_files(&fresh, name), expected, "{archive}");
                // Another kind of manifest than the image's own needs another config
                if kind.starts_with(tag) {
                    assert_eq!(config_of(&fresh, name), format!("sha256:{id}"), "{archive}");
                }
                fresh.peel(["export", "-o", "back.tar", name]).ok();
                fresh.peel(["export", "--format", "docker-archive", "-o", "old.tar", name]).ok();
                for back in ["back.tar", "old.tar"] {
                    let taker = Builder::new().expect("as before");
                    let back = fresh.path(back).display().to_string();
                    taker.podman(&["load", "-q", "-i", &back]);
                    let ids = taker.podman(&["images", "--no-trunc", "--format", "{{.Id}}"]);
                    assert_eq!(
                        format!("sha256:{ids}"),
                        config_of(&fresh, name),
                        "{archive}: {back}"
                    );
                }
            }
        }
    }
}

/// Layouts that a tool has made in peel's store, and what it reads there.
#[test]
fn others_read_the_store_in_place() {
    if !can_serve() || !has_tool("umoci") {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = || {
        vec![
            Layer::new().dir("d", 0o755).file("d/a", 0o644, noise(81, 400_000)),
            Layer::new().file("b", 0o600, "b"),
        ]
    };
    layout.image("v1", layers(), json!({ "Env": ["A=1"] }));
    layout.image("v2", layers(), json!({ "Env": ["A=2"] }));
    for tag in ["v1", "v2"] {
        peel.peel(["pull", "-q", &layout.reference(tag)]).ok();
        peel.peel(["tag", &layout.reference(tag), &format!("app:{tag}")]).ok();
        peel.peel(["rm", &layout.reference(tag)]).ok();
    }
    let content = peel.root().join("content").display().to_string();
    let umoci = |args: &[&str]| run(Command::new("umoci").args(args)).ok();
    let listed = umoci(&["ls", "--layout", &content]);
    for tag in ["v1", "v2"] {
        let name = format!("docker.io/library/app:{tag}");
        assert!(listed.lines().any(|line| line == name), "{listed}");
        let image = format!("{content}:{name}");
        let stat: Value =
            serde_json::from_str(&umoci(&["stat", "--json", "--image", &image])).expect("JSON");
        assert_eq!(stat["history"].as_array().map_or(0, Vec::len), 0);
        let unpacked = peel.path(&format!("unpacked-{tag}"));
        umoci(&["unpack", "--image", &image, unpacked.to_str().expect("text")]);
        assert_eq!(files(&unpacked.join("rootfs")), peel_files(&peel, &name));

        // skopeo: out of the store into a registry and an archive, with the digest that peel shows
        let digest = peel.json(["inspect", &name])["digest"].as_str().expect("text").to_owned();
        let registry = Registry::start();
        registry.push(&format!("oci:{image}"), "app:x", &[]);
        assert_eq!(registry.raw("app:x", &[]).0, digest);
        let archive = format!("oci-archive:{}", peel.path(&format!("{tag}.tar")).display());
        let copy = ["--insecure-policy", "copy", "-q", &format!("oci:{image}"), &archive];
        run(Command::new("skopeo").args(copy)).ok();
        let fresh = Peel::new();
        fresh.peel(["pull", "-q", &archive]).ok();
        assert_eq!(fresh.json(["inspect", &archive])["digest"], digest.as_str());
    }

    // What skopeo puts there is taken over by its name in the layout, and is garbage until then
    let copy = |tag: &str| {
        let to = format!("oci:{content}:brought:{tag}");
        let args = ["--insecure-policy", "copy", "-q", &layout.reference(tag), &to];
        run(Command::new("skopeo").args(args)).ok();
        to
    };
    for name in ["app:v1", "app:v2"] {
        peel.peel(["rm", name]).ok();
    }
    let brought = copy("v1");
    let digest = peel.peel(["pull", "-q", &brought]).ok();
    peel.peel(["tag", &brought, "brought:v1"]).ok();
    peel.peel(["rm", &brought]).ok();
    peel.peel(["gc"]).ok();
    assert_eq!(peel.json(["inspect", "brought:v1"])["digest"], digest.trim());
    assert_eq!(peel_files(&peel, "brought:v1").len(), 3);
    peel.peel(["rm", "brought:v1"]).ok();
    copy("v2");
    peel.peel(["gc"]).ok();
    assert_eq!(walk(&peel.root().join("content/blobs/sha256")).count(), 0);
}
