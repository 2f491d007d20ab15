//! The credentials of the user who runs a command: where Docker and podman keep them.
//!
//! ```text
//! $REGISTRY_AUTH_FILE                        alone, where it is set
//! $DOCKER_CONFIG/config.json                 else ~/.docker/config.json
//! $XDG_RUNTIME_DIR/containers/auth.json      podman's, and
//! $XDG_CONFIG_HOME/containers/auth.json      its lasting one
//! ```
//! The first file that has something for a registry decides; within a file a helper for the registry
//! (`credHelpers`) comes before the helper for all (`credsStore`), and that before `auths`. `login`
//! and `logout` change the first file.
//!
//! Architecture invariant: only the client uses this, in its user's environment. The daemon asks for
//! what it needs and keeps nothing.

mod file;
mod helper;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use self::file::AuthFile;
use crate::{
    failure::{Class, Failure},
    registry::Credential,
};

/// The files of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCredentials {
    files: Vec<PathBuf>,
}

/// Where a login has been kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptIn {
    /// In a file, readable by anybody who can read the file.
    File(PathBuf),
    /// With a helper, as in `docker-credential-pass`.
    Helper(String),
}

impl UserCredentials {
    /// The files that the environment names.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        if let Some(file) = variable("REGISTRY_AUTH_FILE") {
            return Self { files: vec![file.into()] };
        }
        let home = variable("HOME").map(PathBuf::from);
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let docker = variable("DOCKER_CONFIG").map(PathBuf::from).or(below_home(".docker"));
        let config = variable("XDG_CONFIG_HOME").map(PathBuf::from).or(below_home(".config"));
        let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        let podman = [runtime, config].into_iter().flatten();
        let files = docker.map(|dir| dir.join("config.json")).into_iter();
        Self { files: files.chain(podman.map(|dir| dir.join("containers/auth.json"))).collect() }
    }

    /// What the user has for a registry, as in `docker.io`.
    ///
    /// # Errors
    /// Where a file cannot be read or understood, or a helper fails.
    pub async fn find(&self, host: &str) -> Result<Option<Credential>, Failure> {
        for path in &self.files {
            let Some(file) = AuthFile::read(path)? else { continue };
            for name in [file.helper_for(host), file.helper()].into_iter().flatten() {
                if let Some(found) = helper::find(name, &file::server(host)).await? {
                    return Ok(Some(found));
                }
            }
            if let Some(found) = file.find(host)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps a login with the helper that is configured, else in the file. `user` is shown beside a
    /// token that has none.
    ///
    /// # Errors
    /// Where the helper fails, or the file cannot be written.
    pub async fn keep(
        &self,
        host: &str,
        user: &str,
        credential: &Credential,
    ) -> Result<KeptIn, Failure> {
        let path = self.own()?;
        let mut file = AuthFile::read(path)?.unwrap_or_else(|| AuthFile::new(path));
        let name = file.helper_for(host).or(file.helper()).map(str::to_owned);
        if let Some(name) = name {
            helper::store(&name, &file::server(host), user, credential).await?;
            // Docker lists by the file what the helper has
            file.mark(host);
            file.write()?;
            return Ok(KeptIn::Helper(helper::program(&name)));
        }
        file.set(host, user, credential);
        file.write()?;
        Ok(KeptIn::File(path.to_owned()))
    }

    /// Forgets what there is for a registry in the first file and its helper; false where there was
    /// nothing.
    ///
    /// # Errors
    /// Where the helper fails, or the file cannot be written.
    pub async fn forget(&self, host: &str) -> Result<bool, Failure> {
        let path = self.own()?;
        let Some(mut file) = AuthFile::read(path)? else { return Ok(false) };
        let mut forgotten = false;
        let names = [file.helper_for(host), file.helper()].into_iter().flatten();
        for name in names.map(str::to_owned).collect::<Vec<_>>() {
            if helper::find(&name, &file::server(host)).await?.is_some() {
                helper::erase(&name, &file::server(host)).await?;
                forgotten = true;
            }
        }
        if file.remove(host) {
            file.write()?;
            forgotten = true;
        }
        Ok(forgotten)
    }

    fn own(&self) -> Result<&Path, Failure> {
        self.files.first().map(PathBuf::as_path).ok_or_else(|| {
            Failure::new(Class::Usage, "no place for credentials: HOME is not set")
                .hint("name a file with REGISTRY_AUTH_FILE, or a directory with DOCKER_CONFIG")
        })
    }
}

#[cfg(test)]
mod tests;
