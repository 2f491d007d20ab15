//! `push`, `login`, `logout`, and the answers to a daemon that wants to know who asks.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{
    Context,
    args::{LoginArgs, PushArgs},
    images::{canonical, name_or_digest},
    output::{incomplete, note, print},
    progress::Progress,
};
use crate::{
    api::{self, credentials::Kind, pull_event::Event},
    client::Client,
    credentials::{KeptIn, UserCredentials},
    failure::{Class, Failure},
    oci::RegistryReference,
    registry::{Credential, Registry, RegistryOptions},
};

/// Longest password that is read: 64 KiB; tokens in the field have a few thousand bytes.
const MAX_SECRET: u64 = 64 << 10;

/// Answers an event that asks for credentials.
pub(super) async fn give_credentials(
    client: &mut Client,
    wanted: api::CredentialsWanted,
) -> Result<(), Failure> {
    // Whoever has none may still be let in
    let found = UserCredentials::of_environment().find(&wanted.host).await.unwrap_or_else(|e| {
        note(format_args!("warning: going on without credentials: {e}"));
        None
    });
    let kind = found.map(|credential| match credential {
        Credential::Password { user, secret } => Kind::Password(api::Password { user, secret }),
        Credential::Identity(token) => Kind::IdentityToken(token),
        Credential::Token(token) => Kind::RegistryToken(token),
    });
    let credentials = kind.map(|kind| api::Credentials { kind: Some(kind) });
    client.give_credentials(api::GiveCredentialsRequest { id: wanted.id, credentials }).await?;
    Ok(())
}

pub(super) async fn push(context: &Context, args: PushArgs) -> Result<(), Failure> {
    let reference = name_or_digest(&args.reference)?;
    let target = args.target.as_deref().map(canonical).transpose()?.unwrap_or_default();
    let mut client = context.connect().await?;
    let request = api::PushRequest {
        reference,
        target,
        all_platforms: args.all_platforms,
        jobs: args.jobs,
        gives_credentials: true,
    };
    let mut events = client.push(request).await?.into_inner();
    let mut progress = Progress::pushing(args.quiet);
    let mut size = 0;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Resolved(resolved)) => {
                size = resolved.layers.iter().map(|layer| layer.size).sum();
                progress.resolved(&resolved);
            }
            Some(Event::Layer(layer)) => progress.layer(&layer),
            Some(Event::Credentials(wanted)) => give_credentials(&mut client, wanted).await?,
            Some(Event::Pushed(pushed)) => {
                progress.done(&pushed.name, size);
                if pushed.partial {
                    note(
                        "pushed one platform alone: the rest of its index is not here \
                         (peel pull --all-platforms fetches it)",
                    );
                }
                return print(&format!("{}\n", pushed.digest));
            }
            Some(Event::Done(_)) | None => {}
        }
    }
    Err(incomplete("the digest"))
}

pub(super) async fn login(args: LoginArgs) -> Result<(), Failure> {
    let host = host(args.registry.as_deref())?;
    let user = match args.username {
        Some(user) => user,
        None => ask(&format!("user name for {host}: "), true)?,
    };
    let secret = match args.password_stdin {
        true => read_secret()?,
        false => ask(&format!("password of {user}: "), false)?,
    };
    if user.is_empty() || secret.is_empty() {
        return Err(Failure::new(Class::Usage, "a user name and a password are needed"));
    }
    let options = RegistryOptions { attempts: 2, ..args.network.options() };
    let reference: RegistryReference = format!("{host}/login/check").parse()?;
    let credential = Credential::Password { user: user.clone(), secret };
    let registry = Registry::new(options)?;
    let kept = registry.login(reference.repository(), &credential).await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.class {
            Class::Denied => {
                Failure::new(Class::Denied, format!("{host} does not take these credentials"))
                    .hint("check the user name and the password, or make an access token")
            }
            _ => failure,
        }
    })?;
    let Some(kept) = kept else {
        note(format_args!("{host} lets everybody in: nothing was kept"));
        return Ok(());
    };
    match UserCredentials::of_environment().keep(&host, &user, &kept).await? {
        KeptIn::Helper(helper) => note(format_args!("logged in to {host}, kept by {helper}")),
        KeptIn::File(file) => {
            note(format_args!("logged in to {host}, kept unencrypted in {}", file.display()));
        }
    }
    Ok(())
}

pub(super) async fn logout(registry: Option<String>) -> Result<(), Failure> {
    let host = host(registry.as_deref())?;
    match UserCredentials::of_environment().forget(&host).await? {
        true => note(format_args!("logged out of {host}")),
        false => note(format_args!("was not logged in to {host}")),
    }
    Ok(())
}

/// The registry that a user means: a host, or the URL of its API.
fn host(text: Option<&str>) -> Result<String, Failure> {
    let text = text.unwrap_or("docker.io");
    let bare = text.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    // Read as a reference has it, where a word without a dot would be a path
    let reference = format!("{host}/login/check").parse::<RegistryReference>();
    let wrong = || {
        Failure::new(Class::Usage, format!("no registry: {text:?}"))
            .hint("examples: ghcr.io, localhost:5000; none for Docker Hub")
    };
    match reference {
        Ok(reference) if ["docker.io", "index.docker.io"].contains(&host) => {
            Ok(reference.repository().host().to_owned())
        }
        Ok(reference) if reference.repository().host() == host => Ok(host.to_owned()),
        _ => Err(wrong()),
    }
}

/// All of standard input but the line's end.
fn read_secret() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text);
    read.map_err(|e| Failure::io(&e, format!("cannot read standard input: {e}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks on the terminal; what is typed is shown only where `shown` says so.
fn ask(question: &str, shown: bool) -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(Class::Usage, "standard input is no terminal to ask on")
            .hint("give the name with --username, and the password with --password-stdin"));
    }
    let failed = |e: std::io::Error| Failure::io(&e, format!("cannot ask on the terminal: {e}"));
    let mut stderr = std::io::stderr();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let before = tcgetattr(&stdin).map_err(|e| failed(e.into()))?;
    if !shown {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|e| failed(e.into()))?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !shown {
        // The user's line break was not shown either
        drop(stderr.write_all(b"\n"));
        tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(|e| failed(e.into()))?;
    }
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_in_many_ways() {
        let table = [
            (None, Some("docker.io")),
            (Some("docker.io"), Some("docker.io")),
            (Some("https://index.docker.io/v1/"), Some("docker.io")),
            (Some("ghcr.io"), Some("ghcr.io")),
            (Some("https://r.example:5000/v2/"), Some("r.example:5000")),
            (Some("localhost:5000"), Some("localhost:5000")),
            (Some("localhost"), Some("localhost")),
            (Some("word"), None),
            (Some(""), None),
            (Some("a b.example"), None),
        ];
        for (text, expected) in table {
            assert_eq!(host(text).ok().as_deref(), expected, "{text:?}");
        }
    }
}
