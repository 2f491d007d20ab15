//! Where the API of a registry is: itself, or mirrors before it, as directories on this disk say.
//!
//! ```text
//! <dir>/host_port_/   the first of these that is there decides, dir by dir
//!       host:port/
//!       _default/
//!         hosts.toml               mirrors in order, then the server
//!         *.crt  *.cert + *.key    without hosts.toml: CAs, and a client certificate
//! ```
//! Source: containerd's docs/hosts.md; Docker's `certs.d` has the same files without hosts.toml.
//! Read once a session, so that changes need no restart.

mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use reqwest::{Response, Url, header::HeaderMap};

use self::file::{HostsFile, Section};
use super::{
    RegistryError,
    client::{Clients, Pair, Tls, authority, is_loopback},
};

/// Largest certificate or hosts file that is read: 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// What a host is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    /// Manifests and blobs by digest.
    Pull,
    /// What a tag names.
    Resolve,
    /// Writing.
    Push,
}

/// One host that has what a registry has.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// The name by which users have credentials for it.
    pub(super) name: String,
    /// Its API, as in `https://registry-1.docker.io/v2`.
    base: Url,
    capabilities: Vec<Capability>,
    /// Further headers of every request.
    pub(super) headers: HeaderMap,
    /// The registry that a mirror stands for.
    namespace: Option<String>,
    pub(super) clients: Arc<Pair>,
}

impl Host {
    /// The registry itself, as its name has it.
    pub(super) fn plain(name: &str, clients: &Clients) -> Self {
        // The system's clients are there already
        let clients = clients.of(&Tls::default());
        Self::with(name, Arc::clone(&clients.expect("made before")), is_loopback(name))
    }

    fn with(name: &str, clients: Arc<Pair>, plain: bool) -> Self {
        let authority = if name == "docker.io" { "registry-1.docker.io" } else { name };
        let scheme = if plain { "http" } else { "https" };
        // References have hosts that URLs can hold
        let base = Url::parse(&format!("{scheme}://{authority}/v2")).expect("a host and a port");
        Self {
            name: name.to_owned(),
            base,
            capabilities: vec![Capability::Pull, Capability::Resolve, Capability::Push],
            headers: HeaderMap::new(),
            namespace: None,
            clients,
        }
    }

    /// The URL of a path of its API, which begins with a slash.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    pub(super) fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Whether it is spoken to in the clear.
    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Host and port, for messages.
    pub(super) fn authority(&self) -> String {
        authority(&self.base)
    }

    /// Whether a URL is of this host.
    pub(super) fn owns(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }

    /// Whether an answer came from this host and not from where a redirect led.
    pub(super) fn answered(&self, response: &Response) -> bool {
        self.owns(response.url())
    }
}

/// The hosts of a registry, to be tried in their order; blocks.
///
/// # Errors
/// Where a file that decides cannot be read or understood.
pub(super) fn hosts_of(
    name: &str,
    dirs: &[PathBuf],
    clients: &Clients,
) -> Result<Vec<Host>, RegistryError> {
    let Some(dir) = dirs.iter().flat_map(|dir| candidates(dir, name)).find(|dir| dir.is_dir())
    else {
        return Ok(vec![Host::plain(name, clients)]);
    };
    let path = dir.join("hosts.toml");
    let Some(text) = read(&path)? else {
        let tls = certificates(&dir)?;
        // A certificate beside a loopback registry says that it speaks https
        let plain = is_loopback(name) && tls == Tls::default();
        return Ok(vec![Host::with(name, of(clients, &tls, &dir)?, plain)]);
    };
    let wrong = |detail: String| RegistryError::Hosts { path: path.clone(), detail };
    let text = String::from_utf8(text).map_err(|e| wrong(e.to_string()))?;
    let HostsFile { server, root, hosts } = HostsFile::parse(&text).map_err(wrong)?;
    let mut all = Vec::new();
    for (url, section) in &hosts {
        all.push(host(name, Some(url), section, &path, clients)?);
    }
    all.push(host(name, server.as_deref(), &root, &path, clients)?);
    Ok(all)
}

fn candidates(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = name.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([name.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| dir.join(name)).collect()
}

fn host(
    name: &str,
    url: Option<&str>,
    section: &Section,
    path: &Path,
    clients: &Clients,
) -> Result<Host, RegistryError> {
    let wrong = |detail: String| RegistryError::Hosts { path: path.to_owned(), detail };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut tls = Tls { skip_verify: section.skip_verify.unwrap_or(false), ..Tls::default() };
    let required = |file: &PathBuf| {
        let file = dir.join(file);
        read(&file)?.ok_or_else(|| wrong(format!("no such file: {}", file.display())))
    };
    for file in &section.authorities {
        tls.authorities.push(required(file)?);
    }
    let mut identity = Vec::new();
    for file in section.identity.iter().flatten() {
        identity.extend(required(file)?);
        identity.push(b'\n');
    }
    tls.identity = (!identity.is_empty()).then_some(identity);
    let clients = of(clients, &tls, path)?;
    let mut host = match url {
        Some(url) => {
            let base = section.base(url).map_err(wrong)?;
            let found = authority(&base);
            let known =
                if found == "registry-1.docker.io" { "docker.io".to_owned() } else { found };
            let namespace = (known != name).then(|| name.to_owned());
            Host { base, namespace, ..Host::with(&known, clients, false) }
        }
        None => Host::with(name, clients, is_loopback(name) && tls == Tls::default()),
    };
    if let Some(capabilities) = &section.capabilities {
        host.capabilities.clone_from(capabilities);
    }
    host.headers = section.headers.clone();
    Ok(host)
}

/// The certificates that lie in a directory without a hosts.toml.
fn certificates(dir: &Path) -> Result<Tls, RegistryError> {
    let failed = |source| RegistryError::HostsIo { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut files: Vec<PathBuf> =
        entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    let mut tls = Tls::default();
    for file in &files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.authorities.extend(read(file)?),
            Some("cert") => {
                let key = file.with_extension("key");
                let missing = || RegistryError::Hosts {
                    path: file.clone(),
                    detail: format!("no key beside it: expected {}", key.display()),
                };
                let mut pem = read(file)?.unwrap_or_default();
                pem.push(b'\n');
                pem.extend(read(&key)?.ok_or_else(missing)?);
                tls.identity = Some(pem);
            }
            _ => {}
        }
    }
    Ok(tls)
}

fn of(clients: &Clients, tls: &Tls, path: &Path) -> Result<Arc<Pair>, RegistryError> {
    clients.of(tls).map_err(|error| match error {
        RegistryError::Client { source } => RegistryError::Hosts {
            path: path.to_owned(),
            detail: format!("cannot use its certificates: {}", crate::failure::chain(&source)),
        },
        other => other,
    })
}

/// A small file; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    use io::Read as _;
    let failed = |source| RegistryError::HostsIo { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        let detail = format!("expected at most {MAX_FILE} bytes, found more");
        return Err(RegistryError::Hosts { path: path.to_owned(), detail });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
