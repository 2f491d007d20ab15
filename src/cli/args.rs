//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Count from what FILE says, the output of an earlier peel stats --json
    #[arg(long, value_name = "FILE")]
    pub since: Option<PathBuf>,
    /// Print what happened in every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub watch: Option<u64>,
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
    /// No progress, only the image's digest at the end
    #[arg(short, long)]
    pub quiet: bool,
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
    /// Started by a command: log to the file alone, and leave the caller's mount namespace
    #[arg(long, hide = true)]
    pub background: bool,
    /// Kill a worker that answers nothing for so long while it is asked; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub watchdog: u64,
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
