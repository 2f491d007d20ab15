use super::*;
use crate::oci::{
    LayerCompression, MEDIA_TYPE_DOCKER_CONFIG, MEDIA_TYPE_DOCKER_LIST, MEDIA_TYPE_DOCKER_MANIFEST,
    MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_INDEX, MEDIA_TYPE_OCI_MANIFEST,
};

const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn parse(media_type: &str, text: &str) -> Result<Manifest, OciError> {
    let digest = Digest::sha256(text.as_bytes());
    Manifest::parse(&Descriptor::new(media_type, digest, text.len() as u64), text.as_bytes())
}

fn image(config_type: &str, layers: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{A}","size":3}},"layers":{layers}}}"#
    )
}

fn layer(media_type: &str, digest: &str, size: &str) -> String {
    format!(
        r#"[{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"annotations":{{"k":"v"}}}}]"#
    )
}

#[test]
fn manifests_of_both_worlds_are_understood() {
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let table = [
        (MEDIA_TYPE_OCI_MANIFEST, image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "7"))),
        (MEDIA_TYPE_DOCKER_MANIFEST, image(MEDIA_TYPE_DOCKER_CONFIG, &layer(docker, A, "7"))),
        ("application/json", image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "7"))),
    ];
    for (media_type, text) in table {
        let Manifest::Image(manifest) = parse(media_type, &text).unwrap() else {
            panic!("{media_type} is an image")
        };
        assert_eq!(manifest.digest, Digest::sha256(text.as_bytes()));
        assert_eq!((manifest.config.digest.to_string().as_str(), manifest.config.size), (A, 3));
        let [layer] = &manifest.layers[..] else { panic!("one layer") };
        assert_eq!((layer.digest.to_string().as_str(), layer.size), (A, 7));
        assert_eq!(layer.kind, LayerKind { compression: LayerCompression::Gzip, foreign: false });
        assert_eq!(layer.annotations["k"], "v");
        assert_eq!(layer.descriptor().size, 7);
    }
}

#[test]
fn no_layers_is_a_list_or_null() {
    for layers in ["[]", "null"] {
        let text = image(MEDIA_TYPE_OCI_CONFIG, layers);
        let parsed = parse(MEDIA_TYPE_OCI_MANIFEST, &text).unwrap();
        assert!(matches!(parsed, Manifest::Image(image) if image.layers.is_empty()));
    }
}

#[test]
fn indexes_of_both_worlds_are_understood() {
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MEDIA_TYPE_OCI_MANIFEST}","digest":"{A}","size":9,"platform":{{"architecture":"arm64","os":"linux","variant":"v8"}}}}],"annotations":{{"a":"b"}}}}"#
    );
    for media_type in [MEDIA_TYPE_OCI_INDEX, MEDIA_TYPE_DOCKER_LIST, "text/plain"] {
        let Manifest::Index(index) = parse(media_type, &text).unwrap() else {
            panic!("{media_type} is an index")
        };
        let [entry] = &index.manifests[..] else { panic!("one entry") };
        assert_eq!(entry.platform, Some("linux/arm64".parse().unwrap()));
        assert_eq!(index.annotations["a"], "b");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let good = image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "7"));
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    let typed = |media_type: &str| {
        format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[]}}"#)
    };
    let both = format!(r#"{{"manifests":[],{}"#, &good[1..]);
    let twice = format!(r#"{{"layers":[],{}"#, &good[1..]);
    let m = MEDIA_TYPE_OCI_MANIFEST;
    let table = [
        (m, "<html>".to_owned(), "malformed"),
        (m, String::new(), "malformed"),
        (m, "[]".to_owned(), "malformed"),
        (m, good[..good.len() - 1].to_owned(), "malformed"),
        (m, twice, "malformed"),
        (m, "{}".to_owned(), "malformed"),
        ("text/plain", "{}".to_owned(), "neither layers nor manifests"),
        (m, index.to_owned(), "expected a manifest, found: an index"),
        (MEDIA_TYPE_OCI_INDEX, good.clone(), "expected an index, found: a manifest"),
        (MEDIA_TYPE_OCI_INDEX, typed(m), "expected a manifest, found: an index"),
        (m, both, "both in one document"),
        (m, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema 1"),
        (m, image("application/vnd.cncf.helm.config.v1+json", "[]"), "helm"),
        (m, image("application/vnd.oci.empty.v1+json", "[]"), "no container image"),
        (
            m,
            image(MEDIA_TYPE_OCI_CONFIG, &layer("application/vnd.in-toto+json", A, "1")),
            "in-toto",
        ),
        (m, image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, "md5:00", "1")), "layers[0].digest"),
        (m, image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "0")), "layers[0].size"),
        (m, image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "-1")), "malformed"),
        (m, image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, "../../etc/passwd", "1")), "malformed"),
    ];
    for (media_type, text, expected) in table {
        let error = parse(media_type, &text).expect_err(&text);
        let message = error.to_string();
        assert!(message.contains(expected), "{text}: {message}");
        assert!(message.contains(&Digest::sha256(text.as_bytes()).to_string()), "{message}");
    }
}

#[test]
fn a_malformed_document_says_where() {
    let error = parse(MEDIA_TYPE_OCI_MANIFEST, "{\n\"schemaVersion\": x}").unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("line 2 column 18"), "{source}");
}

#[test]
fn a_document_that_is_too_large_is_not_parsed() {
    let bytes = vec![b' '; MAX_MANIFEST_SIZE as usize + 1];
    let digest = Digest::sha256(b"large");
    let error =
        Manifest::parse(&Descriptor::new(MEDIA_TYPE_OCI_MANIFEST, digest, 1), &bytes).unwrap_err();
    assert!(matches!(error, OciError::TooLarge { limit: MAX_MANIFEST_SIZE, .. }));
}

proptest::proptest! {
    #[test]
    fn any_change_of_a_byte_gives_a_manifest_or_an_error(at in 0..1_000_usize, byte: u8) {
        let mut bytes = image(MEDIA_TYPE_OCI_CONFIG, &layer(GZIP, A, "7")).into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let digest = Digest::sha256(&bytes);
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(MEDIA_TYPE_OCI_MANIFEST, digest, size);
        if let Ok(Manifest::Image(manifest)) = Manifest::parse(&descriptor, &bytes) {
            assert_eq!(manifest.layers.len(), 1);
        }
    }
}
