//! Who asks: challenges, credentials, tokens, and what one session keeps of them.
//!
//! ```text
//! 401 ─▶ Challenge ─▶ Credentials (asked once a host) ─▶ token server ─▶ the request once more
//! 401 again ─▶ the credentials are asked for anew, once ─▶ …
//! ```
//! A session is one pull or one push: what it was given ends with it, so that nobody pulls with
//! what another user brought.
//!
//! Locking: an asynchronous mutex over everything, so that requests side by side fetch one token and
//! ask the user once.

mod challenge;
mod credential;
mod token;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Instant,
};

use reqwest::header::HeaderValue;

pub(super) use self::challenge::Challenge;
pub use self::credential::{Anonymous, Credential, Credentials};
use self::{challenge::Bearer, token::Ask};
use super::{RegistryError, hosts::Host};
use crate::oci::Repository;

/// What a session knows about who asks.
pub(super) struct Access {
    source: Arc<dyn Credentials>,
    known: tokio::sync::Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By origin and scopes; a registry with basic authentication has no scopes.
    headers: HashMap<(String, String), Kept>,
    /// By origin: what the source said, none included.
    credentials: HashMap<String, Option<Credential>>,
}

struct Kept {
    header: HeaderValue,
    expires: Option<Instant>,
}

/// What a request needs: shown to the registry only when it asks.
#[derive(Clone, Copy)]
pub(super) struct Need<'a> {
    pub(super) host: &'a Host,
    pub(super) repository: &'a Repository,
    /// As in `repository:x/y:pull`.
    pub(super) scopes: &'a [String],
}

impl Need<'_> {
    fn key(&self) -> (String, String) {
        (self.host.origin(), self.scopes.join(" "))
    }
}

impl Access {
    pub(super) fn new(source: Arc<dyn Credentials>) -> Self {
        Self { source, known: tokio::sync::Mutex::default() }
    }

    /// What was good enough the last time, unless it expires.
    pub(super) async fn header(&self, need: Need<'_>) -> Option<HeaderValue> {
        self.known.lock().await.header(need)
    }

    /// What to show after `challenge`, where `shown` was not enough; `None` where there is nothing
    /// else. `again` says that what this gave the last time was refused.
    pub(super) async fn answer(
        &self,
        need: Need<'_>,
        challenge: &Challenge,
        shown: Option<&HeaderValue>,
        again: bool,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut known = self.known.lock().await;
        if let Some(shown) = shown {
            known.headers.retain(|_, kept| kept.header != *shown);
        }
        // Another request has renewed it meanwhile
        if let Some(header) = known.header(need) {
            return Ok(Some(header));
        }
        let mut credential = known.credential(&*self.source, need.host).await;
        let is_basic = matches!(challenge, Challenge::Basic) && shown.is_some();
        if again || is_basic {
            let Some(fresh) = known.replace(&*self.source, need.host).await else {
                return Ok(None);
            };
            credential = Some(fresh);
        }
        loop {
            let (refused, had_one) = match known.show(need, challenge, credential.as_ref()).await {
                Err(error @ RegistryError::Unauthorised { .. }) => (error, credential.is_some()),
                other => return other,
            };
            // The token server does not take it: an expired one may be replaced, once
            let fresh = match had_one {
                true => known.replace(&*self.source, need.host).await,
                false => None,
            };
            credential = Some(fresh.ok_or(refused)?);
        }
    }
}

impl Known {
    fn header(&self, need: Need<'_>) -> Option<HeaderValue> {
        let kept = self.headers.get(&need.key())?;
        let is_live = kept.expires.is_none_or(|expires| expires > Instant::now());
        is_live.then(|| kept.header.clone())
    }

    async fn credential(&mut self, source: &dyn Credentials, host: &Host) -> Option<Credential> {
        let origin = host.origin();
        if let Some(known) = self.credentials.get(&origin) {
            return known.clone();
        }
        let found = source.find(&host.name, false).await;
        self.credentials.insert(origin, found.clone());
        found
    }

    /// Another credential in the place of one that was refused; `None` where there is none.
    async fn replace(&mut self, source: &dyn Credentials, host: &Host) -> Option<Credential> {
        let refused = self.credentials.get(&host.origin())?.clone()?;
        let fresh = source.find(&host.name, true).await.filter(|fresh| *fresh != refused)?;
        self.credentials.insert(host.origin(), Some(fresh.clone()));
        Some(fresh)
    }

