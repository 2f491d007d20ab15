//! What the fuzz targets of peel-index share.
//!
//! The invariant of every target: errors are fine, panics are bugs, and so is memory that grows with
//! what the input declares rather than with what it holds. Beyond that, each target compares the
//! crate with something simpler; its module documentation says with what.
//!
//! ```text
//! targets/  tar  gzip  span  layer  index_decode  merge
//! src/      input    bytes to choices, and to splits of pushes
//!           testing  entries of a tar, and the tar
//!           blob     a tar compressed in several ways
//!           file     index files taken apart and closed again with right checksums
//!           walk     everything that an opened file gives access to
//!           stack    stacks of layers and the naive model of their merge
//!           memory   the most that a piece of work allocates
//! ```
//!
//! Built with `--cfg fuzzing`, peel-index cuts spans at a few KiB, so that small inputs have many.
//! `src/bin/seeds.rs` writes the inputs to begin with; `scripts/fuzz` runs it all.

pub mod blob;
pub mod file;
pub mod input;
pub mod memory;
pub mod stack;
pub mod testing;
pub mod walk;
