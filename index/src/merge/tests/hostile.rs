//! Stacks of layers that would take hours to merge.

use crate::{
    MergeError,
    testing::{Item, dir, file, merge_samples, sample, symlink},
};

#[test]
fn many_symlinks_into_one_huge_directory_are_refused() {
    let (files, links) = (8192, 8400);
    let mut lower: Vec<Item> = (0..files).map(|n| file(&format!("huge/{n}"), "")).collect();
    lower.push(dir("links"));
    lower.extend((0..links).map(|n| symlink(&format!("links/{n}"), "../huge")));
    let lower = sample(1, &lower);
    let upper = |links: usize| -> Vec<Item> {
        (0..links).map(|n| file(&format!("links/{n}/new"), "")).collect()
    };
    let few = sample(2, &upper(100));
    assert!(merge_samples(&[&lower, &few]).is_ok());
    let many = sample(2, &upper(links));
    let refused = merge_samples(&[&lower, &many]);
    assert!(matches!(refused, Err(MergeError::Grafts { .. })), "{:?}", refused.err());
}