    async fn show(
        &mut self,
        need: Need<'_>,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let kept = match (challenge, credential) {
            (_, Some(Credential::Token(token))) => {
                token::bearer(token).map(|header| Kept { header, expires: None })
            }
            (Challenge::Basic, credential) => {
                let header = credential.and_then(Credential::basic);
                header.map(|header| Kept { header, expires: None })
            }
            (Challenge::Bearer(bearer), credential) => {
                let scopes = union(need.scopes, bearer);
                let ask = Ask {
                    host: need.host,
                    repository: need.repository,
                    bearer,
                    scopes: &scopes,
                    credential,
                    offline: false,
                };
                let token = ask.token().await?;
                if let (Some(refresh), Some(Credential::Identity(_))) = (token.refresh, credential)
                {
                    let fresh = Credential::Identity(refresh);
                    self.credentials.insert(need.host.origin(), Some(fresh));
                }
                Some(Kept { header: token.header, expires: Some(token.expires) })
            }
        };
        let Some(kept) = kept else { return Ok(None) };
        let header = kept.header.clone();
        let now = Instant::now();
        self.headers.retain(|_, kept| kept.expires.is_none_or(|expires| expires > now));
        self.headers.insert(need.key(), kept);
        Ok(Some(header))
    }
}

/// What a challenge asks for, and what the request needs beyond it.
fn union(own: &[String], bearer: &Bearer) -> Vec<String> {
    // Several scopes stand in one parameter, separated by spaces
    let asked: Vec<&str> =
        bearer.scope.iter().flat_map(|scope| scope.split_ascii_whitespace()).collect();
    let missing =
        own.iter().map(String::as_str).filter(|own| !asked.iter().any(|a| covers(a, own)));
    asked.iter().copied().chain(missing).map(str::to_owned).collect()
}

/// Whether one scope allows all that another does.
fn covers(one: &str, other: &str) -> bool {
    let split = |scope| -> Option<(&str, BTreeSet<&str>)> {
        let (resource, actions) = str::rsplit_once(scope, ':')?;
        Some((resource, actions.split(',').collect()))
    };
    match (split(one), split(other)) {
        (Some((resource, all)), Some((wanted, actions))) => {
            resource == wanted && actions.is_subset(&all)
        }
        _ => one == other,
    }
}

/// What a login is worth keeping as: a refresh token where the registry's token server gives one,
/// else what was given.
pub(super) async fn login(
    host: &Host,
    repository: &Repository,
    challenge: &Challenge,
    credential: &Credential,
) -> Result<(Credential, Option<HeaderValue>), RegistryError> {
    let Challenge::Bearer(bearer) = challenge else {
        return Ok((credential.clone(), credential.basic()));
    };
    let scopes = union(&[], bearer);
    let credential_of = Some(credential);
    let ask =
        Ask { host, repository, bearer, scopes: &scopes, credential: credential_of, offline: true };
    let token = ask.token().await?;
    let kept = token.refresh.map_or_else(|| credential.clone(), Credential::Identity);
    Ok((kept, Some(token.header)))
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_joined() {
        let table: &[(&[&str], Option<&str>, &[&str])] = &[
            (&["repository:a:pull"], None, &["repository:a:pull"]),
            (&["repository:a:pull"], Some("repository:a:pull,push"), &["repository:a:pull,push"]),
            (
                &["repository:a:pull,push"],
                Some("repository:a:push,pull"),
                &["repository:a:push,pull"],
            ),
            (
                &["repository:a:pull,push", "repository:b:pull"],
                Some("repository:a:pull,push"),
                &["repository:a:pull,push", "repository:b:pull"],
            ),
            (
                &["repository:a:pull"],
                Some("registry:catalog:*"),
                &["registry:catalog:*", "repository:a:pull"],
            ),
            (&[], None, &[]),
        ];
        for (own, asked, expected) in table {
            let own: Vec<String> = own.iter().map(|s| (*s).to_owned()).collect();
            let bearer =
                Bearer { realm: String::new(), service: None, scope: asked.map(str::to_owned) };
            assert_eq!(union(&own, &bearer), *expected, "{own:?} {asked:?}");
        }
    }
}
