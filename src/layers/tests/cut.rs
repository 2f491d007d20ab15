//! Indexes and trees that are cut short while they are open.

use peel_fuse::Filesystem;

use super::*;

/// Stores a layer of many small files.
fn many(fixture: &Fixture, layers: &Layers, prefix: &str, number: u32) -> Digest {
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..2000 {
        let name = format!("{prefix}{n:04}");
        let mut header = tar::Header::new_gnu();
        header.set_size(name.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, &name, name.as_bytes()).expect("append");
    }
    fixture.store(layers, &tar.into_inner().expect("finish"), number)
}

/// Looks at a hundred files of a tree, and reads them: how many are right, and how many cannot be had.
fn look(layers: &Arc<Layers>, tree: u32, prefix: &str) -> (usize, usize) {
    let filesystem = Filesystem::new(Arc::clone(layers));
    let root = NodeId::Tree { slot: slot(tree), number: 1 }.to_raw();
    let (mut right, mut failed) = (0, 0);
    for n in (0..2000).step_by(20) {
        let name = format!("{prefix}{n:04}");
        let mut body = Vec::new();
        let read = filesystem.lookup(root, name.as_bytes()).and_then(|found| {
            let peel_fuse::Lookup::Found(inode) = found else { panic!("{name}: {found:?}") };
            assert_eq!(inode.attr.size, name.len() as u64, "{name}");
            filesystem.read(inode.ino, 0, 4096, &mut Vec::new(), &mut body)
        });
        match read {
            Ok(()) => {
                assert_eq!(body, name.as_bytes());
                right += 1;
            }
            Err(_) => failed += 1,
        }
    }
    (right, failed)
}

#[test]
fn what_is_cut_short_is_an_error_and_nothing_else_suffers() {
    let fixture = Fixture::new();
    let layers = Arc::new(fixture.open().expect("open"));
    let (one, other) = (many(&fixture, &layers, "a", 1), many(&fixture, &layers, "b", 2));
    layers.build_tree(&[one], slot(3)).expect("tree");
    layers.build_tree(&[other], slot(4)).expect("tree");
    let files = [
        fixture.root.path().join("layers").join(file_name(&one)),
        fixture.root.path().join("trees").join(tree_name(peel_index::chain_id(&[one]))),
    ];
    for path in files {
        assert_eq!(look(&layers, 3, "a"), (100, 0));
        let good = fs::read(&path).expect("read");
        for len in [good.len() / 2, 5000, 0] {
            File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(len as u64))
                .expect("cut");
            let (right, failed) = look(&layers, 3, "a");
            assert!(right < 100 && failed == 100 - right, "{right}");
            assert_eq!(look(&layers, 4, "b"), (100, 0));
            assert!(
                layers.check_layer(&one).is_err()
                    || layers.check_tree(peel_index::chain_id(&[one])).is_err()
            );
            fs::write(&path, &good).expect("write");
            assert_eq!(look(&layers, 3, "a"), (100, 0), "opened again by itself");
        }
    }
}

#[test]
fn a_tree_is_not_made_of_what_is_cut_short() {
    let fixture = Fixture::new();
    let layers = fixture.open().expect("open");
    let one = many(&fixture, &layers, "a", 1);
    let path = fixture.root.path().join("layers").join(file_name(&one));
    layers.layer_by_diff_id(&one).expect("index").expect("open");
    let file = File::options().write(true).open(&path).expect("open");
    file.set_len(fs::metadata(&path).expect("len").len() / 2).expect("cut");
    let error = layers.build_tree(&[one], slot(2)).expect_err("cut short");
    assert!(matches!(error, LayersError::Cut { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains(&file_name(&one)) && told.contains("expected"), "{told}");
    let again = layers.build_tree(&[one], slot(2)).expect_err("damaged");
    assert!(matches!(again, LayersError::Format { .. }), "{again}");
    let known = layers.build_tree(&[one], slot(2)).expect_err("damaged still");
    assert!(matches!(known, LayersError::Known { .. }), "not looked at again: {known}");
    assert_eq!(layers.tree_slots(), []);
}
