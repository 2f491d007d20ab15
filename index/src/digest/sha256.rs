//! SHA-256 over two streams at a time.
//!
//! The processor's instructions for it wait for one another within a stream; with two streams, each
//! fills the other's gaps. Two at once take three quarters of the time of one after the other.
//!
//! Source: FIPS 180-4, section 6.2.

use sha2::block_api::compress256;

/// Bytes of a block.
const BLOCK: usize = 64;

/// FIPS 180-4, section 5.3.3.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The state of a stream.
#[derive(Clone)]
pub(super) struct Sha256 {
    state: [u32; 8],
    /// The first bytes of an incomplete block, as many as `len` says.
    partial: [u8; BLOCK],
    /// Bytes seen.
    len: u64,
}

impl Sha256 {
    pub(super) fn new() -> Self {
        Self { state: INITIAL, partial: [0; BLOCK], len: 0 }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        let data = self.complete(data);
        let (blocks, rest) = data.as_chunks();
        compress256(&mut self.state, blocks);
        self.keep(data.len() - rest.len(), rest);
    }

    /// As [`Self::update`] of both, in less time.
    pub(super) fn update_two(one: (&mut Self, &[u8]), other: (&mut Self, &[u8])) {
        let ((first, data), (second, more)) = (one, other);
        let (data, more) = (first.complete(data), second.complete(more));
        let len = data.len().min(more.len()) / BLOCK * BLOCK;
        let ((both, rest), (both_more, rest_more)) = (data.split_at(len), more.split_at(len));
        compress_two(
            [&mut first.state, &mut second.state],
            [both.as_chunks().0, both_more.as_chunks().0],
        );
        (first.len, second.len) = (first.len + len as u64, second.len + len as u64);
        first.update(rest);
        second.update(rest_more);
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        let bits = self.len.wrapping_mul(8);
        let filled = self.filled();
        self.partial[filled..].fill(0);
        self.partial[filled] = 0x80;
        if filled + 1 + 8 > BLOCK {
            compress256(&mut self.state, &[self.partial]);
            self.partial = [0; BLOCK];
        }
        self.partial[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, &[self.partial]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes a block that was begun; gives what is left, which begins with a block where there is
    /// any.
    fn complete<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return data;
        }
        let (piece, rest) = data.split_at(data.len().min(BLOCK - filled));
        self.partial[filled..filled + piece.len()].copy_from_slice(piece);
        self.len += piece.len() as u64;
        if filled + piece.len() == BLOCK {
            compress256(&mut self.state, &[self.partial]);
        }
        rest
    }

