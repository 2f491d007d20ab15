//! Archives that other programs write: what the parser says has to equal the files they packed.
//!
//! A test whose program is missing says so and passes, unless `PEEL_REQUIRE_TOOLS=1`.

mod tools;
mod tree;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use peel_index::tar::{EntryKind, TarEntry, TarParser};
use tools::{bsd_tar, gnu_tar, missing, python_tar};
use tree::{Format, GNU, PAX, USTAR, V7, names, tree};

fn parse(archive: &[u8]) -> Vec<TarEntry> {
    let mut entries = Vec::new();
    let mut parser = TarParser::new();
    for piece in archive.chunks(10_007) {
        parser
            .push(piece, &mut |entry| {
                entries.push(entry);
                Ok(())
            })
            .unwrap();
    }
    parser.finish().unwrap();
    entries
}

/// `./a/b/` to `a/b`.
fn normal(path: &[u8]) -> PathBuf {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    path.strip_prefix(".").unwrap_or(&path).components().collect()
}

fn content(archive: &[u8], entry: &TarEntry) -> Vec<u8> {
    let mut content = vec![0; entry.size as usize];
    for extent in &entry.data {
        let (to, from) = (extent.logical as usize, extent.tar_offset as usize);
        let len = extent.len as usize;
        content[to..to + len].copy_from_slice(&archive[from..from + len]);
    }
    content
}

/// Compares an archive with the tree that it was made of.
fn check(root: &Path, format: Format, archive: &[u8]) -> Vec<TarEntry> {
    let entries = parse(archive);
    let mut by_path: BTreeMap<PathBuf, &TarEntry> = BTreeMap::new();
    for entry in &entries {
        assert!(by_path.insert(normal(&entry.path), entry).is_none(), "{entry:?}");
    }
    by_path.remove(Path::new(""));
    let names = names(root);
    assert_eq!(by_path.keys().collect::<Vec<_>>(), {
        let mut names: Vec<_> = names.iter().collect();
        names.sort();
        names
    });
    for name in &names {
        let metadata = root.join(name).symlink_metadata().unwrap();
        let entry = by_path[name];
        check_kind(root, &metadata, name, entry);
        if entry.kind == EntryKind::File {
            let expected = fs::read(root.join(name)).unwrap();
            assert!(content(archive, entry) == expected, "content of {name:?}");
        }
        if entry.kind != EntryKind::Symlink {
            assert_eq!(entry.mode, metadata.mode() & 0o7777, "{name:?}");
        }
        assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()), "{name:?}");
        let time = (entry.mtime_sec, i64::from(entry.mtime_nsec));
        if format.fraction {
            assert_eq!(time, (metadata.mtime(), metadata.mtime_nsec()), "{name:?}");
        } else {
            assert_eq!(time, (metadata.mtime(), 0), "{name:?}");
        }
    }
    entries
}

fn check_kind(root: &Path, metadata: &fs::Metadata, name: &Path, entry: &TarEntry) {
    let kind = metadata.file_type();
    match entry.kind {
        EntryKind::File => assert!(kind.is_file(), "{name:?}"),
        EntryKind::Directory => assert!(kind.is_dir(), "{name:?}"),
        EntryKind::Fifo => assert!(kind.is_fifo(), "{name:?}"),
        EntryKind::Symlink => {
            let target = fs::read_link(root.join(name)).unwrap();
            assert_eq!(target.as_os_str().as_bytes(), entry.link, "{name:?}");
        }
        EntryKind::HardLink => {
            let target = root.join(normal(&entry.link)).metadata().unwrap();
            assert_eq!(target.ino(), metadata.ino(), "{name:?}");
            assert_eq!((entry.size, entry.data.len()), (0, 0), "{name:?}");
        }
        EntryKind::CharDevice | EntryKind::BlockDevice => panic!("no devices here: {name:?}"),
        EntryKind::GlobalHeader => panic!("no global headers here: {name:?}"),
    }
}

#[test]
fn gnu_tar_formats() {
    let table =
        [("v7", V7), ("oldgnu", GNU), ("gnu", GNU), ("ustar", USTAR), ("posix", PAX), ("pax", PAX)];
    for (name, format) in table {
        let tree = tree(format);
        if let Some(archive) = gnu_tar(tree.path(), &[&format!("--format={name}")]) {
            let entries = check(tree.path(), format, &archive);
            assert!(entries.iter().any(|entry| entry.kind == EntryKind::HardLink), "{name}");
        }
    }
}

