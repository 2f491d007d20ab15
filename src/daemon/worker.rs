//! The worker: adopts the FUSE connection, then opens the metadata, then answers gRPC.
//!
//! Architecture invariant: files are served before the metadata store is open, and go on being
//! served while it closes.

use std::{
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use peel_fuse::{
    Filesystem, ServeOptions,
    metrics::Metrics,
    session::{self, Handshake},
};
use tokio::{
    net::UnixListener as TokioListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_stream::wrappers::UnixListenerStream;

use super::{engine::Engine, fatal, service::Service};
use crate::{
    api::peel_server::PeelServer,
    content::ContentStore,
    failure::{Class, Failure, chain},
    layers::{Layers, SPAN_CACHE_BYTES},
    paths::Paths,
    telemetry,
};

/// How the worker runs: what the keeper told it.
pub struct Options {
    /// The daemon's directories.
    pub paths: Paths,
    /// What is logged.
    pub log_level: String,
    /// To standard error as well.
    pub log_stderr: bool,
    /// Descriptor of the FUSE connection.
    pub fuse_fd: RawFd,
    /// Descriptor of the listening socket.
    pub listen_fd: RawFd,
    /// What the keeper and the kernel agreed on, as text.
    pub handshake: String,
    /// Workers before this one.
    pub restarts: u64,
}

/// How often metadata that changed is exported: a loss of sled's own files costs this much at most.
const EXPORT_EVERY: Duration = Duration::from_secs(10);
/// What a stop waits for calls that are still under way.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Serves until it is asked to stop; the exit code is for the keeper.
pub fn run(options: Options) -> ExitCode {
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fatal(&failure),
    }
}

fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the keeper passes the number of a descriptor that this process inherited for itself
    // alone, and every number is taken once.
    #[expect(unsafe_code, reason = "a descriptor that crosses exec is a number")]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

fn serve(options: Options) -> Result<(), Failure> {
    let started_at_ns = crate::metadata::now_ns();
    let paths = &options.paths;
    let log = telemetry::open_log(&paths.log())
        .map_err(|e| Failure::io(&e, format!("cannot open the log: {e}")))?;
    telemetry::init(log, &options.log_level, options.log_stderr)
        .map_err(|e| Failure::new(Class::Usage, format!("cannot log: {e}")))?;
    let bad = |e: &dyn std::error::Error| {
        Failure::new(Class::Other, format!("bad inherited descriptor: {}", chain(e)))
    };
    let fuse = session::inherited_device(options.fuse_fd).map_err(|e| bad(&e))?;
    let listener = UnixListener::from(inherited(options.listen_fd));
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).map_err(|e| bad(&e))?;
    let handshake: Handshake = options
        .handshake
        .parse()
        .map_err(|e| Failure::new(Class::Other, format!("bad handshake from the keeper: {e}")))?;

    super::engine::check_layout(paths.root())?;
    let damaged = |e: &dyn std::error::Error| Failure::new(Class::BadData, chain(e));
    let content =
        Arc::new(ContentStore::open(&paths.root().join("content")).map_err(|e| damaged(&e))?);
    let layers = Layers::open(paths.root(), Arc::clone(&content), SPAN_CACHE_BYTES);
    let layers = Arc::new(layers.map_err(|e| damaged(&e))?);
    let metrics = serve_files(fuse, &handshake, &layers)?;

    let engine = Engine::open(paths.clone(), content, layers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io(&e, format!("cannot start: {e}")))?;
    let stop = Arc::new(Notify::new());
    let service = Service {
        engine: Arc::clone(&engine),
        stop: Arc::clone(&stop),
        restarts: options.restarts,
        started_at_ns,
        fuse: metrics,
    };
    tracing::info!(pid = std::process::id(), restarts = options.restarts, "worker serves");
    let served = runtime.block_on(answer(listener, service, Arc::clone(&engine), stop));
    runtime.shutdown_timeout(DRAIN_LIMIT);
    engine.close();
    tracing::info!("worker ends");
    served
}

/// Adopts the FUSE connection; its threads run until the process ends. Gives what they count.
fn serve_files(
    fuse: OwnedFd,
    handshake: &Handshake,
    layers: &Arc<Layers>,
) -> Result<Arc<Metrics>, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::new(Class::Unavailable, chain(e));
    let filesystem = Filesystem::new(Arc::clone(layers));
    let server = session::adopt(fuse, handshake, filesystem, &ServeOptions::default())
        .map_err(|e| failed(&e))?;
    let metrics = server.metrics();
    let serve = move || {
        // Ends when the file system is unmounted everywhere, which the keeper does after us
        if let Err(error) = server.run() {
            tracing::error!(%error, "the FUSE connection broke; starting again");
            std::process::exit(1);
        }
    };
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(serve)
        .map_err(|e| Failure::io(&e, format!("cannot start a thread: {e}")))?;
    Ok(metrics)
}

async fn answer(
    listener: UnixListener,
    service: Service,
    engine: Arc<Engine>,
    stop: Arc<Notify>,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::io(&e, format!("cannot serve the socket: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let incoming = UnixListenerStream::new(TokioListener::from_std(listener).map_err(failed)?);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        let mut every = tokio::time::interval(EXPORT_EVERY);
        loop {
            every.tick().await;
            let engine = Arc::clone(&engine);
            // A panic there has ended the process already: see Engine::export
            let _ = tokio::task::spawn_blocking(move || engine.export()).await;
        }
    });
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => {}
            _ = terminate.recv() => {}
            // A terminal sends it to the keeper as well, which then sends SIGTERM
            _ = interrupt.recv() => {}
        }
    };
    let (drained, draining) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(PeelServer::new(service))
        .serve_with_incoming_shutdown(incoming, async move {
            stopped.await;
            drop(drained);
        });
    let limit = async move {
        // The sender never sends: it is dropped when the stop comes
        let _ = draining.await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        served = server => served.map_err(|e| Failure::new(Class::Other, chain(&e))),
        () = limit => Ok(()),
    }
}
