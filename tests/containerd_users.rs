//! Snapshots for containers in user namespaces: ids mapped by the mounts, as containerd 2 has it, and
//! owners that containerd 1 changes.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use support::{
    Peel, can_mount,
    containerd::{Containerd, Snapshots, can_run_containerd},
    eventually, has_tool,
    idmap::{UserNamespace, mount_mapped},
    image::Layer,
    pushed::Pushed,
    registry::{Registry, can_serve},
    run,
};
use tonic::Code;

const MAP: &str = "0:1000000:65536";
const MAPPING: [(&str, &str); 2] =
    [("containerd.io/snapshot/uidmapping", MAP), ("containerd.io/snapshot/gidmapping", MAP)];

fn push(peel: &Peel, registry: &Registry) -> Pushed {
    let files = Layer::new()
        .dir("data", 0o755)
        .file("data/one", 0o600, "one")
        .file("data/two", 0o644, "two")
        .owned_file("data/users", 0o640, (1000, 1001), "a user's");
    Pushed::new(peel, registry, vec![files], "cat /data/one")
}

/// Has peel fetch the layers; gives the name of the topmost.
async fn fetch(own: &mut Snapshots, image: &Pushed) -> String {
    let mut parent = "";
    for ((layer, _), chain) in image.layers.iter().zip(&image.chains) {
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", &image.name),
            ("containerd.io/snapshot/cri.layer-digest", layer),
        ];
        let error = own.prepare("extract-1 x", parent, &labels).await.expect_err("a layer");
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        parent = chain;
    }
    parent.to_owned()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (found.uid(), found.gid())
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_mapped() {
    if !can_mount() || !can_serve() || !has_tool("unshare") || !has_tool("nsenter") {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    let image = push(&peel, &registry);
    peel.peel(["images"]).ok();
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let top = fetch(&mut own, &image).await;
    let mounts = own.prepare("container", &top, &MAPPING).await.expect("prepare");
    assert_eq!(own.mounts("container").await.expect("mounts"), mounts);

    // Whoever is in the namespace has to get there
    fs::set_permissions(peel.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let namespace = UserNamespace::new(MAP, MAP);
    let target = peel.path("rootfs");
    fs::create_dir(&target).expect("directory");
    mount_mapped(&mounts[0], &target, &namespace);
    let inside = |line: &str| {
        namespace.sh(&format!("cd {} && {line}", target.display())).ok().trim().to_owned()
    };

    // Root's and another user's, seen from both sides
    for (file, outside, within) in [
        (".", (1_000_000, 1_000_000), "0:0"),
        ("bin/busybox", (1_000_000, 1_000_000), "0:0"),
        ("data/one", (1_000_000, 1_000_000), "0:0"),
        ("data/users", (1_001_000, 1_001_001), "1000:1001"),
    ] {
        assert_eq!(owner(&target.join(file)), outside, "{file}");
        assert_eq!(inside(&format!("stat -c %u:%g {file}")), within, "{file}");
    }
    assert_eq!(inside("cat data/one"), "one", "only root may");

    // What is written belongs to the host's ids, in the upper as well
    inside("echo new > data/new && chown 5:6 data/new && echo more >> data/users && rm data/two");
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let upper = Path::new(upper.expect("an upper"));
    for (file, ids) in
        [("data/new", (1_000_005, 1_000_006)), ("data/users", (1_001_000, 1_001_001))]
    {
        assert_eq!(owner(&target.join(file)), ids, "{file}");
        assert_eq!(owner(&upper.join(file)), ids, "{file}");
    }
    assert_eq!(inside("stat -c %u:%g data/new"), "5:6");
    assert!(!target.join("data/two").exists());

    // The worker's death and an upgrade change nothing of it
    let pid = peel.json(["status", "--json"])["worker"]["pid"].as_i64().expect("pid");
    support::kill_process(pid, rustix::process::Signal::KILL);
    support::drop_caches();
    assert_eq!(inside("cat data/one && stat -c %u data/one"), "one0");
    peel.peel(["daemon", "reload"]).ok();
    support::drop_caches();
    assert_eq!(inside("cat data/one && stat -c %u data/one"), "one0");

    // Nor does it when containerd has forgotten all of it: it is mounted
    let stop = peel.peel(["daemon", "stop"]).fails(4);
    assert!(stop.contains("is not peel's mount"), "{stop}");
    own.remove("container").await.expect("remove");
    while let Some(last) = own.list(&[]).await.expect("list").last() {
        let all = own.list(&[]).await.expect("list");
        let name =
            all.iter().map(|one| &one.name).find(|name| all.iter().all(|o| o.parent != **name));
        own.remove(name.unwrap_or(&last.name)).await.expect("remove");
    }
    let trees = || fs::read_dir(peel.root().join("trees")).expect("trees").count();
    peel.peel(["gc"]).ok();
    support::drop_caches();
    assert_eq!(inside("cat data/one data/users"), "onea user'smore");
    assert_eq!(trees(), 1);
    run(Command::new("umount").arg(&target)).ok();
    peel.peel(["gc"]).ok();
    assert_eq!(trees(), 0, "nobody sees it any more");
    let top = fetch(&mut own, &image).await;

    // The same tree for a container without a namespace
    let mounts = own.view("plain", &top).await.expect("view");
    assert_eq!(owner(&Path::new(&mounts[0].source).join("data/users")), (1000, 1001));
    // Labels that make no sense
    for labels in [&MAPPING[..1], &[(MAPPING[0].0, "0:1"), MAPPING[1]]] {
        let error = own.prepare("bad", &top, labels).await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    own.remove("plain").await.expect("remove");
    let left = fs::read_dir(peel.root().join("snapshots")).expect("snapshots").count();
    assert_eq!(left, 0);
}

/// containerd 1 maps nothing: it changes the owners of a copy, once for all containers.
#[test]
fn owners_are_changed_by_containerd() {
    if !can_run_containerd() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    let name = push(&peel, &registry).name;
    peel.peel(["images"]).ok();
    fs::set_permissions(peel.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let containerd = Containerd::start(&peel);
    let ctr = |args: &[&str]| containerd.ctr(args).ok();
    ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", &name]);
    let mapped = ["--uidmap", MAP, "--gidmap", MAP];
    let start = ["run", "-d", "--snapshotter", "peel"];
    let shell = [
        name.as_str(),
        "mapped",
        "/bin/sh",
        "-c",
        "/bin/busybox id -u > /data/id; /bin/busybox sleep 1000",
    ];
    ctr(&[&start[..], &mapped, &shell].concat());
    let exec = |command: &str| {
        ctr(&["tasks", "exec", "--exec-id", "e", "mapped", "/bin/sh", "-c", command])
    };
    eventually("the container has written", || exec("/bin/busybox cat /data/id").trim() == "0");
    assert_eq!(exec("/bin/busybox stat -c %u:%g /data/users"), "1000:1001\n");
    let uppers = fs::read_dir(peel.root().join("snapshots")).expect("snapshots");
    let mut uppers = uppers.map(|entry| entry.expect("entry").path().join("fs/data/id"));
    let written = uppers.find(|path| path.exists()).expect("the container's upper");
    assert_eq!(owner(&written), (1_000_000, 1_000_000));
}
