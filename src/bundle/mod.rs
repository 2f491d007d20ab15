//! Bundles for an OCI runtime: `config.json` from an image's configuration.
//!
//! `config` is pure: an image's configuration and the bytes of two files of its rootfs come in, a
//! runtime configuration goes out. `rootfs` reads those files from a mounted rootfs that nobody
//! trusts. Making the directory and mounting the rootfs is the caller's.

mod config;
mod defaults;
mod error;
mod init;
mod rootfs;
mod user;

#[cfg(test)]
mod tests;

pub use config::{BundleImage, BundleMount, BundleOptions, Network, config_json, to_json};
pub use error::BundleError;
pub use init::{BundleFile, FILES, HostFiles, files};
pub use rootfs::rootfs_file;
