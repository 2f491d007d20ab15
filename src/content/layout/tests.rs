use std::{fs, os::unix::fs::symlink};

use serde_json::json;

use super::*;
use crate::oci::MEDIA_TYPE_OCI_MANIFEST;

/// A layout whose index has an entry for each name and platform.
fn layout(entries: &[(Option<&str>, Option<&str>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    fs::write(dir.path().join(LAYOUT_FILE), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let entries: Vec<_> = entries
        .iter()
        .enumerate()
        .map(|(number, (name, platform))| {
            let bytes = number.to_string();
            let digest = Digest::sha256(bytes.as_bytes());
            fs::write(blob_path(dir.path(), &digest), &bytes).unwrap();
            let mut entry = json!({
                "mediaType": MEDIA_TYPE_OCI_MANIFEST,
                "digest": digest.to_string(),
                "size": bytes.len(),
            });
            if let Some(name) = name {
                entry["annotations"] = json!({ANNOTATION_REF_NAME: name});
            }
            if let Some(architecture) = platform {
                entry["platform"] = json!({"os": "linux", "architecture": architecture});
            }
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    dir
}

/// The number of the entry that is chosen.
fn choose(dir: &Path, tag: Option<&str>, architecture: &str) -> Result<String, ContentError> {
    let layout = OciLayout::open(dir)?;
    let platform = Platform::new("linux", architecture, None);
    let chosen = layout.resolve(tag, &platform)?;
    let bytes = layout.read_blob(chosen, 100)?;
    Ok(String::from_utf8(bytes).unwrap())
}

#[test]
fn entries_are_found_by_tag_and_platform() {
    let one = layout(&[(Some("v1"), None)]);
    assert_eq!(choose(one.path(), None, "amd64").unwrap(), "0");
    assert_eq!(choose(one.path(), Some("v1"), "amd64").unwrap(), "0");

    let tags = layout(&[(Some("v1"), None), (Some("v2"), None)]);
    assert_eq!(choose(tags.path(), Some("v2"), "amd64").unwrap(), "1");

    let platforms = layout(&[
        (Some("v1"), Some("arm64")),
        (Some("v1"), Some("amd64")),
        (Some("v2"), Some("amd64")),
    ]);
    assert_eq!(choose(platforms.path(), Some("v1"), "amd64").unwrap(), "1");
    assert_eq!(choose(platforms.path(), Some("v1"), "arm64").unwrap(), "0");

    let untagged = layout(&[(None, Some("arm64")), (None, Some("amd64"))]);
    assert_eq!(choose(untagged.path(), None, "amd64").unwrap(), "1");
}

#[test]
fn what_is_not_clear_lists_the_tags() {
    let tags = layout(&[(Some("v2"), None), (Some("v1"), None), (None, None)]);
    let error = choose(tags.path(), None, "amd64").unwrap_err().to_string();
    assert!(error.contains("holds 3 images: expected a tag, found: v1, v2"), "{error}");
    let error = choose(tags.path(), Some("v3"), "amd64").unwrap_err();
    assert!(error.to_string().contains("no image tagged \"v3\""), "{error}");
    assert!(error.to_string().contains("v1, v2") && error.hint().is_some(), "{error}");
    let empty = layout(&[]);
    let error = choose(empty.path(), None, "amd64").unwrap_err().to_string();
    assert!(error.contains("expected an image in its index.json, found none"), "{error}");
}

#[test]
fn what_is_no_layout_is_told() {
    let dir = layout(&[(None, None)]);
    let absent = dir.path().join("absent");
    let file = dir.path().join("index.json");
    assert!(OciLayout::open(&absent).unwrap_err().to_string().contains("no such directory"));
    assert!(OciLayout::open(&file).unwrap_err().to_string().contains("found a file"));
    let table = [
        (LAYOUT_FILE, "{", "JSON in oci-layout"),
        (LAYOUT_FILE, r#"{"imageLayoutVersion":"2.0"}"#, "version \"2.0\""),
        ("index.json", "<html>", "cannot use"),
        ("index.json", r#"{"schemaVersion":2,"manifests":[{}]}"#, "cannot use"),
    ];
    for (name, text, expected) in table {
        let dir = layout(&[(None, None)]);
        fs::write(dir.path().join(name), text).unwrap();
        let error = OciLayout::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    for (name, expected) in [(LAYOUT_FILE, "oci-layout"), ("index.json", "an index.json")] {
        let dir = layout(&[]);
        fs::remove_file(dir.path().join(name)).unwrap();
        let error = OciLayout::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(expected) && error.hint().is_some(), "{error}");
    }
}

#[test]
fn blobs_are_regular_files_with_the_right_bytes() {
    let dir = layout(&[(None, None)]);
    let layout = OciLayout::open(dir.path()).unwrap();
    let (_, entry) = layout.entries().next().unwrap();
    let entry = entry.clone();
    let path = blob_path(dir.path(), &entry.digest);
    assert_eq!(io::read_to_string(layout.open_blob(&entry).unwrap().file).unwrap(), "0");

    // Build tools make layouts of links
    let target = dir.path().join("target");
    fs::rename(&path, &target).unwrap();
    symlink(&target, &path).unwrap();
    assert_eq!(layout.read_blob(&entry, 10).unwrap(), b"0");

    fs::write(&target, "1").unwrap();
    let error = layout.read_blob(&entry, 10).unwrap_err();
    assert!(matches!(error, ContentError::Digest { .. }), "{error}");

    fs::write(&target, "longer").unwrap();
    let error = layout.open_blob(&entry).unwrap_err();
    assert!(matches!(error, ContentError::Size { expected: 1, found: 6, .. }), "{error}");
    let error = layout.read_blob(&entry, 5).unwrap_err();
    assert!(matches!(error, ContentError::TooLarge { limit: 5, .. }), "{error}");

    fs::remove_file(&path).unwrap();
    let error = layout.open_blob(&entry).unwrap_err();
    assert!(matches!(error, ContentError::Missing { .. }), "{error}");

    // A fifo without a writer would block for ever
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = layout.open_blob(&entry).unwrap_err();
    assert!(matches!(error, ContentError::NotAFile { found: "a fifo", .. }), "{error}");

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = layout.read_blob(&entry, 10).unwrap_err();
    assert!(matches!(error, ContentError::NotAFile { found: "a directory", .. }), "{error}");
}
