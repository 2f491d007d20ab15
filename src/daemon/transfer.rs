//! Pulls and pushes: what they tell their client, and what they ask it for.
//!
//! Credentials stay with the client, who finds them in the user's own environment: the daemon asks
//! for them with an event, when a registry wants to know who asks, and is answered by a call of its
//! own. They live as long as the pull or push, and are neither stored nor logged.
//!
//! Locking: a mutex over the questions that are open, never held across an await.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{convert, engine::Engine};
use crate::{
    api::{self, credentials::Kind, pull_event::Event},
    failure::{Class, Failure},
    image::{Events, ImportOptions, PullOptions, PushOptions},
    registry::{Anonymous, Credential, Credentials},
};

/// How long a client may take to find credentials: a helper may have to ask a person.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// The stream of events that a client reads.
pub(super) type EventStream = UnboundedReceiverStream<Result<api::PullEvent, Status>>;

type Sender = mpsc::UnboundedSender<Result<api::PullEvent, Status>>;

/// Questions that clients have not answered yet.
#[derive(Default)]
pub(super) struct Questions {
    last: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<Option<Credential>>>>,
}

impl Questions {
    fn open(&self) -> (u64, oneshot::Receiver<Option<Credential>>) {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        self.all().insert(id, sender);
        (id, receiver)
    }

    fn close(&self, id: u64) -> Option<oneshot::Sender<Option<Credential>>> {
        self.all().remove(&id)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<Credential>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client's answer.
    pub(super) fn answer(&self, request: api::GiveCredentialsRequest) -> Result<(), Failure> {
        let credential = request.credentials.and_then(|given| given.kind).map(|kind| match kind {
            Kind::Password(api::Password { user, secret }) => Credential::Password { user, secret },
            Kind::IdentityToken(token) => Credential::Identity(token),
            Kind::RegistryToken(token) => Credential::Token(token),
        });
        let question = self.close(request.id).ok_or_else(|| {
            Failure::new(Class::NotFound, "nobody waits for these credentials any more")
        })?;
        // A pull that was called off meanwhile needs none
        drop(question.send(credential));
        Ok(())
    }
}

/// The client of one pull or push.
struct AskClient {
    questions: Arc<Questions>,
    events: Sender,
}

impl Credentials for AskClient {
    fn find<'a>(&'a self, host: &'a str, refused: bool) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(async move {
            let (id, answer) = self.questions.open();
            let wanted = api::CredentialsWanted { id, host: host.to_owned(), refused };
            let sent = send(&self.events, Event::Credentials(wanted));
            let answer = async { if sent { answer.await.ok().flatten() } else { None } };
            let found = tokio::time::timeout(ANSWER_LIMIT, answer).await;
            self.questions.close(id);
            if found.is_err() {
                tracing::warn!(host, "no answer to a question for credentials");
            }
            found.ok().flatten()
        })
    }
}

/// False where the client has gone, which cancels its pull.
fn send(events: &Sender, event: Event) -> bool {
    events.send(Ok(api::PullEvent { event: Some(event) })).is_ok()
}

/// Who asks: the client, where it says that it answers.
fn credentials(engine: &Engine, answers: bool, events: &Sender) -> Arc<dyn Credentials> {
    match answers {
        true => {
            Arc::new(AskClient { questions: Arc::clone(&engine.questions), events: events.clone() })
        }
        false => Arc::new(Anonymous),
    }
}

/// Pulls in a task of its own.
pub(super) fn pull(engine: Arc<Engine>, request: api::PullRequest) -> EventStream {
    run(engine, move |engine, events, sender, cancel| async move {
        let reference = request.reference.clone();
        let options = PullOptions {
            reference: request.reference,
            platform: request.platform,
            all_platforms: request.all_platforms,
            jobs: request.jobs.try_into().unwrap_or(usize::MAX),
            credentials: credentials(&engine, request.gives_credentials, &sender),
        };
        match engine.images.pull(options, events, cancel).await {
            Ok(image) => {
                engine.counters.pulls.add();
                tracing::info!(image = %image.name, digest = %image.target.digest, "pulled");
                if image.created_at_ns != image.updated_at_ns {
                    // What the name stood for before
                    engine.note_garbage();
                }
                Ok(Event::Done(convert::image(&image)))
            }
            Err(failure) => {
                engine.counters.pulls_failed.add();
                tracing::error!(%reference, error = %failure, "pull failed");
                Err(failure)
            }
        }
    })
}

