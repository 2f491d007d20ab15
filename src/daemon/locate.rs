//! Looking into images without mounting them: where their files are, in the daemon's own mount and
//! in their layers.

use std::path::PathBuf;

use peel_index::{FileKind, Layer, NodeId, Piece, SpanCoding, SpanSource};
use serde_json::{Value, json};

use super::engine::Engine;
use crate::{
    failure::{Class, Failure},
    metadata::ImageRecord,
};

/// Most spans that are listed of one file: of 1 MiB each, enough for a file of 4 GiB.
const MAX_SPANS: usize = 4096;

impl Engine {
    /// The directory that shows an image's first so many layers, 0 for all.
    pub(super) fn find_tree(
        &self,
        reference: &str,
        layers: u32,
    ) -> Result<(ImageRecord, PathBuf), Failure> {
        let found = {
            let _busy = self.busy();
            let image = self.find_image(reference)?;
            let tree = self.tree_of(&image, layers)?;
            (image, self.paths.lower().join(tree.slot().to_string()))
        };
        self.collect_if_due()?;
        Ok(found)
    }

    /// What is behind an inode number of an image's tree.
    pub(super) fn locate(&self, reference: &str, inode: u64) -> Result<Value, Failure> {
        let image = self.find_image(reference)?;
        let missing =
            || Failure::new(Class::NotFound, format!("no inode {inode} in image {}", image.name));
        let (slot, number, from_tree) = match NodeId::from_raw(inode).ok_or_else(missing)? {
            NodeId::Root => return Err(missing()),
            NodeId::Layer { slot, number } => (slot, number, false),
            NodeId::Tree { slot, number } => {
                let chains = self.layers.tree_slots();
                let chain = chains.iter().find(|(_, found)| *found == slot).ok_or_else(missing)?;
                let tree = self.layers.tree_by_chain_id(chain.0)?.ok_or_else(missing)?;
                match tree.content(number) {
                    Some((layer, number)) => (layer, number, true),
                    None => {
                        let attr = tree.inode(number).ok_or_else(missing)?;
                        let is_dir = attr.kind == FileKind::Directory;
                        return Ok(json!({
                            "image": image.name,
                            "inode": inode,
                            "merged": is_dir,
                            "layers": tree.layers().map(|l| l.diff_id.to_string()).collect::<Vec<_>>(),
                        }));
                    }
                }
            }
        };
        let mut diff_ids = self.layers.diff_ids().into_iter();
        let diff_id = diff_ids.find(|id| self.layers.layer_slot(id) == Some(slot));
        let diff_id = diff_id.ok_or_else(missing)?;
        let layer = self.layers.layer_by_diff_id(&diff_id)?.ok_or_else(missing)?;
        let place = image.layers.iter().position(|layer| layer.diff_id == diff_id);
        let (extents, spans) = content(&layer, number);
        Ok(json!({
            "image": image.name,
            "inode": inode,
            // Attributes of a file that several layers decide stand in the tree
            "attributes_from": if from_tree { "tree" } else { "layer" },
            "layer": {
                "number": place.map(|place| place + 1),
                "of": image.layers.len(),
                "digest": layer.blob().to_string(),
                "diff_id": diff_id.to_string(),
                "slot": slot.number(),
                "inode": number,
            },
            "extents": extents,
            "spans": spans,
        }))
    }
}

/// Where a file's bytes are in the tar, and in which spans of the blob.
fn content(layer: &Layer, number: u32) -> (Vec<Value>, Vec<Value>) {
    let size = layer.inode(number).map_or(0, |attr| attr.size);
    let (mut extents, mut spans): (Vec<Value>, Vec<Value>) = Default::default();
    let mut last = None;
    let mut at = 0;
    for piece in layer.pieces(number, 0, size) {
        let (tar_offset, len) = match piece {
            Piece::Zero { len } => {
                at += len;
                continue;
            }
            Piece::Data { tar_offset, len } => (tar_offset, len),
        };
        extents.push(json!({ "offset": at, "size": len, "tar_offset": tar_offset }));
        at += len;
        let (first, end) =
            (layer.span_at(tar_offset), layer.span_at((tar_offset + len).saturating_sub(1)));
        let (Some(first), Some(end)) = (first, end) else { continue };
        for index in (first..=end).filter(|index| last.is_none_or(|last| *index > last)) {
            let Some(span) = layer.span(index).filter(|_| spans.len() < MAX_SPANS) else { break };
            spans.push(json!({
                "number": index,
                "in": match span.source { SpanSource::Blob => "blob", SpanSource::Copy => "copy" },
                "offset": span.offset,
                "size": span.len,
                "tar_offset": span.tar_offset,
                "tar_size": span.tar_len,
                "coding": match span.coding { SpanCoding::Plain => "plain", _ => "compressed" },
            }));
        }
        last = Some(end);
    }
    (extents, spans)
}