#[test]
fn bsdtar_formats() {
    // libarchive's ustar cannot hold what is no text. A time of -0.75 s comes out as 0 in ustar and
    // GNU format, and as "-1.25" in PAX (libarchive 3.6)
    let no_negative = |format| Format { negative: false, ..format };
    let table = [
        ("ustar", Format { binary: false, ..USTAR }),
        ("gnutar", no_negative(GNU)),
        ("pax", no_negative(PAX)),
    ];
    for (name, format) in table {
        let tree = tree(format);
        if let Some(archive) = bsd_tar(tree.path(), &[&format!("--format={name}")]) {
            check(tree.path(), format, &archive);
        }
    }
}

#[test]
fn python_formats() {
    let table = [
        ("format=tarfile.USTAR_FORMAT", USTAR),
        ("format=tarfile.GNU_FORMAT", GNU),
        ("format=tarfile.PAX_FORMAT", Format { binary: false, ..PAX }),
    ];
    for (arguments, format) in table {
        let tree = tree(format);
        if let Some(archive) = python_tar(tree.path(), arguments) {
            check_python(tree.path(), format, &archive);
        }
    }
}

/// Python takes times through a float, so fractions are near only.
fn check_python(root: &Path, format: Format, archive: &[u8]) {
    if !format.fraction {
        check(root, format, archive);
        return;
    }
    let entries = parse(archive);
    assert!(entries.len() > 10);
    for entry in entries {
        let metadata = root.join(normal(&entry.path)).symlink_metadata().unwrap();
        let time = i128::from(entry.mtime_sec) * 1_000_000_000 + i128::from(entry.mtime_nsec);
        let expected =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        assert!(time.abs_diff(expected) < 1000, "{time} and {expected}");
        if entry.kind == EntryKind::File {
            let expected = fs::read(root.join(normal(&entry.path))).unwrap();
            assert!(content(archive, &entry) == expected, "{entry:?}");
        }
    }
}

#[test]
fn python_global_header() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), b"x").unwrap();
    let headers = "format=tarfile.PAX_FORMAT, \
                   pax_headers={'SCHILY.xattr.user.all': 'v', 'comment': 'c'}";
    if let Some(archive) = python_tar(tree.path(), headers) {
        let entries = parse(&archive);
        let found: Vec<_> = entries.iter().map(|entry| (entry.kind, entry.xattrs.len())).collect();
        let expected = [EntryKind::GlobalHeader, EntryKind::Directory, EntryKind::File];
        assert_eq!(found, expected.map(|kind| (kind, 0)));
    }
}

/// Files with holes: more runs than an old GNU header and one extension hold, a hole at the end,
/// nothing but a hole, and one that is not sparse.
fn sparse_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sparse = |name: &str, runs: &[u64], size: u64| {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for run in runs {
            file.write_all_at(&[(run % 251) as u8 + 1; 5000], run * 65536).unwrap();
        }
    };
    sparse("few", &[1, 3], 5 * 65536);
    sparse("many", &(0..40).collect::<Vec<_>>(), 40 * 65536 + 17);
    sparse("hole", &[], 300_000);
    sparse(&"long".repeat(40), &[2], 200_000);
    fs::write(dir.path().join("plain"), b"no hole").unwrap();
    dir
}

fn check_sparse(root: &Path, format: Format, archive: &[u8]) {
    let entries = check(root, format, archive);
    for entry in entries {
        let metadata = root.join(normal(&entry.path)).symlink_metadata().unwrap();
        let stored: u64 = entry.data.iter().map(|extent| extent.len).sum();
        // A filesystem without holes has nothing to show
        if metadata.is_file() && metadata.blocks() * 512 + 4096 < metadata.size() {
            assert!(stored < entry.size, "{entry:?}");
        }
    }
}

#[test]
fn sparse_files() {
    let tree = sparse_tree();
    let table: [(&[&str], Format); 5] = [
        (&["--format=oldgnu"], GNU),
        (&["--format=gnu"], GNU),
        (&["--format=posix", "--sparse-version=0.0"], PAX),
        (&["--format=posix", "--sparse-version=0.1"], PAX),
        (&["--format=posix", "--sparse-version=1.0"], PAX),
    ];
    for (options, format) in table {
        let options = [&["--sparse", "--hole-detection=raw"], options].concat();
        if let Some(archive) = gnu_tar(tree.path(), &options) {
            check_sparse(tree.path(), format, &archive);
        }
    }
    if let Some(archive) = bsd_tar(tree.path(), &["--format=pax"]) {
        check_sparse(tree.path(), PAX, &archive);
    }
}

