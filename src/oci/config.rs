//! The config of an image.
//!
//! Source: OCI image-spec, config.md.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image as spec;
use peel_index::{Digest, chain_id};

use super::{
    error::OciError,
    json,
    manifest::{ImageManifest, check_size, sorted},
    platform::Platform,
};

/// Largest config in bytes. The spec sets no limit; containerd keeps to 8 MiB as well.
pub const MAX_CONFIG_SIZE: u64 = 8 << 20;

/// What an image says about how to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Where it runs.
    pub platform: Platform,
    /// Digests of the uncompressed layers, lowest first; as many as the manifest has layers.
    pub diff_ids: Vec<Digest>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, which a caller may replace.
    pub cmd: Vec<String>,
    /// The working directory, where one is set.
    pub working_dir: Option<String>,
    /// `uid`, `name`, `uid:gid`, `name:group`, …, where one is set.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it, where one is set.
    pub stop_signal: Option<String>,
    /// `port`, `port/tcp` or `port/udp`.
    pub exposed_ports: BTreeSet<String>,
    /// Paths of volumes.
    pub volumes: BTreeSet<String>,
    /// When it was made, as written (RFC 3339).
    pub created: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// How each layer came about, empty ones included.
    pub history: Vec<History>,
}

/// One step in the making of an image; texts as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// When (RFC 3339).
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// Whether it made no layer.
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Parses the bytes that the manifest's config descriptor names; their digest has to be
    /// verified by the caller.
    pub fn parse(manifest: &ImageManifest, bytes: &[u8]) -> Result<Self, OciError> {
        let what = "config";
        let digest = manifest.config.digest;
        check_size(what, digest, bytes, MAX_CONFIG_SIZE)?;
        let config: spec::ImageConfiguration = json::parse(bytes, &["/rootfs/diff_ids"])
            .map_err(|source| OciError::Json { what, digest: digest.into(), source })?;
        let rootfs = config.rootfs();
        if rootfs.typ() != "layers" {
            return Err(OciError::RootFs { digest: digest.into(), found: rootfs.typ().clone() });
        }
        let (expected, found) = (manifest.layers.len(), rootfs.diff_ids().len());
        if expected != found {
            return Err(OciError::LayerCount { digest: digest.into(), expected, found });
        }
        let diff_id = |(number, text): (usize, &String)| {
            text.parse().map_err(|source| {
                let position = format!("rootfs.diff_ids[{number}]");
                OciError::Digest { what, digest: digest.into(), position, source }
            })
        };
        let diff_ids =
            rootfs.diff_ids().iter().enumerate().map(diff_id).collect::<Result<Vec<_>, _>>()?;
        let platform = Platform::new(
            &config.os().to_string(),
            &config.architecture().to_string(),
            config.variant().as_deref(),
        );
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let run = config.config().clone().unwrap_or_default();
        Ok(Self {
            platform,
            diff_ids,
            env: run.env().clone().unwrap_or_default(),
            entrypoint: run.entrypoint().clone().unwrap_or_default(),
            cmd: run.cmd().clone().unwrap_or_default(),
            working_dir: given(run.working_dir()),
            user: given(run.user()),
            labels: sorted(run.labels()),
            stop_signal: given(run.stop_signal()),
            exposed_ports: run.exposed_ports().iter().flatten().cloned().collect(),
            volumes: run.volumes().iter().flatten().cloned().collect(),
            created: given(config.created()),
            author: given(config.author()),
            history: config.history().iter().flatten().map(History::from).collect(),
        })
    }

    /// The chainID of all layers; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<Digest> {
        chain_id(&self.diff_ids)
    }
}

impl From<&spec::History> for History {
    fn from(step: &spec::History) -> Self {
        Self {
            created: step.created().clone(),
            created_by: step.created_by().clone(),
            author: step.author().clone(),
            comment: step.comment().clone(),
            empty_layer: step.empty_layer().unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, LayerDescriptor, LayerKind};

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn manifest(layers: usize) -> ImageManifest {
        let digest = Digest::sha256(b"layer");
        let layer = LayerDescriptor {
            digest,
            size: 1,
            media_type: GZIP.to_owned(),
            kind: LayerKind::from_media_type(GZIP).unwrap(),
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
        };
        ImageManifest {
            digest: Digest::sha256(b"manifest"),
            config: Descriptor::new("", Digest::sha256(b"config"), 1),
            layers: vec![layer; layers],
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn a_docker_config_is_understood() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let text = format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","created":"2024-01-01T00:00:00Z",
            "container":"abc","docker_version":"24","config":{{"Hostname":"","User":"","Env":["A=1","B=2"],
            "Cmd":["sh","-c","x"],"Entrypoint":null,"WorkingDir":"/w","Labels":{{"k":"v"}},
            "ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{"/data":{{}}}},"OnBuild":null,"StopSignal":"SIGQUIT"}},
            "rootfs":{{"type":"layers","diff_ids":["{one}","{two}"]}},
            "history":[{{"created_by":"ADD x"}},{{"created_by":"ENV A=1","empty_layer":true}}]}}"#
        );
        let config = ImageConfig::parse(&manifest(2), text.as_bytes()).unwrap();
        assert_eq!(config.platform, "linux/arm64".parse().unwrap());
        assert_eq!(config.diff_ids, [one, two]);
        assert_eq!(config.chain_id(), chain_id(&[one, two]));
        assert_eq!(config.env, ["A=1", "B=2"]);
        assert_eq!(config.cmd, ["sh", "-c", "x"]);
        assert!(config.entrypoint.is_empty());
        assert_eq!(config.working_dir.as_deref(), Some("/w"));
        assert_eq!(config.user, None);
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert!(config.exposed_ports.contains("80/tcp") && config.volumes.contains("/data"));
        assert_eq!(config.created.as_deref(), Some("2024-01-01T00:00:00Z"));
        assert_eq!(config.history.len(), 2);
        assert!(config.history[1].empty_layer && !config.history[0].empty_layer);
    }

    #[test]
    fn an_image_without_layers_is_one() {
        for ids in ["[]", "null"] {
            let text = format!(
                r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":{ids}}}}}"#
            );
            let config = ImageConfig::parse(&manifest(0), text.as_bytes()).unwrap();
            assert_eq!(config.chain_id(), None);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let config = |kind: &str, ids: &str| {
            format!(
                r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"{kind}","diff_ids":[{ids}]}}}}"#
            )
        };
        let id = format!("\"{}\"", Digest::sha256(b"1"));
        let table = [
            ("<html>".to_owned(), "malformed"),
            ("{}".to_owned(), "malformed"),
            (config("layers", ""), "expected 1 diffIDs for as many layers, found: 0"),
            (config("layers", &format!("{id},{id}")), "found: 2"),
            (config("base", &id), "found: \"base\""),
            (config("layers", "\"sha256:xyz\""), "rootfs.diff_ids[0]"),
        ];
        let name = Digest::sha256(b"config").to_string();
        for (text, expected) in table {
            let error = ImageConfig::parse(&manifest(1), text.as_bytes()).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(message.contains(&name), "{message}");
        }
        let large = vec![b' '; MAX_CONFIG_SIZE as usize + 1];
        let error = ImageConfig::parse(&manifest(1), &large).unwrap_err();
        assert!(matches!(error, OciError::TooLarge { limit: MAX_CONFIG_SIZE, .. }));
    }
}
