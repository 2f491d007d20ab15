//! Compressed bytes that are kept until it is known what becomes of them.

use bytes::Bytes;

/// Pieces of buffers that somebody else reads as well, and after them bytes of its own.
#[derive(Default)]
pub(super) struct Held {
    pieces: Vec<Bytes>,
    own: Vec<u8>,
    len: usize,
}

impl Held {
    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.own.clear();
        self.len = 0;
    }

    /// Takes bytes, without copying them where they are a part of `shared`.
    pub(super) fn extend(&mut self, taken: &[u8], shared: Option<&Bytes>) {
        self.len += taken.len();
        let Some(shared) = shared.filter(|_| !taken.is_empty()) else {
            self.own.extend_from_slice(taken);
            return;
        };
        if !self.own.is_empty() {
            self.pieces.push(std::mem::take(&mut self.own).into());
        }
        let from = shared.as_ptr() as usize;
        let at = taken.as_ptr() as usize - from;
        // Block after block of one buffer is one piece
        let before = self.pieces.pop_if(|last| {
            let last = last.as_ptr_range();
            from <= last.start as usize && last.end == taken.as_ptr()
        });
        let start = before.map_or(at, |before| before.as_ptr() as usize - from);
        self.pieces.push(shared.slice(start..at + taken.len()));
    }

    /// Keeps the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        let mut more = self.len.saturating_sub(len);
        self.len -= more;
        let own = more.min(self.own.len());
        self.own.truncate(self.own.len() - own);
        more -= own;
        while let Some(last) = self.pieces.last_mut().filter(|_| more > 0) {
            let here = more.min(last.len());
            last.truncate(last.len() - here);
            more -= here;
            if last.is_empty() {
                self.pieces.pop();
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(AsRef::as_ref).chain([&*self.own])
    }

    /// All of them in one piece.
    pub(super) fn joined(&self) -> Vec<u8> {
        let mut joined = Vec::with_capacity(self.len);
        self.parts().for_each(|part| joined.extend_from_slice(part));
        joined
    }

    /// BLAKE3 of all of them.
    pub(super) fn digest(&self) -> [u8; 32] {
        if self.pieces.is_empty() {
            return *blake3::hash(&self.own).as_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        self.parts().for_each(|part| {
            hasher.update(part);
        });
        *hasher.finalize().as_bytes()
    }

    /// What they take in memory, were all of it its own.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(Bytes::len).sum();
        pieces + self.own.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_mixture_is_the_bytes_in_order(
            steps in proptest::collection::vec((0..400_usize, any::<bool>(), 0..50_usize), 0..40),
            cut in 0..20_000_usize,
        ) {
            let mut held = Held::default();
            let mut expected = Vec::new();
            let mut byte = 0;
            for (len, is_shared, part) in steps {
                let bytes: Bytes = (0..len).map(|_| { byte += 1; byte as u8 }).collect();
                let shared = is_shared.then_some(&bytes);
                for part in bytes.chunks(part.max(1)) {
                    held.extend(part, shared);
                }
                expected.extend_from_slice(&bytes);
            }
            prop_assert_eq!(held.len(), expected.len());
            prop_assert_eq!(&held.joined(), &expected);
            prop_assert_eq!(held.digest(), *blake3::hash(&expected).as_bytes());
            held.truncate(cut);
            expected.truncate(cut);
            prop_assert_eq!(held.len(), expected.len());
            prop_assert_eq!(&held.joined(), &expected);
            prop_assert_eq!(held.digest(), *blake3::hash(&expected).as_bytes());
            held.clear();
            prop_assert_eq!((held.len(), held.joined()), (0, Vec::new()));
        }
    }

    #[test]
    fn blocks_of_a_buffer_are_one_piece() {
        let (one, other) = (Bytes::from(vec![1; 1000]), Bytes::from(vec![2; 1000]));
        let mut held = Held::default();
        held.extend(&[9], None);
        one[100..].chunks(10).for_each(|block| held.extend(block, Some(&one)));
        other.chunks(10).for_each(|block| held.extend(block, Some(&other)));
        assert_eq!(held.pieces.len(), 3);
        assert_eq!(held.pieces[1].as_ptr(), one[100..].as_ptr(), "not copied");
        assert_eq!(held.len(), 1901);
    }
}
