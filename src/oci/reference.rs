//! What users type to name an image: `nginx`, `ghcr.io/x/y:tag`, `oci:DIR:TAG`, …
//!
//! Sources: the grammar of names in distribution's `reference` package, Docker's rules for short
//! names, and containers-transports(5) for the prefixes.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use peel_index::{Digest, DigestError};

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
const MAX_TAG: usize = 128;
/// Longest `host/path`, in bytes; distribution's limit.
const MAX_NAME: usize = 255;

const REGISTRY: &str = "docker://";
const LAYOUT: &str = "oci:";
const OCI_ARCHIVE: &str = "oci-archive:";
const DOCKER_ARCHIVE: &str = "docker-archive:";
/// Prefixes that other tools know and peel does not; never taken for the name of an image.
const FOREIGN: [&str; 8] = [
    "containers-storage:",
    "dir:",
    "docker-daemon:",
    "http://",
    "https://",
    "ostree:",
    "sif:",
    "tarball:",
];

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// In a registry: `docker://`, the default.
    Registry(RegistryReference),
    /// In a directory that is an OCI image layout: `oci:DIR[:TAG]`.
    Layout(LayoutReference),
    /// In a tar of an OCI image layout: `oci-archive:FILE[:TAG]`.
    OciArchive(ArchiveReference),
    /// In a tar as `docker save` writes it: `docker-archive:FILE[:REF]`.
    DockerArchive(ArchiveReference),
}

/// An image in a registry; has a tag, a digest or both (then the digest decides).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    repository: Repository,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

/// A tag of a repository: safe as a path component of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(String);

/// An image in an OCI image layout.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayoutReference {
    /// The directory; relative until [`Reference::absolute`].
    pub dir: PathBuf,
    /// Which entry of its `index.json`.
    pub tag: Option<String>,
}

/// An image in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveReference {
    /// The archive; relative until [`Reference::absolute`].
    pub file: PathBuf,
    /// Which image of it.
    pub image: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("empty image reference: expected a name such as nginx:1.27")]
    Empty,
    /// A prefix of another tool.
    #[error(
        "image reference {reference:?}: expected docker://, oci:, oci-archive: or docker-archive:, found: {found}"
    )]
    Transport {
        /// The whole reference.
        reference: String,
        /// The prefix.
        found: String,
    },
    /// A part that does not keep to its grammar.
    #[error("image reference {reference:?}: expected {expected}, found: {found:?}")]
    Part {
        /// The whole reference.
        reference: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// What follows the `@` is no digest.
    #[error("image reference {reference:?}: {source}")]
    Digest {
        /// The whole reference.
        reference: String,
        /// What is wrong with it.
        source: DigestError,
    },
}

impl ReferenceError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Transport { found, .. } if found.starts_with("http") => {
                "leave the scheme out: name the host only, as in registry.example:5000/name:tag"
            }
            Self::Transport { .. } => {
                "copy the image first, for example with: skopeo copy SOURCE oci:DIR:TAG"
            }
            Self::Part { found, .. } if found.bytes().any(|b| b.is_ascii_uppercase()) => {
                "names of repositories are lower case"
            }
            _ => "examples: nginx:1.27, ghcr.io/x/y:tag, localhost:5000/x@sha256:…, oci:DIR:TAG",
        }
    }
}

impl Reference {
    /// The same with its directory or file made absolute, seen from `cwd`.
    ///
    /// `.` and repeated slashes go; `..` stays, since a symbolic link may stand before it.
    #[must_use]
    pub fn absolute(&self, cwd: &Path) -> Self {
        // Collecting components drops `.` and repeated slashes
        let place = |path: &Path| cwd.join(path).components().collect();
        match self {
            Self::Registry(_) => self.clone(),
            Self::Layout(l) => {
                Self::Layout(LayoutReference { dir: place(&l.dir), tag: l.tag.clone() })
            }
            Self::OciArchive(a) => {
                Self::OciArchive(ArchiveReference { file: place(&a.file), image: a.image.clone() })
            }
            Self::DockerArchive(a) => Self::DockerArchive(ArchiveReference {
                file: place(&a.file),
                image: a.image.clone(),
            }),
        }
    }

