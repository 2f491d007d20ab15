//! Stacks of layers that would take hours or all memory to merge.

use crate::{
    Layer, MergeError,
    merge::{Limits, merge_within},
    testing::{Item, Sample, dir, file, hard_link, merge_samples, sample, symlink},
};

fn within(limits: Limits, samples: &[&Sample]) -> Result<u64, MergeError> {
    let layers: Vec<&Layer> = samples.iter().map(|sample| &sample.layer).collect();
    merge_within(&limits, &layers, None).map(|built| built.entries())
}

fn steps(steps: u64) -> Limits {
    Limits { steps, ..Limits::default() }
}

#[test]
fn many_symlinks_into_one_huge_directory_cost_nothing() {
    let (files, links) = (8192, 8400);
    let mut lower: Vec<Item> = (0..files).map(|n| file(&format!("huge/{n}"), "")).collect();
    lower.push(dir("links"));
    lower.extend((0..links).map(|n| symlink(&format!("links/{n}"), "../huge")));
    let lower = sample(1, &lower);
    let upper: Vec<Item> = (0..links).map(|n| file(&format!("links/{n}/new"), "")).collect();
    let upper = sample(2, &upper);
    assert_eq!(within(steps(60_000), &[&lower, &upper]), Ok(2 + files + 2 * links));
}

/// A chain of symlinks that leads to the directory `end`.
fn chain(links: u32) -> Vec<Item> {
    let link = |n: u32| symlink(&format!("l{n}"), &format!("./l{}", n - 1));
    let mut items = vec![dir("end"), file("end/file", "x"), symlink("l0", "end")];
    items.extend((1..links).map(link));
    items
}

#[test]
fn hard_links_through_long_chains_have_a_limit() {
    let lower = sample(1, &chain(200));
    let upper: Vec<Item> =
        (0..100).map(|n| hard_link(&format!("h{n}"), &format!("l{}/file", 100 + n))).collect();
    let upper = sample(2, &upper);
    // The links l0 to ln, the directory and the file
    let enough = (100..200).map(|n| n + 3).sum();
    assert_eq!(within(steps(enough), &[&lower, &upper]), Ok(2 + 200 + 100));
    let refused = within(steps(enough - 1), &[&lower, &upper]).expect_err("too many");
    assert_eq!(
        refused.to_string(),
        format!(
            "layer {}: too many steps to look up paths in other layers: expected at most 15249 in \
             all, exceeded at \"l199/file\"",
            upper.layer.diff_id()
        )
    );
}

#[test]
fn implicit_directories_over_long_chains_have_a_limit() {
    let lower = sample(1, &chain(200));
    let upper = sample(2, &[file("l199/new", "")]);
    // The path in the upper layer, then each link in the lower one and its end
    assert_eq!(within(steps(1 + 200 + 1), &[&lower, &upper]), Ok(2 + 200 + 1));
    let refused = within(steps(1 + 200), &[&lower, &upper]).expect_err("too many");
    assert!(matches!(&refused, MergeError::Steps { path, .. } if path == "l199"), "{refused}");
}

#[test]
fn a_tree_has_a_limit_of_names() {
    let sample = sample(1, &[file("a/b", ""), file("c", "")]);
    let limits = |entries| Limits { entries, ..Limits::default() };
    assert_eq!(within(limits(3), &[&sample]), Ok(3));
    let refused = within(limits(2), &[&sample]).expect_err("too many").to_string();
    assert_eq!(refused, "too much names in a tree: expected at most 2");
}

#[test]
fn symlinks_that_do_not_end_lend_nothing() {
    let lower = sample(1, &[symlink("a", "b"), symlink("b", "a")]);
    let upper = sample(2, &[file("a/x", "")]);
    let tree = merge_samples(&[&lower, &upper]).expect("valid");
    assert_eq!(tree.inode(2).map(|attr| attr.mode), Some(0o755));
}

#[test]
fn more_layers_than_containerd_takes() {
    let layers: Vec<Sample> = (1..=1000)
        .map(|n| sample(n, &[file(&format!("f{n}"), ""), file("d/same", ""), file(".wh.none", "")]))
        .collect();
    let layers: Vec<&Sample> = layers.iter().collect();
    assert_eq!(within(Limits::default(), &layers), Ok(1000 + 2));
}
