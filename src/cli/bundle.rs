//! `bundle` and `run`.

use std::{
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{self, IsTerminal as _},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
};

use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};

use super::{
    Context,
    args::{BundleArgs, Net, ProcessArgs, RunArgs},
    images,
    mount::{MadeDir, Mounted, find, namespace, refuse_mount_point, unmount},
    output::{self, note},
};
use crate::{
    api::{self, MountKind},
    bundle::FILES,
    client::{Client, path_bytes},
    failure::{Class, Failure},
};

/// What a bundle has beside its rootfs and [`FILES`]: the runtime's configuration.
const CONFIG: &str = "config.json";

/// What a bundle is made from.
struct Request {
    reference: String,
    process: ProcessArgs,
    command: Vec<String>,
    terminal: bool,
    kind: MountKind,
}

pub(super) async fn create(context: &Context, args: BundleArgs) -> Result<(), Failure> {
    // Only `bundle rm` comes without them
    let (Some(reference), Some(bundle)) = (args.reference, args.bundle) else {
        return Err(Failure::new(Class::Usage, "expected an image and a directory"));
    };
    let request = Request {
        reference: images::canonical(&reference)?,
        process: args.process,
        command: args.command,
        terminal: args.tty,
        kind: MountKind::Bundle,
    };
    refuse_mount_point(&bundle)?;
    let mut client = context.connect().await?;
    ensure(&mut client, &request).await?;
    let (snapshot, left) = make(&mut client, request, &bundle).await?;
    let bundle = bundle.display();
    let made = match left {
        Left::Nothing => "made bundle",
        Left::Bundle => "mounted again bundle",
    };
    note(format_args!(
        "{made} {bundle}, snapshot {snapshot}; start it with: runc run -b {bundle} ID"
    ));
    Ok(())
}

async fn ensure(client: &mut Client, request: &Request) -> Result<(), Failure> {
    images::ensure(client, &request.reference, request.process.platform.clone()).await
}

/// Makes a bundle of an image that is here, and names its snapshot; a failure leaves nothing of it.
async fn make(
    client: &mut Client,
    request: Request,
    bundle: &Path,
) -> Result<(String, Left), Failure> {
    let dir = MadeDir::at(bundle)?;
    let left = refuse_filled(dir.path())?;
    let rootfs = MadeDir::at(&dir.path().join("rootfs"))?;
    let prepare = api::PrepareMountRequest {
        reference: request.reference.clone(),
        target: path_bytes(rootfs.path()),
        writable: true,
        name: request.process.name.clone().unwrap_or_default(),
        kind: request.kind.into(),
        mount_ns: namespace()?,
        suid: true,
        dev: true,
        created_target: true,
        bundle_dir: path_bytes(dir.path()),
        layers: 0,
    };
    let mounted = Mounted::make(client, prepare, rootfs.path()).await?;
    let config = dir.path().join(CONFIG);
    let finished = match left {
        Left::Nothing => finish(client, &mounted, request, &config).await,
        // What the user may have made of it is worth more than what would be written now
        Left::Bundle => mounted.confirm(client).await,
    };
    match finished {
        Ok(()) => {
            rootfs.keep();
            dir.keep();
            Ok((mounted.snapshot, left))
        }
        Err(failure) => {
            // The first failure is the one to tell
            if left == Left::Nothing {
                let _ = remove_files(dir.path());
            }
            let _ = mounted.undo(client, rootfs.path()).await;
            Err(failure)
        }
    }
}

/// What is in a directory that is to become a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// A bundle whose mount is gone, as after a reboot: a config and an empty rootfs.
    Bundle,
}

