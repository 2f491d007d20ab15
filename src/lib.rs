//! peel mounts container images without unpacking them.
//!
//! The floor plan, downward only:
//!
//! ```text
//! main → cli → client ┐
//!                     ├→ api (gRPC) → daemon ─→ image, snapshot, bundle, gc
//! daemon → image → registry, content, layers, metadata
//!          gc → metadata, content, layers, snapshot      snapshotter → metadata, snapshot
//! layers (indexes, trees, span cache) → content, peel_index, peel_fuse
//! registry → oci      content → oci      metadata, oci → peel_index::Digest
//! daemon, cli → stats → api, peel_fuse
//! below all: failure, mountinfo, paths, process, telemetry
//! ```

pub mod api;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod content;
pub mod credentials;
pub mod daemon;
pub mod failure;
pub mod gc;
pub mod image;
pub mod layers;
pub mod metadata;
pub mod mountinfo;
pub mod oci;
pub mod paths;
pub mod process;
pub mod registry;
pub mod snapshot;
pub mod snapshotter;
pub mod stats;
pub mod telemetry;
