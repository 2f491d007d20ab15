//! Indexes of container image layers: where every file is in a compressed tar, where to resume
//! decompression near it, and which layer wins for each path.
//!
//! Architecture invariant: this crate is pure and synchronous. Bytes come in, structs go out; it
//! opens no file, knows no network and no async runtime.

pub mod digest;
pub mod nodeid;

pub use digest::{Algorithm, Digest, DigestError, Hasher, chain_id};
pub use nodeid::{NodeId, Slot};
