//! The course of a start: which spans were asked for, in which order, as a list and as a file.
//!
//! ```text
//! <root>/layers/<alg>-<hex>.start    little-endian
//!   8 bytes    magic
//!   n x 8      span number u32, bytes needed from its start u32
//!   32         sha256 of the blob's digest as text, and of all before
//! ```
//! The digest of the blob ties the course to the spans of one index: the same layer, compressed
//! otherwise, has others.

use peel_index::{Algorithm, Digest, Hasher};

/// Spans of a course at most, and so of the file: 8 KiB. A GiB of a layer.
pub(in crate::layers) const LIMIT: usize = 1024;

const MAGIC: &[u8; 8] = b"PEELST01";
const STEP_LEN: usize = 8;
const SUM_LEN: usize = 32;
/// Length of the longest file, in bytes.
pub(in crate::layers) const FILE_LIMIT: u64 = (MAGIC.len() + LIMIT * STEP_LEN + SUM_LEN) as u64;

/// A span that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layers) struct Step {
    /// Its number in the layer's index.
    pub(in crate::layers) span: u32,
    /// How far it was needed, in bytes from its start.
    pub(in crate::layers) reach: u32,
}

/// Spans in the order they were asked for, each once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::layers) struct Course(pub(in crate::layers) Vec<Step>);

impl Course {
    /// The file's content.
    pub(in crate::layers) fn encode(&self, blob: &Digest) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for step in &self.0 {
            out.extend_from_slice(&step.span.to_le_bytes());
            out.extend_from_slice(&step.reach.to_le_bytes());
        }
        let sum = sum(&out, blob);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    /// From a file's content; `None` where that is damaged, of another version or of another blob.
    pub(in crate::layers) fn decode(bytes: &[u8], blob: &Digest) -> Option<Self> {
        let (body, found) = bytes.split_at_checked(bytes.len().checked_sub(SUM_LEN)?)?;
        let steps = body.strip_prefix(MAGIC)?;
        let whole = steps.len().is_multiple_of(STEP_LEN) && steps.len() / STEP_LEN <= LIMIT;
        if !whole || sum(body, blob).as_bytes() != found {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
        let step = |bytes: &[u8]| {
            let (span, reach) = bytes.split_at_checked(4)?;
            Some(Step { span: number(span)?, reach: number(reach)? })
        };
        steps.chunks_exact(STEP_LEN).map(step).collect::<Option<Vec<_>>>().map(Self)
    }

    /// The course after another start took the one that was `noted`.
    ///
    /// Where that asked for half of this course or more, it is what the layer is used for now: its
    /// order counts, and what it did not ask for goes. Where it asked for less, it was another
    /// program, or one for which much was in the page cache: what is new comes last then. It says
    /// nothing new where it is a part of this course.
    pub(super) fn followed_by(&self, noted: Vec<Step>) -> Self {
        let before = |span| self.0.iter().find(|step| step.span == span);
        let common = noted.iter().filter(|step| before(step.span).is_some()).count();
        let nothing_new = noted.iter().all(|n| before(n.span).is_some_and(|s| n.reach <= s.reach));
        if nothing_new && (common == self.0.len() || common * 2 < self.0.len()) {
            return self.clone();
        }
        if common * 2 >= self.0.len() {
            return Self(noted);
        }
        let mut all = self.0.clone();
        for step in &noted {
            match all.iter_mut().find(|s| s.span == step.span) {
                Some(old) => old.reach = old.reach.max(step.reach),
                None => all.push(*step),
            }
        }
        // The oldest were not of use for longest, unless they were just now
        let mut surplus = all.len().saturating_sub(LIMIT);
        all.retain(|step| {
            let goes = surplus > 0 && noted.iter().all(|n| n.span != step.span);
            surplus -= usize::from(goes);
            !goes
        });
        Self(all)
    }
}

fn sum(body: &[u8], blob: &Digest) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(blob.to_string().as_bytes());
    hasher.update(body);
    hasher.finish()
}
