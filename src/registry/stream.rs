//! The bytes of a blob, over as many connections as it takes.
//!
//! | what happens | what is done |
//! | --- | --- |
//! | the connection breaks, stalls, or ends early | the rest is asked for by Range |
//! | 200 to a Range | what is there already is skipped |
//! | a Content-Range that was not asked for | the whole is asked for, and the beginning skipped |
//! | more bytes than the descriptor has, another length announced | an error |
//!
//! The number of tries without progress is bounded, so that the number of all is.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream, stream::BoxStream};
use reqwest::{Method, Response, StatusCode, Url, header};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Registry, RegistryError,
    body::Body,
    client::{Headers, broken, shown},
    error::{Asked, excerpt},
    hosts::Host,
    request::{Request, accept},
    retry::Tried,
};
use crate::oci::{Descriptor, Repository};

/// Bytes after which a transfer counts as going again: 256 KiB. A connection that gives less before
/// it breaks gains little over none.
const PROGRESS: u64 = 256 << 10;

/// The bytes of a blob from where they were asked for: exactly as many as its descriptor says, or
/// an error, after which it ends.
pub struct BlobStream {
    inner: BoxStream<'static, Result<Bytes, RegistryError>>,
    received: u64,
    pieced: Arc<AtomicBool>,
}

impl BlobStream {
    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Tells whether the bytes came over more than one connection; of use once the digest is known
    /// to be wrong, since then the seams may be.
    pub fn pieced(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.pieced)
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = std::task::ready!(self.inner.poll_next_unpin(cx));
        if let Some(Ok(bytes)) = &item {
            self.received = self.received.saturating_add(bytes.len() as u64);
        }
        Poll::Ready(item)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").field("received", &self.received).finish_non_exhaustive()
    }
}

/// Where the bytes are asked for.
enum Place {
    /// At a registry and its mirrors.
    Hosts(Vec<Arc<Host>>),
    /// At a URL that a manifest names, by nobody.
    Url(Url),
}

/// See the module.
pub(super) struct Transfer {
    registry: Registry,
    place: Place,
    repository: Repository,
    size: u64,
    asked: Asked,
    /// Bytes that are there.
    offset: u64,
    answer: Option<Open>,
    failures: u32,
    /// Where the failures began to be counted.
    counted_from: u64,
    /// Whether answers to a Range are to be believed.
    ranges: bool,
    pieced: Arc<AtomicBool>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// An answer that is being read.
struct Open {
    response: Response,
    /// Bytes of it that are there already.
    skip: u64,
}

impl Transfer {
    /// Asks for a blob at the hosts of a registry.
    pub(super) async fn start(
        registry: Registry,
        hosts: Vec<Arc<Host>>,
        repository: Repository,
        descriptor: Descriptor,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        Self::begin(registry, Place::Hosts(hosts), repository, descriptor, from).await
    }

    async fn begin(
        registry: Registry,
        place: Place,
        repository: Repository,
        descriptor: Descriptor,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        let permit = Arc::clone(&registry.shared.transfers).acquire_owned().await;
        let pieced = Arc::new(AtomicBool::new(from > 0));
        let mut transfer = Self {
            registry,
            place,
            repository,
            size: descriptor.size,
            asked: Asked::Blob(descriptor.digest.to_string()),
            offset: from,
            answer: None,
            failures: 0,
            counted_from: from,
            ranges: true,
            pieced: Arc::clone(&pieced),
            // The semaphore is never closed
            _permit: permit.ok(),
        };
        if from < descriptor.size {
            // The first answer decides whether there is anything to stream
            transfer.open_patiently().await?;
        }
        let inner = stream::try_unfold(transfer, |mut transfer| async {
            Ok(transfer.next().await?.map(|bytes| (bytes, transfer)))
        });
        Ok(BlobStream { inner: inner.boxed(), received: 0, pieced })
    }

    fn what(&self) -> String {
        format!("{} of {}", self.asked, self.repository)
    }

