//! The HTTP clients, redirects, and what their errors mean.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use reqwest::{
    Certificate, Client, ClientBuilder, Identity, Method, Response, Url,
    header::{HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};

use super::{RegistryError, RegistryOptions, body::Body};

const USER_AGENT: &str = concat!("peel/", env!("CARGO_PKG_VERSION"));
/// Redirects in a row; a registry needs one, to its storage.
const MAX_REDIRECTS: usize = 10;

/// What a host's connections are secured with beyond the system's CA certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// CA certificates, each a PEM file's bytes.
    pub(super) authorities: Vec<Vec<u8>>,
    /// A client certificate with its chain, and its key, as PEM.
    pub(super) identity: Option<Vec<u8>>,
    /// Whether any certificate will do.
    pub(super) skip_verify: bool,
}

/// Headers of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Headers {
    /// For whoever answers.
    pub(super) plain: HeaderMap,
    /// For the origin that was asked alone, and not where it redirects to.
    pub(super) private: HeaderMap,
}

/// The clients of all hosts; one pair for every way of securing connections.
#[derive(Debug)]
pub(super) struct Clients {
    options: RegistryOptions,
    system: Arc<Pair>,
    special: Mutex<HashMap<Tls, Arc<Pair>>>,
}

/// Two clients: proxies are for registries elsewhere, never for those on this machine.
#[derive(Debug)]
pub(super) struct Pair {
    loopback: Client,
    remote: Client,
    /// Whether there is anything to check certificates against.
    certificates: bool,
    /// Whether there is no certificate of our own.
    anonymous: bool,
}

impl Clients {
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, RegistryError> {
        // Fails where another part of the program has chosen one already, which is as good
        drop(rustls::crypto::ring::default_provider().install_default());
        let system = Arc::new(Pair::new(options, &Tls::default())?);
        Ok(Self { options: options.clone(), system, special: Mutex::default() })
    }

    /// The clients for hosts that are secured this way; made at the first call.
    pub(super) fn of(&self, tls: &Tls) -> Result<Arc<Pair>, RegistryError> {
        if *tls == Tls::default() {
            return Ok(Arc::clone(&self.system));
        }
        let mut special = self.special.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = special.get(tls) {
            return Ok(Arc::clone(pair));
        }
        let pair = Arc::new(Pair::new(&self.options, tls)?);
        // Certificates change now and then; what is in use lives on with its user
        special.retain(|_, pair| Arc::strong_count(pair) > 1);
        special.insert(tls.clone(), Arc::clone(&pair));
        Ok(pair)
    }
}

impl Pair {
    fn new(options: &RegistryOptions, tls: &Tls) -> Result<Self, RegistryError> {
        let failed = |source| RegistryError::Client { source };
        let mut own = Vec::new();
        for pem in &tls.authorities {
            own.extend(Certificate::from_pem_bundle(pem).map_err(failed)?);
        }
        let builder = || {
            let builder = Client::builder()
                .user_agent(USER_AGENT)
                .connect_timeout(options.connect_timeout)
                .read_timeout(options.idle_timeout)
                .tls_danger_accept_invalid_certs(tls.skip_verify)
                .redirect(Policy::none());
            Ok::<_, RegistryError>(match &tls.identity {
                Some(pem) => builder.identity(Identity::from_pem(pem).map_err(failed)?),
                None => builder,
            })
        };
        let with_system = |builder: ClientBuilder| builder.tls_certs_merge(own.iter().cloned());
        let own_only = |builder: ClientBuilder| builder.tls_certs_only(own.iter().cloned());
        // Building fails without CA certificates; then https has to, but http need not
        let (remote, system) = match with_system(builder()?).build() {
            Ok(client) => (client, true),
            Err(_) => (own_only(builder()?).build().map_err(failed)?, false),
        };
        let local = builder()?.no_proxy();
        let local = if system { with_system(local) } else { own_only(local) };
        let loopback = local.build().map_err(failed)?;
        let certificates = system || !own.is_empty() || tls.skip_verify;
        Ok(Self { loopback, remote, certificates, anonymous: tls.identity.is_none() })
    }

