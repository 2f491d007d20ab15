//! What a user is told when something does not work: what happened, how to remedy it, and the exit
//! code that says which kind of failure it was.

use std::{fmt, process::ExitCode};

/// The kind of a failure; each has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anything that no other class names.
    Other,
    /// The command line, or a reference, is malformed.
    Usage,
    /// No such image, mount, snapshot, tag or file.
    NotFound,
    /// It is in use, is there already, or belongs to another image.
    Conflict,
    /// Bytes are not what they should be: a digest, a format, a truncated stream.
    BadData,
    /// A registry, the daemon, /dev/fuse or a program cannot be reached.
    Unavailable,
    /// The disk is full.
    NoSpace,
    /// Permission or credentials are missing.
    Denied,
}

impl Class {
    /// All classes, in the order of their exit codes.
    pub const ALL: [Self; 8] = [
        Self::Other,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::BadData,
        Self::Unavailable,
        Self::NoSpace,
        Self::Denied,
    ];

    /// Exit code of the command line; 2 is clap's as well.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::BadData => 5,
            Self::Unavailable => 6,
            Self::NoSpace => 7,
            Self::Denied => 8,
        }
    }
}

impl From<Class> for ExitCode {
    fn from(class: Class) -> Self {
        class.exit_code().into()
    }
}

/// A failure as it is told to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub class: Class,
    /// What happened: lower case, no full stop, names the thing.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        Self { class, message: message.to_string(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The class that suits an I/O error.
    pub fn io(error: &std::io::Error, message: impl fmt::Display) -> Self {
        use std::io::ErrorKind;
        let class = match error.kind() {
            ErrorKind::NotFound => Class::NotFound,
            ErrorKind::PermissionDenied => Class::Denied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Class::NoSpace,
            ErrorKind::AlreadyExists | ErrorKind::ResourceBusy => Class::Conflict,
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Class::BadData,
            _ => Class::Other,
        };
        let failure = Self::new(class, message);
        match class {
            Class::NoSpace => failure.hint("free some space, for example with: peel rm IMAGE"),
            _ => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The whole chain of an error in one line, each cause after a colon, none said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_not_zero() {
        let codes: std::collections::BTreeSet<_> =
            Class::ALL.iter().map(|class| class.exit_code()).collect();
        assert_eq!(codes.len(), Class::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn a_full_disk_has_a_hint() {
        let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failure = Failure::io(&error, "cannot write x");
        assert_eq!(failure.class, Class::NoSpace);
        assert!(failure.hint.is_some());
    }
}