    /// The next bytes; `None` when all are there.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.answer.is_none() {
                if self.offset == self.size {
                    return Ok(None);
                }
                self.pieced.store(true, Ordering::Relaxed);
                self.open_patiently().await?;
            }
            let Some(open) = &mut self.answer else { continue };
            let error = match open.response.chunk().await {
                Ok(Some(mut bytes)) => {
                    let skipped = open.skip.min(bytes.len() as u64);
                    open.skip -= skipped;
                    // Both are at most the length of the chunk
                    let rest = bytes.split_off(usize::try_from(skipped).unwrap_or(bytes.len()));
                    if rest.is_empty() {
                        continue;
                    }
                    return self.take(rest).await.map(Some);
                }
                Err(e) => broken(e, &self.what()),
                Ok(None) if self.offset == self.size && open.skip == 0 => return Ok(None),
                Ok(None) => RegistryError::Ended {
                    what: self.what(),
                    expected: self.size,
                    found: self.offset,
                },
            };
            self.answer = None;
            self.failed(error, true).await?;
        }
    }

    async fn take(&mut self, bytes: Bytes) -> Result<Bytes, RegistryError> {
        let found = self.offset.saturating_add(bytes.len() as u64);
        if found > self.size {
            let (what, expected) = (self.what(), self.size);
            return Err(RegistryError::Length { what, expected, found });
        }
        self.offset = found;
        if self.offset - self.counted_from >= PROGRESS {
            (self.failures, self.counted_from) = (0, self.offset);
        }
        self.registry.shared.downloads.take(bytes.len()).await;
        Ok(bytes)
    }

    /// Counts a failure and waits, or gives up.
    async fn failed(&mut self, error: RegistryError, begun: bool) -> Result<(), RegistryError> {
        self.failures += 1;
        if matches!(error, RegistryError::Range { .. }) && self.ranges {
            tracing::warn!(%error, "asking for the whole again");
            self.ranges = false;
            return Ok(());
        }
        self.registry.pause(error, Tried { times: self.failures, begun }).await
    }

    async fn open_patiently(&mut self) -> Result<(), RegistryError> {
        loop {
            match self.open().await {
                Ok(open) => {
                    self.answer = Some(open);
                    return Ok(());
                }
                Err(error) => {
                    let begun = self.pieced.load(Ordering::Relaxed);
                    self.failed(error, begun).await?;
                }
            }
        }
    }

    /// Asks for what is missing.
    async fn open(&self) -> Result<Open, RegistryError> {
        let from = if self.ranges { self.offset } else { 0 };
        let request = Request {
            method: &Method::GET,
            repository: &self.repository,
            asked: &self.asked,
            from,
        };
        match &self.place {
            Place::Hosts(hosts) => {
                let ask = |host| async move {
                    self.check(self.registry.send_for_part(host, request).await?, from)
                };
                self.registry.in_turn(hosts, &ask).await
            }
            Place::Url(url) => self.check(self.send_to(url, from).await?, from),
        }
    }

    async fn send_to(&self, url: &Url, from: u64) -> Result<Response, RegistryError> {
        let mut headers = Headers::default();
        let identity = header::HeaderValue::from_static("identity");
        headers.plain.insert(header::ACCEPT_ENCODING, identity);
        if from > 0 {
            let range = format!("bytes={from}-").try_into().expect("printable ASCII");
            headers.plain.insert(header::RANGE, range);
        }
        let clients = self.registry.shared.clients.of(&super::client::Tls::default())?;
        let what = self.what();
        let response = clients.send(Method::GET, url.clone(), headers, &Body::None, &what).await?;
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        accept(response, &good, &self.repository, &self.asked).await
    }

    /// What an answer holds of the blob: the whole, or the part that was asked for.
    fn check(&self, response: Response, from: u64) -> Result<Open, RegistryError> {
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let found = response.headers().get(header::CONTENT_RANGE);
                let found = found.map(|value| value.as_bytes()).unwrap_or_default();
                let text = String::from_utf8_lossy(found);
                let good = content_range(&text).is_some_and(|range| {
                    range.first == from
                        && range.last < self.size
                        && range.total.is_none_or(|total| total == self.size)
                        && response
                            .content_length()
                            .is_none_or(|n| n == range.last - range.first + 1)
                });
                if !good || from == 0 {
                    return Err(RegistryError::Range {
                        what: self.what(),
                        expected: format!("bytes {from}-{}/{}", self.size - 1, self.size),
                        found: excerpt(found),
                    });
                }
                from
            }
            _ => {
                if let Some(found) = response.content_length().filter(|n| *n != self.size) {
                    let (what, expected) = (self.what(), self.size);
                    return Err(RegistryError::Length { what, expected, found });
                }
                0
            }
        };
        if start < self.offset {
            let url = shown(response.url());
            tracing::info!(%url, skipped = self.offset - start, "no part but the whole came");
        }
        let skip = self.offset - start;
        Ok(Open { response, skip })
    }
}

/// The range of a 206.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// Source: RFC 9110, section 14.4.
fn content_range(text: &str) -> Option<ContentRange> {
    let number = |text: &str| -> Option<u64> {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last && total.is_none_or(|total| last < total)).then_some(ContentRange {
        first,
        last,
        total,
    })
}

impl Registry {
    /// A blob from a URL that its manifest names, as foreign layers have them; nobody's credentials
    /// go there.
    ///
    /// # Errors
    /// Where the URL does not give it, or gives another length.
    pub async fn foreign(
        &self,
        url: &str,
        repository: &Repository,
        descriptor: &Descriptor,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        let wrong = |found: String| RegistryError::Protocol {
            what: format!("blob {} of {repository}", descriptor.digest),
            expected: "an http or https URL of a foreign layer",
            found,
        };
        let url = Url::parse(url).map_err(|_| wrong(excerpt(url.as_bytes())))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(shown(&url)));
        }
        let (repository, descriptor) = (repository.clone(), descriptor.clone());
        Transfer::begin(self.clone(), Place::Url(url), repository, descriptor, from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        let table = [
            ("bytes 4-9/10", range(4, 9, Some(10))),
            (" bytes 4-9/* ", range(4, 9, None)),
            ("bytes 0-0/1", range(0, 0, Some(1))),
            ("bytes 9-4/10", None),
            ("bytes 4-10/10", None),
            ("bytes */10", None),
            ("bytes +4-9/10", None),
            ("bytes 4-99999999999999999999/*", None),
            ("items 4-9/10", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }
}
