use std::io::Write as _;

use super::*;
use crate::content::OciLayout;

fn header(kind: tar::EntryType, len: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(len as u64);
    header
}

fn tar_of(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = header(tar::EntryType::Regular, bytes.len());
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    for (name, target) in links {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0), name, target).unwrap();
    }
    tar.into_inner().unwrap()
}

/// What `docker save` of an older version writes: a layer twice, once as a link.
fn docker(names: &str) -> (Vec<u8>, Vec<u8>) {
    let layer = tar_of(&[("a", b"x")], &[]);
    let diff_id = Digest::sha256(&layer).to_string();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [diff_id, diff_id] },
    });
    let config = config.to_string();
    let manifest = format!(
        r#"[{{"Config":"c.json","RepoTags":{names},"Layers":["1/layer.tar","2/layer.tar"]}}]"#
    );
    let files: &[(&str, &[u8])] = &[
        ("c.json", config.as_bytes()),
        ("./1/layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ];
    (tar_of(files, &[("2/layer.tar", "../1/layer.tar")]), layer)
}

fn open(bytes: &[u8]) -> Result<OciLayout, ContentError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive.tar");
    std::fs::write(&path, bytes).unwrap();
    OciLayout::open_archive(&path, dir.path())
}

#[test]
fn docker_archives_get_manifests() {
    let (bytes, layer) = docker(r#"["nginx:1.27","ghcr.io/x/y:z"]"#);
    let layout = open(&bytes).unwrap();
    let names: Vec<_> = layout.entries().map(|(name, _)| name.unwrap().to_owned()).collect();
    assert_eq!(names, ["docker.io/library/nginx:1.27", "ghcr.io/x/y:z"]);
    let entry = layout.entries().next().unwrap().1.clone();
    let manifest = layout.read_blob(&entry, 10_000).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let digest = Digest::sha256(&layer);
    for found in manifest["layers"].as_array().unwrap() {
        assert_eq!(found["digest"], digest.to_string());
        assert_eq!(found["mediaType"], "application/vnd.docker.image.rootfs.diff.tar");
    }
    let descriptor = Descriptor::new("x", digest, layer.len() as u64);
    assert_eq!(layout.read_blob(&descriptor, 10_000).unwrap(), layer);
    let part = layout.open_blob(&descriptor).unwrap();
    let mut read = vec![0; layer.len()];
    part.file.read_exact_at(&mut read, part.offset).unwrap();
    assert_eq!(read, layer);

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&docker("null").0).unwrap();
    let layout = open(&gzip.finish().unwrap()).unwrap();
    assert_eq!(layout.entries().map(|(name, _)| name.is_none()).collect::<Vec<_>>(), [true]);

    // Of two frames, as parallel compressors write it
    let whole = docker("null").0;
    let (front, back) = whole.split_at(whole.len() / 2);
    let zstd = [front, back].map(|part| zstd::encode_all(part, 3).unwrap()).concat();
    let layout = open(&zstd).unwrap();
    assert_eq!(layout.entries().map(|(name, _)| name.is_none()).collect::<Vec<_>>(), [true]);
    let error = open(&zstd[..zstd.len() - 9]).unwrap_err().to_string();
    assert!(error.contains("cannot decompress"), "{error}");
}

#[test]
fn what_is_no_archive_is_refused() {
    let (good, _) = docker("[]");
    let table: &[(&[u8], &str)] = &[
        (b"", "manifest.json"),
        (b"no tar, but some text", "expected a tar"),
        (&ZSTD, "cannot decompress"),
        (&good[..2000], "expected"),
        (&tar_of(&[("x", b"y")], &[]), "manifest.json"),
        (&tar_of(&[("manifest.json", b"{")], &[]), "expected JSON"),
        (&tar_of(&[("manifest.json", br#"[{"Config":"../../etc/passwd"}]"#)], &[]), "etc/passwd"),
        (&tar_of(&[("a", b"y")], &[("manifest.json", "manifest.json")]), "manifest.json"),
        (&tar_of(&[("oci-layout", br#"{"imageLayoutVersion":"2.0"}"#)], &[]), "version"),
    ];
    for (bytes, expected) in table {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn names_are_cleaned() {
    for (name, expected) in
        [("./a//b", "a/b"), ("a/../b", "b"), ("../../x", "x"), ("/", ""), ("a/./b/", "a/b")]
    {
        assert_eq!(clean(name), expected);
    }
}