#[test]
fn extended_attributes() {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("file");
    fs::write(&file, b"x").unwrap();
    let pairs: [(&str, &[u8], &str); 4] = [
        ("user.text", b"v", "v"),
        ("user.lines", b"a=b\n11 path=/\n\0\xff", "0x613d620a313120706174683d2f0a00ff"),
        ("user.a=b", b"equals in its name", "equals in its name"),
        ("user.empty", b"", ""),
    ];
    for (name, _, value) in pairs {
        let mut set = Command::new("setfattr");
        set.args(["-n", name, "-v", value]).arg(&file);
        match set.status() {
            Ok(status) if status.success() => {}
            _ => return missing("setfattr, or user attributes in the temporary directory"),
        }
    }
    let mut expected: Vec<_> =
        pairs.map(|(name, value, _)| (name.as_bytes().to_vec(), value.to_vec())).to_vec();
    expected.sort();
    // SCHILY.xattr cannot hold an equals sign in a name; GNU tar writes it as %3D
    let plain: Vec<_> =
        expected.iter().filter(|(name, _)| !name.contains(&b'=')).cloned().collect();
    if let Some(archive) =
        gnu_tar(tree.path(), &["--format=posix", "--xattrs", "--xattrs-include=*"])
    {
        let found = xattrs(&archive);
        for pair in plain {
            assert!(found.contains(&pair), "{pair:?} in {found:?}");
        }
    }
    if let Some(archive) = bsd_tar(tree.path(), &["--format=pax", "--xattrs"]) {
        let found = xattrs(&archive);
        for pair in expected.iter().filter(|(_, value)| !value.is_empty()) {
            assert!(found.contains(pair), "{pair:?} in {found:?}");
        }
    }
}

/// Those of the file, the last of each name.
fn xattrs(archive: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entries = parse(archive);
    let entry = entries.into_iter().find(|entry| normal(&entry.path) == Path::new("file")).unwrap();
    entry.xattrs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
}

#[test]
fn tar_crate() {
    // It writes times before 1970 as numbers past 64 bits
    let tree = tree(Format { negative: false, ..GNU });
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", tree.path()).unwrap();
    let archive = builder.into_inner().unwrap();
    let entries = parse(&archive);
    assert_eq!(entries.len(), names(tree.path()).len() + 1);
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
        let expected = fs::read(tree.path().join(normal(&entry.path))).unwrap();
        assert!(content(&archive, entry) == expected, "{entry:?}");
    }
}

#[test]
fn tar_crate_agrees_on_what_it_reads() {
    let mut builder = tar::Builder::new(Vec::new());
    for (index, size) in [0_u64, 1, 511, 512, 513, 70_000].into_iter().enumerate() {
        let pax: [(&str, &[u8]); 2] =
            [("SCHILY.xattr.user.index", b"value"), ("mtime", b"1700000000")];
        builder.append_pax_extensions(pax).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o640);
        header.set_uid(index as u64);
        header.set_gid(7);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        let content = vec![index as u8; size as usize];
        builder.append_data(&mut header, format!("dir/{index}"), &content[..]).unwrap();
    }
    let archive = builder.into_inner().unwrap();
    let entries = parse(&archive);
    let mut oracle = tar::Archive::new(&archive[..]);
    let mut count = 0;
    for (theirs, ours) in oracle.entries().unwrap().zip(&entries) {
        let theirs = theirs.unwrap();
        assert_eq!(theirs.path_bytes(), ours.path);
        assert_eq!(theirs.header().uid().unwrap(), u64::from(ours.uid));
        assert_eq!(theirs.header().mode().unwrap(), ours.mode);
        assert_eq!(theirs.size(), ours.size);
        assert_eq!(ours.mtime_sec, 1_700_000_000);
        assert_eq!(ours.xattrs, [(b"user.index".to_vec(), b"value".to_vec())]);
        if let [extent] = ours.data[..] {
            assert_eq!(theirs.raw_file_position(), extent.tar_offset);
        }
        count += 1;
    }
    assert_eq!((count, entries.len()), (6, 6));
}

#[test]
fn tar_crate_numbers_past_octal() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_uid(4_000_000_000);
    header.set_gid(3_000_000_000);
    header.set_mtime(1 << 40);
    header.set_cksum();
    builder.append_data(&mut header, "binary", io::empty()).unwrap();
    let archive = builder.into_inner().unwrap();
    let entries = parse(&archive);
    assert_eq!((entries[0].uid, entries[0].gid), (4_000_000_000, 3_000_000_000));
    assert_eq!(entries[0].mtime_sec, 1 << 40);
}
