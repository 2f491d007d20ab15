//! The token server: asked with a name and password, with a refresh token, or by nobody.
//!
//! Sources: distribution's token authentication specification (GET) and its OAuth2 form (POST).

use std::time::{Duration, Instant};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    super::{
        RegistryError,
        body::{self, Body},
        client::{Headers, shown},
        error::{Asked, MAX_ERROR_BODY, excerpt},
        hosts::Host,
        retry,
    },
    challenge::Bearer,
    credential::Credential,
};
use crate::oci::Repository;

/// Most bytes of a token server's answer; tokens in the field have a few thousand.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// How long a token is good for where the server does not say; the specification's figure.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest time a token is kept: whatever a server says, a fresh one costs one request.
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// What the client calls itself.
const CLIENT_ID: &str = "peel";

/// A bearer token, as the header that carries it, and when it is renewed.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) expires: Instant,
    /// What the server gave to ask with the next time.
    pub(super) refresh: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

/// One question to a token server.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) host: &'a Host,
    /// For messages, and what a refusal is about.
    pub(super) repository: &'a Repository,
    pub(super) bearer: &'a Bearer,
    pub(super) scopes: &'a [String],
    pub(super) credential: Option<&'a Credential>,
    /// A refresh token is wanted, to be kept by the user.
    pub(super) offline: bool,
}

impl Ask<'_> {
    fn what(&self) -> String {
        format!("token for {}", self.repository)
    }

    /// Asks for a token.
    pub(super) async fn token(self) -> Result<Token, RegistryError> {
        let realm = self.realm()?;
        let response = match self.credential {
            Some(Credential::Identity(refresh)) => {
                let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
                self.post(realm, &fields).await?
            }
            Some(Credential::Password { user, secret }) => {
                let response = self.fetch(realm.clone()).await?;
                // Servers that know the newer form only
                match response.status() {
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                        let fields =
                            [("grant_type", "password"), ("username", user), ("password", secret)];
                        self.post(realm, &fields).await?
                    }
                    _ => response,
                }
            }
            Some(Credential::Token(_)) | None => self.fetch(realm).await?,
        };
        self.read(response).await
    }

    /// Where the token server is: over https, but for a registry that is spoken to in the clear.
    fn realm(&self) -> Result<Url, RegistryError> {
        let wrong = |found: String| RegistryError::Protocol {
            what: self.what(),
            expected: "a realm with an https URL",
            found,
        };
        let realm = &self.bearer.realm;
        let url = Url::parse(realm).map_err(|_| wrong(excerpt(realm.as_bytes())))?;
        let secure = url.scheme() == "https" || (url.scheme() == "http" && self.host.is_plain());
        if !secure || url.host_str().is_none() {
            return Err(wrong(shown(&url)));
        }
        Ok(url)
    }

    /// The URL of a GET.
    fn query(&self, mut url: Url) -> Url {
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.bearer.service {
                query.append_pair("service", service);
            }
            for scope in self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Credential::Password { user, .. }) = self.credential {
                query.append_pair("account", user);
            }
            if self.offline {
                query.append_pair("offline_token", "true").append_pair("client_id", CLIENT_ID);
            }
        }
        url
    }

    async fn fetch(self, realm: Url) -> Result<Response, RegistryError> {
        let mut headers = Headers::default();
        if let Some(basic) = self.credential.and_then(Credential::basic) {
            headers.private.insert(AUTHORIZATION, basic);
        }
        let url = self.query(realm);
        self.host.clients.send(Method::GET, url, headers, &Body::None, &self.what()).await
    }

    async fn post(self, realm: Url, fields: &[(&str, &str)]) -> Result<Response, RegistryError> {
        let form = {
            // The query of a URL has the coding of a form
            let mut url = realm.clone();
            url.set_query(None);
            {
                let mut query = url.query_pairs_mut();
                query.extend_pairs(fields);
                query.append_pair("client_id", CLIENT_ID);
                query.append_pair("scope", &self.scopes.join(" "));
                if let Some(service) = &self.bearer.service {
                    query.append_pair("service", service);
                }
                if self.offline {
                    query.append_pair("access_type", "offline");
                }
            }
            url.query().unwrap_or_default().to_owned()
        };
        let mut headers = Headers::default();
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.plain = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
        let form = Body::Secret(form.into());
        self.host.clients.send(Method::POST, realm, headers, &form, &self.what()).await
    }

    async fn read(self, response: Response) -> Result<Token, RegistryError> {
        let what = self.what();
        if response.status() != StatusCode::OK {
            let (status, url) = (response.status(), shown(response.url()));
            let retry_after = retry::after(response.headers());
            let body = body::read_some(response, MAX_ERROR_BODY).await;
            // Refusals in the form of OAuth2 have another status
            let refused = status == StatusCode::BAD_REQUEST && self.credential.is_some();
            let status = if refused { StatusCode::UNAUTHORIZED } else { status };
            // A missing token server must not read as a missing image
            if status == StatusCode::NOT_FOUND {
                let detail = excerpt(&body);
                return Err(RegistryError::Status { url, status: 404, retry_after, detail });
            }
            let asked = Asked::Manifest(String::new());
            let (body, repository) = (&body, self.repository);
            return Err(RegistryError::of_status(
                status,
                url,
                retry_after,
                body,
                repository,
                &asked,
            ));
        }
        let content_type = response.headers().get("content-type").map(HeaderValue::as_bytes);
        let content_type = excerpt(content_type.unwrap_or_default());
        let bytes = body::read(response, MAX_TOKEN_ANSWER, &what).await?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| {
            // Not an excerpt of the body: it may hold a token
            let excerpt = String::new();
            RegistryError::NotJson { what: what.clone(), content_type, excerpt }
        })?;
        let wrong = |found: &str| RegistryError::Protocol {
            what: what.clone(),
            expected: "a token",
            found: found.to_owned(),
        };
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| wrong("none"))?;
        let header = bearer(&token).ok_or_else(|| wrong("characters that no header can hold"))?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
        let refresh = answer.refresh_token.filter(|token| !token.is_empty());
        // Renewed early: it has to live until the registry reads it
        Ok(Token { header, expires: Instant::now() + life.mul_f64(0.9), refresh })
    }
}

/// The header that carries a token.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        oci::RegistryReference,
        registry::{RegistryOptions, client::Clients},
    };

    #[test]
    fn the_token_server_is_asked_over_https() {
        let clients = Clients::new(&RegistryOptions::default()).unwrap();
        let reference: RegistryReference = "ghcr.io/x/y".parse().unwrap();
        let table = [
            (
                "ghcr.io",
                "https://t/?a=b",
                Some("https://t/?a=b&service=s+1&scope=repository%3Ax%2Fy%3Apull"),
            ),
            (
                "localhost",
                "http://t/",
                Some("http://t/?service=s+1&scope=repository%3Ax%2Fy%3Apull"),
            ),
            ("ghcr.io", "http://t/", None),
            ("ghcr.io", "file:///etc/passwd", None),
            ("ghcr.io", "/relative", None),
        ];
        for (host, realm, expected) in table {
            let bearer =
                Bearer { realm: realm.to_owned(), service: Some("s 1".to_owned()), scope: None };
            let ask = Ask {
                host: &Host::plain(host, &clients),
                repository: reference.repository(),
                bearer: &bearer,
                scopes: &["repository:x/y:pull".to_owned()],
                credential: None,
                offline: false,
            };
            let url = ask.realm().map(|realm| ask.query(realm));
            assert_eq!(url.ok().as_ref().map(Url::as_str), expected, "{host} {realm}");
        }
    }
}
