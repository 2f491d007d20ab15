//! Layers that would take hours or all memory to build.

use super::{dir, entry, file};
use crate::{
    BuildError, EntryKind, EntryProblem, TarEntry,
    build::apply::LayerTree,
    testing::{Item, build, hard_link, symlink},
};

fn symlink_entry(path: &str, link: &str) -> TarEntry {
    TarEntry { kind: EntryKind::Symlink, link: link.into(), ..entry(path, 0, Vec::new()) }
}

fn apply(tree: &mut LayerTree, entries: &[TarEntry]) -> Result<(), BuildError> {
    entries.iter().try_for_each(|entry| tree.apply(entry))
}

fn problem(result: Result<(), BuildError>) -> (String, EntryProblem) {
    match result {
        Err(BuildError::Entry { path, problem, .. }) => (path, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn long_chains_of_symlinks_have_a_limit() {
    let mut chain = vec![symlink_entry("l0", "end")];
    chain.extend((1..200).map(|n| symlink_entry(&format!("l{n}"), &format!("l{}", n - 1))));
    let files = |count: u32| -> Vec<TarEntry> {
        // Another directory in between: a second entry of one directory is not looked up again
        let file = |n| [entry(&format!("l199/f{n}"), 0, Vec::new()), entry("d/f", 0, Vec::new())];
        (0..count).flat_map(file).collect()
    };
    // 400 steps a time: the links and where they lead; 64 are granted for each entry
    let mut tree = LayerTree::with_effort(0);
    apply(&mut tree, &chain).expect("no steps yet");
    apply(&mut tree, &files(40)).expect("few");
    let (path, refused) = problem(apply(&mut tree, &files(10)));
    assert!(path.starts_with("l199/f"), "{path}");
    assert!(matches!(refused, EntryProblem::Effort { .. }), "{refused}");
}

#[test]
fn what_an_entry_costs_by_itself_is_no_effort() {
    let mut tree = LayerTree::with_effort(0);
    let deep = vec!["d"; 2000].join("/");
    for n in 0..1000 {
        let entries = [entry(&format!("{deep}/{n}"), 0, Vec::new()), entry("f", 0, Vec::new())];
        apply(&mut tree, &entries).expect("no symlinks");
    }
}

#[test]
fn attributes_that_are_merged_again_and_again_have_a_limit() {
    let with = |number: u32, len| TarEntry {
        kind: EntryKind::Directory,
        xattrs: vec![(format!("user.{number}").into_bytes(), vec![b'x'; len])],
        ..entry("d", 0, Vec::new())
    };
    let mut tree = LayerTree::with_effort(200_000);
    apply(&mut tree, &[with(0, 60_000), with(1, 60_000)]).expect("few");
    let again = vec![with(1, 60_000); 100];
    let (_, refused) = problem(apply(&mut tree, &again));
    assert!(matches!(refused, EntryProblem::Effort { .. }), "{refused}");

    let mut tree = LayerTree::new();
    let large: Vec<TarEntry> = (0..20).map(|n| with(n, 60_000)).collect();
    let (_, refused) = problem(apply(&mut tree, &large));
    assert!(matches!(refused, EntryProblem::Xattrs { found } if found > 1 << 20), "{refused}");
    let mut tree = LayerTree::new();
    let many = (0..10_000).map(|n| (format!("user.{n}").into_bytes(), Vec::new())).collect();
    let many = TarEntry { xattrs: many, ..with(0, 0) };
    let (_, refused) = problem(apply(&mut tree, &[many]));
    assert!(matches!(refused, EntryProblem::Xattrs { .. }), "{refused}");
}

#[test]
fn depth_is_bounded_by_the_length_of_paths() {
    let refused = |items: &[Item]| build(items).expect_err("too deep").to_string();
    let deep = |depth: usize| vec!["d"; depth].join("/");
    assert!(build(&[file(&deep(2048), "")]).is_ok());
    assert!(refused(&[file(&deep(100_000), "")]).contains("found 200000"));
    // Where a symlink leads counts, not how it is called
    let link = symlink("l", &deep(2000));
    assert!(build(&[link.clone(), file(&format!("l/{}", deep(48)), "")]).is_ok());
    for path in [format!("l/{}", deep(49)), format!("l/{}/", deep(49))] {
        let error = refused(&[link.clone(), file(&path, "")]);
        assert!(error.contains("entry \"l/d") && error.contains("path too long"), "{error}");
    }
    let error = refused(&[link.clone(), dir("l/x"), file(&format!("l/x/{}", "n".repeat(94)), "")]);
    assert!(error.contains("found 4097"), "{error}");
    // One after the other in the same directory, of which the first fits
    let error = refused(&[
        link.clone(),
        file("l/x/short", ""),
        file(&format!("l/x/{}", "n".repeat(94)), ""),
    ]);
    assert!(error.contains("found 4097"), "{error}");
    let error = refused(&[link, hard_link(&format!("l/{}", deep(49)), "x")]);
    assert!(error.contains("path too long"), "{error}");
}
