//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::containerd::ContainerdCommand;
use crate::registry::RegistryOptions;

/// Mounts container images without unpacking them.
#[derive(Debug, Parser)]
#[command(name = "peel", version, propagate_version = true, max_term_width = 100)]
pub(super) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Directory of images, indexes and snapshots [default: /var/lib/peel]
    #[arg(long, global = true, env = "PEEL_ROOT", value_name = "DIR", help_heading = "Global")]
    pub root: Option<PathBuf>,
    /// Directory of sockets and the mount [default: /run/peel, or one of its own for another root]
    #[arg(long, global = true, env = "PEEL_STATE", value_name = "DIR", help_heading = "Global")]
    pub state: Option<PathBuf>,
    /// The daemon's socket [default: peel.sock in the state directory]
    #[arg(long, global = true, env = "PEEL_SOCKET", value_name = "PATH", help_heading = "Global")]
    pub socket: Option<PathBuf>,
    /// What the daemon logs: error, warn, info, debug, trace, or a filter such as peel=debug
    #[arg(
        long,
        global = true,
        env = "PEEL_LOG",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Global"
    )]
    pub log_level: String,
}

/// Output as one JSON document.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Pull an image and index it
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Log in to a registry, as docker login does
    Login(LoginArgs),
    /// Forget a login
    Logout {
        /// The registry [default: Docker Hub]
        #[arg(value_name = "REGISTRY")]
        registry: Option<String>,
    },
    /// List images
    #[command(visible_alias = "ls")]
    Images(Json),
    /// Remove images, and what only they needed
    Rm {
        /// Images to remove
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
    },
    /// Show everything known of an image, as JSON
    Inspect {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// Check everything at rest, and mend it: fetch again, or build again
    Scrub(ScrubArgs),
    /// Mount an image's root file system, pulling it where it is missing
    Mount(MountArgs),
    /// Unmount
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// List mounts
    Mounts(Json),
    /// List or remove the snapshots that hold what was written
    #[command(subcommand)]
    Snapshots(SnapshotsCommand),
    /// Make a runc bundle: config.json and a mounted, writable rootfs
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Bundle(BundleCommand),
    /// Run a command in an image with runc
    Run(RunArgs),
    /// Run the daemon in the foreground, or control it
    Daemon(DaemonArgs),
    /// Help with containerd, whose snapshotter the daemon can be
    #[command(subcommand)]
    Containerd(ContainerdCommand),
    /// Show what runs
    Status(Json),
    /// Show what is served, how fast, and what it takes
    Stats(StatsArgs),
    /// Show the daemon's log
    Logs {
        /// Go on as it grows
        #[arg(short, long)]
        follow: bool,
        /// How many lines from the end
        #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
        lines: usize,
    },
    /// Show the version
    Version(Json),
}

/// `peel stats`.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Print JSON; with --watch a document a line
    #[arg(long)]
    pub json: bool,
    /// Print Prometheus' text format
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub prometheus: bool,
    /// Count from what FILE says, the output of an earlier peel stats --json
    #[arg(long, value_name = "FILE")]
    pub since: Option<PathBuf>,
    /// Print what happened in every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub watch: Option<u64>,
}

/// `peel scrub`.
#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    /// The image, or its digest [default: all images, and the metadata]
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Look only, mend nothing
    #[arg(long)]
    pub check: bool,
    /// Output as JSON
    #[command(flatten)]
    pub json: Json,
}

/// `peel pull`.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// The image: NAME[:TAG][@DIGEST], docker://NAME, or oci:DIR[:TAG]
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Platform: OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Pull all that an index names; the platform is the one that is mounted
    #[arg(long)]
    pub all_platforms: bool,
    /// Layers to pull at the same time; 0 for the default of 3
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub jobs: u32,
    /// No progress, only the image's digest at the end
    #[arg(short, long)]
    pub quiet: bool,
}

/// `peel push`.
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The image, which is here
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where to: REGISTRY/NAME[:TAG] [default: the image's own name]
    #[arg(value_name = "TARGET")]
    pub target: Option<String>,
    /// Push all that the image's index names, or nothing
    #[arg(long)]
    pub all_platforms: bool,
    /// Blobs to push at the same time; 0 for the default of 3
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub jobs: u32,
    /// No progress, only the digest at the end
    #[arg(short, long)]
    pub quiet: bool,
}

