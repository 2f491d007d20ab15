//! What the tests of the whole program share: a daemon of their own, images made here, commands
//! with a limit on time.

#![expect(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

pub mod containerd;
pub mod cri;
pub mod idmap;
pub mod image;
pub mod load;
pub mod proxy;
pub mod pushed;
pub mod registry;

use std::{
    fs,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What any command of these tests may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether real mounts can be made. Where not: a loud skip, or a failure where they are required.
pub fn can_mount() -> bool {
    let able = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !able {
        assert!(
            std::env::var_os("PEEL_REQUIRE_FUSE").is_none(),
            "PEEL_REQUIRE_FUSE is set, but there is no root or no /dev/fuse"
        );
        eprintln!("SKIPPED: needs root and /dev/fuse");
    }
    able
}

/// Whether a program is installed. Where not: a loud skip, or a failure where it is required.
pub fn has_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    if !found {
        assert!(
            std::env::var_os("PEEL_REQUIRE_TOOLS").is_none(),
            "PEEL_REQUIRE_TOOLS is set, but {tool} is not installed"
        );
        eprintln!("SKIPPED: needs {tool}");
    }
    found
}

/// Runs a command to its end; one that hangs is killed with its children and fails the test.
pub fn output(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    let drain = |mut pipe: Box<dyn std::io::Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A pipe that breaks ends what there is to read
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("piped")));
    let stderr = drain(Box::new(child.stderr.take().expect("piped")));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if started.elapsed() > LIMIT {
            let group = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            panic!("still running after {LIMIT:?}: {shown}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = (stdout.join().expect("reader"), stderr.join().expect("reader"));
    Output { status, stdout, stderr }
}

/// What a finished command printed.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// Standard error of a command that failed with this exit code, after an `error:` line.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.lines().any(|line| line.starts_with("error: ")), "{self:#?}");
        self.stderr
    }
}

/// Runs any command.
pub fn run(command: &mut Command) -> Ran {
    let output = output(command);
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A daemon of one's own, gone with all its mounts when dropped.
pub struct Peel {
    dir: tempfile::TempDir,
}

impl Peel {
    pub fn new() -> Self {
        Self::named("peel-test-")
    }

    /// One whose directories begin with a name of their own.
    pub fn named(prefix: &str) -> Self {
        Self { dir: tempfile::Builder::new().prefix(prefix).tempdir().expect("directory") }
    }

    /// The directory that holds everything of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// `peel`, to be given arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peel"));
        command
            .env_remove("PEEL_LOG")
            .env("PEEL_ROOT", self.root())
            .env("PEEL_STATE", self.state())
            // What the user of these tests has configured is not theirs
            .env("PEEL_HOSTS_DIR", self.path("certs.d"))
            .env("PEEL_CONTAINERD_ROOT", self.path("containerd/root"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_CONFIG_HOME");
        command.current_dir(self.dir());
        command
    }

    /// Runs `peel` with arguments.
    pub fn peel<const N: usize>(&self, args: [&str; N]) -> Ran {
        run(self.command().args(args))
    }

    /// The JSON that `peel` prints.
    #[track_caller]
    pub fn json<const N: usize>(&self, args: [&str; N]) -> serde_json::Value {
        let text = self.peel(args).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Number of files, directories and the like below the root directory, but for metadata, and
    /// for what is noted of a layer's start some seconds after it.
    pub fn inodes(&self) -> usize {
        let counts = |path: &PathBuf| {
            !path.starts_with(self.root().join("metadata"))
                && path.extension().is_none_or(|extension| extension != "start")
        };
        walk(&self.root()).filter(counts).count()
    }
}

impl Drop for Peel {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let unescape = |path: &str| path.replace("\\040", " ").replace("\\134", "\\");
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
        let mut ours: Vec<_> = ours.filter(|m| Path::new(m).starts_with(self.dir())).collect();
        ours.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
        let lower = self.state().join("lower");
        for mount in ours.into_iter().filter(|mount| Path::new(mount) != lower) {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        let stop = run(self.command().args(["daemon", "stop", "--force"]));
        if stop.code != Some(0) {
            eprintln!("the daemon did not stop: {stop:#?}");
        }
        if thread::panicking() {
            let log = fs::read_to_string(self.state().join("peel.log")).unwrap_or_default();
            eprintln!("--- the daemon's log ---\n{log}");
        }
        let _ = rustix::mount::unmount(lower, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Sends a signal to a process of the daemon's.
#[track_caller]
pub fn kill_process(pid: i64, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("pid")).expect("pid");
    rustix::process::kill_process(pid, signal).expect("it runs");
}

/// All paths below a directory, itself left out; symlinks not followed.
pub fn walk(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let mut pending = vec![dir.to_owned()];
    std::iter::from_fn(move || {
        let path = pending.pop()?;
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
        Some(path)
    })
    .skip(1)
}

/// Empties the page cache and forgets names and inodes, of the whole machine.
pub fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
}

/// Waits until something holds; fails the test where it never does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "never came true: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
