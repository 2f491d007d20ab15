//! What was written over an image: shown, and made an image of.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::engine::Engine;
use crate::{
    api,
    failure::{Class, Failure},
    image::{CommitOptions, Compression, new_name},
    metadata::{ImageRecord, SnapshotRecord},
    snapshot::{Change, Upper},
};

impl Engine {
    /// A snapshot by its name, or by the directory that it is mounted on or a bundle of.
    fn find_snapshot(&self, name: &[u8]) -> Result<SnapshotRecord, Failure> {
        let path = Path::new(OsStr::from_bytes(name));
        if path.is_absolute() {
            let mounts = self.metadata.mounts()?.into_iter();
            let found = mounts
                .filter(|mount| mount.target == path || mount.bundle_dir.as_deref() == Some(path));
            for mount in found {
                if let Some(id) = mount.snapshot
                    && let Some(snapshot) = self.metadata.snapshot(id)?
                {
                    return Ok(snapshot);
                }
            }
        } else if let Ok(name) = std::str::from_utf8(name)
            && let Some(found) = self.metadata.snapshot_named(name)?
        {
            return Ok(found);
        }
        let message = format!("no snapshot named {}, nor mounted there", path.display());
        Err(Failure::new(Class::NotFound, message).hint("list them with: peel snapshots ls"))
    }

    fn open_upper(&self, snapshot: &SnapshotRecord) -> Result<Upper, Failure> {
        let chains = self.layers.tree_slots();
        let slot = chains.iter().find(|(chain, _)| *chain == snapshot.chain_id);
        let Some((_, slot)) = slot else {
            let message = format!("the tree below snapshot {} is not here", snapshot.name);
            return Err(Failure::new(Class::NotFound, message)
                .hint(format!("pull its image again: peel pull {}", snapshot.image)));
        };
        let lower = self.paths.lower().join(slot.to_string());
        let init = self.snapshots.init(snapshot.id);
        Ok(Upper::open(&self.snapshots.upper(snapshot.id), init.as_deref(), &lower)?)
    }

    /// What was written to a snapshot: kinds and paths from `/`.
    pub(super) fn changes(&self, name: &[u8]) -> Result<Vec<(char, PathBuf)>, Failure> {
        let snapshot = self.find_snapshot(name)?;
        let mut changes = Vec::new();
        self.open_upper(&snapshot)?.changes(&mut |change: Change<'_>| {
            changes.push((change.kind.letter(), Path::new("/").join(change.path)));
            Ok::<_, Failure>(())
        })?;
        Ok(changes)
    }

    /// The image whose layers are below a snapshot, and how many of them.
    fn base_of(&self, snapshot: &SnapshotRecord) -> Result<(ImageRecord, usize), Failure> {
        let mut images = self.metadata.images()?;
        // The one it was made on before any other of the same layers
        images.sort_by_key(|image| image.name != snapshot.image);
        for image in images {
            let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
            for count in (0..=diff_ids.len()).rev() {
                if peel_index::chain_id(&diff_ids[..count]) == snapshot.chain_id {
                    return Ok((image, count));
                }
            }
        }
        let message = format!(
            "the image below snapshot {} is another now: {}",
            snapshot.name, snapshot.image
        );
        Err(Failure::new(Class::Conflict, message).hint("pull the image that it was made on"))
    }

    /// Makes an image of what was written to a snapshot.
    pub(super) fn commit(&self, request: api::CommitImageRequest) -> Result<ImageRecord, Failure> {
        let name = new_name(&request.target)?;
        let snapshot = self.find_snapshot(&request.snapshot)?;
        let (base, layers) = self.base_of(&snapshot)?;
        let upper = self.open_upper(&snapshot)?;
        let options = CommitOptions {
            name,
            base,
            layers,
            upper: &upper,
            compression: request.compression.parse()?,
            created: request.created,
            author: request.author,
            message: request.message,
            changes: request.changes,
        };
        let image = self.images.commit(options)?;
        tracing::info!(image = %image.name, snapshot = %snapshot.name, "committed");
        self.collect_garbage()?;
        Ok(image)
    }

    /// Makes an image of another's layers, compressed otherwise.
    pub(super) fn convert(
        &self,
        request: &api::ConvertImageRequest,
    ) -> Result<ImageRecord, Failure> {
        let name = new_name(&request.target)?;
        let compression: Compression = request.compression.parse()?;
        let base = self.find_image(&request.reference)?;
        let image = self.images.recompress(&base, &name, compression, request.oci)?;
        tracing::info!(image = %image.name, base = %base.name, "converted");
        self.collect_garbage()?;
        Ok(image)
    }
}
