//! One file of credentials: Docker's `config.json`, which podman's `auth.json` follows.
//!
//! What peel does not know in it stays as it is, in its order.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    failure::{Class, Failure},
    registry::Credential,
};

/// Largest file that is read: 4 MiB.
const MAX_FILE: u64 = 4 << 20;
/// The key of Docker Hub; older than all others.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The key under which a registry's credentials are kept, and the name by which helpers know it.
pub(super) fn server(host: &str) -> String {
    if host == "docker.io" { DOCKER_HUB.to_owned() } else { host.to_owned() }
}

/// Whether a key of a file is a registry's: with or without a scheme, and with the path of an old
/// version of the API.
fn names(key: &str, host: &str) -> bool {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://");
    let (found, path) = bare.split_once('/').unwrap_or((bare, ""));
    let found = match found {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    found == host && matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
}

/// See the module.
#[derive(Debug)]
pub(super) struct AuthFile {
    path: PathBuf,
    all: Map<String, Value>,
}

impl AuthFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), all: Map::new() }
    }

    /// Reads a file; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let shown = path.display();
        let failed = |e: &io::Error| Failure::io(e, format!("cannot read {shown}: {e}"));
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&e)),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| failed(&e))?;
        let wrong = |found: &dyn std::fmt::Display| {
            Failure::new(Class::BadData, format!("cannot use {shown}: {found}"))
                .hint("it should be a config.json as docker login writes it")
        };
        if text.len() as u64 > MAX_FILE {
            return Err(wrong(&format!("expected at most {MAX_FILE} bytes, found more")));
        }
        if text.trim_ascii().is_empty() {
            return Ok(Some(Self::new(path)));
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(all)) => Ok(Some(Self { path: path.to_owned(), all })),
            Ok(_) => Err(wrong(&"expected a JSON object, found another value")),
            // Its text may hold a secret, but not its position
            Err(e) => {
                let found = format!("no JSON at line {}, column {}", e.line(), e.column());
                Err(wrong(&found))
            }
        }
    }

    /// The helper that is configured for a registry.
    pub(super) fn helper_for(&self, host: &str) -> Option<&str> {
        let helpers = self.all.get("credHelpers")?.as_object()?;
        let (_, helper) = helpers.iter().find(|(key, _)| names(key, host))?;
        helper.as_str().filter(|name| !name.is_empty())
    }

    /// The helper for all registries that have none of their own.
    pub(super) fn helper(&self) -> Option<&str> {
        self.all.get("credsStore")?.as_str().filter(|name| !name.is_empty())
    }

    /// What the file itself has for a registry.
    pub(super) fn find(&self, host: &str) -> Result<Option<Credential>, Failure> {
        let Some(auths) = self.all.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let exact = auths.get(&server(host)).into_iter();
        let others = auths.iter().filter(|(key, _)| names(key, host)).map(|(_, entry)| entry);
        for entry in exact.chain(others) {
            if let Some(found) = self.credential(host, entry)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn credential(&self, host: &str, entry: &Value) -> Result<Option<Credential>, Failure> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::Identity(token.to_owned())));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::Token(token.to_owned())));
        }
        if let (Some(user), Some(secret)) = (text("username"), text("password")) {
            let (user, secret) = (user.to_owned(), secret.to_owned());
            return Ok(Some(Credential::Password { user, secret }));
        }
        let Some(auth) = text("auth") else { return Ok(None) };
        let wrong = || {
            let path = self.path.display();
            let message = format!("{path}: auth of {host}: expected USER:PASSWORD in base64");
            Failure::new(Class::BadData, message).hint(format!("log in again: peel login {host}"))
        };
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| wrong())?;
        let pair = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (user, secret) = pair.split_once(':').ok_or_else(wrong)?;
        // Docker pads some with zeros
        let secret = secret.trim_end_matches('\0');
        if user.is_empty() || secret.is_empty() {
            return Ok(None);
        }
        let (user, secret) = (user.to_owned(), secret.to_owned());
        Ok(Some(Credential::Password { user, secret }))
    }

    /// Puts a credential in the place of whatever is there for the registry.
    pub(super) fn set(&mut self, host: &str, user: &str, credential: &Credential) {
        let auth = |user: &str, secret: &str| STANDARD.encode(format!("{user}:{secret}"));
        let entry = match credential {
            Credential::Password { user, secret } => json!({ "auth": auth(user, secret) }),
            Credential::Identity(token) => {
                json!({ "auth": auth(user, ""), "identitytoken": token })
            }
            Credential::Token(token) => json!({ "registrytoken": token }),
        };
        self.remove(host);
        self.auths().insert(server(host), entry);
    }

    /// Notes that a helper has something for the registry.
    pub(super) fn mark(&mut self, host: &str) {
        self.remove(host);
        self.auths().insert(server(host), json!({}));
    }

    /// Removes what is there for the registry; false where there was nothing.
    pub(super) fn remove(&mut self, host: &str) -> bool {
        let auths = self.auths();
        let before = auths.len();
        auths.retain(|key, _| !names(key, host));
        auths.len() < before
    }

    fn auths(&mut self) -> &mut Map<String, Value> {
        let auths = self.all.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths.as_object_mut().expect("an object, as of the line before")
    }

    /// Writes the file, at once and for its owner alone.
    pub(super) fn write(&self) -> Result<(), Failure> {
        // A link stays one: dotfiles are often kept elsewhere
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = path.parent().unwrap_or(Path::new("."));
        let text = format!("{:#}\n", Value::Object(self.all.clone()));
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
            fresh.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
            fresh.write_all(text.as_bytes())?;
            fresh.as_file().sync_all()?;
            fresh.persist(&path).map_err(|e| e.error)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|e| Failure::io(&e, format!("cannot write {}: {e}", path.display())))
    }
}
