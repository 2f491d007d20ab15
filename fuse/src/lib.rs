//! The FUSE filesystem that serves container images from their indexes.
//!
//! ```text
//! kernel ──▶ fuser ──▶ adapter ──▶ fs::Filesystem ──▶ FileSource (trees, layers, content)
//!                        │            pure lookups
//!                        └──▶ pool ──▶ fs::Filesystem::read   blocks, inflates
//! session: mount (keeper), adopt (worker)
//! ```
//!
//! * [`fs`]: the operations as plain functions that return a result; tested without FUSE.
//! * [`error`]: one table from error to errno.
//! * [`source`]: what the filesystem serves from, implemented by peel's `layers`.
//! * [`flight`]: what is being worked on, in memory that outlives the worker: no request kills two
//!   workers and a third.
//! * [`metrics`]: what is asked, how fast it is answered, and what goes wrong.
//! * [`session`]: mounting, INIT, and adoption by one worker after the other.
//!
//! Architecture invariant: there is no inode table and no open file. An inode number says by itself
//! what it stands for ([`peel_index::NodeId`]), so that any process can answer any request, also
//! one that another process had taken and did not live to answer.

// Tests share a source with those in tests/, which name this crate from outside
#[cfg(test)]
extern crate self as peel_fuse;

mod adapter;
pub mod error;
pub mod flight;
pub mod fs;
pub mod metrics;
mod pool;
pub mod session;
pub mod source;

pub use error::Error;
pub use fs::{Filesystem, Inode, Lookup};
pub use session::{BUSY_POLL, Handshake, Mounted, ServeOptions, Server, adopt, mount};
pub use source::{Ahead, FileSource, ReadError, Sink, Spare};
