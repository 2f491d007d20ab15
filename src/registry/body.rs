//! Bodies: of answers, read whole within a bound; of requests, such that they can be sent again.

use std::{fs::File, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use reqwest::{RequestBuilder, Response, header::CONTENT_LENGTH};

use super::{RegistryError, client::broken, limit::Limiter};

/// What is read from a file at once.
const CHUNK: u64 = 256 << 10;

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read(
    mut response: Response,
    limit: u64,
    what: &str,
) -> Result<Bytes, RegistryError> {
    let too_large = |found| RegistryError::TooLarge { what: what.to_owned(), limit, found };
    if let Some(found) = response.content_length().filter(|length| *length > limit) {
        return Err(too_large(found));
    }
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(e, what))? {
        let found = bytes.len() as u64 + chunk.len() as u64;
        if found > limit {
            return Err(too_large(found));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// Reads up to `limit` bytes for a message; what fails meanwhile does not matter.
pub(super) async fn read_some(mut response: Response, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = limit - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if bytes.len() == limit {
            break;
        }
    }
    bytes
}

/// What a request carries.
pub(super) enum Body {
    /// Nothing.
    None,
    /// A form that holds a secret.
    Secret(Bytes),
    /// A document.
    Bytes(Bytes),
    /// A part of a file.
    File(FilePart),
}

/// See [`Body::File`].
#[derive(Clone)]
pub(super) struct FilePart {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) limiter: Arc<Limiter>,
    /// Told how many more bytes were handed over.
    pub(super) sent: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Body {
    /// Puts the body into a request; as often as it is sent.
    pub(super) async fn attach(
        &self,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, RegistryError> {
        Ok(match self {
            Self::None => request,
            Self::Secret(bytes) | Self::Bytes(bytes) => request.body(bytes.clone()),
            Self::File(part) => {
                let chunks = stream::try_unfold(part.clone(), |mut part| async {
                    Ok::<_, io::Error>(part.next().await?.map(|chunk| (chunk, part)))
                });
                let body = reqwest::Body::wrap_stream(chunks);
                request.header(CONTENT_LENGTH, part.len).body(body)
            }
        })
    }
}

impl FilePart {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        use std::os::unix::fs::FileExt as _;
        let wanted = self.len.min(CHUNK);
        if wanted == 0 {
            return Ok(None);
        }
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; usize::try_from(wanted).unwrap_or(0)];
            file.read_exact_at(&mut chunk, offset).map(|()| chunk)
        });
        let chunk = read.await.map_err(io::Error::other)??;
        self.limiter.take(chunk.len()).await;
        self.offset += wanted;
        self.len -= wanted;
        (self.sent)(wanted);
        Ok(Some(chunk.into()))
    }
}
