//! Images made of what was written: commit, diff and convert.

mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use support::{
    Peel, can_mount, has_tool,
    image::{Layer, Layout, noise},
    registry::{Registry, can_serve},
    run,
};

fn layout(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new()
            .dir("etc", 0o755)
            .file("etc/kept", 0o644, "kept")
            .file("etc/gone", 0o644, "gone")
            .file("etc/changed", 0o644, "old")
            .file("big", 0o600, noise(61, 2_500_000))
            .dir("emptied", 0o755)
            .file("emptied/a", 0o644, "a")
            .dir("moved", 0o755)
            .file("moved/inside", 0o644, "inside")
            .dir("replaced", 0o755)
            .file("replaced/x", 0o644, "x"),
        Layer::new().file("second", 0o644, "2"),
    ];
    layout.image("v1", layers, json!({ "Env": ["A=1"], "Cmd": ["old"] }));
    layout
}

/// Writes all sorts of things into a mount.
fn write(dir: &Path) {
    let path = |name: &str| dir.join(name);
    fs::remove_file(path("etc/gone")).expect("remove");
    fs::write(path("etc/changed"), "new").expect("write");
    fs::write(path("etc/new"), "new").expect("write");
    fs::set_permissions(path("etc/new"), fs::Permissions::from_mode(0o4711)).expect("chmod");
    // Attributes alone: the content stays below
    fs::set_permissions(path("big"), fs::Permissions::from_mode(0o640)).expect("chmod");
    fs::remove_dir_all(path("emptied")).expect("remove");
    fs::create_dir(path("emptied")).expect("create");
    fs::rename(path("moved"), path("renamed")).expect("rename");
    fs::remove_dir_all(path("replaced")).expect("remove");
    fs::write(path("replaced"), "a file").expect("write");
    symlink("/etc/kept", path("link")).expect("link");
    fs::hard_link(path("etc/new"), path("again")).expect("link");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir(path(&"d".repeat(120))).expect("create");
    fs::write(path(&long), "long").expect("write");
    fs::write(path("ünïcode"), "u").expect("write");
    rustix::fs::setxattr(path("etc/new"), "user.note", b"a\nb", rustix::fs::XattrFlags::empty())
        .expect("xattr");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    fs::File::options()
        .write(true)
        .open(path("etc/changed"))
        .expect("open")
        .set_modified(time)
        .expect("time");
}

