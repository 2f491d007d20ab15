//! Blobs on disk: the content store, and image layouts of others as a source.
//!
//! ```text
//! <root>/content/                     an OCI image layout: skopeo and umoci read it in place
//!   oci-layout                        the layout's version
//!   index.json                        one entry a name, replaced as a whole
//!   blobs/<alg>/<hex>                 complete and verified, mode 0444, never written again
//!   ingest/<sha256 of key>/{data,ref} being written; `ref` holds the key
//! ```
//!
//! A blob appears under its digest only when it is complete, verified and on stable storage: data
//! file, fsync, rename, fsync of the directory. An ingest that is dropped leaves nothing; one that is
//! kept, or that a crash left behind, goes on when its key is ingested again, for a day.
//!
//! Everything here blocks; async code calls it through `spawn_blocking`.
//!
//! Locking: the store has one owner (the daemon's worker, by the lock of its metadata store). The
//! file system arbitrates between its threads: one ingest a key by `flock` of its data, blobs by
//! `rename`. One mutex orders the writers of `index.json`; nothing is called under it but file
//! operations.

mod archive;
mod error;
mod file;
mod ingest;
mod layout;
mod store;

pub use archive::Part;
pub use error::ContentError;
pub use ingest::{DeadIngest, Expected, Ingest, WORTH_KEEPING};
pub use layout::OciLayout;
pub use store::{BlobInfo, ContentStore};
