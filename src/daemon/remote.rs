//! Layers for containerd that peel fetches itself: what a Prepare of the snapshotter asks for.
//!
//! ```text
//! Prepare(labels) ─▶ image, resolved once ─▶ layer, fetched once ─▶ answer
//!                                         └▶ the layers above it, ahead
//! ```
//! An image stays known for [`KEPT`] after the last call that wanted it: containerd asks for the
//! layers one after the other. While it is known, GC is kept away from layers that were fetched
//! ahead and that no snapshot names yet. When nobody wants it any more, what is under way is called
//! off.
//!
//! Locking: a mutex over the images that are known and one in each over its layers, never held
//! across an await.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use peel_index::Digest;
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use crate::{
    credentials::UserCredentials,
    failure::{Class, Failure},
    image::RemoteImage,
    metadata::LayerRef,
    oci::Reference,
    registry::{Credential, Credentials},
    snapshotter::REF_LABEL,
};

/// How long an image stays known once nobody waits for a layer of it.
const KEPT: Duration = Duration::from_secs(10);
/// Layers of one image fetched at the same time, as in a pull.
const AT_ONCE: usize = 3;

/// Labels by which containerd's CRI plugin and its kin say what a snapshot is for.
///
/// Source: `pkg/cri/server/image_pull.go` and, later, `pkg/snapshotters` of containerd.
mod label {
    pub(super) const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
    pub(super) const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
    pub(super) const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
}

/// A layer that containerd would have peel fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The image, by the digest of its manifest where that is told.
    reference: String,
    /// chainID of the layers up to it.
    chain: Digest,
    /// The blob.
    blob: Digest,
}

impl Wanted {
    /// What the labels of a Prepare say; `None` where they do not name a layer of an image.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Option<Result<Self, Failure>> {
        let (image, target) = (labels.get(label::IMAGE)?, labels.get(REF_LABEL)?);
        Some(Self::parse(image, target, labels))
    }

    fn parse(
        image: &str,
        target: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let lacks = || Failure::new(Class::Usage, format!("no label {}", label::LAYER));
        let blob = digest(labels.get(label::LAYER).ok_or_else(lacks)?)?;
        let Reference::Registry(reference) = image.parse::<Reference>()? else {
            return Err(Failure::new(Class::Usage, format!("{image} is in no registry")));
        };
        let reference = match labels.get(label::MANIFEST) {
            Some(manifest) => {
                format!("{}@{}", reference.repository(), digest(manifest)?)
            }
            None => reference.to_string(),
        };
        Ok(Self { reference, chain: digest(target)?, blob })
    }
}

fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|e| Failure::new(Class::Usage, format!("label {text:?}: {e}")))
}

/// Images of which layers are wanted.
#[derive(Default)]
pub(super) struct RemoteImages {
    known: Mutex<HashMap<String, Arc<Known>>>,
}

struct Known {
    image: OnceCell<Arc<RemoteImage>>,
    layers: Mutex<HashMap<usize, watch::Receiver<Fetched>>>,
    at_once: Arc<Semaphore>,
    /// Calls that wait for a layer of it.
    waiting: AtomicUsize,
    last_used: Mutex<Instant>,
    cancel: CancellationToken,
    _no_gc: OwnedRwLockReadGuard<()>,
}

/// How fetching a layer ended, once it has.
type Fetched = Option<Result<(), Failure>>;

/// A call that waits.
struct Waiting(Arc<Known>);

