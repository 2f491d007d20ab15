//! One request: to which host, with which token, and what its answer means.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use peel_index::{Digest, Hasher};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    Registry, RegistryError,
    auth::{Challenge, Need},
    body::{self, Body},
    client::{self, Headers},
    error::{self, Asked},
    hosts::{Capability, Host, hosts_of},
    retry::{self, Tried},
};
use crate::oci::{ACCEPTED_MANIFESTS, Repository, essence};

/// One request, before it is known where it goes and with which token.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) repository: &'a Repository,
    pub(super) asked: &'a Asked,
    /// The first byte that is wanted, where not all are.
    pub(super) from: u64,
}

impl Request<'_> {
    /// For messages: `manifest x of host/path`.
    pub(super) fn name(&self) -> String {
        format!("{} of {}", self.asked, self.repository)
    }

    fn path(&self) -> String {
        let (kind, target) = match self.asked {
            Asked::Manifest(target) => ("manifests", target),
            Asked::Blob(digest) | Asked::Upload(digest) => ("blobs", digest),
        };
        format!("/{}/{kind}/{target}", self.repository.path())
    }

    fn headers(&self) -> HeaderMap {
        // A compressed transfer would hide the length that is checked
        let identity = HeaderValue::from_static("identity");
        let mut headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]);
        if let Asked::Manifest(_) = self.asked {
            // Anything else too, so that what peel refuses is refused with a reason
            let accepted = format!("{}, */*;q=0.1", ACCEPTED_MANIFESTS.join(", "));
            let accepted = accepted.try_into().expect("media types are printable ASCII");
            headers.insert(header::ACCEPT, accepted);
        }
        if self.from > 0 {
            let range = format!("bytes={}-", self.from);
            headers.insert(header::RANGE, range.try_into().expect("printable ASCII"));
        }
        headers
    }
}

/// What a request may need: shown to a registry only where it asks.
pub(super) fn scope(repository: &Repository, actions: &str) -> String {
    format!("repository:{}:{actions}", repository.path())
}

impl Registry {
    /// The hosts that have what a registry has, in order.
    pub(super) async fn hosts(
        &self,
        repository: &Repository,
        capability: Capability,
    ) -> Result<Vec<Arc<Host>>, RegistryError> {
        let name = repository.host();
        let known = self.known_hosts().get(name).cloned();
        let hosts = match known {
            Some(hosts) => hosts,
            None => {
                let (shared, host) = (Arc::clone(&self.shared), name.to_owned());
                let read = move || hosts_of(&host, &shared.options.hosts_dirs, &shared.clients);
                let hosts = tokio::task::spawn_blocking(read).await;
                let hosts = hosts.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
                let hosts: Arc<[_]> = hosts.into_iter().map(Arc::new).collect();
                Arc::clone(self.known_hosts().entry(name.to_owned()).or_insert(hosts))
            }
        };
        let able: Vec<_> = hosts.iter().filter(|host| host.can(capability)).cloned().collect();
        match able.is_empty() {
            true => Err(RegistryError::NoHost {
                host: name.to_owned(),
                capability: match capability {
                    Capability::Pull => "pull",
                    Capability::Resolve => "resolve",
                    Capability::Push => "push",
                },
            }),
            false => Ok(able),
        }
    }

