//! The client of registries, by the OCI distribution spec: pull and push.
//!
//! ```text
//! Registry (a session) ─▶ hosts (name → mirrors in order, then the registry itself)
//!     │─▶ retry (a stateless predicate)  around every request up to its first bytes
//!     │─▶ auth (credentials, tokens)     401 → challenge → token → once more
//!     │─▶ stream                         a blob whose transfer goes on by Range where it broke
//!     └─▶ push                           uploads that go on where they broke
//! ```
//!
//! Nothing a registry says is trusted: documents are bounded and their digest is verified here; a
//! blob's length is checked here and its digest by whoever consumes the stream, who hashes anyway.
//!
//! Loopback hosts are spoken to over plain http, all others over https, unless a hosts.toml or a
//! certificate says otherwise. Redirects are followed, but never from https to http, and without
//! the Authorization header once they leave the host.
//!
//! Architecture invariant: only this module names reqwest.
//!
//! Locking: a mutex over the hosts of a session and one over the limiter's clock, never held across
//! an await; `auth` has its own.

mod auth;
mod body;
mod client;
mod error;
mod fetch;
mod hosts;
mod limit;
mod login;
mod push;
mod request;
mod retry;
mod stream;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU64,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Semaphore;

pub use auth::{Anonymous, Credential, Credentials};
pub use error::{Missing, RegistryError};
pub use push::Uploaded;
pub use stream::BlobStream;

use self::{auth::Access, client::Clients, hosts::Host, limit::Limiter};

/// Where directories of hosts are looked for; the first that knows a registry decides.
pub const HOSTS_DIRS: [&str; 3] =
    ["/etc/peel/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"];

/// How patient the client is, and how greedy.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// How long to wait for a connection. Default 10 s: a handshake over a bad line takes seconds.
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes. Default 30 s: storage behind a registry may stall.
    pub idle_timeout: Duration,
    /// How often a request is tried in all, at least once; of a transfer, how often without
    /// progress. Default 5.
    pub attempts: u32,
    /// Wait before the second try; doubled for each further one. Default 500 ms.
    pub backoff: Duration,
    /// Most bytes a second in each direction, all transfers together. Default: no limit.
    pub bandwidth: Option<NonZeroU64>,
    /// Most blobs in transfer at a time, all pulls and pushes together. Default 16.
    pub transfers: usize,
    /// Directories of hosts. Default [`HOSTS_DIRS`].
    pub hosts_dirs: Vec<PathBuf>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
            bandwidth: None,
            transfers: 16,
            hosts_dirs: HOSTS_DIRS.map(PathBuf::from).to_vec(),
        }
    }
}

/// A client of all registries. Clones share everything; sessions share connections and limits, but
/// not what users brought.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    session: Arc<Session>,
}

struct Shared {
    options: RegistryOptions,
    clients: Clients,
    downloads: Limiter,
    uploads: Arc<Limiter>,
    transfers: Arc<Semaphore>,
}

struct Session {
    access: Access,
    /// By registry; read once a session.
    hosts: Mutex<HashMap<String, Arc<[Arc<Host>]>>>,
}

impl Session {
    fn new(credentials: Arc<dyn Credentials>) -> Arc<Self> {
        Arc::new(Self { access: Access::new(credentials), hosts: Mutex::default() })
    }
}

impl Registry {
    /// A client without credentials. It works without CA certificates on the machine until https
    /// is used.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let shared = Shared {
            clients: Clients::new(&options)?,
            downloads: Limiter::new(options.bandwidth),
            uploads: Arc::new(Limiter::new(options.bandwidth)),
            transfers: Arc::new(Semaphore::new(options.transfers.max(1))),
            options,
        };
        Ok(Self { shared: Arc::new(shared), session: Session::new(Arc::new(Anonymous)) })
    }

    /// The same for one pull or push of somebody who may have credentials.
    #[must_use]
    pub fn session(&self, credentials: Arc<dyn Credentials>) -> Self {
        Self { shared: Arc::clone(&self.shared), session: Session::new(credentials) }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
