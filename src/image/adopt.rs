//! Layers whose blobs lie in a file of another program on this machine: indexed where they are, and
//! taken in.
//!
//! ```text
//! same file system   read, index, verify ─▶ hard link: one file, two names
//! another            read, index, verify and copy, in one pass
//! ```
//! A link shares the file, so that its owner must not write to it once it has its name. containerd
//! does not: blobs are written elsewhere and renamed. Neither does peel: what mends a blob puts
//! another file in its place. Removing one of the names leaves the other.
//!
//! Locking: the blob's flight while it is read, then its diffID's too while the index is put in
//! place; always in this order.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use peel_index::Digest;
use tokio_util::sync::CancellationToken;

use super::{
    Images, Store,
    ingest::{Indexed, Input, Pass, Tell, Wanted},
    pull::blocking,
};
use crate::{
    content::{Expected, Ingest},
    failure::{Class, Failure},
    metadata::{LABEL_UNCOMPRESSED, LayerRef},
    oci::LayerKind,
};

/// A layer that is indexed, and how its blob comes in.
struct Adopted {
    indexed: Indexed,
    blob: Arrival,
}

enum Arrival {
    /// It is the one that is here.
    Own,
    Link(File),
    Copy(Box<Ingest>),
}

impl Images {
    /// Indexes the layer whose blob lies in a file, and takes it in; nothing is done for one that
    /// is here already. Gives what it unpacks to. The caller keeps GC away until a record names
    /// the layer.
    ///
    /// # Errors
    /// Where the file is not the blob, is no layer, or `cancel` calls it off.
    pub async fn adopt_layer(
        &self,
        path: &Path,
        digest: Digest,
        size: u64,
        media_type: &str,
        cancel: &CancellationToken,
    ) -> Result<LayerRef, Failure> {
        if LayerKind::from_media_type(media_type).is_none() {
            let message = format!("{digest} is no layer that peel knows, but {media_type:?}");
            return Err(Failure::new(Class::Usage, message));
        }
        let layer = |diff_id| LayerRef { digest, size, media_type: media_type.to_owned(), diff_id };
        let known = self.store.metadata.content(&digest)?;
        let known = known.and_then(|known| known.labels.get(LABEL_UNCOMPRESSED)?.parse().ok());
        if let Some(layer) = known.map(layer)
            && self.is_here(&layer).await?
        {
            return Ok(layer);
        }
        // Never closed
        let _place = Arc::clone(&self.store.places).acquire_owned().await;
        let diff_id = self.adopt(path, Wanted { digest, size, diff_id: None }, cancel).await?;
        let store = Arc::clone(&self.store);
        blocking(move || {
            let label = (LABEL_UNCOMPRESSED.to_owned(), Some(diff_id.to_string()));
            let labelled =
                store.metadata.transaction(|tx| tx.label_content(&digest, [label]).map(drop));
            Ok(labelled?)
        })
        .await?;
        Ok(layer(diff_id))
    }

    /// Whether a layer need not be fetched or indexed.
    pub(super) async fn is_here(&self, layer: &LayerRef) -> Result<bool, Failure> {
        let (store, layer) = (Arc::clone(&self.store), layer.clone());
        blocking(move || Ok(store.layer_is_usable(&layer))).await
    }

    /// See [`Images::adopt_layer`].
    pub(super) async fn adopt(
        &self,
        path: &Path,
        wanted: Wanted,
        cancel: &CancellationToken,
    ) -> Result<Digest, Failure> {
        let flight = self.flight(wanted.digest);
        let _alone = flight.lock().await;
        let (store, path, call_off) = (Arc::clone(&self.store), path.to_owned(), cancel.clone());
        let adopted = blocking(move || store.read_foreign(&path, wanted, &call_off)).await?;
        let diff_id = adopted.indexed.built.diff_id;
        // Of a blob that is not compressed it is the same flight
        let second = (diff_id != wanted.digest).then(|| self.flight(diff_id));
        let _alone_too = match &second {
            Some(flight) => Some(flight.lock().await),
            None => None,
        };
        let store = Arc::clone(&self.store);
        blocking(move || store.take_in(adopted, wanted)).await?;
        Ok(diff_id)
    }
}

impl Store {
    fn read_foreign(
        &self,
        path: &Path,
        wanted: Wanted,
        call_off: &CancellationToken,
    ) -> Result<Adopted, Failure> {
        let failed =
            |e: io::Error| Failure::io(&e, format!("cannot read blob {}: {e}", path.display()));
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() || found.len() != wanted.size {
            let (shown, size) = (path.display(), wanted.size);
            let message =
                format!("{shown} is not blob {}: expected a file of {size} bytes", wanted.digest);
            return Err(Failure::new(Class::BadData, message));
        }
        let tell: Tell<'_> = &mut |_, _| {};
        let mut pass = Pass::new(self, wanted, call_off, tell)?;
        let mut input = Input::whole(&file).map_err(failed)?;
        let mut blob = match self.content.can_link(&file) {
            true if self.content.is_own(&wanted.digest, &file) => Arrival::Own,
            true => Arrival::Link(file),
            false => Arrival::Copy(Box::new(self.ingest(wanted)?.hashed_by_caller())),
        };
        let ingest = match &mut blob {
            Arrival::Copy(ingest) => Some(ingest.as_mut()),
            Arrival::Own | Arrival::Link(_) => None,
        };
        pass.read(&mut input, ingest)?;
        let (indexed, _) = pass.finish()?;
        Ok(Adopted { indexed, blob })
    }

    fn ingest(&self, wanted: Wanted) -> Result<Ingest, Failure> {
        let expected = Expected { digest: Some(wanted.digest), size: Some(wanted.size) };
        Ok(self.content.begin(&wanted.digest.to_string(), expected)?)
    }

    fn take_in(&self, adopted: Adopted, wanted: Wanted) -> Result<(), Failure> {
        let Adopted { indexed, blob } = adopted;
        match blob {
            Arrival::Own => {}
            Arrival::Copy(ingest) => {
                ingest.commit_verified(indexed.built.blob)?;
            }
            Arrival::Link(file) => {
                if !self.content.link(&wanted.digest, &file)? {
                    // Gone from its directory by now, or on a mount of its own
                    let mut ingest = self.ingest(wanted)?;
                    let again = Input::whole(&file);
                    let mut input =
                        again.map_err(|e| Failure::io(&e, format!("cannot read a blob: {e}")))?;
                    while let Some(chunk) = input.next() {
                        ingest.write(&chunk?)?;
                    }
                    ingest.commit()?;
                }
            }
        }
        self.install_index(indexed, false)
    }
}
