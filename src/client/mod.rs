//! The thin client: finds or starts the daemon, and performs the mounts that it asks for.

mod start;

pub mod mounts;

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub use start::keeper_status;

use crate::{
    api::{StatusRequest, StatusResponse, peel_client::PeelClient},
    failure::{Class, Failure},
    paths::Paths,
};

/// How the daemon is started where none answers.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// What it logs.
    pub log_level: String,
}

/// A connection to the daemon.
pub type Client = PeelClient<Channel>;

/// Connects, starting the daemon where none answers.
///
/// # Errors
/// Where it does not start, with what it said; or where the daemon on the socket owns another root.
pub async fn connect_or_start(paths: &Paths, options: &StartOptions) -> Result<Client, Failure> {
    let client = match connect(paths).await? {
        Some(client) => client,
        None => start::start(paths, options).await?,
    };
    check_root(client, paths).await
}

/// Connects to a daemon that runs; `None` where none does.
///
/// # Errors
/// Where the socket is there but cannot be used.
pub async fn connect(paths: &Paths) -> Result<Option<Client>, Failure> {
    let socket = paths.socket();
    match UnixStream::connect(&socket).await {
        Ok(_) => {}
        Err(e) if is_nobody_there(&e) => return Ok(None),
        Err(e) => {
            let message = format!("cannot reach the daemon at {}: {e}", socket.display());
            return Err(Failure::io(&e, message).hint("are you the user who runs the daemon?"));
        }
    }
    // The address is never looked at: the connector knows the socket
    let endpoint = Endpoint::from_static("http://peel.invalid");
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector_lazy(connector);
    Ok(Some(PeelClient::new(channel).max_decoding_message_size(ANSWER_MAX)))
}

fn is_nobody_there(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// What a worker that died just now may take to be replaced.
const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// The daemon's status; asked again where the connection broke, as it does when a worker dies.
async fn ask_status(client: &mut Client) -> Result<StatusResponse, Failure> {
    let deadline = tokio::time::Instant::now() + RESTART_LIMIT;
    loop {
        match client.status(StatusRequest {}).await {
            Ok(status) => return Ok(status.into_inner()),
            // Not the daemon's own word: its failures of this class do not concern its status
            Err(broken)
                if broken.code() == tonic::Code::Unavailable
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn check_root(mut client: Client, paths: &Paths) -> Result<Client, Failure> {
    let status = ask_status(&mut client).await?;
    let found = bytes_path(&status.root);
    if found != paths.root() {
        let message = format!(
            "the daemon on {} owns another root: expected {}, found {}",
            paths.socket().display(),
            paths.root().display(),
            found.display()
        );
        return Err(Failure::new(Class::Conflict, message)
            .hint("give each root a state directory of its own with --state"));
    }
    Ok(client)
}

/// A path from the wire.
pub fn bytes_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// A path for the wire.
pub fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().to_vec()
}

/// Largest answer that is taken: `inspect` holds whole manifests and configs. 64 MiB.
const ANSWER_MAX: usize = 64 << 20;

/// How often something that is awaited is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until the keeper has let go of its lock.
///
/// # Errors
/// Where it has not after `limit`.
pub async fn wait_stopped(paths: &Paths, limit: Duration) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + limit;
    while start::keeper_runs(paths) {
        if tokio::time::Instant::now() > deadline {
            let message = format!("the daemon did not end within {} s", limit.as_secs());
            return Err(Failure::new(Class::Other, message).hint("peel logs may say why"));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
