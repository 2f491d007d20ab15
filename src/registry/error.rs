//! Why a registry did not give what was asked for.

use std::{fmt, io, path::PathBuf, time::Duration};

use peel_index::Digest;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::oci::Repository;

/// Most bytes that are read of a body that comes with an error.
pub(super) const MAX_ERROR_BODY: usize = 16 << 10;
/// Most characters of it that are shown.
const MAX_EXCERPT: usize = 200;

/// A request to a registry that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTP client")]
    Client {
        /// What reqwest says.
        source: reqwest::Error,
    },
    /// No connection: no such host, nobody listens, no route, too slow.
    #[error("cannot reach {host}: {detail}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The innermost cause.
        detail: String,
        /// Whether that was a clear no, and not silence.
        refused: bool,
        /// What reqwest says.
        source: reqwest::Error,
    },
    /// The host's certificate is not trusted, or the two sides have no common protocol.
    #[error("cannot trust {host}: {detail}")]
    Tls {
        /// Host and port.
        host: String,
        /// What rustls says.
        detail: String,
        /// What reqwest says.
        source: reqwest::Error,
    },
    /// https without anything to check certificates against.
    #[error("cannot trust {host}: expected CA certificates on this machine, found none")]
    NoCertificates {
        /// Host and port.
        host: String,
    },
    /// The connection broke before the answer was complete.
    #[error("connection broke while reading {what}: {detail}")]
    Interrupted {
        /// What was asked for.
        what: String,
        /// The innermost cause.
        detail: String,
        /// What reqwest says.
        source: reqwest::Error,
    },
    /// The other side fell silent.
    #[error("no bytes in time while reading {what}")]
    Timeout {
        /// What was asked for.
        what: String,
        /// What reqwest says.
        source: reqwest::Error,
    },
    /// There is no such repository, tag, manifest or blob.
    #[error("{}", not_found(repository, missing, name))]
    NotFound {
        /// `host/path`.
        repository: String,
        /// What of it is missing.
        missing: Missing,
        /// The tag or digest.
        name: String,
    },
    /// The registry wants to know who asks, or does not give this to anybody.
    #[error("registry refuses access to {repository}: {detail}")]
    Unauthorised {
        /// `host/path`.
        repository: String,
        /// What the registry says.
        detail: String,
    },
    /// Too many requests.
    #[error("registry {host} limits requests: {detail}")]
    RateLimited {
        /// Host and port.
        host: String,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
        /// What the registry says.
        detail: String,
    },
    /// An answer that nothing was asked for.
    #[error("{url}: expected status 200, found {status}: {detail}")]
    Status {
        /// Where, without its query.
        url: String,
        /// The HTTP status code.
        status: u16,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
        /// What the registry says.
        detail: String,
    },
    /// More bytes than such a document, or this one, has.
    #[error("{what} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// Most bytes it may have.
        limit: u64,
        /// Bytes announced, or seen when reading stopped.
        found: u64,
    },
    /// Another number of bytes than the descriptor names.
    #[error("wrong length of {what}: expected {expected} bytes, found {found}")]
    Length {
        /// What was asked for.
        what: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes announced or received.
        found: u64,
    },
    /// The answers ended properly, but before all bytes had come.
    #[error("wrong length of {what}: expected {expected} bytes, found the end after {found}")]
    Ended {
        /// What was asked for.
        what: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes received.
        found: u64,
    },
    /// A part that was not asked for.
    #[error("wrong Content-Range of {what}: expected {expected:?}, found {found:?}")]
    Range {
        /// What was asked for.
        what: String,
        /// The header that was to come.
        expected: String,
        /// The header that came.
        found: String,
    },
    /// The bytes are not those that the digest names.
    #[error("wrong digest of {what}: expected {expected}, found {found}")]
    Digest {
        /// What was asked for.
        what: String,
        /// The digest it should have.
        expected: Box<Digest>,
        /// The digest it has.
        found: Box<Digest>,
    },
    /// A login page, a captive portal, an empty answer.
    #[error("{what} is no JSON: found {content_type:?} beginning {excerpt:?}")]
    NotJson {
        /// What was asked for.
        what: String,
        /// Its Content-Type.
        content_type: String,
        /// How it begins.
        excerpt: String,
    },
    /// A hosts.toml, or certificates, that cannot be used.
    #[error("cannot use {}: {detail}", path.display())]
    Hosts {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A hosts.toml, or certificates, that cannot be read.
    #[error("cannot read {}", path.display())]
    HostsIo {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A hosts.toml leaves nobody to ask.
    #[error("no host of {host} has the capability {capability}")]
    NoHost {
        /// The registry.
        host: String,
        /// `pull`, `resolve` or `push`.
        capability: &'static str,
    },
    /// The registry failed, and the mirrors before it.
    #[error("{last}{}", before(others))]
    Mirrored {
        /// How the registry failed.
        last: Box<RegistryError>,
        /// How the mirrors did.
        others: Vec<String>,
    },
    /// The registry knows a manifest by another digest than its own.
    #[error("wrong digest of {what} after the push: expected {expected}, found {found}")]
    Pushed {
        /// What was written.
        what: String,
        /// Its digest.
        expected: String,
        /// What the registry says.
        found: String,
    },
    /// A file that is pushed cannot be read.
    #[error("cannot read {what}")]
    File {
        /// What it is.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// Something else that the distribution spec does not have.
    #[error("{what}: expected {expected}, found {found:?}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// What was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The repository.
    Repository,
    /// The tag or manifest; also where the registry does not say which of the two is missing.
    Manifest,
    /// The blob.
    Blob,
}

impl RegistryError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable { .. } => {
                "check the host's name and port, the network, and HTTPS_PROXY where there is a proxy"
            }
            Self::Tls { detail, .. } if detail.contains("corrupt message") => {
                "the registry seems to speak plain http, which peel does with loopback hosts only"
            }
            Self::Tls { .. } => {
                "add the registry's CA to the system's, on Debian with: update-ca-certificates"
            }
            Self::NoCertificates { .. } => {
                "install them, on Debian with: apt install ca-certificates"
            }
            Self::NotFound { missing: Missing::Repository, .. } => "check the image's name",
            Self::NotFound { missing: Missing::Manifest, .. } => "check the image's name and tag",
            Self::NotFound { missing: Missing::Blob, .. } => {
                "the image is incomplete in its registry: push it again"
            }
            Self::Unauthorised { .. } => {
                "check the name, or log in with: peel login REGISTRY; \
                 a registry answers so for what does not exist as well"
            }
            Self::RateLimited { .. } => "wait a while, or use a mirror",
            Self::NotJson { .. } => "is it a registry? a proxy or a login page may stand before it",
            Self::Digest { .. } | Self::Length { .. } | Self::Ended { .. } | Self::Range { .. } => {
                "the registry, or a proxy before it, serves damaged content: try again"
            }
            Self::Hosts { .. } | Self::HostsIo { .. } => {
                "the directory's files are those of containerd's hosts.toml"
            }
            Self::NoHost { .. } => "see capabilities in the registry's hosts.toml",
            Self::Mirrored { last, .. } => return last.hint(),
            _ => return None,
        })
    }

    /// The same, told with what failed before it.
    pub(super) fn after(self, others: Vec<String>) -> Self {
        if others.is_empty() {
            return self;
        }
        Self::Mirrored { last: Box::new(self), others }
    }

    /// The failure itself, without those of mirrors.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::Mirrored { last, .. } => last.innermost(),
            own => own,
        }
    }

    /// Whether bytes are damaged or are not what they are said to be.
    pub fn is_bad_data(&self) -> bool {
        matches!(
            self.innermost(),
            Self::TooLarge { .. }
                | Self::Length { .. }
                | Self::Ended { .. }
                | Self::Range { .. }
                | Self::Digest { .. }
                | Self::NotJson { .. }
                | Self::Protocol { .. }
        )
    }

    /// The error that a status other than 200 stands for.
    pub(super) fn of_status(
        status: StatusCode,
        url: String,
        retry_after: Option<Duration>,
        body: &[u8],
        repository: &Repository,
        asked: &Asked,
    ) -> Self {
        let errors = serde_json::from_slice::<ErrorBody>(body).unwrap_or_default().errors;
        let says = |code: &str| errors.iter().any(|error| error.code == code);
        let detail = match errors.first() {
            Some(error) => excerpt(format!("{} ({})", error.message, error.code).as_bytes()),
            None if body.is_empty() => {
                status.canonical_reason().unwrap_or("no reason").to_lowercase()
            }
            None => excerpt(body),
        };
        let full = repository.to_string();
        match status {
            StatusCode::NOT_FOUND => {
                let (missing, name) = match asked {
                    _ if says("NAME_UNKNOWN") => (Missing::Repository, String::new()),
                    Asked::Manifest(name) => (Missing::Manifest, name.clone()),
                    Asked::Blob(name) => (Missing::Blob, name.clone()),
                    Asked::Upload(_) => (Missing::Repository, String::new()),
                };
                Self::NotFound { repository: full, missing, name }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Self::Unauthorised { repository: full, detail }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Self::RateLimited { host: repository.host().to_owned(), retry_after, detail }
            }
            _ => Self::Status { url, status: status.as_u16(), retry_after, detail },
        }
    }
}