    /// The canonical form: the key of an image in the metadata, and what [`fmt::Display`] shows.
    /// It parses to an equal reference.
    pub fn name(&self) -> String {
        self.to_string()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some(found) = FOREIGN.iter().find(|prefix| text.starts_with(**prefix)) {
            let (reference, found) = (text.to_owned(), (*found).to_owned());
            return Err(ReferenceError::Transport { reference, found });
        }
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            let (dir, tag) = split_path(text, rest, "a directory after oci:")?;
            check_layout_name(text, tag)?;
            let tag = tag.map(str::to_owned);
            return Ok(Self::Layout(LayoutReference { dir: dir.into(), tag }));
        }
        if let Some(rest) = text.strip_prefix(OCI_ARCHIVE) {
            let (file, image) = split_path(text, rest, "a file after oci-archive:")?;
            check_layout_name(text, image)?;
            let image = image.map(str::to_owned);
            return Ok(Self::OciArchive(ArchiveReference { file: file.into(), image }));
        }
        if let Some(rest) = text.strip_prefix(DOCKER_ARCHIVE) {
            let (file, image) = split_path(text, rest, "a file after docker-archive:")?;
            // `docker save` writes full names; a short one has to mean the same
            let image = image.map(|image| parse_registry(text, image)).transpose()?;
            let image = image.map(|image| image.to_string());
            return Ok(Self::DockerArchive(ArchiveReference { file: file.into(), image }));
        }
        let name = text.strip_prefix(REGISTRY).unwrap_or(text);
        parse_registry(text, name).map(Self::Registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let located = |f: &mut fmt::Formatter<'_>, prefix, path: &Path, name: &Option<String>| {
            write!(f, "{prefix}{}", path.display())?;
            name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
        };
        match self {
            Self::Registry(r) => {
                // A host called `oci` with a port would read as a prefix
                let plain = r.to_string();
                let prefixes = [LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE];
                if prefixes.iter().chain(&FOREIGN).any(|prefix| plain.starts_with(prefix)) {
                    f.write_str(REGISTRY)?;
                }
                f.write_str(&plain)
            }
            Self::Layout(l) => located(f, LAYOUT, &l.dir, &l.tag),
            Self::OciArchive(a) => located(f, OCI_ARCHIVE, &a.file, &a.image),
            Self::DockerArchive(a) => located(f, DOCKER_ARCHIVE, &a.file, &a.image),
        }
    }
}

impl RegistryReference {
    /// Where it is.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag, where one was given or is implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_ref().map(|tag| tag.0.as_str())
    }

    /// The digest, where one was given; it decides over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What stands behind `manifests/` in a registry's URL: the digest, else the tag.
    pub fn target(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(Tag(tag)) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl Repository {
    /// The registry: a host with or without a port, as users know it (`docker.io`).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path, safe in a URL: lower-case letters, digits, `.`, `_`, `-`, `/`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        parse_registry(text, text.strip_prefix(REGISTRY).unwrap_or(text))
    }
}

/// Splits at the first colon, as skopeo and umoci do: their directories hold none, but a name in an
/// image layout may be as long as `docker.io/library/nginx:latest`.
fn split_path<'a>(
    reference: &str,
    rest: &'a str,
    expected: &'static str,
) -> Result<(&'a str, Option<&'a str>), ReferenceError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (rest, None),
    };
    if path.is_empty() || path.contains('\0') {
        return Err(part(reference, expected, path));
    }
    Ok((path, name))
}

