//! What has to be so for containerd to work with peel.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{DIFF_SERVICE, DIFFER, TRANSFER_SERVICE, Version};
use crate::{
    api::StatusResponse,
    cli::processes::CONTAINERD_ROOT,
    client::bytes_path,
    failure::{Class, Failure},
    mountinfo,
    paths::Paths,
};

/// What is good, or what is missing and what to do about it.
type Found = Result<String, Failure>;

/// Everything; `status` is what the daemon says that runs.
pub(super) fn all(
    paths: &Paths,
    status: Option<&StatusResponse>,
    file: &Path,
    version: Version,
) -> Vec<Found> {
    let mut found = vec![
        stand_in_mounts(paths),
        daemon(paths, status.is_some()),
        namespaces(paths, status.is_some()),
    ];
    match fs::read_to_string(file) {
        Ok(text) => {
            found.push(config(&text, paths, file, version));
            found.push(differ(&text, paths, file, version));
            found.extend(status.map(|status| blobs(&text, status)));
        }
        Err(e) => found.push(Err(missing(
            format!("cannot read {}: {e}", file.display()),
            "write the lines above into it, or name it with --config",
        ))),
    }
    found
}

const REMEDY: &str = "write the lines that peel containerd config prints into it";

fn parse(text: &str, shown: impl std::fmt::Display) -> Result<toml::Table, Failure> {
    toml::from_str(text)
        .map_err(|e| missing(format!("{shown} is no TOML: {}", e.message()), REMEDY))
}

/// Whether a proxy is of that type and this daemon's.
fn is_ours(
    plugin: &toml::Value,
    name: &str,
    kind: &str,
    paths: &Paths,
    shown: impl std::fmt::Display,
) -> Result<(), Failure> {
    let text = |key: &str| plugin.get(key).and_then(toml::Value::as_str).unwrap_or_default();
    for (key, expected) in [("type", PathBuf::from(kind)), ("address", paths.socket())] {
        let found = text(key);
        if Path::new(found) != expected {
            let expected = expected.display();
            let what =
                format!("{key} of {name} in {shown}: expected \"{expected}\", found {found:?}");
            return Err(missing(what, REMEDY));
        }
    }
    Ok(())
}

/// Whether layers that containerd fetches itself get to peel, and only where something comes after
/// it.
pub(super) fn differ(text: &str, paths: &Paths, file: &Path, version: Version) -> Found {
    let unpacked = |why: &str| Ok(format!("layers that containerd fetches are unpacked: {why}"));
    if version < Version::DIFFERS {
        return unpacked(&format!("containerd {version} has no differs but its own"));
    }
    let shown = file.display();
    let config = parse(text, &shown)?;
    let Some(plugin) = config.get("proxy_plugins").and_then(|plugins| plugins.get(DIFFER)) else {
        return unpacked(&format!("{shown} has no [proxy_plugins.{DIFFER}]"));
    };
    is_ours(plugin, DIFFER, "diff", paths, &shown)?;
    let plugins = |name: &str| config.get("plugins").and_then(|plugins| plugins.get(name));
    let order = plugins(DIFF_SERVICE).and_then(|service| service.get("default"));
    let order: Vec<_> = order.and_then(toml::Value::as_array).into_iter().flatten().collect();
    let place = |name: &str| order.iter().position(|differ| differ.as_str() == Some(name));
    if place(DIFFER).is_none_or(|own| place("walking").is_none_or(|other| other < own)) {
        let what = format!("{shown} does not ask {DIFFER} before walking ({DIFF_SERVICE})");
        return Err(missing(what, REMEDY));
    }
    // Left to itself it may take any differ there is, for overlayfs as well
    let unpack = plugins(TRANSFER_SERVICE).and_then(|service| service.get("unpack_config"));
    let unpack: Vec<_> = unpack.and_then(toml::Value::as_array).into_iter().flatten().collect();
    if unpack.is_empty() || unpack.iter().any(|one| one.get("differ").is_none()) {
        let what = format!("{shown} does not say which differ {TRANSFER_SERVICE} takes");
        return Err(missing(what, REMEDY));
    }
    Ok("layers that containerd fetches are indexed".to_owned())
}