/// What of a repository a request is about: shown as `manifest TAG` or `blob DIGEST`.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// A manifest by tag or digest.
    Manifest(String),
    /// A blob by digest.
    Blob(String),
    /// A blob by digest that is to be written.
    Upload(String),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(name) => write!(f, "manifest {name}"),
            Self::Blob(name) => write!(f, "blob {name}"),
            Self::Upload(name) => write!(f, "upload of blob {name}"),
        }
    }
}

/// Source: OCI distribution-spec, "Error Codes".
#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

fn before(mirrors: &[String]) -> String {
    match mirrors.is_empty() {
        true => String::new(),
        false => format!(" (before it, mirrors failed: {})", mirrors.join("; ")),
    }
}

fn not_found(repository: &str, missing: &Missing, name: &str) -> String {
    match missing {
        Missing::Repository => format!("repository {repository} does not exist"),
        Missing::Manifest if name.contains(':') => {
            format!("repository {repository} has no manifest {name}")
        }
        Missing::Manifest => format!("image {repository}:{name} does not exist"),
        Missing::Blob => format!("repository {repository} has no blob {name}"),
    }
}

/// The beginning of a text from outside, fit for one line of a terminal.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_EXCERPT)]);
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_code_make_the_error() {
        let repository: crate::oci::RegistryReference = "ghcr.io/x/y:1".parse().unwrap();
        let repository = repository.repository();
        let manifest = Asked::Manifest("1".to_owned());
        let blob = Asked::Blob("sha256:00".to_owned());
        let body =
            |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"because"}}]}}"#);
        let table = [
            (404, body("NAME_UNKNOWN"), &manifest, "repository ghcr.io/x/y does not exist"),
            (404, body("MANIFEST_UNKNOWN"), &manifest, "image ghcr.io/x/y:1 does not exist"),
            (404, String::new(), &manifest, "image ghcr.io/x/y:1 does not exist"),
            (404, body("BLOB_UNKNOWN"), &blob, "repository ghcr.io/x/y has no blob sha256:00"),
            (
                401,
                body("UNAUTHORIZED"),
                &manifest,
                "refuses access to ghcr.io/x/y: because (UNAUTHORIZED)",
            ),
            (403, String::new(), &manifest, "refuses access to ghcr.io/x/y: forbidden"),
            (
                429,
                "slow\n down".to_owned(),
                &manifest,
                "registry ghcr.io limits requests: slow down",
            ),
            (500, "<html>".to_owned(), &manifest, "URL: expected status 200, found 500: <html>"),
            (204, String::new(), &manifest, "URL: expected status 200, found 204: no content"),
        ];
        for (status, body, asked, expected) in table {
            let status = StatusCode::from_u16(status).unwrap();
            let url = "URL".to_owned();
            let error =
                RegistryError::of_status(status, url, None, body.as_bytes(), repository, asked);
            assert!(error.to_string().contains(expected), "{status}: {error}");
        }
    }

    #[test]
    fn excerpts_are_short_and_harmless() {
        assert_eq!(excerpt(b" a\x1b[31m\r\n b "), "a [31m b");
        assert_eq!(excerpt("ä".repeat(1000).as_bytes()).chars().count(), MAX_EXCERPT + 1);
        assert_eq!(excerpt(b"\xff"), "\u{fffd}");
    }
}