    /// Counts `done` bytes of blocks, and keeps what is no block.
    fn keep(&mut self, done: usize, rest: &[u8]) {
        self.len += (done + rest.len()) as u64;
        if !rest.is_empty() {
            self.partial[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Takes as many blocks of both streams: the slices are equally long.
fn compress_two(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
    {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { x86::compress_two(states, blocks) };
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi64x, _mm_setr_epi32,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::BLOCK;

    /// FIPS 180-4, section 4.2.2: four a group.
    const ROUNDS: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: sixteen bytes are there; they need not be aligned.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn words(words: [u32; 4]) -> __m128i {
        let [a, b, c, d] = words.map(u32::cast_signed);
        _mm_setr_epi32(a, b, c, d)
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn store(words: &mut [u32; 4], value: __m128i) {
        // SAFETY: there is room for sixteen bytes; they need not be aligned.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), value) };
    }

    /// A state as the instructions want it: ABEF and CDGH, the first one highest.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn unpack([a, b, c, d, e, f, g, h]: [u32; 8]) -> (__m128i, __m128i) {
        (words([f, e, b, a]), words([h, g, d, c]))
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn pack(abef: __m128i, cdgh: __m128i) -> [u32; 8] {
        let (mut one, mut other) = ([0; 4], [0; 4]);
        store(&mut one, abef);
        store(&mut other, cdgh);
        let ([f, e, b, a], [h, g, d, c]) = (one, other);
        [a, b, c, d, e, f, g, h]
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(super) fn compress_two(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let [(mut abef0, mut cdgh0), (mut abef1, mut cdgh1)] =
            [unpack(*states[0]), unpack(*states[1])];
        for (block0, block1) in blocks[0].iter().zip(blocks[1]) {
            let (old0, old1) = ((abef0, cdgh0), (abef1, cdgh1));
            let mut w0 = [_mm_setzero_si128(); 4];
            let mut w1 = w0;
            let quarters = block0.as_chunks().0.iter().zip(block1.as_chunks().0);
            for ((w0, w1), (quarter0, quarter1)) in w0.iter_mut().zip(&mut w1).zip(quarters) {
                *w0 = _mm_shuffle_epi8(load(quarter0), big_endian);
                *w1 = _mm_shuffle_epi8(load(quarter1), big_endian);
            }
            macro_rules! four {
                ($round:expr, $abef:ident, $cdgh:ident, $w:ident) => {
                    let added = _mm_add_epi32($w[$round % 4], words(ROUNDS[$round]));
                    $cdgh = _mm_sha256rnds2_epu32($cdgh, $abef, added);
                    $abef = _mm_sha256rnds2_epu32($abef, $cdgh, _mm_shuffle_epi32(added, 0x0e));
                };
            }
            // The words for the rounds sixteen later
            macro_rules! schedule {
                ($round:expr, $w:ident) => {
                    let (w, next) = ($w[$round % 4], $w[($round + 1) % 4]);
                    let last = $w[($round + 3) % 4];
                    let seventh = _mm_alignr_epi8(last, $w[($round + 2) % 4], 4);
                    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w, next), seventh);
                    $w[$round % 4] = _mm_sha256msg2_epu32(sum, last);
                };
            }
            macro_rules! both {
                ($($round:literal)*; $($last:literal)*) => {
                    $(
                        four!($round, abef0, cdgh0, w0);
                        schedule!($round, w0);
                        four!($round, abef1, cdgh1, w1);
                        schedule!($round, w1);
                    )*
                    $(
                        four!($last, abef0, cdgh0, w0);
                        four!($last, abef1, cdgh1, w1);
                    )*
                };
            }
            both!(0 1 2 3 4 5 6 7 8 9 10 11; 12 13 14 15);
            (abef0, cdgh0) = (_mm_add_epi32(abef0, old0.0), _mm_add_epi32(cdgh0, old0.1));
            (abef1, cdgh1) = (_mm_add_epi32(abef1, old1.0), _mm_add_epi32(cdgh1, old1.1));
        }
        let [state0, state1] = states;
        (*state0, *state1) = (pack(abef0, cdgh0), pack(abef1, cdgh1));
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        let mut state = 0x1234_5678_u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn agrees_with_sha2_at_every_length() {
        let data = bytes(400);
        for len in 0..data.len() {
            let mut hasher = Sha256::new();
            hasher.update(&data[..len / 3]);
            hasher.update(&data[len / 3..len]);
            assert_eq!(hasher.finish(), *sha2::Sha256::digest(&data[..len]), "{len} bytes");
        }
    }

    #[test]
    fn two_streams_are_what_each_is_alone() {
        let data = bytes(5000);
        for cut in [0, 1, 63, 64, 65, 128, 1000, 2500] {
            for end in [cut, cut + 1, 3000, 4999, 5000] {
                let (one, other) = data.split_at(cut);
                let other = &other[..end.max(cut) - cut];
                let (mut first, mut second) = (Sha256::new(), Sha256::new());
                for chunk in [7, 64, 500] {
                    let (begin, rest) = one.split_at(chunk.min(one.len()));
                    let (other_begin, other_rest) = other.split_at((2 * chunk).min(other.len()));
                    Sha256::update_two((&mut first, begin), (&mut second, other_begin));
                    Sha256::update_two((&mut second, other_rest), (&mut first, rest));
                }
                let expected = |stream: &[u8]| sha2::Sha256::digest(stream.repeat(3));
                assert_eq!(first.finish(), *expected(one), "{cut} bytes and {end}");
                assert_eq!(second.finish(), *expected(other), "{cut} bytes and {end}");
            }
        }
    }
}
