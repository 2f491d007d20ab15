//! What is written: blobs that are not there yet, then manifests, byte for byte.
//!
//! ```text
//! HEAD blob ─▶ there: done
//!   └▶ POST uploads/?mount=…&from=… ─▶ 201: mounted, done
//!        └▶ 202 with a Location ─▶ PATCH all that is missing ─▶ PUT ?digest=…
//!             on a break: GET the Location, whose Range says how much has arrived
//! ```
//! Source: OCI distribution-spec, "Pushing Blobs" and "Pushing Manifests".

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use super::{
    Registry, RegistryError,
    body::{Body, FilePart},
    client::join,
    error::{Asked, excerpt},
    hosts::{Capability, Host},
    request::{Message, Request, accept, scope},
    retry::Tried,
};
use crate::oci::{Descriptor, RegistryReference, Repository};

/// Blobs up to this size go with the PUT that ends the upload: 1 MiB, one request less.
const AT_ONCE: u64 = 1 << 20;

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Exists,
    /// The registry had it in another repository.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// A blob on its way.
struct Upload<'a> {
    registry: &'a Registry,
    host: &'a Host,
    repository: &'a Repository,
    asked: Asked,
    digest: String,
    scopes: Vec<String>,
    /// Where its bytes go; another after every request.
    location: Url,
    /// Bytes that have arrived.
    offset: u64,
}

impl Registry {
    /// Puts a blob into a repository, unless it is there; `from` are repositories of the same
    /// registry that may have it. `sent` is told how many bytes were handed over, those of broken
    /// tries included.
    ///
    /// # Errors
    /// Where the registry refuses, or cannot be reached for long enough.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        file: Arc<File>,
        from: &[Repository],
        sent: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Uploaded, RegistryError> {
        let hosts = self.hosts(repository, Capability::Push).await?;
        // A push goes to one place: the registry itself, or the host that stands for it
        let host = hosts.last().map(Arc::clone).ok_or_else(|| no_host(repository))?;
        let _permit = Arc::clone(&self.shared.transfers).acquire_owned().await;
        if self.has_blob(&host, repository, descriptor).await? {
            return Ok(Uploaded::Exists);
        }
        let mut upload: Option<Upload<'_>> = None;
        let (mut failures, mut losses) = (0, 0);
        let mut arrived = 0;
        let mut begun = false;
        loop {
            let one = async {
                let upload = match &mut upload {
                    Some(upload) => {
                        upload.find_out().await?;
                        upload
                    }
                    None => match self.begin(&host, repository, descriptor, from).await? {
                        Some(fresh) => upload.insert(fresh),
                        None => return Ok(Uploaded::Mounted),
                    },
                };
                if upload.offset > arrived {
                    (arrived, failures) = (upload.offset, 0);
                }
                upload.send(&file, descriptor.size, &sent).await.map(|()| Uploaded::Sent)
            };
            let error = match one.await {
                Ok(uploaded) => return Ok(uploaded),
                Err(error) => error,
            };
            // An upload that is unknown by now, or in disorder, is begun anew
            let lost = matches!(
                error.innermost(),
                RegistryError::NotFound { .. } | RegistryError::Status { status: 404 | 416, .. }
            );
            begun |= upload.is_some();
            if lost && losses < self.shared.options.attempts && upload.take().is_some() {
                tracing::info!(%error, "beginning an upload anew");
                losses += 1;
                arrived = 0;
                continue;
            }
            failures += 1;
            self.pause(error, Tried { times: failures, begun }).await?;
        }
    }

    /// Puts a manifest or an index under a tag or its digest.
    ///
    /// # Errors
    /// Where the registry refuses, or makes another digest of the same bytes.
    pub async fn push_manifest(
        &self,
        reference: &RegistryReference,
        descriptor: &Descriptor,
        bytes: Bytes,
        tagged: bool,
    ) -> Result<(), RegistryError> {
        let repository = reference.repository();
        let target = match tagged {
            true => reference.target(),
            false => descriptor.digest.to_string(),
        };
        let asked = Asked::Manifest(target.clone());
        let (asked, target, bytes) = (&asked, &target, &bytes);
        let scopes = [scope(repository, "pull,push")];
        let scopes = &scopes;
        let content_type = HeaderValue::try_from(&descriptor.media_type)
            .map_err(|_| self.wrong(repository, "a media type that a header can hold"))?;
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        let headers = &headers;
        self.retrying(repository, Capability::Push, |host| async move {
            let what = format!("{asked} of {repository}");
            let url = host.url(&format!("/{}/manifests/{target}", repository.path()));
            let (method, body) = (&Method::PUT, &Body::Bytes(bytes.clone()));
            let message = Message { method, url, headers, body, what: &what };
            let response = self.authorised(&host, repository, scopes, &message).await?;
            let good = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
            let response = accept(response, &good, repository, asked).await?;
            let found = response.headers().get("docker-content-digest");
            let expected = descriptor.digest.to_string();
            match found.map(|value| String::from_utf8_lossy(value.as_bytes())) {
                Some(found) if found != expected => {
                    Err(RegistryError::Pushed { what, expected, found: excerpt(found.as_bytes()) })
                }
                _ => Ok(()),
            }
        })
        .await
    }

    fn wrong(&self, repository: &Repository, expected: &'static str) -> RegistryError {
        let (what, found) = (repository.to_string(), "another".to_owned());
        RegistryError::Protocol { what, expected, found }
    }

