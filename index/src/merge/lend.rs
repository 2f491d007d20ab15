//! Whose attributes an implicit directory has, where the parts that show do not tell.
//!
//! containerd unpacks a layer onto an empty directory. For a parent that no entry lists, it looks
//! at the path in the directory of each lower layer by itself, topmost first, and follows the
//! symlinks of that layer only. Whiteouts and files end the search; opaque marks do not.

use super::{
    error::MergeError,
    stack::{BYTES_PER_STEP, LayerInode, Stack, is_directory},
};
use crate::{
    format::HIDES_LOWER,
    layer,
    path::{MAX_LINKS, clean},
};

/// What one layer has at a path.
enum Found<'a> {
    /// A directory, and where it really is.
    Directory { number: u32, path: Vec<&'a [u8]> },
    /// Nothing; further down there may be something.
    Nothing,
    /// What ends the search: no directory, or behind a whiteout.
    End,
}

/// A directory on the way, by its name.
#[derive(Clone, Copy)]
struct Step<'a> {
    name: &'a [u8],
    number: u32,
    /// Whether a whiteout of the same layer cuts it off from lower layers.
    is_new: bool,
}

impl<'a> Stack<'a> {
    /// The listed directory that lends its attributes to the implicit one at a path, which `top` is
    /// the topmost layer to have.
    pub(super) fn lender(
        &mut self,
        top: u16,
        mut path: Vec<&'a [u8]>,
    ) -> Result<Option<LayerInode>, MergeError> {
        for index in (0..=top).rev() {
            match self.find_alone(index, &path)? {
                Found::Directory { number, .. } if !self.layer(index).is_implicit(number) => {
                    return Ok(Some((index, number)));
                }
                Found::Directory { path: real, .. } if !real.is_empty() => path = real,
                Found::Nothing => {}
                Found::Directory { .. } | Found::End => return Ok(None),
            }
        }
        Ok(None)
    }

    /// What a layer by itself has at a path, its own symlinks followed.
    fn find_alone(&mut self, index: u16, path: &[&'a [u8]]) -> Result<Found<'a>, MergeError> {
        let layer = self.layer(index);
        let mut rest: Vec<&[u8]> = path.iter().rev().copied().collect();
        let mut steps: Vec<Step<'_>> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            self.spend(1, index, path)?;
            let current = steps.last().map_or(layer::ROOT, |step| step.number);
            let Some((_, entry)) = layer.find_child(current, name) else {
                let is_behind = steps.iter().any(|step| step.is_new);
                return Ok(if is_behind { Found::End } else { Found::Nothing });
            };
            let number = entry.inode.get();
            if is_directory(entry) {
                let is_new = entry.flags & HIDES_LOWER != 0;
                steps.push(Step { name: layer.name(entry), number, is_new });
                continue;
            }
            let Some(target) = layer.symlink_target(number).filter(|_| links < MAX_LINKS) else {
                return Ok(Found::End);
            };
            links += 1;
            self.spend(target.len() / BYTES_PER_STEP, index, path)?;
            let target = clean(target);
            let depth = if target.is_absolute { 0 } else { steps.len() };
            steps.truncate(depth.saturating_sub(target.ups));
            rest.extend(target.names.iter().rev());
        }
        let number = steps.last().map_or(layer::ROOT, |step| step.number);
        if layer.is_implicit(number) && steps.iter().any(|step| step.is_new) {
            return Ok(Found::End);
        }
        Ok(Found::Directory { number, path: steps.iter().map(|step| step.name).collect() })
    }
}
