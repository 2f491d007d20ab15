//! A layer that is made here: tar in, compressed blob out, both hashed on the way.

use std::{
    io::{self, Write},
    str::FromStr,
};

use flate2::{GzBuilder, write::GzEncoder};
use peel_index::{Algorithm, Digest, Hasher};

use super::Store;
use crate::{
    content::{Expected, Ingest},
    failure::{Class, Failure},
};

/// Tar bytes in one zstd frame: 1 MiB, so that a reader can enter at each, as at a span.
const FRAME: usize = 1 << 20;
/// zstd's own default: half of gzip's time at gzip's size.
const ZSTD_LEVEL: i32 = 3;

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd, in frames of 1 MiB.
    Zstd,
}

impl Compression {
    /// The media type of such a layer, in an OCI image or one of Docker's.
    pub fn media_type(self, oci: bool) -> &'static str {
        match (self, oci) {
            (Self::None, true) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Gzip, true) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Zstd, true) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::None, false) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Gzip, false) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Zstd, false) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

impl FromStr for Compression {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "none" => Ok(Self::None),
            "" | "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => {
                let message = format!("no such compression: {other}");
                Err(Failure::new(Class::Usage, message).hint("there are gzip, zstd and none"))
            }
        }
    }
}

/// A layer that is complete but not in its place: GC does not see it, and it is gone when dropped.
pub(super) struct Unplaced {
    pub(super) ingest: Ingest,
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
}

/// Where compressed bytes go.
struct Sink(Ingest);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder {
    None(Sink),
    Gzip(Box<GzEncoder<Sink>>),
    /// What is to become the next frame.
    Zstd(Sink, Vec<u8>),
}

impl Encoder {
    fn new(compression: Compression, sink: Sink) -> Self {
        match compression {
            Compression::None => Self::None(sink),
            // Without a time or a name: the same tar gives the same blob
            Compression::Gzip => {
                let encoder = GzBuilder::new().write(sink, flate2::Compression::default());
                Self::Gzip(Box::new(encoder))
            }
            Compression::Zstd => Self::Zstd(sink, Vec::with_capacity(FRAME)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None(sink) => sink.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Zstd(sink, frame) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let len = rest.len().min(FRAME - frame.len());
                    frame.extend_from_slice(&rest[..len]);
                    rest = &rest[len..];
                    if frame.len() == FRAME {
                        end_frame(sink, frame)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> io::Result<Ingest> {
        match self {
            Self::None(sink) => Ok(sink.0),
            Self::Gzip(encoder) => Ok(encoder.finish()?.0),
            Self::Zstd(mut sink, mut frame) => {
                end_frame(&mut sink, &mut frame)?;
                Ok(sink.0)
            }
        }
    }
}

fn end_frame(sink: &mut Sink, frame: &mut Vec<u8>) -> io::Result<()> {
    if !frame.is_empty() {
        sink.write_all(&zstd::bulk::compress(frame, ZSTD_LEVEL)?)?;
        frame.clear();
    }
    Ok(())
}

/// Takes a tar.
struct TarWriter {
    encoder: Encoder,
    hasher: Hasher,
}

impl Write for TarWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.encoder.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// Makes a layer of the tar that `fill` writes; `key` tells it from others on their way.
    pub(super) fn make_layer(
        &self,
        key: &str,
        compression: Compression,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
    ) -> Result<Unplaced, Failure> {
        let sink = Sink(self.content.begin(key, Expected::default())?);
        let encoder = Encoder::new(compression, sink);
        // Writers of tars write headers and short files piecemeal
        let writer = TarWriter { encoder, hasher: Hasher::new(Algorithm::Sha256) };
        let mut writer = io::BufWriter::with_capacity(256 << 10, writer);
        fill(&mut writer)?;
        let failed = |e: io::Error| Failure::io(&e, format!("cannot write a layer: {e}"));
        let writer = writer.into_inner().map_err(|e| failed(e.into_error()))?;
        let diff_id = writer.hasher.finish();
        let ingest = writer.encoder.finish().map_err(failed)?;
        Ok(Unplaced { ingest, diff_id, compression })
    }
}
