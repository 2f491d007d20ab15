//! Has layers mended that turn out to be damaged while they are read.

use std::{
    sync::{Arc, Weak, mpsc},
    time::Duration,
};

use peel_index::Digest;
use tokio::runtime::Handle;

use super::engine::Engine;
use crate::layers::{Mender, Wound};

/// What a reader waits. Less than the keeper's watchdog, which takes reads that are not answered
/// for a hang; what is being fetched goes on, for the next one who reads.
const LIMIT: Duration = Duration::from_secs(15);

/// Mends by the engine; lives in what the engine holds, so it does not hold that.
pub(super) struct EngineMender {
    engine: Weak<Engine>,
    runtime: Handle,
}

impl EngineMender {
    /// For the engine's own layers.
    pub(super) fn install(engine: &Arc<Engine>, runtime: Handle) {
        let mender = Self { engine: Arc::downgrade(engine), runtime };
        engine.layers.set_mender(Arc::new(mender));
    }
}

impl Mender for EngineMender {
    fn mend(&self, wound: &Wound) -> Result<(), String> {
        let engine = self.engine.upgrade().ok_or("the worker ends")?;
        let (wound, runtime) = (*wound, self.runtime.clone());
        let (say, hear) = mpsc::sync_channel(1);
        self.runtime.spawn_blocking(move || {
            let _busy = engine.busy();
            let mended = engine.mend_layer(&wound.diff_id, &runtime);
            // Who asked may have given up
            let _ = say.send(mended.map_err(|failure| failure.to_string()));
        });
        hear.recv_timeout(LIMIT).unwrap_or_else(|_| Err(format!("not done within {LIMIT:?}")))
    }

    fn images_of(&self, chain: Option<Digest>) -> Vec<String> {
        let Some(engine) = self.engine.upgrade() else { return Vec::new() };
        let images = engine.metadata.images().unwrap_or_default().into_iter();
        images.filter(|image| image.chain_id == chain).map(|image| image.name).collect()
    }
}