fn refuse_filled(dir: &Path) -> Result<Left, Failure> {
    let failed = |e: io::Error| Failure::io(&e, format!("cannot read {}: {e}", dir.display()));
    let names = fs::read_dir(dir).map_err(failed)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    names.sort();
    if names.iter().any(|name| name == CONFIG) {
        names.retain(|name| FILES.iter().all(|(file, _)| name != file));
    }
    let is_empty = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if names == [CONFIG, "rootfs"] && is_empty(&dir.join("rootfs")) {
        return Ok(Left::Bundle);
    }
    match names.first() {
        None => Ok(Left::Nothing),
        Some(found) => {
            let message = format!(
                "{} cannot become a bundle: expected an empty directory, found {}",
                dir.display(),
                found.display()
            );
            let hint = format!("if it is a bundle: peel bundle rm {}", dir.display());
            Err(Failure::new(Class::Conflict, message).hint(hint))
        }
    }
}

async fn finish(
    client: &mut Client,
    mounted: &Mounted,
    request: Request,
    config: &Path,
) -> Result<(), Failure> {
    let process = request.process;
    let made = client
        .bundle_config(api::BundleConfigRequest {
            id: mounted.id,
            args: request.command,
            env: process.env,
            cwd: process.workdir.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            hostname: process.hostname.unwrap_or_default(),
            terminal: request.terminal,
            host_network: process.net == Net::Host,
            read_only: process.read_only,
            entrypoint: process.entrypoint.into_iter().collect(),
        })
        .await?
        .into_inner();
    let write = |path: &Path, content: &[u8]| {
        fs::write(path, content)
            .map_err(|e| Failure::io(&e, format!("cannot write {}: {e}", path.display())))
    };
    for file in made.files {
        let path = config.with_file_name(&file.name);
        write(&path, &file.content)?;
        // Users of the container read them, whatever the umask was here
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(|e| Failure::io(&e, format!("cannot open up {}: {e}", path.display())))?;
    }
    write(config, made.json.as_bytes())?;
    mounted.confirm(client).await
}

pub(super) async fn remove(
    context: &Context,
    bundles: Vec<PathBuf>,
    keep: bool,
) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    output::for_all(bundles, async |bundle| {
        let snapshot = take_away(&mut client, &bundle, keep).await?;
        let what = if keep { "kept" } else { "removed" };
        note(format_args!("removed bundle {}, snapshot {snapshot} {what}", bundle.display()));
        Ok(())
    })
    .await
}