impl Drop for Waiting {
    fn drop(&mut self) {
        *lock(&self.0.last_used) = Instant::now();
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between two changes that belong together
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches and indexes the layer; `below` are the layers that it is to stand on.
///
/// # Errors
/// Where the layer cannot be had, or is of another chain than `below`.
pub(super) async fn fetch(
    engine: &Arc<Engine>,
    wanted: &Wanted,
    below: &[LayerRef],
) -> Result<LayerRef, Failure> {
    let waiting = known(engine, &wanted.reference).await;
    let known = &waiting.0;
    let resolve = engine.images.resolve(&wanted.reference, Arc::new(OwnCredentials));
    let image =
        known.image.get_or_try_init(|| async { Ok::<_, Failure>(Arc::new(resolve.await?)) });
    let image = Arc::clone(image.await?);
    let number = check(&image, wanted, below)?;
    let mut this = known.start(engine, &image, number);
    for above in number + 1..image.len() {
        known.start(engine, &image, above);
    }
    let ended = this.wait_for(Option::is_some).await;
    let ended = ended.map(|ended| ended.clone()).unwrap_or_default();
    ended.unwrap_or_else(|| Err(Failure::new(Class::Other, "fetching a layer was given up")))?;
    image.layer(number).cloned().ok_or_else(|| other_chain(wanted))
}

fn other_chain(wanted: &Wanted) -> Failure {
    let Wanted { reference, chain, blob } = wanted;
    let message = format!("image {reference} has no layer {blob} with chainID {chain}");
    Failure::new(Class::BadData, message)
}

/// The number of the layer that is wanted, if it is what containerd takes it for.
fn check(image: &RemoteImage, wanted: &Wanted, below: &[LayerRef]) -> Result<usize, Failure> {
    let number = image.find(&wanted.chain).ok_or_else(|| other_chain(wanted))?;
    let is_it = image.layer(number).is_some_and(|layer| layer.digest == wanted.blob);
    let stands = below.len() == number
        && below
            .iter()
            .enumerate()
            .all(|(at, below)| image.layer(at).is_some_and(|layer| layer.diff_id == below.diff_id));
    if is_it && stands { Ok(number) } else { Err(other_chain(wanted)) }
}

async fn known(engine: &Arc<Engine>, reference: &str) -> Waiting {
    if let Some(waiting) = engine.remote.find(reference) {
        return waiting;
    }
    let no_gc = engine.busy_owned().await;
    let mut all = lock(&engine.remote.known);
    let known = all.entry(reference.to_owned()).or_insert_with(|| {
        let known = Arc::new(Known {
            image: OnceCell::new(),
            layers: Mutex::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            cancel: CancellationToken::new(),
            _no_gc: no_gc,
        });
        tokio::spawn(forget_in_time(Arc::clone(engine), reference.to_owned(), Arc::clone(&known)));
        known
    });
    Known::wait(known)
}

/// Drops an image once nobody wants it any more.
async fn forget_in_time(engine: Arc<Engine>, reference: String, known: Arc<Known>) {
    loop {
        tokio::time::sleep(KEPT / 4).await;
        let mut all = lock(&engine.remote.known);
        let idle = lock(&known.last_used).elapsed() >= KEPT;
        // Counted under the same lock as calls find it by
        if idle && known.waiting.load(Ordering::SeqCst) == 0 {
            all.remove(&reference);
            break;
        }
    }
    known.cancel.cancel();
    // Until the last fetch has ended it holds GC off
    let fetches: Vec<_> = lock(&known.layers).values().cloned().collect();
    for mut fetch in fetches {
        let _ = fetch.wait_for(Option::is_some).await;
    }
    drop(known);
    let sweep = tokio::task::spawn_blocking(move || engine.collect_if_due());
    if let Ok(Err(failure)) = sweep.await {
        tracing::error!(error = %failure, "cannot clean up after fetching layers");
    }
}

impl RemoteImages {
    fn find(&self, reference: &str) -> Option<Waiting> {
        lock(&self.known).get(reference).map(Known::wait)
    }
}

impl Known {
    fn wait(known: &Arc<Self>) -> Waiting {
        known.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(Arc::clone(known))
    }

    /// Sees to it that a layer is fetched; tells when it is.
    fn start(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        image: &Arc<RemoteImage>,
        number: usize,
    ) -> watch::Receiver<Fetched> {
        let mut layers = lock(&self.layers);
        let failed = |fetch: &watch::Receiver<Fetched>| matches!(&*fetch.borrow(), Some(Err(_)));
        if let Some(fetch) = layers.get(&number).filter(|fetch| !failed(fetch)) {
            return fetch.clone();
        }
        let (ended, fetch) = watch::channel(None);
        let (known, engine, image) = (Arc::clone(self), Arc::clone(engine), Arc::clone(image));
        tokio::spawn(async move {
            let result = tokio::select! {
                _place = known.at_once.acquire() => known.fetch(&engine, &image, number).await,
                () = known.cancel.cancelled() => {
                    Err(Failure::new(Class::Other, "nobody wants the layer any more"))
                }
            };
            // The image may have been dropped, and this the last that knew of it
            let _ = ended.send(Some(result));
        });
        layers.insert(number, fetch.clone());
        fetch
    }

    async fn fetch(
        &self,
        engine: &Engine,
        image: &RemoteImage,
        number: usize,
    ) -> Result<(), Failure> {
        let layer = image.layer(number).map(|layer| layer.digest);
        let local = layer.and_then(|digest| engine.containerd_blob(&digest));
        engine.images.fetch_layer(image, number, local.as_deref(), &self.cancel).await
    }
}

/// The credentials of the user that the daemon runs as: nobody else can be asked.
struct OwnCredentials;

impl Credentials for OwnCredentials {
    fn find<'a>(&'a self, host: &'a str, refused: bool) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(async move {
            if refused {
                return None;
            }
            let found = UserCredentials::of_environment().find(host).await;
            found.unwrap_or_else(|error| {
                tracing::warn!(host, %error, "cannot look for credentials");
                None
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_labels_ask_for() {
        let [chain, blob, manifest] = [&b"c"[..], b"b", b"m"].map(Digest::sha256);
        let [chain_text, blob_text, manifest_text] = [chain, blob, manifest].map(|d| d.to_string());
        let image = (label::IMAGE, "registry.example:5000/a/b:tag");
        let target = (REF_LABEL, chain_text.as_str());
        let layer = (label::LAYER, blob_text.as_str());
        assert_eq!(Wanted::of(&labels(&[image, layer])).map(|w| w.is_ok()), None, "no target");
        assert_eq!(Wanted::of(&labels(&[target, layer])).map(|w| w.is_ok()), None, "no image");
        let wanted = Wanted::of(&labels(&[image, target, layer])).expect("asked").expect("good");
        let reference = "registry.example:5000/a/b:tag".to_owned();
        assert_eq!(wanted, Wanted { reference, chain, blob });
        let manifest = (label::MANIFEST, manifest_text.as_str());
        let wanted = Wanted::of(&labels(&[image, target, layer, manifest]));
        let wanted = wanted.expect("asked").expect("good");
        assert_eq!(wanted.reference, format!("registry.example:5000/a/b@{manifest_text}"));
        for bad in [
            labels(&[image, target]),
            labels(&[image, target, (label::LAYER, "sha256:short")]),
            labels(&[image, (REF_LABEL, "no digest"), layer]),
            labels(&[(label::IMAGE, "oci:/etc"), target, layer]),
            labels(&[(label::IMAGE, "UPPER//"), target, layer]),
        ] {
            Wanted::of(&bad).expect("asked").expect_err("bad labels");
        }
    }
}
