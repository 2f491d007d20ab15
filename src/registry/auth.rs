//! Tokens: the challenge of a registry, the token server's answer, and what is kept of it.
//!
//! Sources: distribution's token authentication specification; RFC 9110, section 11, for the
//! challenge. Anonymous for now: a token is asked for without credentials, so none can leak.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{
    Method, StatusCode, Url,
    header::{GetAll, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    RegistryError, body,
    client::{Clients, Endpoint, shown},
    error::{Asked, MAX_ERROR_BODY, excerpt},
    retry,
};
use crate::oci::Repository;

/// Most bytes of a token server's answer; tokens in the field have a few thousand.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// How long a token is good for where the server does not say; the specification's figure.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest time a token is kept: whatever a server says, a fresh one costs one request.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// A challenge that asks for a bearer token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The first bearer challenge with a realm among the `WWW-Authenticate` headers.
    pub(super) fn bearer(headers: GetAll<'_, HeaderValue>) -> Option<Self> {
        let texts = headers.iter().filter_map(|value| value.to_str().ok());
        texts.flat_map(parse).find_map(|(scheme, mut parameters)| {
            if !scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            Some(Self {
                realm: parameters.remove("realm")?,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            })
        })
    }
}

/// A bearer token, as the header that carries it.
#[derive(Clone)]
pub(super) struct Token {
    header: HeaderValue,
    expires: Instant,
}

impl Token {
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Tokens by repository: what a pull asks for has one scope, so this is one token a scope.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<Repository, Token>>);

impl Tokens {
    /// The token of a repository, unless it expires.
    pub(super) fn find(&self, repository: &Repository) -> Option<Token> {
        let tokens = self.lock();
        tokens.get(repository).filter(|token| token.expires > Instant::now()).cloned()
    }

    pub(super) fn keep(&self, repository: &Repository, token: Token) {
        let now = Instant::now();
        let mut tokens = self.lock();
        tokens.retain(|_, token| token.expires > now);
        tokens.insert(repository.clone(), token);
    }

