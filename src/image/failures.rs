//! What the errors of the stores below mean to a user.

use std::{error::Error, io};

use crate::{
    content::ContentError,
    failure::{Class, Failure, chain},
    layers::LayersError,
    metadata::MetadataError,
    oci::{OciError, PlatformError, ReferenceError},
    registry::RegistryError,
};

const FREE_SPACE: &str = "free some space, for example with: peel rm IMAGE";
const CORRUPT: &str = "pull the image again; if it persists, the source is broken";

/// Says the whole chain; what lies below it as an I/O error decides the class.
fn with_io(error: &dyn Error, source: &io::Error) -> Failure {
    Failure::io(source, chain(error))
}

impl From<ContentError> for Failure {
    fn from(error: ContentError) -> Self {
        let told = |class| Self::new(class, chain(&error));
        match &error {
            ContentError::Io { source, .. } => with_io(&error, source),
            ContentError::NoSpace { .. } => told(Class::NoSpace).hint(FREE_SPACE),
            ContentError::Missing { .. } => told(Class::NotFound)
                .hint("the layout is incomplete; copy it again, or pull the image again"),
            ContentError::Digest { .. } | ContentError::Size { .. } => {
                told(Class::BadData).hint(CORRUPT)
            }
            ContentError::NotALayout { found, .. } => {
                let class = if found.contains("none") || found.contains("no such") {
                    Class::NotFound
                } else {
                    Class::BadData
                };
                told(class).hint("expected a directory as skopeo copy … oci:DIR:TAG makes it")
            }
            ContentError::NoTag { .. } => told(Class::NotFound).hint("name one of those tags"),
            ContentError::Ambiguous { .. } => told(Class::Usage).hint("name one: oci:DIR:TAG"),
            ContentError::Busy { .. } => {
                told(Class::Conflict).hint("wait for the other pull to end")
            }
            _ => told(Class::BadData).hint(CORRUPT),
        }
    }
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        let class = match &error {
            OciError::NoPlatform { .. } => Class::NotFound,
            _ => Class::BadData,
        };
        Self::new(class, chain(&error)).hint(error.hint().unwrap_or(CORRUPT))
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(Class::Usage, &error).hint(error.hint())
    }
}

impl From<PlatformError> for Failure {
    fn from(error: PlatformError) -> Self {
        Self::new(Class::Usage, &error).hint("expected OS/ARCH[/VARIANT], as in linux/arm64/v8")
    }
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        let told = |class| Self::new(class, chain(&error));
        match &error {
            MetadataError::Io { source, .. } => with_io(&error, source),
            MetadataError::Locked { .. } => told(Class::Conflict)
                .hint("another daemon owns this root; use its --state, or another --root"),
            MetadataError::Newer { .. } => told(Class::Conflict)
                .hint("a newer peel wrote this root; use that one, or another --root"),
            MetadataError::Taken { .. } => told(Class::Conflict),
            MetadataError::TooLong { .. } => told(Class::Usage),
            MetadataError::NoSpace { .. } => told(Class::NoSpace).hint(FREE_SPACE),
            MetadataError::Store { .. }
            | MetadataError::Damaged { .. }
            | MetadataError::Failed { .. } => told(Class::BadData).hint("see peel logs"),
            _ => told(Class::Other),
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let class = match error.innermost() {
            RegistryError::Unreachable { .. }
            | RegistryError::Tls { .. }
            | RegistryError::NoCertificates { .. }
            | RegistryError::Interrupted { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::RateLimited { .. } => Class::Unavailable,
            RegistryError::NotFound { .. } => Class::NotFound,
            RegistryError::Unauthorised { .. } => Class::Denied,
            RegistryError::TooLarge { .. }
            | RegistryError::Length { .. }
            | RegistryError::Ended { .. }
            | RegistryError::Range { .. }
            | RegistryError::Digest { .. }
            | RegistryError::Pushed { .. }
            | RegistryError::Hosts { .. }
            | RegistryError::NotJson { .. }
            | RegistryError::Protocol { .. } => Class::BadData,
            RegistryError::Status { status: 500..=599, .. } => Class::Unavailable,
            RegistryError::NoHost { .. } => Class::Denied,
            _ => Class::Other,
        };
        let hint = error.hint().unwrap_or("is the host a registry, and is it well?");
        Self::new(class, chain(&error)).hint(hint)
    }
}

impl From<LayersError> for Failure {
    fn from(error: LayersError) -> Self {
        match &error {
            LayersError::Io { source, .. } => with_io(&error, source),
            LayersError::Missing(_) => Self::new(Class::NotFound, &error).hint(CORRUPT),
            LayersError::Merge(_) => {
                Self::new(Class::BadData, chain(&error)).hint("the image is broken; rebuild it")
            }
            _ => Self::new(Class::BadData, chain(&error)).hint(CORRUPT),
        }
    }
}
