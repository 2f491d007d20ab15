//! `containerd config`: what to write into containerd's configuration, and what stands in the way.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, Subcommand};

use super::{
    Context,
    output::{note, print},
};
use crate::{
    client,
    failure::{Class, Failure},
    mountinfo,
    paths::Paths,
};

/// `peel containerd`.
#[derive(Debug, Subcommand)]
pub(super) enum ContainerdCommand {
    /// Print what belongs into containerd's configuration, and say what is missing
    Config(ContainerdConfigArgs),
}

/// `peel containerd config`.
#[derive(Debug, Args)]
pub(super) struct ContainerdConfigArgs {
    /// Say what is missing and print nothing else; fail where something is
    #[arg(long)]
    pub check: bool,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    pub config: PathBuf,
    /// Version of containerd [default: that of the containerd on the path]
    #[arg(long, value_name = "VERSION")]
    pub containerd: Option<String>,
}

/// The first two numbers of a version of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// The oldest containerd that this was tried with: Debian 12's.
const OLDEST: Version = Version(1, 6);
/// From here on the configuration has another version, and CRI's part other names.
const SECOND: Version = Version(2, 0);

pub(super) async fn config(context: &Context, args: ContainerdConfigArgs) -> Result<(), Failure> {
    let version = match &args.containerd {
        Some(text) => parse_version(text).ok_or_else(|| {
            Failure::new(Class::Usage, format!("expected a version such as 1.6.20, found {text:?}"))
        })?,
        None => installed().unwrap_or_else(|| {
            note("note: no containerd found; this is for version 1.6 (--containerd names another)");
            OLDEST
        }),
    };
    if version < OLDEST {
        let Version(major, minor) = version;
        let message = format!("containerd {major}.{minor} is too old: expected 1.6 or newer");
        return Err(Failure::new(Class::Usage, message));
    }
    if !args.check {
        print(&stanza(&context.paths, version, &args.config)?)?;
    }
    let daemon = client::connect(&context.paths).await?.is_some();
    let configured = fs::read_to_string(&args.config);
    let checks = [
        check_paths(&context.paths),
        check_daemon(&context.paths, daemon),
        check_namespaces(&context.paths, daemon),
        match configured {
            Ok(text) => check_config(&text, &context.paths, &args.config, version),
            Err(e) => Err(missing(
                format!("cannot read {}: {e}", args.config.display()),
                "write the lines above into it, or name it with --config",
            )),
        },
    ];
    let mut failed = 0;
    for check in checks {
        match check {
            Ok(good) => note(format_args!("ok: {good}")),
            Err(failure) => {
                failed += 1;
                note(format_args!("missing: {}", failure.message));
                if let Some(hint) = failure.hint {
                    note(format_args!("         {hint}"));
                }
            }
        }
    }
    if args.check && failed > 0 {
        return Err(Failure::new(
            Class::Conflict,
            format!("containerd is not ready: {failed} of 4"),
        ));
    }
    Ok(())
}

/// The version of the containerd on the path.
fn installed() -> Option<Version> {
    let run = Command::new("containerd").arg("--version").stdin(Stdio::null()).output().ok()?;
    // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    text.split_whitespace().find_map(parse_version)
}

fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.trim_start_matches('v').split('.');
    let major = numbers.next()?.parse().ok()?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some(Version(major, digits(numbers.next()?).parse().ok()?))
}

/// The lines for containerd's configuration.
fn stanza(paths: &Paths, version: Version, file: &Path) -> Result<String, Failure> {
    let socket = toml_string(&paths.socket())?;
    let root = toml_string(paths.root())?;
    let (number, cri) = match version >= SECOND {
        true => (3, r#""io.containerd.cri.v1.images""#),
        false => (2, r#""io.containerd.grpc.v1.cri".containerd"#),
    };
    // From 2.1 on CRI pulls through a service that leaves out the labels that peel goes by
    let local = if version >= Version(2, 1) { "  use_local_image_pull = true\n" } else { "" };
    Ok(format!(
        "# For {file}; then: systemctl restart containerd\n\
         version = {number}\n\
         \n\
         [proxy_plugins.peel]\n\
         \x20 type = \"snapshot\"\n\
         \x20 address = {socket}\n\
         \x20 [proxy_plugins.peel.exports]\n\
         \x20   root = {root}\n\
         \n\
         # Kubernetes: CRI starts pods on it, and tells it which layers to fetch itself\n\
         [plugins.{cri}]\n\
         \x20 snapshotter = \"peel\"\n\
         \x20 disable_snapshot_annotations = false\n{local}",
        file = file.display(),
    ))
}

fn toml_string(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(Class::Usage, format!("{} is not UTF-8", path.display()))
            .hint("start the daemon with another --root and --state")
    })?;
    // What JSON escapes, TOML does in the same way
    Ok(serde_json::Value::from(text).to_string())
}

fn missing(what: impl std::fmt::Display, remedy: impl Into<String>) -> Failure {
    Failure::new(Class::Conflict, what).hint(remedy)
}

fn check_paths(paths: &Paths) -> Result<String, Failure> {
    for path in [paths.root(), paths.state()] {
        if path.to_str().is_none_or(|text| text.contains([':', ',', '\\'])) {
            let what = format!("{} cannot stand in the options of a mount", path.display());
            return Err(missing(what, "start the daemon with another --root and --state"));
        }
    }
    Ok(format!("{} and {} can stand in mounts", paths.root().display(), paths.state().display()))
}