/// Whether peel looks for containerd's blobs where they are.
fn blobs(text: &str, status: &StatusResponse) -> Found {
    // What is no TOML has been told
    let config: toml::Table = toml::from_str(text).unwrap_or_default();
    let root = config.get("root").and_then(toml::Value::as_str).unwrap_or(CONTAINERD_ROOT);
    let (expected, found) = (Path::new(root), bytes_path(&status.containerd_root));
    if !is_same(expected, found) {
        let what = format!(
            "peel looks for containerd's blobs in another place: expected {}, found {}",
            expected.display(),
            found.display()
        );
        let remedy = format!("start it with: peel daemon --containerd-root {}", expected.display());
        return Err(missing(what, remedy));
    }
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let blobs = format!("blobs of containerd in {root}");
    match (device(expected), device(bytes_path(&status.root))) {
        (Some(theirs), Some(own)) if theirs == own => Ok(format!("{blobs} are linked")),
        (Some(_), _) => Ok(format!("{blobs} are copied: peel has another file system")),
        (None, _) => Ok(format!("{blobs} are not there yet")),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    one == other || inode(one).is_some_and(|found| Some(found) == inode(other))
}

fn missing(what: impl std::fmt::Display, remedy: impl Into<String>) -> Failure {
    Failure::new(Class::Conflict, what).hint(remedy)
}

fn stand_in_mounts(paths: &Paths) -> Found {
    for path in [paths.root(), paths.state()] {
        if path.to_str().is_none_or(|text| text.contains([':', ',', '\\'])) {
            let what = format!("{} cannot stand in the options of a mount", path.display());
            return Err(missing(what, "start the daemon with another --root and --state"));
        }
    }
    Ok(format!("{} and {} can stand in mounts", paths.root().display(), paths.state().display()))
}

fn daemon(paths: &Paths, answers: bool) -> Found {
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
fn namespaces(paths: &Paths, daemon: bool) -> Found {
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
pub(super) fn config(text: &str, paths: &Paths, file: &Path, version: Version) -> Found {
    let shown = file.display();
    let config = parse(text, &shown)?;
    let plugin = config.get("proxy_plugins").and_then(|plugins| plugins.get("peel"));
    let plugin =
        plugin.ok_or_else(|| missing(format!("{shown} has no [proxy_plugins.peel]"), REMEDY))?;
    is_ours(plugin, "peel", "snapshot", paths, &shown)?;
    let plugins = config.get("plugins");
    let cri = match version >= Version::SECOND {
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
    fn what_is_missing_is_named() {
        let file = Path::new("config.toml");
        let check = |text: &str| {
            config(text, &paths(), file, Version::OLDEST).map_err(|failure| failure.message)
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
        stand_in_mounts(&paths()).expect("good");
        let bad = Paths::new(Some("/a:b".into()), Some("/s".into()), None).expect("paths");
        stand_in_mounts(&bad).expect_err("a colon");
    }

    #[test]
    fn differs_that_would_fail() {
        let file = Path::new("config.toml");
        let check = |text: &str| {
            differ(text, &paths(), file, Version(2, 0, 0)).map_err(|failure| failure.message)
        };
        let plugin = "[proxy_plugins.peel-diff]\ntype = 'diff'\naddress = '/s/peel.sock'\n";
        let order = |names: &str| {
            format!(
                "{plugin}[plugins.'io.containerd.service.v1.diff-service']\ndefault = [{names}]\n"
            )
        };
        let transfer = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n";
        let good = order("'peel-diff', 'walking'");
        for (text, expected) in [
            ("[proxy_plugins.peel-diff]\ntype = 'snapshot'".to_owned(), "type of peel-diff"),
            (plugin.to_owned(), "before walking"),
            (order("'peel-diff'"), "before walking"),
            (order("'walking', 'peel-diff'"), "before walking"),
            (good.clone(), "which differ"),
            (format!("{good}{transfer}snapshotter = 'overlayfs'"), "which differ"),
        ] {
            let message = check(&text).expect_err(&text);
            assert!(message.contains(expected), "{text}: {message}");
        }
        let text = format!("{good}{transfer}snapshotter = 'overlayfs'\ndiffer = 'walking'");
        assert!(check(&text).expect("good").ends_with("indexed"));
        assert!(check("").expect("no differ").contains("unpacked"));
    }

    #[test]
    fn where_blobs_are() {
        let dir = tempfile::tempdir().expect("directory");
        let root = dir.path().to_str().expect("UTF-8");
        let status = |containerd_root: &str| StatusResponse {
            root: root.into(),
            containerd_root: containerd_root.into(),
            ..StatusResponse::default()
        };
        let config = format!("root = {root:?}");
        assert!(blobs(&config, &status(root)).expect("good").ends_with("are linked"));
        let proc = blobs("root = '/proc'", &status("/proc")).expect("good");
        assert!(proc.contains("are copied"), "{proc}");
        let missing = blobs("root = '/missing/x'", &status("/missing/x")).expect("good");
        assert!(missing.contains("not there yet"), "{missing}");
        let other = blobs(&config, &status("/missing/x")).expect_err("another place");
        assert!(other.hint.is_some_and(|hint| hint.ends_with(root)));
    }
}
