use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use peel_index::Digest;
use proptest::prelude::*;

use super::*;
use crate::{failure::Class, metadata::Opened};

/// Trees that are named by how many layers they have.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Trees for Counted {
    fn merged(&self, layers: &[LayerRef]) -> Result<MergedTree, Failure> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let path = format!("/lower/{}", layers.len()).into();
        let me = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        // Of those with four layers the kernel maps nothing, say
        Ok(MergedTree { path, uid: me, gid, maps_ids: layers.len() != 4 })
    }
}

struct Fixture {
    root: tempfile::TempDir,
    uppers: Arc<Snapshots>,
    snapshotter: Snapshotter,
    trees: Counted,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let (uppers, snapshotter) = open(root.path());
        Self { root, uppers, snapshotter, trees: Counted::default() }
    }

    /// The same after a restart.
    fn again(self) -> Self {
        let Self { root, uppers, snapshotter, trees } = self;
        drop((uppers, snapshotter));
        let (uppers, snapshotter) = open(root.path());
        Self { root, uppers, snapshotter, trees }
    }

    fn prepare(&self, kind: KeyedKind, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.snapshotter.prepare(&self.trees, kind, key, parent, BTreeMap::new())
    }

    fn active(&self, key: &str, parent: Option<&str>) -> Vec<Mount> {
        self.prepare(KeyedKind::Active, key, parent).expect(key)
    }

    fn commit(&self, name: &str, key: &str) -> Result<Option<u64>> {
        self.snapshotter.commit(name, key, labels(&[("name", name)]))
    }

    /// A committed directory.
    fn committed(&self, name: &str, parent: Option<&str>) {
        self.active("temporary", parent);
        self.commit(name, "temporary").expect(name);
    }

    fn layer(&self, parent: Option<&str>, target: &str) {
        let usage = Usage { bytes: 5, inodes: 2 };
        let added =
            self.snapshotter.add_layer(parent, target, layer(target), usage, BTreeMap::new());
        added.expect(target);
    }

    fn dir(&self, id: u64, name: &str) -> String {
        format!("{}/snapshots/{id}/{name}", self.root.path().display())
    }

    fn id(&self, key: &str) -> u64 {
        self.snapshotter.stat(key).expect(key).id
    }
}

fn open(root: &Path) -> (Arc<Snapshots>, Snapshotter) {
    let Opened { metadata, .. } = Metadata::open(&root.join("metadata")).expect("metadata");
    let uppers = Arc::new(Snapshots::open(root).expect("uppers"));
    let snapshotter = Snapshotter::open(Arc::new(metadata), Arc::clone(&uppers)).expect("table");
    (uppers, snapshotter)
}

