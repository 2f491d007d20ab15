//! The protocol of `docker-credential-*` programs: a word as argument, the rest on standard input.
//!
//! Source: docker/docker-credential-helpers, README.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    failure::{Class, Failure},
    registry::Credential,
};

/// How long a helper may take: it may ask a person to unlock a key ring.
const LIMIT: Duration = Duration::from_secs(240);
/// The user that stands for a refresh token.
const TOKEN_USER: &str = "<token>";
/// What helpers say on standard output where they have nothing.
const NOT_FOUND: [&str; 2] = ["credentials not found", "no credentials server URL"];

/// The program of a helper.
pub(super) fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// What a helper has for a server.
pub(super) async fn find(name: &str, server: &str) -> Result<Option<Credential>, Failure> {
    let (said, succeeded) = call(name, "get", server.as_bytes()).await?;
    let text = String::from_utf8_lossy(&said);
    if !succeeded {
        return match NOT_FOUND.iter().any(|words| text.contains(words)) {
            true => Ok(None),
            false => Err(failed(name, "get", text.trim())),
        };
    }
    let answer: Value =
        serde_json::from_slice(&said).map_err(|_| failed(name, "get", "it gave no JSON"))?;
    let word = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (user, secret) = (word("Username"), word("Secret"));
    Ok(match (user.as_str(), secret.is_empty()) {
        (_, true) => None,
        (TOKEN_USER, _) => Some(Credential::Identity(secret)),
        _ => Some(Credential::Password { user, secret }),
    })
}

/// Gives a helper something to keep.
pub(super) async fn store(
    name: &str,
    server: &str,
    user: &str,
    credential: &Credential,
) -> Result<(), Failure> {
    let (user, secret) = match credential {
        Credential::Password { user, secret } => (user.as_str(), secret),
        Credential::Identity(token) => (TOKEN_USER, token),
        Credential::Token(token) => (user, token),
    };
    let request = json!({ "ServerURL": server, "Username": user, "Secret": secret });
    let (said, succeeded) = call(name, "store", request.to_string().as_bytes()).await?;
    match succeeded {
        true => Ok(()),
        false => Err(failed(name, "store", String::from_utf8_lossy(&said).trim())),
    }
}

/// Has a helper forget.
pub(super) async fn erase(name: &str, server: &str) -> Result<(), Failure> {
    let (said, succeeded) = call(name, "erase", server.as_bytes()).await?;
    match succeeded {
        true => Ok(()),
        false => Err(failed(name, "erase", String::from_utf8_lossy(&said).trim())),
    }
}

/// What a helper says on standard output, and whether it succeeded. Its standard error is the
/// user's.
async fn call(name: &str, word: &str, input: &[u8]) -> Result<(Vec<u8>, bool), Failure> {
    // A name from a file must not become a path
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(failed(name, word, "its name is none"));
    }
    let run = async {
        let mut child = Command::new(program(name))
            .arg(word)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not want to know goes on without
            drop(stdin.write_all(input).await);
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, run).await;
    let output = output
        .map_err(|_| failed(name, word, &format!("no answer within {} s", LIMIT.as_secs())))?
        .map_err(|e| failed(name, word, &e.to_string()))?;
    Ok((output.stdout, output.status.success()))
}

fn failed(name: &str, word: &str, said: &str) -> Failure {
    let said = if said.is_empty() { "no reason given" } else { said };
    let message = format!("{} {word} failed: {said}", program(name));
    Failure::new(Class::Unavailable, message)
        .hint("it is named in config.json by credsStore or credHelpers: is it installed?")
}
