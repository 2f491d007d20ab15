//! The command line: parses, asks the daemon, prints. Data goes to standard output, all else to
//! standard error.

mod archive;
mod args;
mod bundle;
mod containerd;
mod copy;
mod images;
mod leases;
mod look;
mod make;
mod meta;
mod mount;
mod network;
mod output;
mod processes;
mod progress;
mod registry;
mod scrub;
mod service;
mod stats;
mod store;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    client::{self, Client, StartOptions},
    daemon,
    failure::{Class, Failure},
    layers::SPAN_CACHE_BYTES,
    paths::Paths,
};
use args::{
    BundleSubcommand, Cli, Command, DaemonArgs, DaemonCommand, Global, InspectFormat, NetworkArgs,
    RoleArgs, ServingArgs, StoreArgs,
};

/// Parses the process's arguments and runs them.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&failure);
            failure.class.into()
        }
    }
}

/// What every command needs.
struct Context {
    paths: Paths,
    start: StartOptions,
}

impl Context {
    fn new(global: Global) -> Result<Self, Failure> {
        let paths = Paths::new(global.root, global.state, global.socket)
            .map_err(|e| Failure::new(Class::Usage, e))?;
        Ok(Self { paths, start: StartOptions { log_level: global.log_level } })
    }

    /// How a process of the daemon runs.
    fn process(
        self,
        background: bool,
        span_cache: u64,
        watchdog: u64,
        serving: &ServingArgs,
        network: &NetworkArgs,
        store: &StoreArgs,
    ) -> daemon::keeper::Options {
        let mut further_args = network.arguments();
        further_args.extend(serving.arguments());
        further_args.extend(store.arguments());
        daemon::keeper::Options {
            paths: self.paths,
            log_level: self.start.log_level,
            span_cache,
            follow_starts: !serving.no_follow_starts,
            busy_poll: std::time::Duration::from_micros(serving.busy_poll.into()),
            background,
            patience: std::time::Duration::from_secs(watchdog),
            network: network.options(),
            metrics: network.metrics,
            max_size: store.max_size,
            containerd_root: store.containerd_root.clone(),
            further_args,
        }
    }

    /// The same for one that another process of the daemon has started.
    fn role(self, role: &RoleArgs) -> daemon::keeper::Options {
        let RoleArgs { background, span_cache, serving, network, store } = role;
        self.process(*background, *span_cache, 0, serving, network, store)
    }

    async fn connect(&self) -> Result<Client, Failure> {
        client::connect_or_start(&self.paths, &self.start).await
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let context = Context::new(cli.global)?;
    match cli.command {
        // The keeper and the worker decide themselves what runtime they want
        Command::Daemon(args) => match args.command {
            None => {
                let span_cache = args.span_cache.unwrap_or(SPAN_CACHE_BYTES);
                let DaemonArgs { background, watchdog, serving, network, store, .. } = args;
                daemon::keeper::run(
                    &context.process(background, span_cache, watchdog, &serving, &network, &store),
                )
            }
            Some(DaemonCommand::Worker(role)) => Ok(daemon::worker::run(context.role(&role))),
            Some(DaemonCommand::Keeper(role)) => daemon::keeper::resume(&context.role(&role)),
            Some(DaemonCommand::Reload) => {
                block_on(service::reload(&context)).map(|()| ExitCode::SUCCESS)
            }
            Some(DaemonCommand::Stop { force }) => {
                block_on(service::stop(&context, force)).map(|()| ExitCode::SUCCESS)
            }
        },
        Command::Run(args) => match block_on(bundle::run(&context, args)) {
            Ok(code) => Ok(code),
            // As docker has it: 125 says that peel failed, and not the command
            Err(failure) => {
                output::failure(&failure);
                Ok(ExitCode::from(125))
            }
        },
        command => block_on(client_command(&context, command)).map(|()| ExitCode::SUCCESS),
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::io(&e, format!("cannot start: {e}")))?.block_on(future)
}

async fn client_command(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Pull(args) => images::pull(context, args).await,
        Command::Push(args) => registry::push(context, args).await,
        Command::Login(args) => registry::login(args).await,
        Command::Logout { registry } => registry::logout(registry).await,
        Command::Images(json) => images::list(context, json.json).await,
        Command::Rm { references } => images::remove(context, references).await,
        Command::Inspect { reference, format } => {
            images::inspect(context, reference, format == InspectFormat::Docker).await
        }
        Command::Tag { reference, target } => store::tag(context, &reference, &target).await,
        Command::History { reference, no_trunc, json } => {
            store::history(context, &reference, no_trunc, json).await
        }
        Command::Check { references, json } => store::check(context, references, json).await,
        Command::Import(args) => archive::import(context, args).await,
        Command::Export(args) => archive::export(context, args).await,
        Command::Commit(args) => make::commit(context, args).await,
        Command::Convert(args) => make::convert(context, args).await,
        Command::Diff(args) => make::diff(context, args).await,
        Command::Df(json) => store::df(context, json.json).await,
        Command::Prune(args) => store::prune(context, args).await,
        Command::Label { reference, labels } => store::label(context, &reference, labels).await,
        Command::Pin { references } => store::pin(context, references, true).await,
        Command::Unpin { references } => store::pin(context, references, false).await,
        Command::Gc { dry_run, json } => look::gc(context, dry_run, json).await,
        Command::Fs(command) => look::fs(context, command).await,
        Command::Which { reference, path, json } => {
            look::which(context, reference, path, json).await
        }
        Command::Scrub(args) => scrub::scrub(context, args).await,
        Command::Mount(args) => mount::mount(context, args).await,
        Command::Umount(args) => mount::umount(context, args).await,
        Command::Mounts(json) => mount::list(context, json.json).await,
        Command::Snapshots(command) => mount::snapshots(context, command).await,
        Command::Bundle(command) => match command.command {
            Some(BundleSubcommand::Rm { bundles, keep }) => {
                bundle::remove(context, bundles, keep).await
            }
            None => bundle::create(context, command.create).await,
        },
        Command::Containerd(containerd::ContainerdCommand::Config(args)) => {
            containerd::config(context, args).await
        }
        Command::Status(json) => service::status(context, json.json).await,
        Command::Stats(args) => stats::stats(context, args).await,
        Command::Logs { follow, lines } => service::logs(context, follow, lines).await,
        Command::Version(json) => service::version(json.json),
        Command::Content(command) => meta::content(context, command).await,
        Command::Metadata(command) => meta::metadata(context, command).await,
        Command::Leases(command) => leases::leases(context, command).await,
        Command::Completion { shell } => meta::completion(shell),
        Command::Man { dir } => meta::man(dir),
        Command::Daemon(_) | Command::Run(_) => {
            Err(Failure::new(Class::Other, "not a command of the client"))
        }
    }
}