    /// Sends a request, follows redirects, and waits for the headers of the last answer.
    ///
    /// Redirects are followed here and not by reqwest, so that each goes through the right client,
    /// and errors name the host that failed. Private headers stay with their origin.
    pub(super) async fn send(
        &self,
        method: Method,
        mut url: Url,
        mut headers: Headers,
        body: &Body,
        what: &str,
    ) -> Result<Response, RegistryError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(method.clone(), &url, &headers, body, what).await?;
            let Some(next) = redirect(&method, &response, &url, what)? else {
                return Ok(response);
            };
            if next.origin() != url.origin() {
                headers.private.clear();
            }
            url = next;
        }
        Err(wrong_redirect(what, "too many of them".to_owned()))
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        headers: &Headers,
        body: &Body,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let host = authority(url);
        let https = url.scheme() == "https";
        if https && !self.certificates {
            return Err(RegistryError::NoCertificates { host });
        }
        let client = if is_loopback(&host) { &self.loopback } else { &self.remote };
        let mut request = client.request(method, url.clone());
        request = request.headers(headers.plain.clone()).headers(headers.private.clone());
        let request = body.attach(request).await?;
        request.send().await.map_err(|source| {
            if !source.is_connect() {
                let closed = https && self.anonymous;
                return match broken(source, what) {
                    // TLS 1.3 says so once the handshake is over, and often too late to be read
                    RegistryError::Interrupted { what, detail, source } if closed => {
                        let detail = format!("{detail}; {host} may want a client certificate");
                        RegistryError::Interrupted { what, detail, source }
                    }
                    error => error,
                };
            }
            let detail = innermost(&source);
            let tls = tls_error(&source);
            let refused = is_refused(&source);
            // Its URL may hold a signed query
            let source = source.without_url();
            match tls {
                Some(detail) => RegistryError::Tls { host, detail, source },
                None => RegistryError::Unreachable { host, detail, refused, source },
            }
        })
    }
}

/// Where an answer sends on to, if it does.
fn redirect(
    method: &Method,
    response: &Response,
    from: &Url,
    what: &str,
) -> Result<Option<Url>, RegistryError> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    match response.status().as_u16() {
        307 | 308 => {}
        301..=303 if is_read => {}
        _ => return Ok(None),
    }
    let location = response.headers().get(LOCATION).map(HeaderValue::as_bytes);
    let location = String::from_utf8_lossy(location.unwrap_or_default());
    join(from, &location, what).map(Some)
}

/// A `Location`, seen from where it was named: never from https to http.
pub(super) fn join(from: &Url, location: &str, what: &str) -> Result<Url, RegistryError> {
    let wrong = |found: String| Err(wrong_redirect(what, found));
    match from.join(location) {
        Ok(url) if from.scheme() == "https" && url.scheme() != "https" => {
            wrong(format!("from https to {}", shown(&url)))
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
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

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port.
pub(super) fn is_loopback(authority: &str) -> bool {
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

/// Host, and port where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
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

/// Whether there was a clear no: nobody listens, no such host, no route.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let refused = matches!(kind, Some(ConnectionRefused | HostUnreachable | NetworkUnreachable));
    // The resolver's errors have no type of their own
    refused || error.to_string() == "dns error" || error.source().is_some_and(is_refused)
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
    fn urls_are_shown_without_their_query() {
        let url = Url::parse("https://user:secret@cdn.example:8443/a/b?X-Amz-Signature=1").unwrap();
        assert_eq!(shown(&url), "https://cdn.example:8443/a/b");
    }

    #[test]
    fn locations_do_not_lead_out_of_https() {
        let from = Url::parse("https://r.example/v2/a/blobs/uploads/").unwrap();
        let table = [
            ("/v2/x?_state=1", Some("https://r.example/v2/x?_state=1")),
            ("https://s.example/y", Some("https://s.example/y")),
            ("http://r.example/x", None),
            ("file:///etc/passwd", None),
        ];
        for (location, expected) in table {
            let found = join(&from, location, "x");
            assert_eq!(found.ok().as_ref().map(Url::as_str), expected, "{location}");
        }
    }
}
