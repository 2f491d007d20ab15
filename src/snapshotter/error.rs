//! Why a call on a snapshot fails, in the kinds that containerd tells apart.

use crate::{
    failure::{Class, Failure},
    metadata::MetadataError,
    snapshot::SnapshotError,
};

/// A call on a snapshot failed.
///
/// Which kind is answered when: containerd's `snapshots/storage/bolt.go` and what its callers look
/// for.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotterError {
    /// There is no snapshot of that key.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// There is no snapshot of the parent's name.
    #[error("parent {0:?} does not exist")]
    NoParent(String),
    /// The key or name is taken.
    #[error("snapshot {0:?} already exists")]
    Exists(String),
    /// An argument cannot be what it is.
    #[error("{0}")]
    Invalid(String),
    /// The snapshot is not in a state to do that with it.
    #[error("{0}")]
    Precondition(String),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<MetadataError> for SnapshotterError {
    fn from(error: MetadataError) -> Self {
        match error {
            // A key that is too long for the store
            error @ MetadataError::TooLong { .. } => Self::Invalid(error.to_string()),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<SnapshotError> for SnapshotterError {
    fn from(error: SnapshotError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<SnapshotterError> for Failure {
    fn from(error: SnapshotterError) -> Self {
        let class = match &error {
            SnapshotterError::NotFound(_) | SnapshotterError::NoParent(_) => Class::NotFound,
            SnapshotterError::Exists(_) | SnapshotterError::Precondition(_) => Class::Conflict,
            SnapshotterError::Invalid(_) => Class::Usage,
            SnapshotterError::Failed(failure) => return failure.clone(),
        };
        Self::new(class, error)
    }
}