fn layer(name: &str) -> LayerRef {
    LayerRef {
        digest: Digest::sha256(name.as_bytes()),
        size: 3,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        diff_id: Digest::sha256(&[name.as_bytes(), b"tar"].concat()),
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn mounts_of_every_shape() {
    let f = Fixture::new();
    let bind = |source: String, access: &str| Mount {
        kind: "bind",
        source,
        options: vec![access.to_owned(), "rbind".to_owned()],
    };
    let overlay = |options: Vec<String>| Mount {
        kind: "overlay",
        source: "overlay".to_owned(),
        options: ["index=off".to_owned()].into_iter().chain(options).collect(),
    };
    let mounts = f.active("base", None);
    let base = f.id("base");
    assert_eq!(mounts, [bind(f.dir(base, "fs"), "rw")]);
    f.commit("one", "base").expect("commit");
    let mounts = f.active("next", Some("one"));
    let next = f.id("next");
    let upper = |id| {
        vec![format!("workdir={}", f.dir(id, "work")), format!("upperdir={}", f.dir(id, "fs"))]
    };
    let with = |mut options: Vec<String>, lowers: &[String]| {
        options.push(format!("lowerdir={}", lowers.join(":")));
        overlay(options)
    };
    assert_eq!(mounts, [with(upper(next), &[f.dir(base, "fs")])]);
    f.commit("two", "next").expect("commit");
    let view = |key: &str, parent| f.prepare(KeyedKind::View, key, parent).expect(key);
    let mounts = view("nothing", None);
    assert_eq!(mounts, [bind(f.dir(f.id("nothing"), "fs"), "ro")]);
    assert_eq!(view("one dir", Some("one")), [bind(f.dir(base, "fs"), "ro")]);
    let two = [f.dir(next, "fs"), f.dir(base, "fs")];
    assert_eq!(view("two dirs", Some("two")), [with(vec![], &two)]);

    f.layer(None, "sha256:a");
    f.layer(Some("sha256:a"), "sha256:b");
    assert_eq!(f.trees.0.load(Ordering::Relaxed), 0, "layers are not merged before they are used");
    assert_eq!(view("tree", Some("sha256:b")), [bind("/lower/2".to_owned(), "ro")]);
    let mounts = f.active("container", Some("sha256:b"));
    let container = f.id("container");
    assert_eq!(mounts, [with(upper(container), &["/lower/2".to_owned()])]);
    assert_eq!(f.snapshotter.mounts(&f.trees, "container").expect("mounts"), mounts);
    f.commit("on layers", "container").expect("commit");
    let mounts = f.active("above", Some("on layers"));
    let lowers = [f.dir(container, "fs"), "/lower/2".to_owned()];
    assert_eq!(mounts, [with(upper(f.id("above")), &lowers)]);
}

#[test]
fn what_is_refused() {
    use SnapshotterError as E;
    let f = Fixture::new();
    f.committed("one", None);
    f.active("active", Some("one"));
    f.layer(None, "sha256:a");
    let prepare = |key, parent| f.prepare(KeyedKind::Active, key, parent).expect_err(key);
    assert!(matches!(prepare("active", Some("one")), E::Exists(_)));
    assert!(matches!(prepare("one", None), E::Exists(_)));
    assert!(matches!(prepare("x", Some("missing")), E::NoParent(_)));
    assert!(matches!(prepare("x", Some("active")), E::Invalid(_)));
    assert!(matches!(prepare("", None), E::Invalid(_)));
    let long = "k".repeat(16 << 10);
    assert!(matches!(prepare(&long, None), E::Invalid(_)));
    let ids = f.uppers.ids().expect("ids").len();
    assert_eq!(ids, 2, "nothing is left of what was refused");

    let commit = |name, key| f.commit(name, key).expect_err(key);
    assert!(matches!(commit("x", "missing"), E::NotFound(_)));
    assert!(matches!(commit("x", "one"), E::Precondition(_)));
    assert!(matches!(commit("one", "active"), E::Exists(_)));
    assert!(matches!(f.snapshotter.mounts(&f.trees, "one"), Err(E::Precondition(_))));
    assert!(matches!(f.snapshotter.mounts(&f.trees, "x"), Err(E::NotFound(_))));
    let error = f.snapshotter.remove("one").expect_err("a parent");
    assert!(matches!(error, E::Precondition(_)));
    assert!(error.to_string().contains("remove"), "the test suite of containerd looks for it");
    assert!(matches!(f.snapshotter.remove("x"), Err(E::NotFound(_))));
    assert!(matches!(f.snapshotter.stat("x"), Err(E::NotFound(_))));
    assert!(matches!(f.snapshotter.usage("x"), Err(E::NotFound(_))));
    let update = |key, path: &str| {
        f.snapshotter.update(key, BTreeMap::new(), &[path.to_owned()]).expect_err(path)
    };
    assert!(matches!(update("one", "parent"), E::Invalid(_)));
    assert!(matches!(update("x", "labels"), E::NotFound(_)));
    let on_upper = f.snapshotter.add_layer(
        Some("one"),
        "sha256:b",
        layer("b"),
        Usage::default(),
        BTreeMap::new(),
    );
    assert!(matches!(on_upper, Err(E::Invalid(_))));
    let class = |error: SnapshotterError| Failure::from(error).class;
    assert_eq!(class(E::NoParent(String::new())), Class::NotFound);
}

#[test]
fn times_labels_and_use() {
    let f = Fixture::new();
    f.active("a", None);
    let stat = |key| f.snapshotter.stat(key).expect(key);
    let born = stat("a");
    assert_eq!(born.created_at_ns, born.updated_at_ns);
    fs::write(f.uppers.upper(born.id).join("file"), [7; 9000]).expect("write");
    let used = f.snapshotter.usage("a").expect("usage");
    assert_eq!(used.inodes, 2);
    assert!(used.bytes >= 9000);
    f.commit("c", "a").expect("commit");
    let committed = stat("c");
    assert!(committed.created_at_ns > born.created_at_ns, "the commit is a birth");
    assert_eq!(committed.created_at_ns, committed.updated_at_ns);
    assert_eq!(committed.labels, labels(&[("name", "c")]), "labels are not inherited");
    assert_eq!(f.snapshotter.usage("c").expect("usage"), used);
    f.prepare(KeyedKind::View, "v", Some("c")).expect("view");
    assert_eq!(f.snapshotter.usage("v").expect("usage"), Usage::default());

    let update = |given: &[(&str, &str)], paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        f.snapshotter.update("c", labels(given), &paths).expect("update").labels
    };
    assert_eq!(update(&[("x", "1"), ("y", "2")], &[]), labels(&[("x", "1"), ("y", "2")]));
    assert_eq!(
        update(&[("x", "3"), ("z.z", "4")], &["labels.x", "labels.y", "labels.z.z"]),
        labels(&[("x", "3"), ("z.z", "4")]),
        "one that is absent goes"
    );
    assert_eq!(update(&[("q", "5")], &["labels"]), labels(&[("q", "5")]));
    let updated = stat("c");
    assert!(updated.updated_at_ns > committed.updated_at_ns);
    assert_eq!(updated.created_at_ns, committed.created_at_ns);
}

#[test]
fn layers_are_found_by_target_and_parent() {
    let f = Fixture::new();
    f.layer(None, "sha256:a");
    f.layer(None, "sha256:a");
    f.layer(Some("sha256:a"), "sha256:b");
    assert!(f.snapshotter.has_layer(None, "sha256:a"));
    assert!(f.snapshotter.has_layer(Some("sha256:a"), "sha256:b"));
    assert!(!f.snapshotter.has_layer(None, "sha256:b"), "its parent is another");
    let all = f.snapshotter.list(&Filters::default());
    assert_eq!(all.len(), 2, "asked for twice, there once");
    let asked = r#"labels."containerd.io/snapshot.ref"==sha256:a,parent=="""#;
    let found = f.snapshotter.list(&Filters::parse(&[asked]).expect("filter"));
    assert_eq!(found.iter().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["sha256:a"]);
    assert_eq!(f.snapshotter.usage("sha256:a").expect("usage"), Usage { bytes: 5, inodes: 2 });

    // Somebody has taken the name
    f.committed("sha256:c", None);
    f.layer(Some("sha256:b"), "sha256:c");
    assert!(f.snapshotter.has_layer(Some("sha256:b"), "sha256:c"));
    let removed = f.snapshotter.remove("sha256:c (2)").expect("remove");
    assert_eq!(removed, Removed { directory: None, layer: true }, "no directory to remove");
}

#[test]
fn a_layer_is_applied() {
    let f = Fixture::new();
    let usage = Usage { bytes: 7, inodes: 2 };
    let applied = |key: &str, name: &str| f.snapshotter.apply(key, layer(name), usage);
    let a = layer("sha256:a");
    let chain = chain_id(&[a.diff_id, layer("b").diff_id]).expect("two").to_string();

    f.layer(None, "sha256:a");
    f.active("extract", Some("sha256:a"));
    let upper = f.uppers.upper(f.id("extract"));
    let (found, below) = f.snapshotter.active_in(&upper).expect("looked").expect("there");
    assert_eq!((found.key.as_str(), below.layers.as_slice()), ("extract", &[a.clone()][..]));
    for other in [f.root.path(), &upper.join("x"), &f.uppers.upper(99), &f.uppers.work(found.id)] {
        assert_eq!(f.snapshotter.active_in(other).expect("looked"), None, "{}", other.display());
    }
    applied("extract", "b").expect("apply");
    applied("extract", "b").expect("again: the answer may have been lost");
    assert!(matches!(applied("extract", "c"), Err(SnapshotterError::Precondition(_))));
    // Whoever mounts it now sees it
    let mounts = f.snapshotter.mounts(&f.trees, "extract").expect("mounts");
    assert!(mounts[0].options.contains(&"lowerdir=/lower/2".to_owned()), "{mounts:?}");

    let f = f.again();
    assert!(!f.snapshotter.has_layer(Some("sha256:a"), &chain), "not committed yet");
    assert_eq!(f.commit("b", "extract").expect("commit"), Some(found.id), "an empty directory");
    assert!(f.snapshotter.has_layer(Some("sha256:a"), &chain), "found as one that peel fetched");
    assert_eq!(f.snapshotter.usage("b").expect("usage"), usage);
    assert_eq!(f.snapshotter.active_in(&upper).expect("looked"), None);
    let below = f.snapshotter.below(Some("b")).expect("below");
    assert_eq!(below, Below { uppers: Vec::new(), layers: vec![a, layer("b")] });
    let removed = f.snapshotter.remove("b").expect("remove");
    assert_eq!(removed, Removed { directory: None, layer: true });
    assert!(!f.snapshotter.has_layer(Some("sha256:a"), &chain));

    // What was written to is no layer, whenever that was
    let apply = |key: &str| f.snapshotter.apply(key, layer("b"), usage);
    f.active("early", Some("sha256:a"));
    fs::write(f.uppers.upper(f.id("early")).join("file"), "x").expect("write");
    assert!(matches!(apply("early"), Err(SnapshotterError::Precondition(_))));
    f.active("late", Some("sha256:a"));
    apply("late").expect("apply");
    fs::write(f.uppers.upper(f.id("late")).join("file"), "x").expect("write");
    assert!(matches!(f.commit("x", "late"), Err(SnapshotterError::Precondition(_))));
    let directory = Some(f.id("late"));
    let removed = f.snapshotter.remove("late").expect("remove");
    assert_eq!(removed, Removed { directory, layer: true });
    // Nor what stands on a directory
    f.committed("directory", Some("sha256:a"));
    f.active("above", Some("directory"));
    assert!(matches!(apply("above"), Err(SnapshotterError::Precondition(_))));
    assert!(matches!(apply("directory"), Err(SnapshotterError::Precondition(_))));
    assert!(matches!(apply("missing"), Err(SnapshotterError::NotFound(_))));
}

#[test]
fn layers_are_found_by_their_labels_as_they_are_now() {
    let f = Fixture::new();
    f.layer(None, "sha256:a");
    let relabel = |target: &str| {
        let labels = labels(&[(REF_LABEL, target)]);
        f.snapshotter.update("sha256:a", labels, &[]).expect("update");
    };
    relabel("sha256:b");
    assert!(!f.snapshotter.has_layer(None, "sha256:a"));
    assert!(f.snapshotter.has_layer(None, "sha256:b"));
    f.snapshotter.remove("sha256:a").expect("nothing stands on it");
    assert!(!f.snapshotter.has_layer(None, "sha256:b"));
}

#[test]
fn a_restart_changes_nothing() {
    let f = Fixture::new();
    f.layer(None, "sha256:a");
    f.committed("c", Some("sha256:a"));
    let mounts = f.active("active", Some("c"));
    let before = f.snapshotter.list(&Filters::default());
    let f = f.again();
    assert_eq!(f.snapshotter.list(&Filters::default()), before);
    assert_eq!(f.snapshotter.mounts(&f.trees, "active").expect("mounts"), mounts);
    f.snapshotter.remove("c").expect_err("its child is remembered");
    let id = f.snapshotter.remove("active").expect("remove").directory.expect("a directory");
    f.uppers.remove(id).expect("remove");
    f.snapshotter.remove("c").expect("remove").directory.expect("a directory");
    f.snapshotter.remove("sha256:a").expect("remove");
    let f = f.again();
    assert_eq!(f.snapshotter.list(&Filters::default()), []);
}

#[test]
fn uppers_are_0755_and_of_the_parents_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to give a directory away");
        return;
    }
    let f = Fixture::new();
    f.committed("c", None);
    let parent = f.uppers.upper(f.id("c"));
    std::os::unix::fs::chown(&parent, Some(12), Some(34)).expect("chown");
    f.active("a", Some("c"));
    let upper = fs::metadata(f.uppers.upper(f.id("a"))).expect("upper");
    assert_eq!((upper.uid(), upper.gid(), upper.mode() & 0o7777), (12, 34, 0o755));
}