/// `peel login`.
#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "REGISTRY")]
    pub registry: Option<String>,
    /// The user's name
    #[arg(short, long, value_name = "USER")]
    pub username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// How registries are reached: options of the daemon, and of login.
#[derive(Debug, Clone, Args)]
pub(super) struct NetworkArgs {
    /// Directories of hosts.toml files, separated by colons [default: certs.d in /etc/peel,
    /// /etc/containerd, /etc/docker]
    #[arg(long, env = "PEEL_HOSTS_DIR", value_name = "DIRS", help_heading = "Network")]
    pub hosts_dir: Option<std::ffi::OsString>,
    /// Most bytes a second in each direction, all transfers together; with k, M or G
    #[arg(
        long,
        env = "PEEL_BANDWIDTH",
        value_name = "BYTES",
        value_parser = bandwidth,
        help_heading = "Network"
    )]
    pub bandwidth: Option<std::num::NonZeroU64>,
    /// Seconds without a byte after which a transfer is taken up anew [default: 30]
    #[arg(
        long,
        env = "PEEL_STALL_TIMEOUT",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        help_heading = "Network"
    )]
    pub stall_timeout: Option<u64>,
    /// Serve statistics for Prometheus over HTTP, at /metrics of this loopback address
    #[arg(
        long,
        env = "PEEL_METRICS",
        value_name = "ADDRESS:PORT",
        value_parser = loopback,
        help_heading = "Network"
    )]
    pub metrics: Option<std::net::SocketAddr>,
}

fn loopback(text: &str) -> Result<std::net::SocketAddr, String> {
    let address: std::net::SocketAddr =
        text.parse().map_err(|_| "expected an address and a port, as in 127.0.0.1:9750")?;
    let is_loopback = address.ip().is_loopback();
    is_loopback.then_some(address).ok_or_else(|| "not an address of the loopback interface".into())
}

impl NetworkArgs {
    /// The same for a registry client.
    pub(super) fn options(&self) -> RegistryOptions {
        let mut options = RegistryOptions { bandwidth: self.bandwidth, ..Default::default() };
        if let Some(dirs) = &self.hosts_dir {
            options.hosts_dirs = std::env::split_paths(dirs).collect();
        }
        if let Some(seconds) = self.stall_timeout {
            options.idle_timeout = std::time::Duration::from_secs(seconds);
        }
        options
    }

    /// The same on a command line.
    pub(super) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let hosts = self.hosts_dir.clone().map(|dirs| ["--hosts-dir".into(), dirs]);
        let bandwidth = self.bandwidth.map(|b| ["--bandwidth".into(), b.to_string().into()]);
        let stall = self.stall_timeout.map(|s| ["--stall-timeout".into(), s.to_string().into()]);
        let metrics = self.metrics.map(|m| ["--metrics".into(), m.to_string().into()]);
        hosts.into_iter().chain(bandwidth).chain(stall).chain(metrics).flatten().collect()
    }
}

/// A number of bytes, with k, M or G for thousands.
fn bandwidth(text: &str) -> Result<std::num::NonZeroU64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err("expected bytes a second, as in 500k, 20M or 1G".to_owned()),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    let number = number.and_then(std::num::NonZeroU64::new);
    number.ok_or_else(|| "expected bytes a second, above zero".to_owned())
}

/// `peel mount`.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where to mount it; made where it is missing
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
    /// Writable: changes go to a snapshot
    #[arg(long)]
    pub rw: bool,
    /// Name of the snapshot [default: the last part of DIR]
    #[arg(long, requires = "rw", value_name = "NAME")]
    pub name: Option<String>,
    /// Honour set-user-ID bits in the mount
    #[arg(long)]
    pub suid: bool,
    /// Let device nodes work in the mount
    #[arg(long)]
    pub dev: bool,
    /// Platform to pull where the image is missing
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
}

/// `peel umount`.
#[derive(Debug, Args)]
pub(super) struct UmountArgs {
    /// The mounts
    #[arg(required = true, value_name = "DIR")]
    pub targets: Vec<PathBuf>,
    /// Drop what was written as well
    #[arg(long)]
    pub rm: bool,
    /// Detach now even where it is in use
    #[arg(short, long)]
    pub lazy: bool,
}