    async fn has_blob(
        &self,
        host: &Host,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let asked = Asked::Blob(descriptor.digest.to_string());
        let request = Request { method: &Method::HEAD, repository, asked: &asked, from: 0 };
        let mut times = 0;
        loop {
            let found = async {
                let response = self.ask(host, request).await?;
                let good = [StatusCode::OK, StatusCode::NOT_FOUND];
                let response = accept(response, &good, repository, &asked).await?;
                Ok(response.status() == StatusCode::OK)
            };
            match found.await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    times += 1;
                    self.pause(error, Tried { times, begun: false }).await?;
                }
            }
        }
    }

    /// Begins an upload; `None` where the registry has taken the blob from another repository.
    async fn begin<'a>(
        &'a self,
        host: &'a Host,
        repository: &'a Repository,
        descriptor: &Descriptor,
        from: &[Repository],
    ) -> Result<Option<Upload<'a>>, RegistryError> {
        let digest = descriptor.digest.to_string();
        let asked = Asked::Upload(digest.clone());
        let what = format!("{asked} of {repository}");
        let start = host.url(&format!("/{}/blobs/uploads/", repository.path()));
        let own = scope(repository, "pull,push");
        for source in from.iter().map(Some).chain([None]) {
            let mut url = start.clone();
            let mut scopes = vec![own.clone()];
            if let Some(source) = source {
                url.query_pairs_mut()
                    .append_pair("mount", &digest)
                    .append_pair("from", source.path());
                scopes.push(scope(source, "pull"));
            }
            let zero = HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from(0))]);
            let (method, headers, body) = (&Method::POST, &zero, &Body::None);
            let message = Message { method, url, headers, body, what: &what };
            let response = self.authorised(host, repository, &scopes, &message).await?;
            // Whoever may not read the other repository uploads instead
            if source.is_some() && response.status().is_client_error() {
                continue;
            }
            let good = [StatusCode::CREATED, StatusCode::ACCEPTED];
            let response = accept(response, &good, repository, &asked).await?;
            if response.status() == StatusCode::CREATED && source.is_some() {
                return Ok(None);
            }
            let location = location(&response, &what)?;
            let scopes = vec![own];
            let offset = 0;
            return Ok(Some(Upload {
                registry: self,
                host,
                repository,
                asked,
                digest,
                scopes,
                location,
                offset,
            }));
        }
        unreachable!("the last turn mounts nothing")
    }
}

impl Upload<'_> {
    fn what(&self) -> String {
        format!("{} of {}", self.asked, self.repository)
    }

    async fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &Body,
        good: &[StatusCode],
    ) -> Result<Response, RegistryError> {
        let what = self.what();
        let message = Message { method, url: url.clone(), headers, body, what: &what };
        let (registry, host) = (self.registry, self.host);
        let response = registry.authorised(host, self.repository, &self.scopes, &message).await?;
        accept(response, good, self.repository, &self.asked).await
    }

    /// Asks how much has arrived.
    async fn find_out(&mut self) -> Result<(), RegistryError> {
        let good = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED];
        let url = self.location.clone();
        let none = HeaderMap::new();
        let response = self.request(&Method::GET, &url, &none, &Body::None, &good).await?;
        self.offset = arrived(&response);
        if response.headers().contains_key(header::LOCATION) {
            self.location = location(&response, &self.what())?;
        }
        tracing::info!(blob = %self.digest, offset = self.offset, "an upload goes on");
        Ok(())
    }

    /// Sends what is missing, and ends the upload.
    async fn send(
        &mut self,
        file: &Arc<File>,
        size: u64,
        sent: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<(), RegistryError> {
        let len = size.checked_sub(self.offset).ok_or_else(|| RegistryError::Length {
            what: self.what(),
            expected: size,
            found: self.offset,
        })?;
        let part = Body::File(FilePart {
            file: Arc::clone(file),
            offset: self.offset,
            len,
            limiter: Arc::clone(&self.registry.shared.uploads),
            sent: Arc::clone(sent),
        });
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, octets)]);
        let mut last = Body::None;
        if self.offset == 0 && size <= AT_ONCE {
            last = part;
        } else if len > 0 {
            let range = format!("{}-{}", self.offset, size - 1);
            headers.insert(header::CONTENT_RANGE, range.try_into().expect("printable ASCII"));
            let url = self.location.clone();
            let good = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT, StatusCode::CREATED];
            let response = self.request(&Method::PATCH, &url, &headers, &part, &good).await?;
            headers.remove(header::CONTENT_RANGE);
            self.offset = size;
            self.location = location(&response, &self.what())?;
        }
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", &self.digest);
        if matches!(last, Body::None) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        let good = [StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::ACCEPTED];
        self.request(&Method::PUT, &url, &headers, &last, &good).await?;
        Ok(())
    }
}

/// Where an upload goes on.
fn location(response: &Response, what: &str) -> Result<Url, RegistryError> {
    let found =
        response.headers().get(header::LOCATION).ok_or_else(|| RegistryError::Protocol {
            what: what.to_owned(),
            expected: "a Location",
            found: "none".to_owned(),
        })?;
    join(response.url(), &String::from_utf8_lossy(found.as_bytes()), what)
}

/// How many bytes an answer says have arrived: `Range: 0-99`, where `0-0` may be none as well.
fn arrived(response: &Response) -> u64 {
    let range = response.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let last = range.and_then(|range| range.trim_start_matches("bytes=").split_once('-'));
    match last.and_then(|(_, last)| last.parse::<u64>().ok()) {
        None | Some(0) => 0,
        Some(last) => last.saturating_add(1),
    }
}

fn no_host(repository: &Repository) -> RegistryError {
    RegistryError::NoHost { host: repository.host().to_owned(), capability: "push" }
}
