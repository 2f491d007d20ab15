//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use super::{
    archive::{ExportArgs, ImportArgs},
    containerd::ContainerdCommand,
    leases::LeasesCommand,
    look::FsCommand,
    make::{CommitArgs, ConvertArgs, DiffArgs},
    meta::{ContentCommand, MetadataCommand},
    network::NetworkArgs,
    processes::{DaemonArgs, DaemonCommand, RoleArgs, ServingArgs, StoreArgs},
    store::PruneArgs,
};

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
        /// Whose words it is told in
        #[arg(long, value_enum, default_value_t = InspectFormat::Peel)]
        format: InspectFormat,
    },
    /// Give an image a further name
    Tag {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// The name; one that stands for another image changes sides
        #[arg(value_name = "TARGET")]
        target: String,
    },
    /// Show how an image was built
    History {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// Do not cut long commands
        #[arg(long)]
        no_trunc: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether images are complete, and what is missing
    Check {
        /// The images [default: all]
        #[arg(value_name = "REF")]
        references: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take images from an archive or an image layout
    #[command(visible_alias = "load")]
    Import(ImportArgs),
    /// Write images to an archive or an image layout
    #[command(visible_alias = "save")]
    Export(ExportArgs),
    /// Make an image of what was written to a snapshot
    Commit(CommitArgs),
    /// Make an image of another's layers, compressed otherwise
    Convert(ConvertArgs),
    /// Show what was written to a snapshot, or how two images differ
    Diff(DiffArgs),
    /// Show what uses the disk
    Df(Json),
    /// Remove images that nobody uses, and everything that nothing names
    Prune(PruneArgs),
    /// Set labels of an image, or show them
    Label {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// KEY=VALUE sets, KEY= takes away
        #[arg(value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Keep images from being removed to make room
    Pin {
        /// The images
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
    },
    /// Let images be removed to make room
    Unpin {
        /// The images
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
    },
    /// Remove what nothing names: blobs, indexes, trees, leases that have ended
    Gc {
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look into an image without mounting it
    #[command(subcommand)]
    Fs(FsCommand),
    /// Say which layer a file comes from, and where in it
    Which {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// The file
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
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
    /// Look at blobs, put some in, or take some out
    #[command(subcommand)]
    Content(ContentCommand),
    /// Keep what no image needs for a while
    #[command(subcommand)]
    Leases(LeasesCommand),
    /// Look at all records, or put others in their place
    #[command(subcommand)]
    Metadata(MetadataCommand),
    /// Print what a shell completes this command's words with
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands
    Man {
        /// Directory for the pages of all commands
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// In whose words an image is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum InspectFormat {
    /// peel's own
    Peel,
    /// As docker inspect has it
    Docker,
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
    /// Only the first so many layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
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
}
