//! Who asks: what a user has for a registry, and the seam through which it comes.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;

/// What a user has for one registry. It is held in memory for the length of a pull or a push, and
/// is neither stored nor shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password, or an access key in its place.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        secret: String,
    },
    /// A refresh token of the registry's token server.
    Identity(String),
    /// A bearer token that is used as it is.
    Token(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Password { .. } => "Password",
            Self::Identity(_) => "Identity",
            Self::Token(_) => "Token",
        };
        f.debug_struct(kind).finish_non_exhaustive()
    }
}

impl Credential {
    /// The header of basic authentication; `None` for a token.
    ///
    /// Source: RFC 7617.
    pub(in crate::registry) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { user, secret } = self else { return None };
        let mut header =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))))
                .ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

/// Where credentials come from. Asked for only once a registry wants to know who asks.
pub trait Credentials: Send + Sync {
    /// What there is for a host, as in `docker.io` or `registry.example:5000`. `refused` says that
    /// the registry did not take what was given before: an expired one may be replaced now.
    fn find<'a>(&'a self, host: &'a str, refused: bool) -> BoxFuture<'a, Option<Credential>>;
}

/// Nobody.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn find<'a>(&'a self, _: &'a str, _: bool) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(std::future::ready(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let all = [
            Credential::Password { user: "ann".to_owned(), secret: "sesame".to_owned() },
            Credential::Identity("sesame".to_owned()),
            Credential::Token("sesame".to_owned()),
        ];
        for credential in all {
            let shown = format!("{credential:?} {:?}", credential.basic());
            assert!(!shown.contains("sesame") && !shown.contains("ann"), "{shown}");
        }
    }

    #[test]
    fn basic_is_as_in_the_rfc() {
        let user = "Aladdin".to_owned();
        let password = Credential::Password { user, secret: "open sesame".to_owned() };
        assert_eq!(password.basic().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(Credential::Identity("x".to_owned()).basic(), None);
    }
}
