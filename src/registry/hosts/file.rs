//! The text of a hosts.toml.
//!
//! Source: containerd's docs/hosts.md.

use std::{collections::BTreeMap, path::PathBuf};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;

use super::Capability;

/// See the module.
#[derive(Debug)]
pub(super) struct HostsFile {
    /// The URL of the registry itself, where it is not the one that its name gives.
    pub(super) server: Option<String>,
    /// What holds for the server.
    pub(super) root: Section,
    /// The mirrors, in their order.
    pub(super) hosts: Vec<(String, Section)>,
}

/// What is said of one host.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) capabilities: Option<Vec<Capability>>,
    pub(super) authorities: Vec<PathBuf>,
    /// A file with certificate and key, or one for each.
    pub(super) identity: Option<Vec<PathBuf>>,
    pub(super) skip_verify: Option<bool>,
    pub(super) override_path: bool,
    pub(super) headers: HeaderMap,
}

#[derive(Deserialize)]
struct Raw {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    root: RawSection,
}

/// Further keys are containerd's own and mean nothing here.
#[derive(Default, Deserialize)]
struct RawSection {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<OneOrMany<OneOrMany<PathBuf>>>,
    skip_verify: Option<bool>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn all(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(all) => all,
        }
    }
}

impl HostsFile {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        let mut hosts = Vec::new();
        for (url, value) in raw.host {
            let section: RawSection = value
                .try_into()
                .map_err(|e: toml::de::Error| format!("host {url:?}: {}", e.message()))?;
            hosts.push((url, Section::of(section)?));
        }
        let server = raw.server.filter(|server| !server.is_empty());
        Ok(Self { server, root: Section::of(raw.root)?, hosts })
    }
}

impl Section {
    fn of(raw: RawSection) -> Result<Self, String> {
        let capability = |text: String| match text.to_ascii_lowercase().as_str() {
            "pull" => Ok(Capability::Pull),
            "resolve" => Ok(Capability::Resolve),
            "push" => Ok(Capability::Push),
            _ => Err(format!("capabilities: expected pull, resolve or push, found {text:?}")),
        };
        let capabilities = raw.capabilities;
        let capabilities =
            capabilities.map(|all| all.into_iter().map(capability).collect()).transpose()?;
        let mut headers = HeaderMap::new();
        for (name, values) in raw.header {
            let wrong = || format!("header: expected a name and text, found {name:?}");
            for value in values.all() {
                let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
                value.set_sensitive(true);
                headers.append(HeaderName::try_from(&name).map_err(|_| wrong())?, value);
            }
        }
        let mut pairs = Vec::new();
        for pair in raw.client.map(OneOrMany::all).unwrap_or_default() {
            let mut files = pair.all();
            // A pair of files is a certificate and its key, as is a pair with an empty second
            files.retain(|file| !file.as_os_str().is_empty());
            if !(1..=2).contains(&files.len()) {
                return Err("client: expected a file, or a certificate and its key".to_owned());
            }
            pairs.push(files);
        }
        if pairs.len() > 1 {
            return Err(format!("client: expected one certificate, found {}", pairs.len()));
        }
        Ok(Self {
            capabilities,
            authorities: raw.ca.map(OneOrMany::all).unwrap_or_default(),
            identity: pairs.pop(),
            skip_verify: raw.skip_verify,
            override_path: raw.override_path,
            headers,
        })
    }

    /// The API's URL: the path is the host's own, and ends with `/v2` unless it is overridden.
    pub(super) fn base(&self, url: &str) -> Result<Url, String> {
        let text = match url.contains("://") {
            true => url.to_owned(),
            false => format!("https://{url}"),
        };
        let wrong = |found: &str| format!("host {url:?}: expected an http or https URL, {found}");
        let mut base = Url::parse(&text).map_err(|e| wrong(&e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong(&format!("found {:?}", base.scheme())));
        }
        base.set_query(None);
        base.set_fragment(None);
        let path = base.path().trim_end_matches('/').to_owned();
        match self.override_path || path.ends_with("/v2") {
            true => base.set_path(&path),
            false => base.set_path(&format!("{path}/v2")),
        }
        Ok(base)
    }
}