/// Source: OCI image-spec, annotations.md, the grammar of `org.opencontainers.image.ref.name`.
fn check_layout_name(reference: &str, name: Option<&str>) -> Result<(), ReferenceError> {
    let Some(name) = name else { return Ok(()) };
    let component = |text: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let known = |b: &u8| b.is_ascii_alphanumeric() || b"-._:@+".contains(b);
        // Separators stand alone, but for two dashes
        let crowded = bytes.windows(2).any(|pair| {
            !pair[0].is_ascii_alphanumeric() && !pair[1].is_ascii_alphanumeric() && pair != b"--"
        });
        let dashes = bytes.windows(3).any(|three| three == b"---");
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(known) && !crowded && !dashes
    };
    if name.split('/').all(component) {
        return Ok(());
    }
    let expected = "a tag of letters and digits joined by one of - . _ : @ + /";
    Err(part(reference, expected, name))
}

fn parse_registry(reference: &str, text: &str) -> Result<RegistryReference, ReferenceError> {
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => {
            let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                reference: reference.to_owned(),
                source,
            })?;
            (named, Some(digest))
        }
        None => (text, None),
    };
    // A colon before a slash belongs to the host's port
    let slash = named.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match named[slash..].split_once(':') {
        Some((last, tag)) => (&named[..slash + last.len()], Some(tag)),
        None => (named, None),
    };
    let tag = match tag {
        Some(tag) if is_tag(tag) => Some(Tag(tag.to_owned())),
        Some(tag) => {
            let expected = "a tag of at most 128 letters, digits, _ . - not beginning with . or -";
            return Err(part(reference, expected, tag));
        }
        None if digest.is_none() => Some(Tag(DEFAULT_TAG.to_owned())),
        None => None,
    };
    let repository = parse_repository(reference, name)?;
    Ok(RegistryReference { repository, tag, digest })
}

fn parse_repository(reference: &str, name: &str) -> Result<Repository, ReferenceError> {
    let looks_like_host = |part: &str| {
        part == "localhost"
            || part.contains(['.', ':', '['])
            || part.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    if !is_host(host) {
        return Err(part(reference, "a registry such as ghcr.io or localhost:5000", host));
    }
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let path = match path {
        short if host == DEFAULT_HOST && !short.contains('/') && !short.is_empty() => {
            format!("{DEFAULT_NAMESPACE}/{short}")
        }
        path => path.to_owned(),
    };
    if !path.split('/').all(is_path_component) {
        let expected = "a repository of lower-case letters and digits joined by one of . _ - /";
        return Err(part(reference, expected, name));
    }
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err(part(reference, "a repository name of at most 255 bytes", name));
    }
    // Docker reads such a name as the id of an image, so it names none
    if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(part(reference, "a name, not the id of an image", name));
    }
    Ok(Repository { host: host.to_owned(), path })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let (Some(first), rest) = (text.bytes().next(), text.bytes().skip(1)) else {
        return false;
    };
    text.len() <= MAX_TAG && word(first) && rest.into_iter().all(|b| word(b) || b".-".contains(&b))
}

/// `alnum ( ("." | "_" | "__" | "-"+) alnum )*`, lower case.
fn is_path_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges = bytes.first().zip(bytes.last()).is_some_and(|(a, z)| plain(*a) && plain(*z));
    edges
        && bytes.iter().all(|b| plain(*b) || b"._-".contains(b))
        && text
            .split(|c: char| c.is_ascii_alphanumeric())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || is_dashes(separator))
}

fn is_dashes(text: &str) -> bool {
    text.bytes().all(|b| b == b'-')
}

fn is_host(text: &str) -> bool {
    let port = |port: &str| !port.is_empty() && port.parse::<u16>().is_ok();
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        let port_fits = rest.is_empty() || rest.strip_prefix(':').is_some_and(port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port_fits;
    }
    let (name, port_fits) = match text.split_once(':') {
        Some((name, digits)) => (name, port(digits)),
        None => (text, true),
    };
    let label = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    port_fits && name.split('.').all(label)
}

fn part(reference: &str, expected: &'static str, found: &str) -> ReferenceError {
    ReferenceError::Part { reference: reference.to_owned(), expected, found: found.to_owned() }
}

#[cfg(test)]
mod tests;
