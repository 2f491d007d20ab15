//! Random stacks of layers: the merged tree equals the model's.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model::{Body, LayerModel, TreeModel};
use crate::{
    FileKind, NodeId,
    testing::{
        Item, Sample, Shown, build, device, dir, file, hard_link, merge_samples, sample, symlink,
        walk,
    },
};

/// Few names and little depth, so that layers meet.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    (prop_oneof![Just(""), Just("/"), Just("../"), Just("../../")], path())
        .prop_map(|(start, path)| format!("{start}{path}"))
}

fn item() -> impl Strategy<Value = Item> {
    let hide = |path: String| {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        file(&format!("{parent}/.wh.{name}"), "")
    };
    let item = prop_oneof![
        6 => (path(), "[xyz]{0,3}").prop_map(|(path, content)| file(&path, &content)),
        4 => path().prop_map(|path| dir(&path)),
        1 => Just(dir("./")),
        4 => (path(), target()).prop_map(|(path, target)| symlink(&path, &target)),
        5 => (path(), path()).prop_map(|(path, target)| hard_link(&path, &target)),
        1 => path().prop_map(|path| device(&path, tar::EntryType::Fifo, 0, 0)),
        3 => path().prop_map(hide),
        1 => path().prop_map(|path| file(&format!("{path}/.wh..wh..opq"), "")),
        1 => Just(file(".wh..wh..opq", "")),
    ];
    (item, 0u32..0o10000, 0u32..3, 0u64..5, prop::option::weighted(0.2, "[12]")).prop_map(
        |(item, mode, uid, mtime, value)| {
            let item = item.mode(mode).uid(uid).mtime(mtime);
            match value {
                Some(value) if uid == 0 => item.xattr("security.capability", &value),
                Some(value) => item.xattr(&format!("security.n{uid}"), &value),
                None => item,
            }
        },
    )
}

/// The entries of a layer that the model takes, and its model. What it refuses, the builder must
/// refuse as well.
fn accepted(items: Vec<Item>) -> Result<(Vec<Item>, LayerModel), TestCaseError> {
    let mut model = LayerModel::new();
    let mut taken = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        let mut next = model.clone();
        let is_taken = next.apply(&item, position).is_ok();
        taken.push(item);
        if is_taken {
            model = next;
        } else {
            prop_assert!(build(&taken).is_err(), "built: {taken:?}");
            taken.pop();
        }
    }
    Ok((taken, model))
}

/// Compares a merged tree with the model's.
fn check(shown: &[Shown], model: &TreeModel) -> Result<(), TestCaseError> {
    let paths: Vec<&String> = shown.iter().map(|shown| &shown.path).collect();
    let mut expected: Vec<&String> = model.paths.keys().collect();
    // Depth first, bytewise within a directory
    expected.sort_by_key(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
    prop_assert_eq!(paths, expected);
    let mut nodes: BTreeMap<usize, NodeId> = BTreeMap::new();
    let mut numbers: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut last_directory = 0;
    for found in shown {
        let number = model.paths[&found.path];
        let inode = &model.inodes[number];
        prop_assert_eq!(*nodes.entry(number).or_insert(found.node), found.node);
        prop_assert_eq!(*numbers.entry(found.node).or_insert(number), number);
        let names = model.paths.values().filter(|other| **other == number).count() as u32;
        let subdirectories = model.paths.iter().filter(|(path, inode)| {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            !path.is_empty()
                && parent == found.path
                && model.inodes[**inode].body == Body::Directory
        });
        let (kind, content, nlink) = match &inode.body {
            Body::Directory => (FileKind::Directory, &[][..], 2 + subdirectories.count() as u32),
            Body::File(content) => (FileKind::Regular, &content[..], names),
            Body::Symlink(target) => (FileKind::Symlink, target.as_bytes(), names),
            Body::Pipe => (FileKind::Fifo, &[][..], names),
            Body::Lower(_) => panic!("none is left after the merge"),
        };
        prop_assert_eq!((found.attr.kind, &found.content[..]), (kind, content));
        prop_assert_eq!(found.attr.nlink, nlink, "{}", &found.path);
        let (mode, uid, mtime) = inode.header.unwrap_or((0o755, 0, 0));
        prop_assert_eq!(found.attr.mode, mode, "{}", &found.path);
        prop_assert_eq!((found.attr.uid, found.attr.mtime_sec), (uid, mtime as i64));
        prop_assert!(found.xattrs.iter().map(|(n, v)| (n, v)).eq(&inode.xattrs), "{}", found.path);
        if let (NodeId::Tree { number, .. }, FileKind::Directory) = (found.node, kind) {
            prop_assert!(number > last_directory, "numbered depth first");
            last_directory = number;
        }
    }
    Ok(())
}

fn run(layers: Vec<Vec<Item>>) -> Result<(), TestCaseError> {
    let mut samples = Vec::new();
    let mut model = TreeModel::new();
    let mut result = Ok(());
    for (number, items) in (1..).zip(layers) {
        let (items, layer) = accepted(items)?;
        samples.push(sample(number, &items));
        result = result.and_then(|()| model.apply(&layer));
    }
    let samples: Vec<&Sample> = samples.iter().collect();
    match (merge_samples(&samples), result) {
        (Ok(tree), Ok(())) => check(&walk(&tree, &samples), &model),
        (Err(_), Err(_)) => Ok(()),
        (found, expected) => {
            prop_assert!(false, "merge: {:?}, model: {:?}", found.map(|_| ()), expected);
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stack_equals_the_model(
        layers in prop::collection::vec(prop::collection::vec(item(), 0..10), 1..5)
    ) {
        run(layers)?;
    }
}
