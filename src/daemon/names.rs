//! What is done with names of images: tags, labels, pins, and removal of what is not used.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use super::engine::Engine;
use crate::{
    failure::{Class, Failure},
    image::new_name,
    metadata::{ImageRecord, now_ns},
};

impl Engine {
    /// Gives an image a further name, which may have stood for another.
    pub(super) fn tag(&self, reference: &str, target: &str) -> Result<ImageRecord, Failure> {
        let target = new_name(target)?;
        let tagged = {
            let _busy = self.busy();
            let mut image = self.find_image(reference)?;
            let now = now_ns();
            self.metadata.transaction(|tx| {
                let old = tx.image(&target)?;
                image.name.clone_from(&target);
                (image.created_at_ns, image.updated_at_ns) = (now, now);
                (image.mounted_at_ns, image.pinned) = (0, false);
                image.labels.clear();
                if let Some(old) = old {
                    image.take_over(old);
                }
                tx.put_image(&image)
            })?;
            self.images.write_index()?;
            image
        };
        // What the name stood for
        self.collect_garbage()?;
        Ok(tagged)
    }

    /// Changes what is said of an image; gives what it is then.
    fn change_image(
        &self,
        reference: &str,
        change: impl FnOnce(&mut ImageRecord),
    ) -> Result<ImageRecord, Failure> {
        let name = self.find_image(reference)?.name;
        self.metadata.transaction(|tx| {
            let missing = || Failure::new(Class::NotFound, format!("no such image here: {name}"));
            let mut image = tx.image(&name)?.ok_or_else(missing)?;
            change(&mut image);
            tx.put_image(&image)?;
            Ok(image)
        })
    }

    /// Sets labels and takes others away; gives all of them.
    pub(super) fn label_image(
        &self,
        reference: &str,
        set: impl IntoIterator<Item = (String, String)>,
        unset: &[String],
    ) -> Result<BTreeMap<String, String>, Failure> {
        let changed = self.change_image(reference, |image| {
            image.labels.extend(set);
            image.labels.retain(|key, _| !unset.contains(key));
        });
        Ok(changed?.labels)
    }

    /// Keeps an image from being removed to make room, or no longer.
    pub(super) fn pin_image(&self, reference: &str, pinned: bool) -> Result<String, Failure> {
        Ok(self.change_image(reference, |image| image.pinned = pinned)?.name)
    }

    /// Names of images that something is mounted of, or written on.
    fn used_images(&self) -> Result<HashSet<String>, Failure> {
        let mounts = self.live_mounts()?.into_iter().map(|(mount, _)| mount.image);
        let snapshots = self.metadata.snapshots()?.into_iter().map(|snapshot| snapshot.image);
        Ok(mounts.chain(snapshots).collect())
    }

    /// Removes images that nobody uses and that are not pinned, where they were last pulled or
    /// mounted `unused_for` ago; gives their names and the bytes freed.
    pub(super) fn prune(
        &self,
        unused_for: Duration,
        dry_run: bool,
    ) -> Result<(Vec<String>, u64), Failure> {
        let before = i64::try_from(unused_for.as_nanos()).unwrap_or(i64::MAX);
        let before = now_ns().saturating_sub(before);
        let removed = {
            let _one_at_a_time = self.mounting();
            let used = self.used_images()?;
            let mut images = self.metadata.images()?;
            images.retain(|i| !i.pinned && !used.contains(&i.name) && last_use(i) <= before);
            if !dry_run {
                self.metadata.transaction(|tx| {
                    for image in &images {
                        tx.remove_image(&image.name)?;
                    }
                    Ok::<_, Failure>(())
                })?;
            }
            images
        };
        let freed = match dry_run {
            true => self.freed_by(&removed)?,
            false => {
                self.images.write_index()?;
                self.collect_garbage()?
            }
        };
        Ok((removed.into_iter().map(|image| image.name).collect(), freed))
    }

    /// Removes images, the least recently mounted first, until what they take is no more than
    /// `most` bytes; pinned ones, those in use and `pulled`, which was pulled just now, stay.
    pub(super) fn make_room(&self, most: u64, pulled: Option<&str>) -> Result<(), Failure> {
        loop {
            let found = self.stored_bytes()?;
            if found <= most {
                return Ok(());
            }
            let removed = {
                let _one_at_a_time = self.mounting();
                let used = self.used_images()?;
                let mut images = self.metadata.images()?;
                images.retain(|image| {
                    let is_kept = image.pinned || used.contains(&image.name);
                    !is_kept && pulled != Some(&image.name)
                });
                images.sort_by_key(last_use);
                match images.into_iter().next() {
                    Some(image) => {
                        self.metadata.remove_image(&image.name)?;
                        image
                    }
                    None => {
                        tracing::warn!(most, found, "the store is too large, but all is wanted");
                        return Ok(());
                    }
                }
            };
            self.images.write_index()?;
            let freed = self.collect_garbage()?;
            tracing::info!(image = %removed.name, freed, "removed to make room");
        }
    }
}

/// When an image was last wanted, in nanoseconds since 1970.
fn last_use(image: &ImageRecord) -> i64 {
    image.mounted_at_ns.max(image.updated_at_ns)
}