/// `peel snapshots`.
#[derive(Debug, Subcommand)]
pub(super) enum SnapshotsCommand {
    /// List snapshots
    Ls(Json),
    /// Remove snapshots
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// `peel bundle`.
#[derive(Debug, Args)]
pub(super) struct BundleCommand {
    /// `peel bundle rm`.
    #[command(subcommand)]
    pub command: Option<BundleSubcommand>,
    /// `peel bundle REF DIR`.
    #[command(flatten)]
    pub create: BundleArgs,
}

/// Subcommands of `peel bundle`.
#[derive(Debug, Subcommand)]
pub(super) enum BundleSubcommand {
    /// Take a bundle away, with what was written in it
    Rm {
        /// The bundles
        #[arg(required = true, value_name = "DIR")]
        bundles: Vec<PathBuf>,
        /// Keep what was written as a snapshot
        #[arg(long)]
        keep: bool,
    },
}

/// `peel bundle REF DIR`.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// The image
    #[arg(value_name = "REF", required = true)]
    pub reference: Option<String>,
    /// Directory of the bundle; made where it is missing
    #[arg(value_name = "DIR", required = true)]
    pub bundle: Option<PathBuf>,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The process has a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Command in place of the image's
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// How a container's process runs.
#[derive(Debug, Clone, Args)]
pub(super) struct ProcessArgs {
    /// Name of the snapshot, and of the container
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Set a variable
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User: UID|NAME[:GID|GROUP]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Host name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Program in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Network
    #[arg(long, value_enum, default_value_t = Net::None)]
    pub net: Net,
    /// The root file system is read-only for the process
    #[arg(long)]
    pub read_only: bool,
    /// Platform to pull where the image is missing
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
}

/// Network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Net {
    /// A loopback interface of its own
    None,
    /// The host's
    Host,
}

/// `peel run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Drop what was written when it ends
    #[arg(long)]
    pub rm: bool,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Command in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// `peel daemon`.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: Option<DaemonCommand>,
    /// Memory for decoded file content: bytes, or with K, M or G [default: 64M]
    #[arg(long, env = "PEEL_SPAN_CACHE", value_name = "SIZE", value_parser = parse_size)]
    pub span_cache: Option<u64>,
    /// Do not note what is read when a layer comes into use, to decode it ahead the next time
    #[arg(long, env = "PEEL_NO_FOLLOW_STARTS", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_follow_starts: bool,
    /// Started by a command: log to the file alone, and leave the caller's mount namespace
    #[arg(long, hide = true)]
    pub background: bool,
    /// Kill a worker that answers nothing for so long while it is asked; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub watchdog: u64,
    /// How registries are reached.
    #[command(flatten)]
    pub network: NetworkArgs,
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
    /// Starts are not followed
    #[arg(long)]
    pub no_follow_starts: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub network: NetworkArgs,
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn network_options_come_through() {
        let line = "peel daemon --hosts-dir /a:/b --bandwidth 20M --stall-timeout 5";
        let cli = Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Daemon(args)) = cli else { panic!("daemon") };
        let options = args.network.options();
        assert_eq!(options.hosts_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(options.bandwidth.map(std::num::NonZeroU64::get), Some(20_000_000));
        assert_eq!(options.idle_timeout.as_secs(), 5);
        let passed_on = args.network.arguments().join(" ".as_ref());
        assert_eq!(passed_on, "--hosts-dir /a:/b --bandwidth 20000000 --stall-timeout 5");
        for (text, expected) in
            [("1", Some(1)), ("5k", Some(5_000)), ("0", None), ("x", None), ("99999999999G", None)]
        {
            let found = bandwidth(text).ok().map(std::num::NonZeroU64::get);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn bundle_makes_and_takes_away() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Bundle(made)) = parse("peel bundle nginx ./web -- sh -c true") else {
            panic!("bundle REF DIR");
        };
        assert_eq!(made.create.command, ["sh", "-c", "true"]);
        let Ok(Command::Bundle(removed)) = parse("peel bundle rm ./web") else {
            panic!("bundle rm DIR");
        };
        assert!(removed.command.is_some());
        assert!(parse("peel bundle nginx").is_err());
        assert!(parse("peel bundle").is_err());
    }

    #[test]
    fn a_command_keeps_its_options() {
        let cli = Cli::try_parse_from(["peel", "run", "-it", "--rm", "a", "ls", "-l", "--rm"]);
        let Ok(Command::Run(run)) = cli.map(|cli| cli.command) else { panic!("run") };
        assert!(run.interactive && run.tty && run.rm);
        assert_eq!(run.command, ["ls", "-l", "--rm"]);
    }

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