    fn known_hosts(&self) -> MutexGuard<'_, HashMap<String, Arc<[Arc<Host>]>>> {
        self.session.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the first host that can, trying again what may pass.
    // Not AsyncFn: such a future cannot be shown to be Send for every lifetime yet
    pub(super) async fn retrying<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        repository: &Repository,
        capability: Capability,
        operation: impl Fn(Arc<Host>) -> F,
    ) -> Result<T, RegistryError> {
        let hosts = self.hosts(repository, capability).await?;
        let mut tried = 0;
        loop {
            let error = match self.in_turn(&hosts, &operation).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            tried += 1;
            self.pause(error, Tried { times: tried, begun: false }).await?;
        }
    }

    /// One try at each host; the error of the last, which is the registry itself as a rule.
    pub(super) async fn in_turn<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        hosts: &[Arc<Host>],
        operation: &impl Fn(Arc<Host>) -> F,
    ) -> Result<T, RegistryError> {
        let mut failures = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let error = match operation(Arc::clone(host)).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if number + 1 == hosts.len() {
                return Err(error.after(failures));
            }
            let mirror = host.authority();
            tracing::warn!(%mirror, %error, "a mirror failed; going on to the next host");
            failures.push(format!("{mirror}: {error}"));
        }
        unreachable!("`hosts` gives at least one")
    }

    /// Waits before the next try, or gives the error back where there is none.
    pub(super) async fn pause(
        &self,
        error: RegistryError,
        tried: Tried,
    ) -> Result<(), RegistryError> {
        let wait = retry::wait(&error, tried, &self.shared.options, retry::jitter());
        let Some(wait) = wait else { return Err(error) };
        tracing::info!(%error, tried = tried.times, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Sends a request that carries nothing; whatever comes back but a 401 with a way out.
    pub(super) async fn ask(
        &self,
        host: &Host,
        request: Request<'_>,
    ) -> Result<Response, RegistryError> {
        let scopes = [scope(request.repository, "pull")];
        let message = Message {
            method: request.method,
            url: host.url(&request.path()),
            headers: &request.headers(),
            body: &Body::None,
            what: &request.name(),
        };
        self.authorised(host, request.repository, &scopes, &message).await
    }

    /// Sends a message with whatever the registry wants to see.
    pub(super) async fn authorised(
        &self,
        host: &Host,
        repository: &Repository,
        scopes: &[String],
        message: &Message<'_>,
    ) -> Result<Response, RegistryError> {
        let need = Need { host, repository, scopes };
        let access = &self.session.access;
        let mut header = access.header(need).await;
        let mut response = exchange(host, message, header.clone()).await?;
        for again in [false, true] {
            // A challenge from where a redirect led is none of this registry's
            if response.status() != StatusCode::UNAUTHORIZED || !host.answered(&response) {
                break;
            }
            let challenges = response.headers().get_all(header::WWW_AUTHENTICATE);
            let Some(challenge) = Challenge::best(challenges) else { break };
            let Some(next) = access.answer(need, &challenge, header.as_ref(), again).await? else {
                break;
            };
            tracing::debug!(what = message.what, again, "the registry wants to know who asks");
            header = Some(next);
            response = exchange(host, message, header.clone()).await?;
        }
        Ok(response)
    }
}

/// What is sent to a host.
pub(super) struct Message<'a> {
    pub(super) method: &'a Method,
    pub(super) url: Url,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Body,
    /// For messages.
    pub(super) what: &'a str,
}

/// One exchange with a host.
pub(super) async fn exchange(
    host: &Host,
    message: &Message<'_>,
    authorization: Option<HeaderValue>,
) -> Result<Response, RegistryError> {
    let Message { method, url, headers, body, what } = message;
    let mut headers = Headers { plain: (*headers).clone(), private: HeaderMap::new() };
    if host.owns(url) {
        headers.private = host.headers.clone();
        headers.private.extend(authorization.map(|value| (header::AUTHORIZATION, value)));
    }
    host.clients.send((*method).clone(), url.clone(), headers, body, what).await
}

/// What the headers of a manifest say.
pub(super) struct Answer {
    pub(super) content_type: String,
    pub(super) digest: Option<Digest>,
}

impl Answer {
    pub(super) fn of(response: &Response, request: Request<'_>) -> Result<Self, RegistryError> {
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
    pub(super) fn verify(
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

pub(super) fn verify(
    bytes: &[u8],
    expected: &Digest,
    request: Request<'_>,
) -> Result<(), RegistryError> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found != *expected {
        let (what, expected) = (request.name(), (*expected).into());
        return Err(RegistryError::Digest { what, expected, found: found.into() });
    }
    Ok(())
}

pub(super) fn check_length(
    expected: u64,
    found: u64,
    request: Request<'_>,
) -> Result<(), RegistryError> {
    if expected != found {
        return Err(RegistryError::Length { what: request.name(), expected, found });
    }
    Ok(())
}

/// Lets an answer with one of these statuses pass and makes an error of every other.
pub(super) async fn accept(
    response: Response,
    statuses: &[StatusCode],
    repository: &Repository,
    asked: &Asked,
) -> Result<Response, RegistryError> {
    if statuses.contains(&response.status()) {
        return Ok(response);
    }
    let status = response.status();
    let retry_after = retry::after(response.headers());
    let url = client::shown(response.url());
    // The body only serves the message
    let body = body::read_some(response, error::MAX_ERROR_BODY).await;
    Err(RegistryError::of_status(status, url, retry_after, &body, repository, asked))
}
