//! The client of registries, by the OCI distribution spec: pull over https, anonymously.
//!
//! ```text
//! Registry ─▶ Endpoint (host → URL)      where hosts, mirrors and push come in later
//!     │─▶ retry (a stateless predicate)  around every request up to its first bytes
//!     │─▶ auth (tokens by repository)    401 → challenge → token → once more
//!     └─▶ body (bounded reads, streams)  nothing is read past what was announced or allowed
//! ```
//!
//! Nothing a registry says is trusted: documents are bounded and their digest is verified here; a
//! blob's length is checked here and its digest by whoever consumes the stream, who hashes anyway.
//!
//! Loopback hosts are spoken to over plain http, all others over https. Redirects are followed, but
//! never from https to http, and without the Authorization header once they leave the host.
//!
//! Architecture invariant: only this module names reqwest.
//!
//! Locking: one mutex over the tokens, never held across an await.

mod auth;
mod body;
mod client;
mod error;
mod retry;

use std::time::Duration;

use bytes::Bytes;
use peel_index::{Digest, Hasher};
use reqwest::{
    Method, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};

pub use body::BlobStream;
pub use error::{Missing, RegistryError};

use self::{
    auth::{Challenge, Token, Tokens},
    client::{Clients, Endpoint},
    error::Asked,
};
use crate::oci::{
    ACCEPTED_MANIFESTS, Descriptor, DocumentKind, MAX_MANIFEST_SIZE, RegistryReference, Repository,
    essence,
};

/// How patient the client is.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// How long to wait for a connection. Default 10 s: a handshake over a bad line takes seconds.
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes. Default 30 s: storage behind a registry may stall.
    pub idle_timeout: Duration,
    /// How often a request is tried in all, at least once. Default 4.
    pub attempts: u32,
    /// Wait before the second try; doubled for each further one. Default 500 ms.
    pub backoff: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            attempts: 4,
            backoff: Duration::from_millis(500),
        }
    }
}

/// A client of all registries: connections and tokens are kept and shared.
#[derive(Debug)]
pub struct Registry {
    options: RegistryOptions,
    clients: Clients,
    tokens: Tokens,
}

/// One request, before it is known where it goes and with which token.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'a Method,
    repository: &'a Repository,
    asked: &'a Asked,
}

impl Registry {
    /// A client. It works without CA certificates on the machine until https is used.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let clients = Clients::new(&options)?;
        Ok(Self { options, clients, tokens: Tokens::default() })
    }

    /// What a reference names: the descriptor of a manifest or an index, and its verified bytes.
    pub async fn resolve(
        &self,
        reference: &RegistryReference,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        let asked = Asked::Manifest(reference.target());
        let request =
            Request { method: &Method::GET, repository: reference.repository(), asked: &asked };
        self.retrying(|| async move {
            let response = self.send(request).await?;
            let answer = Answer::of(&response, request)?;
            let bytes = body::read(response, MAX_MANIFEST_SIZE, &request.name()).await?;
            let digest = answer.verify(&bytes, reference.digest(), request)?;
            let media_type = media_type(&answer.content_type, &bytes);
            Ok((Descriptor::new(media_type, digest, bytes.len() as u64), bytes))
        })
        .await
    }

    /// What a reference names, without its bytes; `None` where the registry does not say. Nothing
    /// is verified: this tells whether a tag has moved, at the price of a HEAD request.
    pub async fn head(
        &self,
        reference: &RegistryReference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let asked = Asked::Manifest(reference.target());
        let request =
            Request { method: &Method::HEAD, repository: reference.repository(), asked: &asked };
        self.retrying(|| async move {
            let response = self.send(request).await?;
            let answer = Answer::of(&response, request)?;
            let size = response
                .headers()
                .get(header::CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let described = answer.digest.zip(size);
            Ok(described.map(|(digest, size)| Descriptor::new(answer.content_type, digest, size)))
        })
        .await
    }

    /// The verified bytes of a manifest or index that a descriptor names.
    pub async fn manifest(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let asked = Asked::Manifest(descriptor.digest.to_string());
        let request = Request { method: &Method::GET, repository, asked: &asked };
        let limit = descriptor.size.min(MAX_MANIFEST_SIZE);
        self.retrying(|| async move {
            let response = self.send(request).await?;
            let answer = Answer::of(&response, request)?;
            let bytes = body::read(response, limit, &request.name()).await?;
            answer.verify(&bytes, Some(&descriptor.digest), request)?;
            check_length(descriptor.size, bytes.len() as u64, request)?;
            Ok(bytes)
        })
        .await
    }

    /// A blob as a stream. Its length is checked against the descriptor; the caller verifies the
    /// digest. Only the start is retried: an error of the stream is the caller's to act on.
    pub async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<BlobStream, RegistryError> {
        let asked = Asked::Blob(descriptor.digest.to_string());
        let request = Request { method: &Method::GET, repository, asked: &asked };
        self.retrying(|| async move {
            let response = self.send(request).await?;
            if let Some(found) = response.content_length() {
                check_length(descriptor.size, found, request)?;
            }
            Ok(BlobStream::new(response, descriptor.size, request.name()))
        })
        .await
    }

    /// The verified bytes of a blob of at most `max` bytes, such as a config.
    pub async fn read_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        let asked = Asked::Blob(descriptor.digest.to_string());
        let request = Request { method: &Method::GET, repository, asked: &asked };
        let what = request.name();
        if descriptor.size > max {
            return Err(RegistryError::TooLarge { what, limit: max, found: descriptor.size });
        }
        self.retrying(|| async move {
            let response = self.send(request).await?;
            let bytes = body::read(response, descriptor.size, &request.name()).await?;
            verify(&bytes, &descriptor.digest, request)?;
            check_length(descriptor.size, bytes.len() as u64, request)?;
            Ok(bytes)
        })
        .await
    }

    // Not AsyncFn: such a future cannot be shown to be Send for every lifetime yet
    async fn retrying<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        operation: impl Fn() -> F,
    ) -> Result<T, RegistryError> {
        let mut tried = 0;
        loop {
            let error = match operation().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            tried += 1;
            let wait = match retry::wait(&error, tried, &self.options, retry::jitter()) {
                Some(wait) => wait,
                None => return Err(error),
            };
            tracing::debug!(%error, tried, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a request, with a token where the registry wants one; only a 200 comes back.
    async fn send(&self, request: Request<'_>) -> Result<Response, RegistryError> {
        let endpoint = Endpoint::of(request.repository.host());
        let known = self.tokens.find(request.repository);
        let response = self.exchange(&endpoint, request, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accept(response, request).await;
        }
        // A challenge from where a redirect led is none of this registry's
        let challenge = match endpoint.answered(&response) {
            true => Challenge::bearer(response.headers().get_all(header::WWW_AUTHENTICATE)),
            false => None,
        };
        let Some(challenge) = challenge else {
            return accept(response, request).await;
        };
        drop(response);
        let token = auth::fetch(&self.clients, &endpoint, request.repository, &challenge).await?;
        let response = self.exchange(&endpoint, request, Some(&token)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.tokens.forget(request.repository);
        } else {
            self.tokens.keep(request.repository, token);
        }
        accept(response, request).await
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: Request<'_>,
        token: Option<&Token>,
    ) -> Result<Response, RegistryError> {
        let (kind, target) = match request.asked {
            Asked::Manifest(target) => ("manifests", target),
            Asked::Blob(digest) => ("blobs", digest),
        };
        let path = format!("/v2/{}/{kind}/{target}", request.repository.path());
        // A compressed transfer would hide the length that is checked
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Asked::Manifest(_) = request.asked {
            // Anything else too, so that what peel refuses is refused with a reason
            let accepted = format!("{}, */*;q=0.1", ACCEPTED_MANIFESTS.join(", "));
            let accepted = accepted.try_into().expect("media types are printable ASCII");
            headers.insert(header::ACCEPT, accepted);
        }
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, token.header());
        }
        let url = endpoint.url(&path)?;
        self.clients.send(request.method.clone(), url, headers, &request.name()).await
    }
}

