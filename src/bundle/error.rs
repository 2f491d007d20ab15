//! Why no bundle can be made of an image.

/// An error of making a runtime configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Neither the image nor the caller names a command.
    #[error("no command to run: the image has neither entrypoint nor cmd")]
    NoCommand,
    /// A text that the kernel would cut short.
    #[error("{field} holds a zero byte: {value:?}")]
    ZeroByte {
        /// Where it stands.
        field: &'static str,
        /// The text.
        value: String,
    },
    /// An environment variable of the caller without a name.
    #[error("malformed environment variable: expected NAME=VALUE or NAME, found: {found:?}")]
    Env {
        /// What was given.
        found: String,
    },
    /// A path that has to be absolute and is not.
    #[error("{field} is not absolute: {found:?}")]
    Relative {
        /// What the path is for.
        field: &'static str,
        /// The path.
        found: String,
    },
    /// A path that JSON cannot hold.
    #[error("{field} is not UTF-8: {found:?}")]
    NotUtf8 {
        /// What the path is for.
        field: &'static str,
        /// The path, with replacement characters.
        found: String,
    },
    /// A user of a form that is none of `user`, `uid`, `user:group`, `uid:gid`.
    #[error("malformed user: expected user[:group], found: {found:?}")]
    User {
        /// What was given.
        found: String,
    },
    /// A user name that the image's `/etc/passwd` does not have.
    #[error("unknown user {user:?}: {reason}")]
    UnknownUser {
        /// The name.
        user: String,
        /// Where it was looked for.
        reason: &'static str,
    },
    /// A group name that the image's `/etc/group` does not have.
    #[error("unknown group {group:?}: {reason}")]
    UnknownGroup {
        /// The name.
        group: String,
        /// Where it was looked for.
        reason: &'static str,
    },
    /// More supplementary groups than the kernel takes.
    #[error("too many groups of uid {uid}: expected at most {expected}")]
    TooManyGroups {
        /// The user.
        uid: u32,
        /// The kernel's bound.
        expected: usize,
    },
    /// The configuration could not be written as JSON.
    #[error("cannot write the runtime configuration as JSON")]
    Json(#[from] serde_json::Error),
}

impl BundleError {
    /// What the user can do about it, for a `hint:` line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCommand => Some("name one: peel run IMAGE COMMAND"),
            Self::Env { .. } => Some("write --env NAME=VALUE"),
            Self::Relative { .. } => Some("begin the path with /"),
            Self::User { .. } | Self::UnknownUser { .. } | Self::UnknownGroup { .. } => {
                Some("a numeric user and group need no entry in the image: --user 1000:1000")
            }
            Self::ZeroByte { .. }
            | Self::NotUtf8 { .. }
            | Self::TooManyGroups { .. }
            | Self::Json(_) => None,
        }
    }
}