/// All that can be seen of a tree.
fn seen(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = support::walk(dir)
        .map(|path| {
            let found = path.symlink_metadata().expect("look");
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let content = match () {
                () if found.is_file() => {
                    peel_index::Digest::sha256(&fs::read(&path).expect("read")).to_string()
                }
                () if found.is_symlink() => {
                    fs::read_link(&path).expect("link").display().to_string()
                }
                () => String::new(),
            };
            let time = if found.is_dir() { 0 } else { found.mtime_nsec() };
            let links = if found.is_file() { found.nlink() } else { 0 };
            format!("{name} {:o} {} {links} {time} {content}", found.mode(), found.uid())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn what_was_written_becomes_an_image() {
    if !can_serve() || !has_tool("umoci") {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["mount", "--rw", "--dev", "--suid", "--name", "w", &reference, "m"]).ok();
    write(&peel.path("m"));
    let expected = seen(&peel.path("m"));

    let diff = peel.peel(["diff", "w"]).ok();
    let has = |line: &str| assert!(diff.lines().any(|found| found == line), "{line}: {diff}");
    for line in [
        "D /etc/gone",
        "C /etc/changed",
        "A /etc/new",
        "C /etc",
        "C /big",
        "D /moved",
        "A /renamed",
        "A /renamed/inside",
        "C /replaced",
        "A /link",
        "A /again",
        "C /emptied",
    ] {
        has(line);
    }
    assert!(!diff.contains("/etc/kept") && !diff.contains("/second"), "{diff}");
    assert_eq!(peel.peel(["diff", "m"]).ok(), diff, "by the directory");
    peel.peel(["diff", "nothing"]).fails(3);

    let commit = |target: &str, options: &[&str]| {
        let mut command = peel.command();
        command.args(["commit", "--created", "1700000000"]).args(options).args(["w", target]);
        run(&mut command).ok()
    };
    let said = commit("new:1", &["-m", "why", "-a", "ann", "-c", "ENV B=2", "-c", "CMD [\"sh\"]"]);
    let image = peel.json(["inspect", "new:1"]);
    assert_eq!(said.trim(), image["digest"]);
    assert_eq!(image["layers"].as_array().map(Vec::len), Some(3));
    let config = &image["config"]["content"];
    assert_eq!(config["config"], json!({ "Env": ["A=1", "B=2"], "Cmd": ["sh"] }));
    let step = config["history"].as_array().and_then(|h| h.last()).expect("history");
    assert_eq!(step["comment"], "why");
    assert_eq!(step["created"], "2023-11-14T22:13:20Z");
    // The same again: the same image
    commit("again:1", &["-m", "why", "-a", "ann", "-c", "ENV B=2", "-c", "CMD [\"sh\"]"]);
    assert_eq!(peel.json(["inspect", "again:1"])["digest"], image["digest"]);

    // It shows what was seen before
    peel.peel(["mount", "--dev", "--suid", "new:1", "n"]).ok();
    let found = seen(&peel.path("n"));
    assert_eq!(found, expected);
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(peel.path("n/etc/new"), "user.note", &mut value).expect("xattr");
    assert_eq!(&value[..len], b"a\nb");
    peel.peel(["umount", "n"]).ok();

    // And so it does to umoci, and after a way through a registry
    peel.peel(["export", "--format", "oci", "-o", "dir", "new:1"]).ok();
    let unpacked = peel.path("unpacked");
    let name = format!("{}:1", peel.path("dir").display());
    run(Command::new("umoci").args(["raw", "unpack", "--image", &name]).arg(&unpacked)).ok();
    assert_eq!(seen(&unpacked), expected);
    let registry = Registry::start();
    let target = format!("{}/new:1", registry.host);
    assert_eq!(peel.peel(["push", "new:1", &target]).ok(), said);
    let fresh = Peel::new();
    assert_eq!(fresh.peel(["pull", "-q", &target]).ok(), said);

    // Nothing of a commit is garbage, and it needs neither the snapshot nor the base
    peel.peel(["umount", "--rm", "m"]).ok();
    peel.peel(["rm", &reference, "again:1"]).ok();
    assert_eq!(peel.json(["gc", "--json"])["items"], json!([]));
    peel.peel(["check"]).ok();
    peel.peel(["mount", "--dev", "--suid", "new:1", "n"]).ok();
    assert_eq!(seen(&peel.path("n")), expected);
    peel.peel(["umount", "n"]).ok();
    peel.peel(["commit", "w", "new:2"]).fails(3);
}

#[test]
fn commits_are_compressed_as_asked_and_hidden_names_refused() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["mount", "--rw", "--layers", "1", "--name", "w", &reference, "m"]).ok();
    fs::write(peel.path("m/file"), noise(62, 3_000_000)).expect("write");
    let mut diff_ids = Vec::new();
    for (compression, suffix) in [("gzip", "+gzip"), ("zstd", "+zstd"), ("none", "")] {
        let name = format!("of:{compression}");
        peel.peel(["commit", "--compression", compression, "w", &name]).ok();
        let image = peel.json(["inspect", &name]);
        let layers = image["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 2, "on the first layer alone");
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        assert_eq!(layers[1]["media_type"], media_type);
        diff_ids.push(layers[1]["diff_id"].clone());
        peel.peel(["mount", &name, "n"]).ok();
        assert!(fs::read(peel.path("n/file")).expect("read") == noise(62, 3_000_000));
        assert!(!peel.path("n/second").exists());
        peel.peel(["umount", "n"]).ok();
    }
    assert!(diff_ids.windows(2).all(|pair| pair[0] == pair[1]));
    fs::write(peel.path("m/.wh.file"), "").expect("write");
    let error = peel.peel(["commit", "w", "bad:1"]).fails(5);
    assert!(error.contains(".wh.file") && error.contains("hide"), "{error}");
    let error = peel.peel(["commit", "-c", "RUN x", "w", "bad:1"]).fails(2);
    assert!(error.contains("RUN x"), "{error}");
    assert_eq!(peel.json(["gc", "--json"])["items"], json!([]));
    peel.peel(["umount", "--rm", "m"]).ok();
}

#[test]
fn images_are_compared() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let base = || Layer::new().dir("d", 0o755).file("d/a", 0o644, "a").file("d/b", 0o644, "b");
    layout.image("v1", vec![base()], json!({}));
    let above = Layer::new().whiteout("d/a").file("d/b", 0o600, "b").file("d/c", 0o644, "c");
    layout.image("v2", vec![base(), above], json!({}));
    let [one, two] = ["v1", "v2"].map(|tag| layout.reference(tag));
    peel.peel(["pull", "-q", &one]).ok();
    peel.peel(["pull", "-q", &two]).ok();
    assert_eq!(peel.peel(["diff", &one, &two]).ok(), "D /d/a\nC /d/b\nA /d/c\n");
    assert_eq!(peel.peel(["diff", &two, &one]).ok(), "A /d/a\nC /d/b\nD /d/c\n");
    assert_eq!(peel.json(["diff", "--json", &one, &one]), json!([]));
}

#[test]
fn layers_are_compressed_otherwise() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "app:v1", &["--format", "v2s2"]);
    let reference = format!("{}/app:v1", registry.host);
    peel.peel(["pull", "-q", &reference]).ok();
    let before = peel.json(["inspect", &reference]);
    let ids = |image: &Value| -> Vec<Value> {
        image["layers"].as_array().expect("layers").iter().map(|l| l["diff_id"].clone()).collect()
    };
    for (compression, magic) in [("zstd", &[0x28, 0xb5, 0x2f, 0xfd][..]), ("none", b"etc")] {
        let name = format!("as:{compression}");
        let digest = peel.peel(["convert", "--compression", compression, &reference, &name]).ok();
        let image = peel.json(["inspect", &name]);
        assert_eq!(image["digest"], digest.trim());
        assert_eq!(ids(&image), ids(&before));
        assert_eq!(image["config"]["digest"], before["config"]["digest"]);
        let blob = image["layers"][0]["digest"].as_str().expect("text").replacen(':', "/", 1);
        let blob = peel.root().join("content/blobs").join(blob);
        let mut start = vec![0; magic.len()];
        fs::File::open(blob).expect("open").read_exact(&mut start).expect("read");
        assert_eq!(start, magic);
        let target = format!("{}/as:{compression}", registry.host);
        assert_eq!(peel.peel(["push", &name, &target]).ok(), digest);
        let fresh = Peel::new();
        fresh.peel(["pull", "-q", &target]).ok();
        fresh.peel(["mount", &target, "m"]).ok();
        assert!(fs::read(fresh.path("m/big")).expect("read") == noise(61, 2_500_000));
        fresh.peel(["umount", "m"]).ok();
        if compression == "zstd" {
            let copy = &fresh.json(["inspect", &target])["layers"][0]["index"]["copy_size"];
            assert_eq!(copy, 0, "its frames can be entered one by one");
        }
    }
    // To what it is: the same blobs
    peel.peel(["convert", "--compression", "gzip", &reference, "as:same"]).ok();
    let same = peel.json(["inspect", "as:same"]);
    let blobs = |image: &Value| -> Vec<Value> {
        image["layers"].as_array().expect("layers").iter().map(|l| l["digest"].clone()).collect()
    };
    assert_eq!(blobs(&same), blobs(&before));
    peel.peel(["convert", "--compression", "gzip", "not.here/x", "as:none"]).fails(3);
    peel.peel(["rm", &reference]).ok();
    peel.peel(["gc"]).ok();
    peel.peel(["check"]).ok();
}