/// Imports in a task of its own; an event for each image.
pub(super) fn import(engine: Arc<Engine>, request: api::ImportRequest) -> EventStream {
    run(engine, move |engine, events, sender, cancel| async move {
        use std::os::unix::ffi::OsStringExt as _;
        let path = std::path::PathBuf::from(std::ffi::OsString::from_vec(request.path));
        let shown = path.display().to_string();
        let options = ImportOptions {
            path,
            name: request.name,
            platform: request.platform,
            all_platforms: request.all_platforms,
        };
        let mut images = match engine.images.import(options, events, cancel).await {
            Ok(images) => images,
            Err(failure) => {
                tracing::error!(archive = shown, error = %failure, "import failed");
                return Err(failure);
            }
        };
        if images.iter().any(|image| image.created_at_ns != image.updated_at_ns) {
            engine.note_garbage();
        }
        let last = images.pop();
        for image in images {
            send(&sender, Event::Done(convert::image(&image)));
        }
        let last = last.ok_or_else(|| Failure::new(Class::NotFound, "no image to import"))?;
        Ok(Event::Done(convert::image(&last)))
    })
}

/// Pushes in a task of its own.
pub(super) fn push(engine: Arc<Engine>, request: api::PushRequest) -> EventStream {
    run(engine, move |engine, events, sender, cancel| async move {
        let reference = request.reference.clone();
        let finder = Arc::clone(&engine);
        let found = tokio::task::spawn_blocking(move || finder.find_image(&request.reference));
        let found = found.await.unwrap_or_else(|e| Err(Failure::new(Class::Other, e)))?;
        let options = PushOptions {
            image: found,
            target: request.target,
            all_platforms: request.all_platforms,
            jobs: request.jobs.try_into().unwrap_or(usize::MAX),
            credentials: credentials(&engine, request.gives_credentials, &sender),
        };
        match engine.images.push(options, events, cancel).await {
            Ok(pushed) => {
                tracing::info!(image = %pushed.name, digest = %pushed.digest, "pushed");
                Ok(Event::Pushed(api::Pushed {
                    name: pushed.name,
                    digest: pushed.digest.to_string(),
                    media_type: pushed.media_type,
                    partial: pushed.partial,
                }))
            }
            Err(failure) => {
                tracing::error!(%reference, error = %failure, "push failed");
                Err(failure)
            }
        }
    })
}

/// Runs `work`, and GC where it failed; a client that goes away calls it off.
fn run<W, F>(engine: Arc<Engine>, work: W) -> EventStream
where
    W: FnOnce(Arc<Engine>, Events, Sender, CancellationToken) -> F + Send + 'static,
    F: Future<Output = Result<Event, Failure>> + Send + 'static,
{
    // Unbounded, but throttled by its producer: a few events a second and layer
    let (events, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let tell: Events = {
            let events = events.clone();
            Arc::new(move |event| {
                send(&events, convert::event(event));
            })
        };
        let cancel = CancellationToken::new();
        let mut working = Box::pin(work(Arc::clone(&engine), tell, events.clone(), cancel.clone()));
        let result = tokio::select! {
            result = &mut working => result,
            () = events.closed() => {
                // What runs is awaited: GC would not see what it is about to put in place
                cancel.cancel();
                working.await
            }
        };
        let failed = result.is_err();
        let sweeping = Arc::clone(&engine);
        let sweep = move || match failed {
            true => sweeping.collect_garbage(),
            false => sweeping.collect_if_due(),
        };
        let making_room = Arc::clone(&engine);
        let pulled = match &result {
            Ok(Event::Done(image)) => Some(image.name.clone()),
            _ => None,
        };
        let sweep = move || {
            let freed = sweep()?;
            making_room.keep_to_size(pulled.as_deref())?;
            Ok::<_, Failure>(freed)
        };
        // Before the answer: who is told of a failure finds nothing left of it
        if let Ok(Err(failure)) = tokio::task::spawn_blocking(sweep).await {
            tracing::error!(error = %failure, "cannot clean up after a pull");
        }
        match result {
            Ok(event) => {
                send(&events, event);
            }
            Err(failure) => {
                // As above
                let _ = events.send(Err(failure.into()));
            }
        }
    });
    UnboundedReceiverStream::new(receiver)
}
