//! Real mounts. They need root and /dev/fuse; without, they are skipped, or fail where
//! `PEEL_REQUIRE_FUSE=1` says so.

mod content;
mod directories;
mod image;
mod keeper;
mod kill;
mod listing;
mod mapped;
mod mount;
mod namespaces;
mod numbers;
mod overlay;
mod requests;
mod sample;
mod tap;
mod waiting;
