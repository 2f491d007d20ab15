//! Whether a registry takes a credential.

use reqwest::{Method, StatusCode, header};

use super::{
    Credential, Registry, RegistryError,
    auth::{self, Challenge},
    body::Body,
    error::Asked,
    hosts::Capability,
    request::{Message, accept, exchange},
};
use crate::oci::Repository;

impl Registry {
    /// Shows a credential to a registry; returns what is worth keeping: a refresh token where its
    /// token server gives one, else what was given. `None` where the registry lets everybody in.
    ///
    /// `repository` is any of the registry's: only its host matters.
    ///
    /// # Errors
    /// Where the credential is refused, or there is no registry.
    pub async fn login(
        &self,
        repository: &Repository,
        credential: &Credential,
    ) -> Result<Option<Credential>, RegistryError> {
        let hosts = self.hosts(repository, Capability::Pull).await?;
        // The registry itself, after its mirrors
        let Some(host) = hosts.last() else { return Ok(None) };
        let what = format!("API of {}", repository.host());
        let asked = Asked::Manifest(String::new());
        let url = host.url("/");
        let none = header::HeaderMap::new();
        let (method, headers, body) = (&Method::GET, &none, &Body::None);
        let message = Message { method, url, headers, body, what: &what };
        let response = exchange(host, &message, None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            accept(response, &[StatusCode::OK], repository, &asked).await?;
            return Ok(None);
        }
        let challenge = Challenge::best(response.headers().get_all(header::WWW_AUTHENTICATE));
        let Some(challenge) = challenge else {
            accept(response, &[StatusCode::OK], repository, &asked).await?;
            return Ok(None);
        };
        let (kept, shown) = auth::login(host, repository, &challenge, credential).await?;
        let response = exchange(host, &message, shown).await?;
        accept(response, &[StatusCode::OK], repository, &asked).await?;
        Ok(Some(kept))
    }
}
