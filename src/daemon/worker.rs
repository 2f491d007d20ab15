//! The worker: adopts the FUSE connection, then opens the metadata, then answers gRPC.
//!
//! Architecture invariant: files are served before the metadata store is open, and go on being
//! served while it closes.

use std::{
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use peel_fuse::{
    Filesystem, ServeOptions,
    flight::Flights,
    metrics::Metrics,
    session::{self, Handshake},
};
use tokio::{
    net::UnixListener as TokioListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{
    AGAIN,
    diff::DiffService,
    engine::Engine,
    estate::{Estate, Inherited, Word},
    fatal,
    heir::Keeper,
    keeper,
    listen::{CONNECTIONS, connections},
    mender::EngineMender,
    metrics,
    service::Service,
    snapshots::SnapshotsService,
};
use crate::{
    api::{
        containerd::services::{
            diff::v1::diff_server::DiffServer, snapshots::v1::snapshots_server::SnapshotsServer,
        },
        peel_server::PeelServer,
    },
    content::ContentStore,
    failure::{Class, Failure, chain},
    image,
    layers::Layers,
    telemetry,
};

/// How often metadata that changed is exported: a loss of sled's own files costs this much at most.
const EXPORT_EVERY: Duration = Duration::from_secs(10);
/// How often GC looks for what ended without a word: leases, and mounts that others unmounted.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Most threads that take calls and decrypt what is pulled; fewer where there are fewer cores.
const ASYNC_THREADS: usize = 8;
/// Calls and layers being indexed at a time; what is more waits. Twice what pulls take at most, so
/// that they keep no mount waiting.
const CALLS_AT_ONCE: usize = 2 * image::LAYERS_AT_ONCE;
/// Calls of one connection at a time.
const STREAMS: u32 = 64;
/// What a stop waits for calls that are still under way.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Pause before metadata that could not be opened is opened again; doubles up to
/// [`OPEN_AGAIN_MAX`].
const OPEN_AGAIN: Duration = Duration::from_millis(500);
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(8);

/// Serves what waits on standard input until it is asked to stop; the exit code is for the keeper.
pub fn run(options: keeper::Options) -> ExitCode {
    match serve(options) {
        Ok(code) => code,
        Err(failure) => fatal(&failure),
    }
}

/// Keeps the heap from growing past what is in use.
///
/// Left to itself, glibc raises the size from which on an allocation is a map of its own to that of
/// the largest one that was freed. Spans of a mebibyte then lie in its heaps, between what lives
/// long, and a 64 MiB span cache came to take 150 MB.
fn bound_heap() {
    /// From this size on, an allocation goes back to the kernel when it is freed, in bytes.
    const OWN_MAP: libc::c_int = 128 << 10;
    /// Heaps that threads share; the default is eight for each core.
    const HEAPS: libc::c_int = 4;
    // SAFETY: it sets numbers that malloc looks at, and no other thread runs yet.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAP);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

fn serve(options: keeper::Options) -> Result<ExitCode, Failure> {
    bound_heap();
    let started_at_ns = crate::metadata::now_ns();
    let log = telemetry::open_log(&options.paths.log())
        .map_err(|e| Failure::io(&e, format!("cannot open the log: {e}")))?;
    telemetry::init(log, &options.log_level, !options.background)
        .map_err(|e| Failure::new(Class::Usage, format!("cannot log: {e}")))?;
    let no_estate = |e: std::io::Error| Failure::io(&e, format!("no keeper started this: {e}"));
    let Inherited { estate, facts, line } = Estate::inherit().map_err(no_estate)?;
    let fuse = session::inherited_device(estate.fuse.as_raw_fd()).map_err(|e| {
        Failure::new(Class::Other, format!("no keeper started this: {}", chain(&e)))
    })?;
    let listener = estate.listen.try_clone().map_err(no_estate)?;
    let flights = Arc::clone(&estate.flights);
    let handshake: Handshake = facts
        .handshake
        .parse()
        .map_err(|e| Failure::new(Class::Other, format!("bad handshake from the keeper: {e}")))?;
    let (paths, span_cache) = (options.paths.clone(), options.span_cache);
    let (network, max_size) = (options.network.clone(), options.max_size);
    let containerd_root = options.containerd_root.clone();
    let (follow_starts, busy_poll) = (options.follow_starts, options.busy_poll);
    let metrics_address = options.metrics;
    let keeper = Keeper::watch(options, estate, &facts, line).map_err(no_estate)?;

    super::engine::check_layout(paths.root())?;
    let damaged = |e: &dyn std::error::Error| Failure::new(Class::BadData, chain(e));
    let content = Arc::new(ContentStore::at(&paths.root().join("content")));
    let layers = Layers::open(paths.root(), Arc::clone(&content), span_cache);
    let layers = Arc::new(layers.map_err(|e| damaged(&e))?);
    layers.follow_starts(follow_starts);
    let metrics = serve_files(fuse, &handshake, &layers, flights, busy_poll)?;

    let engine = open(facts.restarts == 0, || {
        content.prepare().map_err(|e| damaged(&e))?;
        let (content, layers) = (Arc::clone(&content), Arc::clone(&layers));
        let (network, maps_ids) = (network.clone(), handshake.maps_ids());
        Engine::open(paths.clone(), content, layers, network, max_size, &containerd_root, maps_ids)
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(
            std::thread::available_parallelism().map_or(2, usize::from).clamp(2, ASYNC_THREADS),
        )
        .max_blocking_threads(CALLS_AT_ONCE)
        .build()
        .map_err(|e| Failure::io(&e, format!("cannot start: {e}")))?;
    EngineMender::install(&engine, runtime.handle().clone());
    let stop = Arc::new(Notify::new());
    let service = Arc::new(Service {
        engine: Arc::clone(&engine),
        stop: Arc::clone(&stop),
        keeper: Arc::clone(&keeper),
        restarts: facts.restarts,
        started_at_ns,
        fuse: metrics,
    });
    if let Some(address) = metrics_address {
        runtime.spawn(metrics::serve(address, Arc::clone(&service)));
    }
    tracing::info!(pid = std::process::id(), restarts = facts.restarts, "worker serves");
    keeper.tell(Word::Ready);
    let served = runtime.block_on(answer(listener, service, Arc::clone(&engine), stop));
    runtime.shutdown_timeout(DRAIN_LIMIT);
    engine.close();
    let (word, code) = match served? {
        Ended::Stop => (Word::Stop, ExitCode::SUCCESS),
        Ended::Signal => (Word::Again, ExitCode::from(AGAIN)),
    };
    tracing::info!("worker ends");
    // A keeper that did not start this process never learns its exit code
    keeper.tell(word);
    Ok(code)
}

/// Opens what commands need, as often as it takes: files are served meanwhile, from a disk that is
/// broken or cannot be written to as well. The first worker of a daemon has nobody to serve, and
/// fails at once.
fn open(
    first: bool,
    mut attempt: impl FnMut() -> Result<Arc<Engine>, Failure>,
) -> Result<Arc<Engine>, Failure> {
    let mut pause = OPEN_AGAIN;
    loop {
        match attempt() {
            Err(failure) if !first => {
                tracing::error!(
                    error = %failure, ?pause,
                    "files are served, but nothing else can be done; trying again"
                );
                std::thread::sleep(pause);
                pause = (pause * 2).min(OPEN_AGAIN_MAX);
            }
            result => return result,
        }
    }
}

/// Adopts the FUSE connection; its threads run until the process ends. Gives what they count.
fn serve_files(
    fuse: OwnedFd,
    handshake: &Handshake,
    layers: &Arc<Layers>,
    flights: Arc<Flights>,
    busy_poll: Duration,
) -> Result<Arc<Metrics>, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::new(Class::Unavailable, chain(e));
    let filesystem = Filesystem::new(Arc::clone(layers));
    let options = ServeOptions { flights: Some(flights), busy_poll, ..ServeOptions::default() };
    let server = session::adopt(fuse, handshake, filesystem, &options).map_err(|e| failed(&e))?;
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

/// Why a worker ends.
enum Ended {
    /// The daemon is to end.
    Stop,
    /// By a signal: the keeper decides what comes next.
    Signal,
}

async fn answer(
    listener: UnixListener,
    service: Arc<Service>,
    engine: Arc<Engine>,
    stop: Arc<Notify>,
) -> Result<Ended, Failure> {
    let failed = |e: std::io::Error| Failure::io(&e, format!("cannot serve the socket: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TokioListener::from_std(listener).map_err(failed)?;
    let incoming = connections(listener, CONNECTIONS);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let tidied = Arc::clone(&engine);
    tokio::spawn(async move {
        let mut every = tokio::time::interval(EXPORT_EVERY);
        loop {
            every.tick().await;
            let engine = Arc::clone(&engine);
            // A panic there has ended the process already: see Engine::export
            let keep = move || {
                engine.layers.keep_starts(false);
                engine.export();
            };
            let _ = tokio::task::spawn_blocking(keep).await;
        }
    });
    tokio::spawn(async move {
        let mut every = tokio::time::interval(TIDY_EVERY);
        // At the start it has been done
        every.tick().await;
        loop {
            every.tick().await;
            let engine = Arc::clone(&tidied);
            // What went wrong stands in the log
            let _ = tokio::task::spawn_blocking(move || engine.tidy()).await;
        }
    });
    let by_request = Arc::new(AtomicBool::new(false));
    let requested = Arc::clone(&by_request);
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => requested.store(true, Ordering::SeqCst),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let snapshots = SnapshotsService { engine: Arc::clone(&service.engine) };
    let diffs = DiffService { engine: Arc::clone(&service.engine) };
    let (drained, draining) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(PeelServer::from_arc(service))
        .add_service(SnapshotsServer::new(snapshots))
        .add_service(DiffServer::new(diffs))
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
        served = server => served.map_err(|e| Failure::new(Class::Other, chain(&e)))?,
        () = limit => {}
    }
    Ok(if by_request.load(Ordering::SeqCst) { Ended::Stop } else { Ended::Signal })
}
