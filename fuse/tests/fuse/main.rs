//! Real mounts. They need root and /dev/fuse; without, they are skipped, or fail where
//! `PEEL_REQUIRE_FUSE=1` says so.

mod image;
mod keeper;
mod kill;
mod listing;
mod mount;
mod namespaces;
mod overlay;
mod sample;
