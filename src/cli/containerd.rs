//! `containerd config`: what to write into containerd's configuration, and what stands in the way.

mod check;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, Subcommand};

use super::{
    Context,
    output::{note, print},
};
use crate::{
    api, client,
    failure::{Class, Failure},
    oci::Platform,
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

/// The numbers of a version of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Version {
    /// The oldest containerd that this was tried with: Debian 12's.
    const OLDEST: Self = Self(1, 6, 0);
    /// From here on there are differs of other programs.
    const DIFFERS: Self = Self(1, 7, 4);
    /// From here on the configuration has another version, CRI's part other names, and mounts can
    /// map ids.
    const SECOND: Self = Self(2, 0, 0);
    /// From here on CRI pulls through a service that leaves out the labels that peel goes by.
    const TRANSFER: Self = Self(2, 1, 0);
}

pub(super) async fn config(context: &Context, args: ContainerdConfigArgs) -> Result<(), Failure> {
    let version = match &args.containerd {
        Some(text) => parse_version(text).ok_or_else(|| {
            Failure::new(Class::Usage, format!("expected a version such as 1.6.20, found {text:?}"))
        })?,
        None => installed().unwrap_or_else(|| {
            note("note: no containerd found; this is for version 1.6 (--containerd names another)");
            Version::OLDEST
        }),
    };
    if version < Version::OLDEST {
        let message = format!("containerd {version} is too old: expected 1.6 or newer");
        return Err(Failure::new(Class::Usage, message));
    }
    let status = status(&context.paths).await?;
    // Without a daemon: what this kernel can is not known, and it is taken to be new
    let maps_ids = status.as_ref().is_none_or(|status| status.maps_ids);
    if !args.check {
        print(&stanza(&context.paths, version, &args.config, maps_ids)?)?;
    }
    let checks = check::all(&context.paths, status.as_ref(), &args.config, version);
    let mut failed = 0;
    for check in &checks {
        match check {
            Ok(good) => note(format_args!("ok: {good}")),
            Err(failure) => {
                failed += 1;
                note(format_args!("missing: {}", failure.message));
                if let Some(hint) = &failure.hint {
                    note(format_args!("         {hint}"));
                }
            }
        }
    }
    if args.check && failed > 0 {
        return Err(Failure::new(
            Class::Conflict,
            format!("containerd is not ready: {failed} of {}", checks.len()),
        ));
    }
    Ok(())
}

/// What the daemon says of itself, if one runs.
async fn status(paths: &Paths) -> Result<Option<api::StatusResponse>, Failure> {
    let Some(mut client) = client::connect(paths).await? else { return Ok(None) };
    Ok(Some(client.status(api::StatusRequest {}).await?.into_inner()))
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
    let mut next = || {
        let number = numbers.next()?;
        let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..digits].parse().ok()
    };
    Some(Version(major, next()?, next().unwrap_or(0)))
}

/// Name of the proxy of peel's diff service: proxies of all types have names of their own.
const DIFFER: &str = "peel-diff";
/// The plugin that asks differs in their order.
const DIFF_SERVICE: &str = "io.containerd.service.v1.diff-service";
/// The plugin that pulls for clients that leave it to containerd.
const TRANSFER_SERVICE: &str = "io.containerd.transfer.v1.local";

/// The lines for containerd's configuration.
fn stanza(paths: &Paths, version: Version, file: &Path, maps_ids: bool) -> Result<String, Failure> {
    let socket = toml_string(&paths.socket())?;
    let root = toml_string(paths.root())?;
    let (number, cri) = match version >= Version::SECOND {
        true => (3, r#""io.containerd.cri.v1.images""#),
        false => (2, r#""io.containerd.grpc.v1.cri".containerd"#),
    };
    let capabilities = match version >= Version::SECOND && maps_ids {
        true => "  capabilities = [\"remap-ids\"]\n",
        false => "",
    };
    let differ = match version >= Version::DIFFERS {
        true => differ(&socket),
        false => String::new(),
    };
    let local = if version >= Version::TRANSFER { "  use_local_image_pull = true\n" } else { "" };
    Ok(format!(
        "# For {file}; then: systemctl restart containerd\n\
         version = {number}\n\
         \n\
         [proxy_plugins.peel]\n\
         \x20 type = \"snapshot\"\n\
         \x20 address = {socket}\n\
         {capabilities}\
         \x20 [proxy_plugins.peel.exports]\n\
         \x20   root = {root}\n\
         \n\
         {differ}\
         # Kubernetes: CRI starts pods on it, and tells it which layers to fetch itself\n\
         [plugins.{cri}]\n\
         \x20 snapshotter = \"peel\"\n\
         \x20 disable_snapshot_annotations = false\n{local}",
        file = file.display(),
    ))
}

/// The lines about layers that containerd fetches itself.
fn differ(socket: &str) -> String {
    let platform = Platform::host();
    let unpack = ["overlayfs", "peel"].map(|snapshotter| {
        format!(
            "\x20 [[plugins.\"{TRANSFER_SERVICE}\".unpack_config]]\n\
             \x20   platform = \"{platform}\"\n\
             \x20   snapshotter = \"{snapshotter}\"\n\
             \x20   differ = \"walking\"\n"
        )
    });
    format!(
        "# Layers that containerd fetches itself: peel indexes them, and what it cannot is unpacked\n\
         [proxy_plugins.{DIFFER}]\n\
         \x20 type = \"diff\"\n\
         \x20 address = {socket}\n\
         \n\
         [plugins.\"{DIFF_SERVICE}\"]\n\
         \x20 default = [\"{DIFFER}\", \"walking\"]\n\
         \n\
         # The transfer service has one differ for a snapshotter and none to fall back on\n\
         [plugins.\"{TRANSFER_SERVICE}\"]\n{}\n",
        unpack.concat(),
    )
}

fn toml_string(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(Class::Usage, format!("{} is not UTF-8", path.display()))
            .hint("start the daemon with another --root and --state")
    })?;
    // What JSON escapes, TOML does in the same way
    Ok(serde_json::Value::from(text).to_string())
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
            ("1.6.20~ds1", Some(Version(1, 6, 20))),
            ("v2.1.0-rc.1", Some(Version(2, 1, 0))),
            ("1.7.4", Some(Version(1, 7, 4))),
            ("1.7", Some(Version(1, 7, 0))),
            ("github.com/containerd/containerd", None),
            ("containerd", None),
            ("1", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_printed_passes_the_check() {
        let versions = [(1, 6, 20), (1, 7, 0), (1, 7, 4), (1, 7, 27), (2, 0, 0), (2, 1, 0)];
        for version in versions.map(|(major, minor, patch)| Version(major, minor, patch)) {
            let file = Path::new("/etc/containerd/config.toml");
            for maps_ids in [false, true] {
                let text = stanza(&paths(), version, file, maps_ids).expect("stanza");
                let good = check::config(&text, &paths(), file, version).expect("good");
                assert!(good.ends_with("and CRI uses it"), "{version}: {good}");
                assert_eq!(text.contains("use_local_image_pull"), version >= Version(2, 1, 0));
                assert_eq!(text.contains("peel-diff"), version >= Version(1, 7, 4));
                let maps = maps_ids && version >= Version(2, 0, 0);
                assert_eq!(text.contains("remap-ids"), maps, "{version}");
                let differs = check::differ(&text, &paths(), file, version).expect("good");
                assert_eq!(differs.contains("indexed"), version >= Version(1, 7, 4), "{differs}");
            }
        }
    }
}
