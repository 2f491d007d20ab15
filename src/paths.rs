//! Where peel keeps things.
//!
//! ```text
//! <root>/   default /var/lib/peel; without root privileges $XDG_DATA_HOME/peel
//!   layout-version  content/  layers/  trees/  snapshots/<n>/{fs,work}  metadata/
//! <state>/  default /run/peel; without root privileges $XDG_RUNTIME_DIR/peel
//!   peel.sock  keeper.sock  keeper.lock  peel.log  lower/  run/<name>/
//! ```
//! A root of one's own gets a state directory of its own, so that two users, or two tests, that
//! name different roots never meet.

use std::{
    env, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use peel_index::Digest;

/// Longest socket path that fits `sun_path` with its final NUL; source: unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// The directories and sockets of one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
    socket: Option<PathBuf>,
}

impl Paths {
    /// Absolute paths from what the user named; `None` takes the defaults. However a directory is
    /// spelled, it is the same one.
    ///
    /// # Errors
    /// Where the current directory is gone, or a socket path would not fit its address.
    pub fn new(
        root: Option<PathBuf>,
        state: Option<PathBuf>,
        socket: Option<PathBuf>,
    ) -> io::Result<Self> {
        let privileged = rustix::process::geteuid().is_root();
        let default_root = resolved(&default_root(privileged))?;
        let root = match root {
            Some(root) => resolved(&root)?,
            None => default_root.clone(),
        };
        let default_state = default_state(privileged);
        let state = match state {
            Some(state) => resolved(&state)?,
            None if root == default_root => default_state,
            None => {
                let hash = Digest::sha256(root.as_os_str().as_bytes()).hex();
                let mut name = default_state.into_os_string();
                name.push("-");
                name.push(&hash[..8]);
                PathBuf::from(name)
            }
        };
        let socket = socket.map(std::path::absolute).transpose()?;
        let paths = Self { root, state, socket };
        for socket in [paths.socket(), paths.keeper_socket()] {
            let length = socket.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "socket path too long: {}: expected at most {SOCKET_PATH_MAX} bytes, \
                         found {length}; give a shorter --state",
                        socket.display()
                    ),
                ));
            }
        }
        Ok(paths)
    }

    /// What survives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What does not.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state.join("peel.sock"))
    }

    /// The socket path where it is not the default one.
    pub fn custom_socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The keeper's own socket: says what runs even while no worker does.
    pub fn keeper_socket(&self) -> PathBuf {
        self.state.join("keeper.sock")
    }

    /// Locked by the keeper for as long as it lives.
    pub fn keeper_lock(&self) -> PathBuf {
        self.state.join("keeper.lock")
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.state.join("peel.log")
    }

    /// Where uppers are.
    pub fn uppers(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Mount point of the one FUSE filesystem.
    pub fn lower(&self) -> PathBuf {
        self.state.join("lower")
    }

    /// Bundles of `peel run`.
    pub fn runs(&self) -> PathBuf {
        self.state.join("run")
    }
}

/// The path without symlinks and trailing slashes, as far as it is there.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a directory's name is empty"));
    }
    let absolute = std::path::absolute(path)?;
    let mut ancestors = absolute.ancestors();
    let there = ancestors.find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    Ok(match there {
        // Components, so that a slash at the end goes
        Some((dir, canonical)) => {
            let rest = absolute.strip_prefix(dir).unwrap_or(Path::new(""));
            canonical.components().chain(rest.components()).collect()
        }
        None => absolute.components().collect(),
    })
}

fn default_root(privileged: bool) -> PathBuf {
    if privileged {
        return "/var/lib/peel".into();
    }
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/".into()));
    let data = env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    data.filter(|d| d.is_absolute()).unwrap_or_else(|| home().join(".local/share")).join("peel")
}

fn default_state(privileged: bool) -> PathBuf {
    if privileged {
        return "/run/peel".into();
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime
        .filter(|d| d.is_absolute())
        .unwrap_or_else(|| format!("/tmp/peel-{}", rustix::process::getuid().as_raw()).into())
        .join("peel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_of_its_own_has_a_state_of_its_own() {
        let of = |root: &str| Paths::new(Some(root.into()), None, None).expect("paths");
        assert_ne!(of("/tmp/a").state(), of("/tmp/b").state());
        assert_eq!(of("/tmp/a"), of("/tmp/a"));
        assert_ne!(of("/tmp/a").state(), Paths::new(None, None, None).expect("paths").state());
    }

    #[test]
    fn one_directory_has_one_state_however_it_is_spelled() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = dir.path().canonicalize().expect("canonical");
        std::os::unix::fs::symlink(&real, real.join("link")).expect("symlink");
        let of = |root: PathBuf| Paths::new(Some(root), None, None).expect("paths");
        let expected = of(real.join("root"));
        assert_eq!(expected.root(), real.join("root"));
        for spelled in ["root/", "./root", "link/root", "link/link/root//"] {
            assert_eq!(of(real.join(spelled)), expected, "{spelled}");
        }
        std::fs::create_dir(real.join("root")).expect("directory");
        assert_eq!(of(real.join("link/root/")), expected, "once it is there");
        assert!(Paths::new(Some(PathBuf::new()), None, None).is_err());
    }

    #[test]
    fn long_socket_paths_are_refused() {
        let state = PathBuf::from("/tmp").join("x".repeat(120));
        let error = Paths::new(None, Some(state), None).expect_err("too long");
        assert!(error.to_string().contains("expected at most 107"), "{error}");
    }
}
