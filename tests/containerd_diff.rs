//! Layers that lie in containerd's content store: applied by peel's diff service, or prepared by the
//! snapshotter, without being fetched or unpacked.

mod support;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use peel::api::containerd::types::Mount;
use peel_index::Digest;
use support::{
    Peel,
    containerd::{Containerd, Snapshots, apply, can_run_containerd, descriptor},
    eventually,
    pushed::Pushed,
    registry::Registry,
    run,
};
use tonic::Code;

fn inode(path: &Path) -> (u64, u64) {
    let found = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (found.dev(), found.ino())
}

fn own_blob(peel: &Peel, digest: &str) -> std::path::PathBuf {
    peel.root().join("content/blobs").join(digest.replacen(':', "/", 1))
}

fn directories(peel: &Peel) -> usize {
    fs::read_dir(peel.root().join("snapshots")).expect("snapshots").count()
}

/// Unpacks an image as containerd does, with peel as the only differ.
async fn unpack(peel: &Peel, containerd: &Containerd, image: &Pushed) {
    let mut snapshots = Snapshots::connect(&containerd.socket(), "default").await;
    let mut parent = String::new();
    for (n, chain) in image.chains.iter().enumerate() {
        let labels =
            [("containerd.io/snapshot.ref", chain.as_str()), ("containerd.io/gc.root", "now")];
        let key = format!("extract-{n}-x {chain}");
        let mounts = snapshots.prepare(&key, &parent, &labels).await.expect("prepare");
        let (digest, size) = &image.layers[n];
        let applied = apply(peel, descriptor(digest, *size), &mounts).await;
        let applied = applied.unwrap_or_else(|e| panic!("layer {n}: {e}"));
        assert_eq!(applied.digest, image.diff_ids[n]);
        assert_eq!(applied.media_type, "application/vnd.oci.image.layer.v1.tar");
        assert!(applied.size > 0 && applied.size % 512 == 0, "{applied:?}");
        // The answer was lost, say
        let again = apply(peel, descriptor(digest, *size), &mounts).await.expect("again");
        assert_eq!(again, applied);
        if n == 1 {
            peel.peel(["daemon", "reload"]).ok();
            let shown = snapshots.mounts(&key).await.expect("mounts");
            let (before, after) = (lower(&mounts), lower(&shown));
            assert_ne!(before, after, "the layer is part of what is mounted");
        }
        snapshots.commit(chain, &key, &labels).await.expect("commit");
        parent.clone_from(chain);
    }
}

fn lower(mounts: &[Mount]) -> &str {
    let mut options = mounts[0].options.iter();
    options.find_map(|option| option.strip_prefix("lowerdir=")).expect("an overlay")
}

/// From the content store to a container, where that is on the file system of peel's root or on one
/// of its own.
async fn from_content_to_container(same: bool) {
    let peel = Peel::new();
    let registry = Registry::start();
    let image = Pushed::of_three(&peel, &registry);
    if !same {
        let root = peel.path("containerd/root");
        fs::create_dir_all(&root).expect("directory");
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&root)).ok();
    }
    peel.peel(["images"]).ok();
    let containerd = Containerd::start(&peel);
    let name = image.name.as_str();
    let ctr = |args: &[&str]| containerd.ctr(args).ok();
    ctr(&["content", "fetch", "--plain-http", name]);
    drop(registry);
    unpack(&peel, &containerd, &image).await;

    eventually("nothing was unpacked", || directories(&peel) == 0);
    for (digest, _) in &image.layers {
        let (theirs, own) = (inode(&containerd.blob(digest)), inode(&own_blob(&peel, digest)));
        assert_eq!(theirs == own, same, "{digest}: one file only where that can be");
    }
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let all = own.list(&["kind==committed"]).await.expect("list");
    assert_eq!(all.len(), 3, "{all:?}");
    for snapshot in &all {
        let (bytes, inodes) = own.usage(&snapshot.name).await.expect("usage");
        assert!(bytes > 0 && inodes == 2, "a layer: its blob and index");
    }
    // Another namespace has the layers at once
    let mut other = Snapshots::connect(&containerd.socket(), "other").await;
    let labels = [("containerd.io/snapshot.ref", image.chains[0].as_str())];
    let error = other.prepare("extract-9 x", "", &labels).await.expect_err("it is here");
    assert_eq!(error.code(), Code::AlreadyExists);

    // containerd takes the image for unpacked, and has all that it needs to pass it on
    // runc knows containers by these names alone
    let container = if same { "linked" } else { "copied" };
    assert_eq!(ctr(&["run", "--rm", "--snapshotter", "peel", name, container]), "onetwo");
    let archive = peel.path("image.tar");
    ctr(&["images", "export", archive.to_str().expect("UTF-8"), name]);
    assert!(fs::metadata(&archive).expect("archive").len() > image.layers[0].1);

    // It removes its names of the blobs: peel reads on
    ctr(&["images", "rm", "--sync", name]);
    eventually("containerd has removed the blobs", || {
        image.layers.iter().all(|(digest, _)| !containerd.blob(digest).exists())
    });
    support::drop_caches();
    let mounts = own.view("look", &all_top(&all)).await.expect("view");
    assert_eq!(
        fs::read_to_string(Path::new(&mounts[0].source).join("data/two")).expect("two"),
        "two"
    );
    own.remove("look").await.expect("remove");
    let mut snapshots = Snapshots::connect(&containerd.socket(), "default").await;
    for chain in image.chains.iter().rev() {
        snapshots.remove(chain).await.expect("remove");
    }
    containerd.ctr(&["content", "prune", "references"]);
    let left = || fs::read_dir(peel.root().join("layers")).expect("layers").count();
    eventually("nothing is left of it", || {
        peel.peel(["gc"]).ok();
        left() == 0 && !own_blob(&peel, &image.layers[0].0).exists()
    });
}

