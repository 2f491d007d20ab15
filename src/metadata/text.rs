//! How digests and paths are written into JSON.
//!
//! A digest is its usual text. A path is a string where it is UTF-8, else `{"hex": "<bytes>"}`, so
//! that no path is lost and the usual ones can be read.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes { hex: String },
}

impl PathText {
    fn new(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes { hex: to_hex(path.as_os_str().as_bytes()) },
        }
    }

    fn into_path<E: Error>(self) -> Result<PathBuf, E> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Bytes { hex } => from_hex(&hex)
                .map(|bytes| OsString::from_vec(bytes).into())
                .ok_or_else(|| E::custom(format!("path is not hexadecimal: {hex:?}"))),
        }
    }
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

pub(super) mod digest {
    use peel_index::Digest;

    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(d: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(d)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(d: D) -> Result<Digest, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// Several digests.
pub(super) mod digests {
    use peel_index::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(in crate::metadata) fn serialize<S: Serializer>(
        digests: &[Digest],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(digests.iter().map(Digest::to_string))
    }

    pub(in crate::metadata) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Digest>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

pub(super) mod digest_option {
    use peel_index::Digest;

    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        digest: &Option<Digest>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        digest.map(|d| d.to_string()).serialize(to)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<Digest>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|t| t.parse().map_err(D::Error::custom)).transpose()
    }
}

pub(super) mod path {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(p: &Path, to: S) -> Result<S::Ok, S::Error> {
        PathText::new(p).serialize(to)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<PathBuf, D::Error> {
        PathText::deserialize(from)?.into_path()
    }
}

pub(super) mod path_option {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        path.as_deref().map(PathText::new).serialize(to)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Option::<PathText>::deserialize(from)?.map(PathText::into_path).transpose()
    }
}