impl Request<'_> {
    /// For messages: `manifest x of host/path`.
    fn name(&self) -> String {
        format!("{} of {}", self.asked, self.repository)
    }
}

/// What the headers of a manifest say.
struct Answer {
    content_type: String,
    digest: Option<Digest>,
}

impl Answer {
    fn of(response: &Response, request: Request<'_>) -> Result<Self, RegistryError> {
        let text = |name: &str| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let digest = match text("docker-content-digest") {
            Some(found) => Some(found.parse().map_err(|_| RegistryError::Protocol {
                what: request.name(),
                expected: "a digest in Docker-Content-Digest",
                found: error::excerpt(found.as_bytes()),
            })?),
            None => None,
        };
        let content_type = essence(&text("content-type").unwrap_or_default());
        Ok(Self { content_type, digest })
    }

    /// Checks that the bytes can be a manifest and have the digest that was asked for and the one
    /// that the registry names. Returns the one they are known by.
    fn verify(
        &self,
        bytes: &[u8],
        asked: Option<&Digest>,
        request: Request<'_>,
    ) -> Result<Digest, RegistryError> {
        // A login page in front of a registry is better named than its digest
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(RegistryError::NotJson {
                what: request.name(),
                content_type: self.content_type.clone(),
                excerpt: error::excerpt(bytes),
            });
        }
        for digest in asked.into_iter().chain(&self.digest) {
            verify(bytes, digest, request)?;
        }
        let known = asked.copied().or(self.digest);
        Ok(known.unwrap_or_else(|| Digest::sha256(bytes)))
    }
}

fn verify(bytes: &[u8], expected: &Digest, request: Request<'_>) -> Result<(), RegistryError> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found != *expected {
        let (what, expected) = (request.name(), (*expected).into());
        return Err(RegistryError::Digest { what, expected, found: found.into() });
    }
    Ok(())
}

fn check_length(expected: u64, found: u64, request: Request<'_>) -> Result<(), RegistryError> {
    if expected != found {
        return Err(RegistryError::Length { what: request.name(), expected, found });
    }
    Ok(())
}

/// Lets a 200 pass and makes an error of everything else.
async fn accept(response: Response, request: Request<'_>) -> Result<Response, RegistryError> {
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let status = response.status();
    let retry_after = retry::after(response.headers());
    let url = client::shown(response.url());
    // The body only serves the message
    let body = body::read_some(response, error::MAX_ERROR_BODY).await;
    Err(RegistryError::of_status(
        status,
        url,
        retry_after,
        &body,
        request.repository,
        request.asked,
    ))
}

/// The media type of a manifest: the header's, unless it is a vague one and the document says more.
fn media_type(content_type: &str, bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: String,
    }
    if DocumentKind::from_media_type(content_type).is_some() {
        return content_type.to_owned();
    }
    match serde_json::from_slice::<Typed>(bytes) {
        Ok(typed) if DocumentKind::from_media_type(&typed.media_type).is_some() => {
            essence(&typed.media_type)
        }
        _ => content_type.to_owned(),
    }
}

#[cfg(test)]
mod tests;
