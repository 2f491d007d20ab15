//! The thin client: finds or starts the daemon, and performs the mounts that it asks for.

mod start;

pub mod mounts;

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use start::START_LIMIT;
pub use start::{ask_keeper, keeper_runs, keeper_status};

use crate::{
    api::{StatusRequest, StatusResponse, is_lost, peel_client::PeelClient},
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
    if let Some(mut client) = connect(paths).await? {
        match ask_status(&mut client, paths).await? {
            Some(status) => return check_root(client, &status, paths),
            // It was about to end
            None => tracing::debug!("the daemon has ended"),
        }
    }
    let (client, status) = start::start(paths, options).await?;
    check_root(client, &status, paths)
}

/// Asks again where the connection breaks, as it does when a worker dies.
///
/// The call must have the same effect however often it is made.
///
/// # Errors
/// The daemon's own, at once; a broken connection after ten seconds.
pub async fn again<T>(
    mut call: impl AsyncFnMut() -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, Failure> {
    let deadline = tokio::time::Instant::now() + RESTART_LIMIT;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(broken) if is_lost(&broken) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
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

/// The daemon's status, awaited while a keeper runs; `None` where none does any more.
async fn ask_status(client: &mut Client, paths: &Paths) -> Result<Option<StatusResponse>, Failure> {
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        match tokio::time::timeout_at(deadline, client.status(StatusRequest {})).await {
            Ok(Ok(status)) => return Ok(Some(status.into_inner())),
            Ok(Err(broken)) if is_lost(&broken) && tokio::time::Instant::now() < deadline => {
                if !keeper_runs(paths) {
                    return Ok(None);
                }
                tokio::time::sleep(POLL).await;
            }
            Ok(Err(error)) if !is_lost(&error) => return Err(error.into()),
            Ok(Err(_)) | Err(_) => return Err(no_answer(paths)),
        }
    }
}

/// What is known of a worker that does not answer.
pub fn no_answer(paths: &Paths) -> Failure {
    let keeper = keeper_status(paths);
    let says = |key: &str| keeper.as_ref().map_or(serde_json::Value::Null, |k| k[key].clone());
    let message = match &keeper {
        Some(_) => format!(
            "the daemon's worker does not answer: the keeper is {}, after {} restarts",
            says("state").as_str().unwrap_or("of another version"),
            says("restarts")
        ),
        None => "the daemon's worker does not answer, nor does its keeper".to_owned(),
    };
    Failure::new(Class::Unavailable, message)
        .hint("see peel logs; to end the daemon: peel daemon stop --force")
}

fn check_root(client: Client, status: &StatusResponse, paths: &Paths) -> Result<Client, Failure> {
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

/// Waits until this keeper has let go of its lock, whoever holds it then.
///
/// # Errors
/// Where it has not after `limit`.
pub async fn wait_stopped(
    paths: &Paths,
    keeper: Option<i64>,
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + limit;
    let another_runs = || {
        let now = keeper_status(paths).and_then(|status| status["pid"].as_i64());
        keeper.is_some() && now.is_some() && now != keeper
    };
    while keeper_runs(paths) && !another_runs() {
        if tokio::time::Instant::now() > deadline {
            let message = format!("the daemon did not end within {} s", limit.as_secs());
            return Err(Failure::new(Class::Other, message).hint("peel logs may say why"));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