fn gone(path: &Path, result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(&e, format!("cannot remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what a bundle has beside its rootfs.
fn remove_files(bundle: &Path) -> Result<(), Failure> {
    for name in [CONFIG].into_iter().chain(FILES.map(|(name, _)| name)) {
        let path = bundle.join(name);
        gone(&path, fs::remove_file(&path))?;
    }
    Ok(())
}

async fn take_away(client: &mut Client, bundle: &Path, keep: bool) -> Result<String, Failure> {
    let rootfs = bundle.join("rootfs");
    let Some(mount) = find(client, &rootfs).await?.filter(|m| !m.bundle_dir.is_empty()) else {
        let message = format!("{} is not a bundle of peel", bundle.display());
        return Err(Failure::new(Class::NotFound, message).hint("list them with: peel mounts"));
    };
    let snapshot = unmount(client, &mount, !keep, false).await?;
    remove_files(bundle)?;
    gone(&rootfs, fs::remove_dir(&rootfs))?;
    // What somebody else has put beside them is not ours
    let _ = fs::remove_dir(bundle);
    Ok(snapshot)
}

pub(super) async fn run(context: &Context, args: RunArgs) -> Result<ExitCode, Failure> {
    require_runc()?;
    if args.tty && !io::stdin().is_terminal() {
        return Err(Failure::new(Class::Usage, "-t needs a terminal on standard input")
            .hint("leave -t out where input is a pipe or a file"));
    }
    let mut client = context.connect().await?;
    let random = || format!("run-{:08x}", RandomState::new().build_hasher().finish() as u32);
    let name = args.process.name.clone().unwrap_or_else(random);
    let runs = context.paths.runs();
    fs::create_dir_all(&runs)
        .map_err(|e| Failure::io(&e, format!("cannot create {}: {e}", runs.display())))?;
    if !is_plain_name(&name) {
        let message =
            format!("malformed name: expected letters, digits, '_', '.', '-', found: {name:?}");
        return Err(Failure::new(Class::Usage, message));
    }
    let bundle = runs.join(&name);
    if bundle.join("rootfs").exists() {
        let message =
            format!("a container named {name} runs, or was left when its peel was killed");
        let remedy = format!("once it has ended: peel bundle rm {}", bundle.display());
        return Err(Failure::new(Class::Conflict, message)
            .hint(format!("give this one another --name; {remedy}")));
    }
    let request = Request {
        reference: images::canonical(&args.reference)?,
        process: ProcessArgs { name: Some(name.clone()), ..args.process },
        command: args.command,
        terminal: args.tty,
        kind: MountKind::Run,
    };
    ensure(&mut client, &request).await?;
    // From here on there is something to clean up
    let mut signals = Signals::new()?;
    make(&mut client, request, &bundle).await?;
    let status = wait(spawn(&bundle, &name, args.interactive || args.tty), &mut signals).await;
    let taken = take_away(&mut client, &bundle, !args.rm).await;
    let code = exit_code(status?);
    let snapshot = taken?;
    if !args.rm {
        note(format_args!(
            "snapshot {snapshot} kept; remove it with: peel snapshots rm {snapshot}"
        ));
    }
    Ok(code)
}

/// runc's rule for the names of containers, and safe as the name of a directory.
fn is_plain_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    name.bytes().all(plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn require_runc() -> Result<(), Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("runc").is_file()) {
        return Ok(());
    }
    Err(Failure::new(
        Class::Unavailable,
        "runc is missing: expected it in one of PATH's directories",
    )
    .hint("install it, on Debian with: apt install runc"))
}

fn spawn(bundle: &Path, name: &str, input: bool) -> io::Result<Child> {
    let mut command = Command::new("runc");
    command.arg("run").arg("--bundle").arg(bundle).arg(name);
    if !input {
        command.stdin(Stdio::null());
    }
    command.spawn()
}

/// Signals meant to end a container, caught from when they are made.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let caught =
            |kind| signal(kind).map_err(|e| Failure::io(&e, format!("cannot handle signals: {e}")));
        Ok(Self {
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
            hangup: caught(SignalKind::hangup())?,
        })
    }
}

/// Waits for runc; signals meant to end it are passed on, and peel stays to clean up.
async fn wait(child: io::Result<Child>, signals: &mut Signals) -> Result<ExitStatus, Failure> {
    let failed = |e: io::Error| Failure::io(&e, format!("cannot run runc: {e}"));
    let mut child = child.map_err(failed)?;
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(failed),
            // A terminal sends it to runc as well
            _ = signals.interrupt.recv() => {}
            _ = signals.terminate.recv() => pass_on(&child, rustix::process::Signal::TERM),
            _ = signals.hangup.recv() => pass_on(&child, rustix::process::Signal::HUP),
        }
    }
}

fn pass_on(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.try_into().ok()?));
    if let Some(pid) = pid {
        // It may have ended just now, which is what was wanted
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// As shells have it: 128 and the signal for a process that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers() {
        for good in ["web", "run-0a", "a.b_c"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", "ä", "a b"] {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_filled_directory_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(refuse_filled(dir.path()), Ok(Left::Nothing));
        fs::write(dir.path().join("config.json"), "").expect("write");
        assert_eq!(refuse_filled(dir.path()).expect_err("filled").class, Class::Conflict);
        fs::create_dir(dir.path().join("rootfs")).expect("directory");
        assert_eq!(refuse_filled(dir.path()), Ok(Left::Bundle));
        fs::write(dir.path().join("rootfs/x"), "").expect("write");
        assert_eq!(refuse_filled(dir.path()).expect_err("filled").class, Class::Conflict);
    }

    #[test]
    fn exit_codes() {
        let code = |raw| format!("{:?}", exit_code(ExitStatus::from_raw(raw)));
        assert_eq!(code(7 << 8), format!("{:?}", ExitCode::from(7)));
        assert_eq!(code(9), format!("{:?}", ExitCode::from(137)));
    }
}