    pub(super) fn forget(&self, repository: &Repository) {
        self.lock().remove(repository);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Repository, Token>> {
        // Every change is one operation of the map, so a panic elsewhere left it whole
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Asks the challenge's token server for a token to pull from a repository.
pub(super) async fn fetch(
    clients: &Clients,
    endpoint: &Endpoint,
    repository: &Repository,
    challenge: &Challenge,
) -> Result<Token, RegistryError> {
    let what = format!("token for {repository}");
    let url = url(endpoint, repository, challenge, &what)?;
    let response = clients.send(Method::GET, url, HeaderMap::new(), &what).await?;
    if response.status() != StatusCode::OK {
        let (status, url) = (response.status(), shown(response.url()));
        let retry_after = retry::after(response.headers());
        let body = body::read_some(response, MAX_ERROR_BODY).await;
        // A missing token server must not read as a missing image
        if status == StatusCode::NOT_FOUND {
            let detail = excerpt(&body);
            return Err(RegistryError::Status { url, status: 404, retry_after, detail });
        }
        let asked = Asked::Manifest(String::new());
        return Err(RegistryError::of_status(status, url, retry_after, &body, repository, &asked));
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
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| wrong("characters that no header can hold"))?;
    header.set_sensitive(true);
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
    // Renewed early: it has to live until the registry reads it
    Ok(Token { header, expires: Instant::now() + life.mul_f64(0.9) })
}

fn url(
    endpoint: &Endpoint,
    repository: &Repository,
    challenge: &Challenge,
    what: &str,
) -> Result<Url, RegistryError> {
    let wrong = |found: String| RegistryError::Protocol {
        what: what.to_owned(),
        expected: "a realm with an https URL",
        found,
    };
    let mut url =
        Url::parse(&challenge.realm).map_err(|_| wrong(excerpt(challenge.realm.as_bytes())))?;
    let secure = url.scheme() == "https" || (url.scheme() == "http" && endpoint.is_loopback());
    if !secure || url.host_str().is_none() {
        return Err(wrong(shown(&url)));
    }
    let scope = match &challenge.scope {
        Some(scope) => scope.clone(),
        None => format!("repository:{}:pull", repository.path()),
    };
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &challenge.service {
            query.append_pair("service", service);
        }
        // Several scopes stand in one parameter, separated by spaces, or in several
        for scope in scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
    }
    Ok(url)
}

/// The challenges of one header: scheme and parameters, names in lower case.
///
/// A comma separates both challenges and parameters: a word followed by `=` is a parameter, any
/// other begins a challenge.
fn parse(header: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if rest.is_empty() {
            return challenges;
        }
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            challenges.push((word.to_owned(), HashMap::new()));
            rest = after;
            continue;
        };
        let (value, after) = parameter(value.trim_start_matches([' ', '\t']));
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.entry(word.to_ascii_lowercase()).or_insert(value);
        }
        rest = after;
    }
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::WWW_AUTHENTICATE;

    fn bearer(headers: &[&str]) -> Option<(String, Option<String>, Option<String>)> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        Challenge::bearer(map.get_all(WWW_AUTHENTICATE)).map(|c| (c.realm, c.service, c.scope))
    }

    #[test]
    fn challenges_are_parsed() {
        let full = Some(("https://a/t", Some("s"), Some("repository:x/y:pull,push")));
        type Found = Option<(&'static str, Option<&'static str>, Option<&'static str>)>;
        let table: &[(&[&str], Found)] = &[
            (&[r#"Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push""#], full),
            (
                &[r#"bearer  Realm = "https://a/t" , service=s,scope="repository:x/y:pull,push" "#],
                full,
            ),
            (
                &[
                    r#"Basic realm="x", Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push""#,
                ],
                full,
            ),
            (
                &["Basic realm=x", r#"Bearer realm="https://a/t""#],
                Some(("https://a/t", None, None)),
            ),
            (&[r#"Bearer realm="a\"b\\c",realm="second""#], Some((r#"a"b\c"#, None, None))),
            (&[r#"Negotiate dG9rZW4=, Bearer realm=u"#], Some(("u", None, None))),
            (&[r#"Bearer realm="unterminated"#], Some(("unterminated", None, None))),
            (&["Bearer"], None),
            (&[r#"Basic realm="x""#], None),
            (&["=,=", ""], None),
            (&[], None),
        ];
        for (headers, expected) in table {
            let owned = |text: &str| text.to_owned();
            let expected = expected.map(|(r, s, c)| (owned(r), s.map(owned), c.map(owned)));
            assert_eq!(bearer(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn the_token_server_is_asked_over_https() {
        let reference: crate::oci::RegistryReference = "ghcr.io/x/y".parse().unwrap();
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
            let challenge =
                Challenge { realm: realm.to_owned(), service: Some("s 1".to_owned()), scope: None };
            let url = url(&Endpoint::of(host), reference.repository(), &challenge, "token");
            assert_eq!(url.ok().as_ref().map(Url::as_str), expected, "{host} {realm}");
        }
    }

    #[test]
    fn tokens_are_kept_until_they_expire() {
        let tokens = Tokens::default();
        let of = |text: &str| text.parse::<crate::oci::RegistryReference>().unwrap();
        let token = |life| Token {
            header: HeaderValue::from_static("Bearer t"),
            expires: Instant::now() + Duration::from_secs(life),
        };
        let (one, two) = (of("a"), of("b"));
        tokens.keep(one.repository(), token(60));
        tokens.keep(two.repository(), token(0));
        assert!(tokens.find(one.repository()).is_some());
        assert!(tokens.find(two.repository()).is_none());
        tokens.forget(one.repository());
        assert!(tokens.find(one.repository()).is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(text in "\\PC{0,60}|[a-z =\",\\\\]{0,60}") {
            let mut parameters = 0;
            for (scheme, found) in parse(&text) {
                assert!(!scheme.contains(' '));
                parameters += found.len();
            }
            assert!(parameters <= text.len());
        }
    }
}