/// The one that nothing stands on.
fn all_top(all: &[peel::api::containerd::services::snapshots::v1::Info]) -> String {
    let is_top = |name: &str| all.iter().all(|other| other.parent != name);
    all.iter().find(|one| is_top(&one.name)).expect("a top").name.clone()
}

/// A daemon, its image in a registry, and a containerd that has fetched the image.
fn fetched() -> (Peel, Registry, Pushed, Containerd) {
    let peel = Peel::new();
    let registry = Registry::start();
    let image = Pushed::of_three(&peel, &registry);
    peel.peel(["images"]).ok();
    let containerd = Containerd::start(&peel);
    containerd.ctr(&["content", "fetch", "--plain-http", &image.name]).ok();
    (peel, registry, image, containerd)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_applied_by_a_link() {
    if can_run_containerd() {
        from_content_to_container(true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_applied_by_a_copy() {
    if can_run_containerd() {
        from_content_to_container(false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_applied_is_left_to_the_next_differ() {
    if !can_run_containerd() {
        return;
    }
    let (peel, _registry, image, containerd) = fetched();
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let (digest, size) = &image.layers[1];
    let blob = || descriptor(digest, *size);
    let declined = |result: Result<_, tonic::Status>| {
        let error =
            result.map(|_: peel::api::containerd::types::Descriptor| ()).expect_err("declined");
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
    };

    // Not peel's; none; a view; a container's snapshot
    let foreign = Mount {
        r#type: "bind".to_owned(),
        source: "/var/lib/elsewhere/snapshots/1/fs".to_owned(),
        options: vec!["rw".to_owned(), "rbind".to_owned()],
        ..Mount::default()
    };
    declined(apply(&peel, blob(), &[foreign]).await);
    declined(apply(&peel, blob(), &[]).await);
    let view = own.view("extract-view x", "").await.expect("view");
    declined(apply(&peel, blob(), &view).await);
    let container = own.prepare("container", "", &[]).await.expect("prepare");
    declined(apply(&peel, blob(), &container).await);

    // Blobs that are not there, of another size, of another kind
    let mounts = own.prepare("extract-1 x", "", &[]).await.expect("prepare");
    let missing = Digest::sha256(b"missing").to_string();
    declined(apply(&peel, descriptor(&missing, 10), &mounts).await);
    declined(apply(&peel, descriptor(digest, size + 1), &mounts).await);
    declined(apply(&peel, descriptor("sha256:short", 1), &mounts).await);
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".to_owned();
    let kind = peel::api::containerd::types::Descriptor { media_type: encrypted, ..blob() };
    declined(apply(&peel, kind, &mounts).await);
    // Damaged, and no layer at all
    for (bytes, what) in [(vec![7; 4096], "no layer"), (vec![0x1f; 1], "cut short")] {
        let digest = Digest::sha256(&bytes).to_string();
        fs::write(containerd.blob(&digest), &bytes).expect("write");
        declined(apply(&peel, descriptor(&digest, bytes.len() as u64), &mounts).await);
        assert!(!own_blob(&peel, &digest).exists(), "{what}: it was not taken in");
    }
    let wrong = Digest::sha256(b"wrong").to_string();
    fs::copy(containerd.blob(digest), containerd.blob(&wrong)).expect("copy");
    declined(apply(&peel, descriptor(&wrong, *size), &mounts).await);
    assert!(!own_blob(&peel, &wrong).exists());
    let log = peel.peel(["logs", "-n", "1000"]).ok();
    assert_eq!(log.matches("containerd unpacks it").count(), 7, "one line each: {log}");

    // The next differ unpacks: from then on it is a directory, and so is all above it
    let source = Path::new(&mounts[0].source);
    fs::write(source.join("file"), "unpacked").expect("write");
    declined(apply(&peel, blob(), &mounts).await);
    own.commit("unpacked", "extract-1 x", &[]).await.expect("commit");
    let above = own.prepare("extract-2 x", "unpacked", &[]).await.expect("prepare");
    declined(apply(&peel, blob(), &above).await);
    let stat = own.stat("unpacked").await.expect("stat");
    assert!(!stat.labels.contains_key("containerd.io/snapshot.ref"), "{stat:?}");

    // And one that is empty again takes it
    let again = own.prepare("extract-3 x", "", &[]).await.expect("prepare");
    let applied = apply(&peel, blob(), &again).await.expect("after all that, a good one");
    assert_eq!(applied.digest, image.diff_ids[1]);
    let (other, size) = &image.layers[2];
    let second = apply(&peel, descriptor(other, *size), &again).await.expect_err("it has one");
    assert_eq!(second.code(), Code::FailedPrecondition, "the next differ would unpack it below");
    own.remove("extract-3 x").await.expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_pod_that_containerd_has_already() {
    if !can_run_containerd() {
        return;
    }
    let (peel, _registry, image, containerd) = fetched();
    let mut own = Snapshots::connect(&peel.state().join("peel.sock"), "").await;
    let mut parent = String::new();
    for ((digest, _), chain) in image.layers.iter().zip(&image.chains) {
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", image.name.as_str()),
            ("containerd.io/snapshot/cri.layer-digest", digest.as_str()),
        ];
        let error = own.prepare("extract-1 x", &parent, &labels).await.expect_err("a layer");
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let (theirs, own) = (inode(&containerd.blob(digest)), inode(&own_blob(&peel, digest)));
        assert_eq!(theirs, own, "linked, not fetched");
        parent.clone_from(chain);
    }
}