#[test]
fn ids_are_mapped_by_what_is_mounted() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to give a directory away");
        return;
    }
    let f = Fixture::new();
    let map = "0:100000:65536";
    let mapping = || labels(&[(ids::UID_LABEL, map), (ids::GID_LABEL, "0:200000:65536")]);
    let prepare =
        |kind, key: &str, parent| f.snapshotter.prepare(&f.trees, kind, key, parent, mapping());
    let owner = |key: &str| {
        let found = fs::metadata(f.uppers.upper(f.id(key))).expect("upper");
        (found.uid(), found.gid())
    };
    let maps = [format!("uidmap={map}"), "gidmap=0:200000:65536".to_owned()];
    f.layer(None, "sha256:a");
    let mounts = prepare(KeyedKind::Active, "container", Some("sha256:a")).expect("prepare");
    assert_eq!(mounts[0].kind, "overlay");
    assert_eq!(mounts[0].options[..2], maps, "for the client to map what is below");
    assert_eq!(owner("container"), (100_000, 200_000), "as root in the container");
    assert_eq!(f.snapshotter.mounts(&f.trees, "container").expect("mounts"), mounts);
    let mounts = prepare(KeyedKind::View, "view", Some("sha256:a")).expect("view");
    assert_eq!((mounts[0].kind, &mounts[0].options[..2]), ("bind", &maps[..]));
    // Nothing is below: what is written is the host's already
    let mounts = prepare(KeyedKind::Active, "empty", None).expect("prepare");
    assert_eq!(mounts[0].options, ["rw", "rbind"]);
    assert_eq!(owner("empty"), (100_000, 200_000));

    // containerd has changed all owners, as it does for snapshotters that map nothing
    f.active("remap", Some("sha256:a"));
    let upper = f.uppers.upper(f.id("remap"));
    std::os::unix::fs::chown(&upper, Some(100_000), Some(200_000)).expect("chown");
    f.commit("remapped", "remap").expect("commit");
    let mounts = prepare(KeyedKind::Active, "old way", Some("remapped")).expect("prepare");
    assert_eq!(mounts[0].options[0], "index=off", "not once more");
    assert_eq!(owner("old way"), (100_000, 200_000));

    // A kernel that does not
    for n in 1..4 {
        let parent = ["sha256:a", "1", "2", "3"][n - 1];
        f.layer(Some(parent), &n.to_string());
    }
    let error = prepare(KeyedKind::Active, "x", Some("3")).expect_err("no ids are mapped");
    assert!(matches!(&error, SnapshotterError::Precondition(m) if m.contains("remap-ids")));
    f.active("as ever", Some("3"));
    let bad = labels(&[(ids::UID_LABEL, map)]);
    let error = f.snapshotter.prepare(&f.trees, KeyedKind::Active, "x", None, bad);
    assert!(matches!(error, Err(SnapshotterError::Invalid(_))));
    assert_eq!(f.uppers.ids().expect("ids").len(), 5, "nothing is left of what was refused");
}

