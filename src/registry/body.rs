//! Bodies of answers: read whole within a bound, or as a stream of known length.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use reqwest::Response;

use super::{RegistryError, client::broken};

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

/// The bytes of a blob: exactly as many as its descriptor says, or an error, after which it ends.
pub struct BlobStream {
    inner: Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>,
    what: String,
    expected: u64,
    received: u64,
    ended: bool,
}

impl BlobStream {
    pub(super) fn new(response: Response, expected: u64, what: String) -> Self {
        let inner = response.bytes_stream().boxed();
        Self { inner, what, expected, received: 0, ended: false }
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What the next item of the body means.
    fn judge(
        &mut self,
        item: Option<Result<Bytes, reqwest::Error>>,
    ) -> Option<Result<Bytes, RegistryError>> {
        let length = |found| {
            let (what, expected) = (self.what.clone(), self.expected);
            Err(RegistryError::Length { what, expected, found })
        };
        match item {
            Some(Ok(bytes)) => {
                let received = self.received.saturating_add(bytes.len() as u64);
                if received > self.expected {
                    return Some(length(received));
                }
                self.received = received;
                Some(Ok(bytes))
            }
            Some(Err(e)) => Some(Err(broken(e, &self.what))),
            None if self.received < self.expected => Some(length(self.received)),
            None => None,
        }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.inner.as_mut().poll_next(cx));
        let taken = self.judge(item);
        self.ended = !matches!(taken, Some(Ok(_)));
        Poll::Ready(taken)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("what", &self.what)
            .field("expected", &self.expected)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
