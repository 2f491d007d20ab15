//! The HTTP clients, where each registry is, and what their errors mean.

use std::{io, net::IpAddr};

use reqwest::{
    Client, ClientBuilder, Method, Response, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};

use super::{RegistryError, RegistryOptions};

const USER_AGENT: &str = concat!("peel/", env!("CARGO_PKG_VERSION"));
/// Redirects in a row; a registry needs one, to its storage.
const MAX_REDIRECTS: usize = 10;

/// Where the API of a registry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Host and port as the API has them; the name that users know may be another.
    authority: String,
    /// Plain http, no proxy.
    loopback: bool,
}

impl Endpoint {
    /// The endpoint of a registry by the host that references name.
    pub(super) fn of(host: &str) -> Self {
        let authority = match host {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        Self { authority: authority.to_owned(), loopback: is_loopback(authority) }
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.loopback
    }

    fn scheme(&self) -> &'static str {
        if self.loopback { "http" } else { "https" }
    }

    /// The URL of a path of its API.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let text = format!("{}://{}{path}", self.scheme(), self.authority);
        Url::parse(&text).map_err(|e| RegistryError::Protocol {
            what: text,
            expected: "a URL",
            found: e.to_string(),
        })
    }

    /// Whether an answer came from this registry and not from where a redirect led.
    pub(super) fn answered(&self, response: &Response) -> bool {
        let found = response.url();
        self.url("/").is_ok_and(|own| own.origin() == found.origin())
    }
}

/// Two clients: proxies are for registries elsewhere, never for those on this machine.
#[derive(Debug)]
pub(super) struct Clients {
    loopback: Client,
    remote: Client,
    /// Whether there is anything to check certificates against.
    certificates: bool,
}

impl Clients {
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, RegistryError> {
        // Fails where another part of the program has chosen one already, which is as good
        drop(rustls::crypto::ring::default_provider().install_default());
        let failed = |source| RegistryError::Client { source };
        // Building fails without CA certificates; then https has to, but http need not
        let (remote, certificates) = match builder(options).build() {
            Ok(client) => (client, true),
            Err(_) => (builder(options).tls_certs_only([]).build().map_err(failed)?, false),
        };
        let local = builder(options).no_proxy();
        let local = if certificates { local } else { local.tls_certs_only([]) };
        let loopback = local.build().map_err(failed)?;
        Ok(Self { loopback, remote, certificates })
    }

    /// Sends a request, follows redirects, and waits for the headers of the last answer.
    ///
    /// Redirects are followed here and not by reqwest, so that each goes through the right client,
    /// and errors name the host that failed. The Authorization header stays with its origin.
    pub(super) async fn send(
        &self,
        method: Method,
        mut url: Url,
        mut headers: HeaderMap,
        what: &str,
    ) -> Result<Response, RegistryError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(method.clone(), &url, headers.clone(), what).await?;
            let Some(next) = redirect(&response, &url, what)? else {
                return Ok(response);
            };
            if next.origin() != url.origin() {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(wrong_redirect(what, "too many of them".to_owned()))
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let host = authority(url);
        let https = url.scheme() == "https";
        if https && !self.certificates {
            return Err(RegistryError::NoCertificates { host });
        }
        let client = if is_loopback(&host) { &self.loopback } else { &self.remote };
        let answer = client.request(method, url.clone()).headers(headers).send().await;
        answer.map_err(|source| {
            if !source.is_connect() {
                return broken(source, what);
            }
            let detail = innermost(&source);
            let tls = tls_error(&source);
            // Its URL may hold a signed query
            let source = source.without_url();
            match tls {
                Some(detail) => RegistryError::Tls { host, detail, source },
                None => RegistryError::Unreachable { host, detail, source },
            }
        })
    }
}

/// Where an answer sends on to, if it does.
fn redirect(response: &Response, from: &Url, what: &str) -> Result<Option<Url>, RegistryError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).map(HeaderValue::as_bytes);
    let location = String::from_utf8_lossy(location.unwrap_or_default());
    let wrong = |found: String| Err(wrong_redirect(what, found));
    match from.join(&location) {
        Ok(url) if from.scheme() == "https" && url.scheme() != "https" => {
            wrong(format!("from https to {}", shown(&url)))
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        // Not the text itself: a signature may stand in it
        _ => wrong("no http or https URL".to_owned()),
    }
}

fn wrong_redirect(what: &str, found: String) -> RegistryError {
    let what = what.to_owned();
    RegistryError::Protocol { what, expected: "redirects that can be followed", found }
}

/// What it means that an answer stopped coming.
pub(super) fn broken(source: reqwest::Error, what: &str) -> RegistryError {
    let (what, detail) = (what.to_owned(), innermost(&source));
    let source = source.without_url();
    if source.is_timeout() {
        return RegistryError::Timeout { what, source };
    }
    RegistryError::Interrupted { what, detail, source }
}

fn builder(options: &RegistryOptions) -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.idle_timeout)
        .redirect(Policy::none())
}

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A URL for messages: without a query, which may be a signature.
pub(super) fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The cause at the end of the chain, which is the one that says something.
fn innermost(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if error.is_timeout() && error.is_connect() {
        return "no connection in time".to_owned();
    }
    deepest.to_string()
}

/// What rustls says, where it is rustls that failed.
fn tls_error(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls.to_string());
    }
    // An I/O error does not name what it wraps as its source
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let wrapped = wrapped.and_then(|inner| tls_error(inner));
    wrapped.or_else(|| error.source().and_then(tls_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_follow_from_the_host() {
        let table = [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("ghcr.io", "https://ghcr.io/v2/"),
            ("localhost", "http://localhost/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
            ("127.9.9.9", "http://127.9.9.9/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            ("[::2]:5000", "https://[::2]:5000/v2/"),
            ("192.168.0.1:5000", "https://192.168.0.1:5000/v2/"),
            ("localhost.example.com", "https://localhost.example.com/v2/"),
            ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2/"),
        ];
        for (host, url) in table {
            assert_eq!(Endpoint::of(host).url("/v2/").unwrap().as_str(), url, "{host}");
        }
    }

    #[test]
    fn urls_are_shown_without_their_query() {
        let url = Url::parse("https://user:secret@cdn.example:8443/a/b?X-Amz-Signature=1").unwrap();
        assert_eq!(shown(&url), "https://cdn.example:8443/a/b");
    }
}