#[test]
fn a_deep_chain_and_many_children() {
    let f = Fixture::new();
    f.layer(None, "l0");
    for n in 1..200 {
        f.layer(Some(&format!("l{}", n - 1)), &format!("l{n}"));
    }
    let below = f.snapshotter.below(Some("l199")).expect("below");
    assert_eq!(below.layers.len(), 200);
    assert_eq!((&below.layers[0], &below.layers[199]), (&layer("l0"), &layer("l199")));
    for n in 0..20 {
        f.active(&format!("child {n}"), Some("l199"));
    }
    for n in 0..20 {
        f.snapshotter.remove("l199").expect_err("it has children");
        f.snapshotter.remove(&format!("child {n}")).expect("remove");
    }
    f.snapshotter.remove("l199").expect("the last child has gone");
}

/// A step of the model test; names are small numbers.
#[derive(Debug, Clone)]
enum Step {
    Prepare(u8, Option<u8>),
    View(u8, Option<u8>),
    Commit(u8, u8),
    Remove(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..6_u8;
    prop_oneof![
        4 => (name(), proptest::option::of(name())).prop_map(|(key, parent)| Step::Prepare(key, parent)),
        2 => (name(), proptest::option::of(name())).prop_map(|(key, parent)| Step::View(key, parent)),
        4 => (name(), name()).prop_map(|(name, key)| Step::Commit(name, key)),
        3 => name().prop_map(Step::Remove),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn as_a_plain_map_would(steps in proptest::collection::vec(step(), 1..40)) {
        let mut f = Fixture::new();
        let mut model: BTreeMap<String, (KeyedKind, Option<String>)> = BTreeMap::new();
        let text = |n: &u8| n.to_string();
        for step in &steps {
            match step {
                Step::Prepare(key, parent) | Step::View(key, parent) => {
                    let kind = match step {
                        Step::View(..) => KeyedKind::View,
                        _ => KeyedKind::Active,
                    };
                    let (key, parent) = (text(key), parent.as_ref().map(text));
                    let committed = parent.as_ref().is_none_or(|parent| {
                        model.get(parent).is_some_and(|(kind, _)| *kind == KeyedKind::Committed)
                    });
                    let good = !model.contains_key(&key) && committed;
                    let done = f.prepare(kind, &key, parent.as_deref());
                    prop_assert_eq!(done.is_ok(), good, "{:?}", step);
                    if good {
                        model.insert(key, (kind, parent));
                    }
                }
                Step::Commit(name, key) => {
                    let (name, key) = (text(name), text(key));
                    let good = !model.contains_key(&name)
                        && model.get(&key).is_some_and(|(kind, _)| *kind == KeyedKind::Active);
                    prop_assert_eq!(f.commit(&name, &key).is_ok(), good, "{:?}", step);
                    if good && let Some((_, parent)) = model.remove(&key) {
                        model.insert(name, (KeyedKind::Committed, parent));
                    }
                }
                Step::Remove(key) => {
                    let key = text(key);
                    let good = model.contains_key(&key)
                        && model.values().all(|(_, parent)| parent.as_ref() != Some(&key));
                    let removed = f.snapshotter.remove(&key);
                    prop_assert_eq!(removed.is_ok(), good, "{:?}", step);
                    if good {
                        model.remove(&key);
                    }
                }
                Step::Restart => f = f.again(),
            }
        }
        let found = f.snapshotter.list(&Filters::default()).into_iter();
        let found: BTreeMap<_, _> = found.map(|s| (s.key, (s.kind, s.parent))).collect();
        prop_assert_eq!(found, model);
    }
}