fn check_daemon(paths: &Paths, answers: bool) -> Result<String, Failure> {
    let socket = paths.socket();
    let socket = socket.display();
    match answers {
        true => Ok(format!("the daemon answers on {socket}")),
        false => Err(missing(
            format!("no daemon runs on {socket}"),
            "start it: systemctl start peel, or peel daemon",
        )),
    }
}

/// Every containerd has to see the mount that peel serves, or its containers find empty directories.
fn check_namespaces(paths: &Paths, daemon: bool) -> Result<String, Failure> {
    let running = running_containerds();
    if running.is_empty() {
        return Ok("no containerd runs that would have to be restarted".to_owned());
    }
    if !daemon {
        let what = "whether containerd sees peel's mount cannot be told without a daemon";
        return Err(missing(what, "start it first"));
    }
    for pid in &running {
        let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if !mountinfo::parse(&table).iter().any(|mount| mount.target == paths.lower()) {
            let lower = paths.lower();
            let what =
                format!("containerd (pid {pid}) does not see the mount on {}", lower.display());
            return Err(missing(
                what,
                "it has a mount namespace of its own: start peel before it, or share the mounts \
                 above with MountFlags=shared",
            ));
        }
    }
    let pids: Vec<_> = running.iter().map(u32::to_string).collect();
    Ok(format!("containerd (pid {}) sees peel's mount", pids.join(", ")))
}

fn running_containerds() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "containerd\n")
    };
    pids.filter(is_one).collect()
}

/// Whether the configuration names this daemon, and CRI uses it where CRI is configured.
fn check_config(
    text: &str,
    paths: &Paths,
    file: &Path,
    version: Version,
) -> Result<String, Failure> {
    const REMEDY: &str = "write the lines that peel containerd config prints into it";
    let shown = file.display();
    let config: toml::Table = toml::from_str(text)
        .map_err(|e| missing(format!("{shown} is no TOML: {}", e.message()), REMEDY))?;
    let plugin = config.get("proxy_plugins").and_then(|plugins| plugins.get("peel"));
    let plugin =
        plugin.ok_or_else(|| missing(format!("{shown} has no [proxy_plugins.peel]"), REMEDY))?;
    let text = |key: &str| plugin.get(key).and_then(toml::Value::as_str).unwrap_or_default();
    let expected = [("type", PathBuf::from("snapshot")), ("address", paths.socket())];
    for (key, expected) in expected {
        let found = text(key);
        if Path::new(found) != expected {
            let expected = expected.display();
            let what = format!("{key} of peel in {shown}: expected {expected:?}, found {found:?}");
            return Err(missing(what, REMEDY));
        }
    }
    let plugins = config.get("plugins");
    let cri = match version >= SECOND {
        true => plugins.and_then(|plugins| plugins.get("io.containerd.cri.v1.images")),
        false => plugins
            .and_then(|plugins| plugins.get("io.containerd.grpc.v1.cri"))
            .and_then(|cri| cri.get("containerd")),
    };
    let uses = cri.and_then(|cri| cri.get("snapshotter")).and_then(toml::Value::as_str);
    if uses != Some("peel") {
        return Ok(format!("{shown} has peel as a snapshotter; CRI uses another"));
    }
    // Without them CRI does not say which layer it wants, and containerd unpacks it
    let labels = cri.and_then(|cri| cri.get("disable_snapshot_annotations"));
    if labels.and_then(toml::Value::as_bool) != Some(false) {
        let what = format!("{shown} does not set disable_snapshot_annotations = false for CRI");
        return Err(missing(what, REMEDY));
    }
    Ok(format!("{shown} has peel as a snapshotter, and CRI uses it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths::new(Some("/r".into()), Some("/s".into()), None).expect("paths")
    }

    #[test]
    fn versions() {
        for (text, expected) in [
            ("1.6.20~ds1", Some(Version(1, 6))),
            ("v2.1.0-rc.1", Some(Version(2, 1))),
            ("1.7", Some(Version(1, 7))),
            ("github.com/containerd/containerd", None),
            ("containerd", None),
            ("1", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_printed_passes_the_check() {
        for version in [Version(1, 6), Version(1, 7), Version(2, 0), Version(2, 1)] {
            let file = Path::new("/etc/containerd/config.toml");
            let text = stanza(&paths(), version, file).expect("stanza");
            let good = check_config(&text, &paths(), file, version).expect("good");
            assert!(good.ends_with("and CRI uses it"), "{version:?}: {good}");
            assert_eq!(text.contains("use_local_image_pull"), version >= Version(2, 1));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let file = Path::new("config.toml");
        let check = |text: &str| {
            check_config(text, &paths(), file, OLDEST).map_err(|failure| failure.message)
        };
        let peel = "[proxy_plugins.peel]\ntype = 'snapshot'\naddress = '/s/peel.sock'\n";
        for (text, expected) in [
            ("= x", "is no TOML"),
            ("version = 2", "no [proxy_plugins.peel]"),
            ("[proxy_plugins.peel]\ntype = 'content'", "type of peel"),
            (
                "[proxy_plugins.peel]\ntype = 'snapshot'\naddress = '/x'",
                "expected \"/s/peel.sock\"",
            ),
            (
                &format!(
                    "{peel}[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter='peel'"
                ),
                "disable_snapshot_annotations",
            ),
        ] {
            let message = check(text).expect_err(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert!(check(peel).expect("good").ends_with("CRI uses another"));
    }

    #[test]
    fn paths_that_mounts_cannot_hold() {
        check_paths(&paths()).expect("good");
        let bad = Paths::new(Some("/a:b".into()), Some("/s".into()), None).expect("paths");
        check_paths(&bad).expect_err("a colon");
    }
}
