//! The daemon's gRPC API, generated from `daemon/proto/peel.proto`, and how a [`Failure`] crosses
//! it; shared by daemon and client.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::failure::{Class, Failure};

#[expect(
    missing_docs,
    unused_qualifications,
    reason = "generated; the proto file has the documentation"
)]
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
mod generated {
    tonic::include_proto!("peel.v1");
}

pub use generated::*;

/// containerd's API of snapshots and of layers that are applied, generated from
/// `daemon/proto/containerd.proto` and `diff.proto`. The modules are as deep as generated code takes
/// them to be.
#[expect(
    missing_docs,
    unused_qualifications,
    reason = "generated; the proto file has the documentation"
)]
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub mod services {
        pub mod diff {
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

const HINT: &str = "peel-hint-bin";
/// Marks the daemon's own word; a status without it comes from the transport.
const SAID: &str = "peel-said";

fn code(class: Class) -> Code {
    match class {
        Class::Other => Code::Internal,
        Class::Usage => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Conflict => Code::FailedPrecondition,
        Class::BadData => Code::DataLoss,
        Class::Unavailable => Code::Unavailable,
        Class::NoSpace => Code::ResourceExhausted,
        Class::Denied => Code::PermissionDenied,
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut status = Status::new(code(failure.class), failure.message);
        status.metadata_mut().insert(SAID, MetadataValue::from_static("1"));
        if let Some(hint) = failure.hint {
            status.metadata_mut().insert_bin(HINT, MetadataValue::from_bytes(hint.as_bytes()));
        }
        status
    }
}

/// Whether the connection broke, as it does when a worker dies: nothing is known of what was asked.
pub fn is_lost(status: &Status) -> bool {
    let broken = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
    broken.contains(&status.code()) && !status.metadata().contains_key(SAID)
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if is_lost(&status) {
            let message = format!("lost the daemon's worker: {}", status.message());
            return Self::new(Class::Unavailable, message)
                .hint("another is started by itself: run the command again; peel logs says more");
        }
        let class = Class::ALL.into_iter().find(|class| code(*class) == status.code());
        let hint = status.metadata().get_bin(HINT).and_then(|hint| hint.to_bytes().ok());
        Self {
            class: class.unwrap_or(Class::Other),
            message: status.message().to_owned(),
            hint: hint.map(|hint| String::from_utf8_lossy(&hint).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_cross_the_wire() {
        for class in Class::ALL {
            let failure = Failure::new(class, "no image: ä").hint("pull it first — ä");
            assert_eq!(Failure::from(Status::from(failure.clone())), failure);
            let bare = Failure::new(class, "x");
            assert_eq!(Failure::from(Status::from(bare.clone())), bare);
            assert!(!is_lost(&Status::from(bare)));
        }
    }

    #[test]
    fn a_broken_connection_is_no_word_of_the_daemon() {
        let broken = Status::unknown("transport error");
        assert!(is_lost(&broken));
        assert_eq!(Failure::from(broken).class, Class::Unavailable);
        assert!(!is_lost(&Status::unimplemented("no such call")));
    }
}
