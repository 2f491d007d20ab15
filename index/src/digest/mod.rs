//! Content digests as the OCI image spec writes them: `<algorithm>:<lower-case hex>`.
//!
//! Source: OCI image-spec, descriptor.md, "Digests".

mod sha256;

use std::{fmt, str::FromStr};

use sha2::Digest as _;

use self::sha256::Sha256;

/// A digest algorithm that the OCI image spec registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the algorithm every implementation has to know.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The registered name, as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the raw digest in bytes.
    pub fn raw_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// One byte that stands for the algorithm in peel's own files.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// A digest: an algorithm and its raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon, or nothing before it.
    #[error("not a digest: expected <algorithm>:<hex>, found: {0:?}")]
    Form(String),
    /// An algorithm that peel does not know.
    #[error("unknown digest algorithm: expected sha256 or sha512, found: {0:?}")]
    Algorithm(String),
    /// The hexadecimal part has the wrong length or a wrong character.
    #[error(
        "malformed {algorithm} digest: expected {expected} lower-case hex digits, found: {found:?}"
    )]
    Hex {
        /// The algorithm named before the colon.
        algorithm: &'static str,
        /// How many digits it takes.
        expected: usize,
        /// What stood there.
        found: String,
    },
}

impl Digest {
    /// A digest of known algorithm from its raw bytes; `None` where the length is wrong.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        if raw.len() != algorithm.raw_len() {
            return None;
        }
        let mut bytes = [0; 64];
        bytes[..raw.len()].copy_from_slice(raw);
        Some(Self { algorithm, bytes })
    }

    /// SHA-256 of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(data);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes, as many as the algorithm has.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.raw_len()]
    }

    /// The lower-case hexadecimal part, without the algorithm.
    pub fn hex(&self) -> String {
        self.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            "" => return Err(DigestError::Form(text.to_owned())),
            other => return Err(DigestError::Algorithm(other.to_owned())),
        };
        let malformed = || DigestError::Hex {
            algorithm: algorithm.name(),
            expected: algorithm.raw_len() * 2,
            found: hex.to_owned(),
        };
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.raw_len() * 2 || !hex.bytes().all(lower_hex) {
            return Err(malformed());
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(Self { algorithm, bytes })
    }
}

/// An incremental hasher of either algorithm.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::default()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(data),
            State::Sha512(h) => h.update(data),
        }
    }

    /// As [`Self::update`] of this and of `other`, in less time than one after the other where both
    /// are SHA-256.
    pub(crate) fn update_with(&mut self, data: &[u8], other: &mut Self, more: &[u8]) {
        match (&mut self.0, &mut other.0) {
            (State::Sha256(one), State::Sha256(other)) => {
                Sha256::update_two((one, data), (other, more));
            }
            _ => {
                self.update(data);
                other.update(more);
            }
        }
    }

    /// The digest of all bytes seen.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; 64];
        match self.0 {
            State::Sha256(h) => {
                bytes[..32].copy_from_slice(&h.finish());
                Digest { algorithm: Algorithm::Sha256, bytes }
            }
            State::Sha512(h) => {
                bytes.copy_from_slice(&h.finalize());
                Digest { algorithm: Algorithm::Sha512, bytes }
            }
        }
    }
}

/// The chainID of a stack of layers, lowest first; `None` for no layer.
///
/// Source: OCI image-spec, config.md, "Layer ChainID".
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(*first, |chain, diff| {
        let mut hasher = Hasher::new(chain.algorithm());
        hasher.update(format!("{chain} {diff}").as_bytes());
        hasher.finish()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn round_trip() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::sha256(b"")));
        let long = Hasher::new(Algorithm::Sha512).finish();
        assert_eq!(long.to_string().parse(), Ok(long));
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[0; 31]), None);
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in ["", "abc", ":abc", "md5:00", "sha256:00", &EMPTY.to_uppercase(), "sha256:é"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(EMPTY.replace('e', "E").replacen("shA", "sha", 1).parse::<Digest>().is_err());
    }

    #[test]
    fn chain_of_one_is_its_diff_id() {
        let a = Digest::sha256(b"a");
        let b = Digest::sha256(b"b");
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&[a]), Some(a));
        assert_eq!(chain_id(&[a, b]), Some(Digest::sha256(format!("{a} {b}").as_bytes())));
    }
}
