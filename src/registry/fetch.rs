//! What is read: manifests, small blobs, and the beginning of large ones.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header};

use super::{
    BlobStream, Registry, RegistryError, body,
    error::Asked,
    hosts::{Capability, Host},
    request::{Answer, Request, accept, check_length, verify},
    stream::Transfer,
};
use crate::oci::{
    Descriptor, DocumentKind, MAX_MANIFEST_SIZE, RegistryReference, Repository, essence,
};

impl Registry {
    /// What a reference names: the descriptor of a manifest or an index, and its verified bytes.
    ///
    /// # Errors
    /// Where no host has it, or what it has is not what it should be.
    pub async fn resolve(
        &self,
        reference: &RegistryReference,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        let asked = Asked::Manifest(reference.target());
        let repository = reference.repository();
        let request = Request { method: &Method::GET, repository, asked: &asked, from: 0 };
        self.retrying(repository, resolving(reference), |host| async move {
            let response = self.send(&host, request).await?;
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
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub async fn head(
        &self,
        reference: &RegistryReference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let asked = Asked::Manifest(reference.target());
        let repository = reference.repository();
        let request = Request { method: &Method::HEAD, repository, asked: &asked, from: 0 };
        self.retrying(repository, resolving(reference), |host| async move {
            let response = self.send(&host, request).await?;
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
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let asked = Asked::Manifest(descriptor.digest.to_string());
        let request = Request { method: &Method::GET, repository, asked: &asked, from: 0 };
        let limit = descriptor.size.min(MAX_MANIFEST_SIZE);
        self.retrying(repository, Capability::Pull, |host| async move {
            let response = self.send(&host, request).await?;
            let answer = Answer::of(&response, request)?;
            let bytes = body::read(response, limit, &request.name()).await?;
            answer.verify(&bytes, Some(&descriptor.digest), request)?;
            check_length(descriptor.size, bytes.len() as u64, request)?;
            Ok(bytes)
        })
        .await
    }

    /// A blob as a stream, from its byte `from` on. Its length is checked against the descriptor;
    /// the caller verifies the digest. A transfer that breaks goes on where it broke, as long as
    /// there is progress.
    ///
    /// # Errors
    /// Where no host has it, or has another length of it.
    pub async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        from: u64,
    ) -> Result<BlobStream, RegistryError> {
        let hosts = self.hosts(repository, Capability::Pull).await?;
        Transfer::start(self.clone(), hosts, repository.clone(), descriptor.clone(), from).await
    }

    /// The verified bytes of a blob of at most `max` bytes, such as a config.
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub async fn read_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        let asked = Asked::Blob(descriptor.digest.to_string());
        let request = Request { method: &Method::GET, repository, asked: &asked, from: 0 };
        let what = request.name();
        if descriptor.size > max {
            return Err(RegistryError::TooLarge { what, limit: max, found: descriptor.size });
        }
        self.retrying(repository, Capability::Pull, |host| async move {
            let response = self.send(&host, request).await?;
            let bytes = body::read(response, descriptor.size, &request.name()).await?;
            verify(&bytes, &descriptor.digest, request)?;
            check_length(descriptor.size, bytes.len() as u64, request)?;
            Ok(bytes)
        })
        .await
    }

    /// Sends a request; only a 200 comes back.
    async fn send(&self, host: &Host, request: Request<'_>) -> Result<Response, RegistryError> {
        let response = self.ask(host, request).await?;
        accept(response, &[StatusCode::OK], request.repository, request.asked).await
    }

    /// The answer to a request for a blob's bytes: the whole, or a part where one was asked for.
    pub(super) async fn send_for_part(
        &self,
        host: Arc<Host>,
        request: Request<'_>,
    ) -> Result<Response, RegistryError> {
        let response = self.ask(&host, request).await?;
        let good = match request.from {
            0 => &[StatusCode::OK][..],
            _ => &[StatusCode::OK, StatusCode::PARTIAL_CONTENT],
        };
        accept(response, good, request.repository, request.asked).await
    }
}

/// What a digest names never changes, so that any mirror may say it.
fn resolving(reference: &RegistryReference) -> Capability {
    match reference.digest() {
        Some(_) => Capability::Pull,
        None => Capability::Resolve,
    }
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
