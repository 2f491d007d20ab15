//! The part of the grammar that is about the daemon's processes.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};

use super::network::NetworkArgs;

/// `peel daemon`.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: Option<DaemonCommand>,
    /// Memory for decoded file content: bytes, or with K, M or G [default: 64M]
    #[arg(long, env = "PEEL_SPAN_CACHE", value_name = "SIZE", value_parser = parse_size)]
    pub span_cache: Option<u64>,
    /// How files are served.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Started by a command: log to the file alone, and leave the caller's mount namespace
    #[arg(long, hide = true)]
    pub background: bool,
    /// Kill a worker that answers nothing for so long while it is asked; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub watchdog: u64,
    /// How registries are reached.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// What is kept, and what is shared.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Subcommands of `peel daemon`.
#[derive(Debug, Subcommand)]
pub(super) enum DaemonCommand {
    /// End the daemon; what is mounted but idle is unmounted
    Stop {
        /// Detach mounts that are in use as well
        #[arg(short, long)]
        force: bool,
    },
    /// Put the program as it is installed now in the place of the one that runs; nobody who reads
    /// notices
    Reload,
    /// The worker process; the keeper starts it
    #[command(hide = true)]
    Worker(RoleArgs),
    /// The next keeper; its predecessor or the worker starts it
    #[command(hide = true)]
    Keeper(RoleArgs),
}

/// What a process of the daemon's is told by the one that starts it; the rest comes over its
/// standard input.
#[derive(Debug, Args)]
pub(super) struct RoleArgs {
    /// Log to the file alone
    #[arg(long)]
    pub background: bool,
    /// Bound of the span cache in bytes
    #[arg(long)]
    pub span_cache: u64,
    /// How files are served.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// How registries are reached.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// What is kept, and what is shared.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// How files are served.
#[derive(Debug, Clone, Args)]
pub(super) struct ServingArgs {
    /// Do not note what is read when a layer comes into use, to decode it ahead the next time
    #[arg(long, env = "PEEL_NO_FOLLOW_STARTS", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_follow_starts: bool,
    /// How long to look out for the kernel's next request before sleeping, where requests come one
    /// after the other and a core is free; 0: not at all
    #[arg(
        long,
        env = "PEEL_BUSY_POLL",
        value_name = "MICROSECONDS",
        default_value_t = peel_fuse::BUSY_POLL.as_micros() as u32
    )]
    pub busy_poll: u32,
}

impl ServingArgs {
    /// The same on a command line.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--busy-poll".into(), self.busy_poll.to_string().into()];
        if self.no_follow_starts {
            arguments.push("--no-follow-starts".into());
        }
        arguments
    }
}

/// What is kept, and what is shared with containerd.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreArgs {
    /// Most bytes of blobs and indexes, with K, M or G: images that were not mounted for the
    /// longest time are removed where there are more
    #[arg(long, env = "PEEL_MAX_SIZE", value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Root directory of the containerd that has this daemon as its snapshotter: blobs that are
    /// there already are taken from there
    #[arg(
        long,
        env = "PEEL_CONTAINERD_ROOT",
        value_name = "DIR",
        default_value = CONTAINERD_ROOT
    )]
    pub containerd_root: PathBuf,
}

/// Where containerd keeps things unless it is told otherwise.
pub(super) const CONTAINERD_ROOT: &str = "/var/lib/containerd";

impl StoreArgs {
    /// The same on a command line.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let root = ["--containerd-root".into(), self.containerd_root.clone().into()];
        let most = self.max_size.map(|most| ["--max-size".into(), most.to_string().into()]);
        root.into_iter().chain(most.into_iter().flatten()).collect()
    }
}

/// Bytes, from a number with or without a binary unit: `65536`, `64K`, `64MiB`, `1G`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("unknown unit: {unit}; there are K, M and G")),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number, as in 64M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            ("0", Some(0)),
            ("65536", Some(65536)),
            ("64k", Some(64 << 10)),
            ("64M", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("2G", Some(2 << 30)),
            ("12B", Some(12)),
            ("17179869184G", None),
            ("99999999999999999999", None),
            ("M", None),
            ("", None),
            ("-1", None),
            ("1.5G", None),
            ("64 M", None),
            ("64T", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
    }
}
