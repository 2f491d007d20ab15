//! `fs`, `which`, `gc`: looking without mounting, through the daemon's own mount.
//!
//! Paths are resolved as they would be in a container: no link of an image leads out of it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde_json::{Value, json};

use super::{
    Context, copy,
    images::name_or_digest,
    output::{self, incomplete, note, print, print_more},
};
use crate::{
    api,
    client::{Client, bytes_path},
    failure::{Class, Failure},
};

/// `peel fs`.
#[derive(Debug, Subcommand)]
pub(super) enum FsCommand {
    /// List a directory
    Ls {
        /// The image, and the directory in it
        #[command(flatten)]
        place: Place,
        /// Mode, owner, size and time as well
        #[arg(short, long)]
        long: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print files
    Cat {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// The files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Only the first so many layers
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        layers: u32,
    },
    /// Copy a file or a directory out of an image
    Cp {
        /// The image
        #[arg(value_name = "REF")]
        reference: String,
        /// What is copied
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Where to: a directory, or a name that is free
        #[arg(value_name = "DEST")]
        target: PathBuf,
        /// Owners, extended attributes and device nodes as well
        #[arg(short, long)]
        archive: bool,
        /// Only the first so many layers
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        layers: u32,
    },
    /// Show what is known of a file, links not followed
    Stat {
        /// The image, and the file
        #[command(flatten)]
        place: Place,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A file of an image.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The path in it
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: PathBuf,
    /// Only the first so many layers
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub layers: u32,
}

/// An image's files.
pub(super) struct Root {
    name: String,
    pub(super) dir: OwnedFd,
}

impl Root {
    pub(super) async fn open(
        client: &mut Client,
        reference: &str,
        layers: u32,
    ) -> Result<Self, Failure> {
        let reference = name_or_digest(reference)?;
        let found = client.find_tree(api::FindTreeRequest { reference, layers }).await?;
        let api::FindTreeResponse { name, path } = found.into_inner();
        let path = bytes_path(&path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
            let message = format!("cannot open {}: {e}", path.display());
            Failure::io(&e.into(), message).hint("is the daemon's mount seen from here?")
        })?;
        Ok(Self { name, dir })
    }

    /// Opens a path as a process in the image would, the last link followed or not.
    fn at(&self, path: &Path, flags: OFlags) -> Result<File, Failure> {
        let inside = ResolveFlags::IN_ROOT;
        let mut path = path;
        if path.as_os_str().is_empty() {
            path = Path::new("/");
        }
        let opened = openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), inside);
        opened.map(File::from).map_err(|e| {
            let e = io::Error::from(e);
            Failure::io(&e, format!("cannot open {} of {}: {e}", path.display(), self.name))
        })
    }
}

pub(super) async fn fs(context: &Context, command: FsCommand) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    match command {
        FsCommand::Ls { place, long, json } => {
            let root = Root::open(&mut client, &place.reference, place.layers).await?;
            list(&root, &place.path, long, json)
        }
        FsCommand::Cat { reference, paths, layers } => {
            let root = Root::open(&mut client, &reference, layers).await?;
            output::for_all(paths, async |path| cat(&root, &path)).await
        }
        FsCommand::Cp { reference, path, target, archive, layers } => {
            let root = Root::open(&mut client, &reference, layers).await?;
            let from = root.at(&path, OFlags::PATH | OFlags::NOFOLLOW)?;
            let name = path.file_name().map(OsStr::to_owned);
            copy::out(&from, name.as_deref(), &target, archive)
        }
        FsCommand::Stat { place, json } => {
            let root = Root::open(&mut client, &place.reference, place.layers).await?;
            let file = root.at(&place.path, OFlags::PATH | OFlags::NOFOLLOW)?;
            let found = describe(&file, &place.path, None)?;
            if json {
                return output::json(&found);
            }
            let mut text = String::new();
            for (key, value) in found.as_object().into_iter().flatten() {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text.push_str(&format!("{key}: {value}\n"));
            }
            print(&text)
        }
    }
}

/// A path to an open file by which it can be looked at again.
pub(super) fn again(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |e| Failure::io(&e, format!("cannot read {}: {e}", path.display()))
}

fn list(root: &Root, path: &Path, long: bool, json: bool) -> Result<(), Failure> {
    let file = root.at(path, OFlags::PATH)?;
    let failed = failed(path);
    let is_dir = file.metadata().map_err(&failed)?.is_dir();
    let mut entries = Vec::new();
    match is_dir {
        true => {
            for entry in fs::read_dir(again(&file)).map_err(&failed)? {
                entries.push(entry.map_err(&failed)?.file_name());
            }
        }
        false => entries.push(path.as_os_str().to_owned()),
    }
    entries.sort();
    if !long && !json {
        let lines: Vec<_> = entries.iter().map(|name| shown(name)).collect();
        return print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    }
    let mut found = Vec::new();
    for name in entries {
        let path = if is_dir { path.join(&name) } else { PathBuf::from(&name) };
        // Entries by the directory's own descriptor: its path may be a link
        let entry = match is_dir {
            true => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(file.as_fd(), &name, flags, Mode::empty());
                File::from(opened.map_err(|e| failed(e.into()))?)
            }
            false => root.at(&path, OFlags::PATH | OFlags::NOFOLLOW)?,
        };
        found.push(describe(&entry, &path, Some(&name))?);
    }
    if json {
        return output::json(&Value::Array(found));
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows: Vec<_> = found
        .iter()
        .map(|entry| {
            let name = match entry.get("target") {
                Some(target) => format!("{} -> {}", text(&entry["name"]), text(target)),
                None => text(&entry["name"]),
            };
            let owner = format!("{}:{}", entry["uid"], entry["gid"]);
            let size = entry.get("device").map_or_else(|| text(&entry["size"]), text);
            [
                text(&entry["permissions"]),
                text(&entry["links"]),
                owner,
                size,
                text(&entry["time"]),
                name,
            ]
        })
        .collect();
    output::table(["MODE", "LINKS", "OWNER", "SIZE", "TIME", "NAME"], &rows)
}

/// A name for people: what would move the cursor is escaped.
fn shown(name: &OsStr) -> String {
    let text = name.to_string_lossy();
    match text.chars().any(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text.into_owned(),
    }
}

fn describe(file: &File, path: &Path, name: Option<&OsStr>) -> Result<Value, Failure> {
    let failed = failed(path);
    let found = file.metadata().map_err(&failed)?;
    let mode = found.mode();
    let (kind, letter) = match mode & 0o170_000 {
        0o040_000 => ("directory", 'd'),
        0o120_000 => ("symlink", 'l'),
        0o020_000 => ("character device", 'c'),
        0o060_000 => ("block device", 'b'),
        0o010_000 => ("fifo", 'p'),
        0o140_000 => ("socket", 's'),
        _ => ("file", '-'),
    };
    let mut entry = json!({
        "name": name.map_or_else(|| path.to_string_lossy().into_owned(), shown),
        "kind": kind,
        "permissions": format!("{letter}{}", permissions(mode)),
        "mode": format!("{:04o}", mode & 0o7777),
        "uid": found.uid(),
        "gid": found.gid(),
        "links": found.nlink(),
        "size": found.size(),
        "time": time(found.mtime(), found.mtime_nsec()),
        "inode": found.ino(),
    });
    if kind == "symlink" {
        let target = rustix::fs::readlinkat(file.as_fd(), "", Vec::new());
        let target = target.map_err(|e| failed(e.into()))?;
        entry["target"] = shown(OsStr::from_bytes(target.as_bytes())).into();
    }
    if kind.ends_with("device") {
        let device = found.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        entry["device"] = format!("{major}, {minor}").into();
    }
    if matches!(kind, "file" | "directory") {
        let xattrs = copy::xattrs(file).map_err(&failed)?;
        if !xattrs.is_empty() {
            let shown = xattrs.iter().map(|(name, value)| {
                let value = match std::str::from_utf8(value) {
                    Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
                    _ => value.iter().map(|b| format!("{b:02x}")).collect(),
                };
                (name.to_string_lossy().into_owned(), Value::from(value))
            });
            entry["xattrs"] = Value::Object(shown.collect());
        }
    }
    Ok(entry)
}

/// As ls(1) writes them.
fn permissions(mode: u32) -> String {
    let mut text: Vec<char> = (0..9)
        .map(|bit| if mode & (0o400 >> bit) != 0 { ['r', 'w', 'x'][bit % 3] } else { '-' })
        .collect();
    for (bit, place, set, unset) in
        [(0o4000, 2, 's', 'S'), (0o2000, 5, 's', 'S'), (0o1000, 8, 't', 'T')]
    {
        if mode & bit != 0 {
            text[place] = if text[place] == 'x' { set } else { unset };
        }
    }
    text.into_iter().collect()
}

/// A time in UTC, as in 2024-01-31T23:59:59Z; source: Howard Hinnant's civil_from_days.
pub(super) fn time(seconds: i64, nanoseconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match nanoseconds {
        0 => String::new(),
        n => format!(".{n:09}"),
    };
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

fn cat(root: &Root, path: &Path) -> Result<(), Failure> {
    let failed = failed(path);
    let found = root.at(path, OFlags::PATH)?;
    let kind = found.metadata().map_err(&failed)?;
    if kind.is_dir() {
        return Err(Failure::new(Class::Usage, format!("{} is a directory", path.display()))
            .hint(format!("list it with: peel fs ls REF {}", path.display())));
    }
    if !kind.is_file() {
        // To open one would act on the host's device of that number
        let message = format!("{} is a device or a fifo: it has no content", path.display());
        return Err(Failure::new(Class::Usage, message));
    }
    let mut file = File::open(again(&found)).map_err(&failed)?;
    let mut stdout = io::stdout().lock();
    match io::copy(&mut file, &mut stdout).and_then(|_| stdout.flush()) {
        // Nobody reads any more
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(()) => Ok(()),
    }
}

/// `peel which`.
pub(super) async fn which(
    context: &Context,
    reference: String,
    path: PathBuf,
    json: bool,
) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let root = Root::open(&mut client, &reference, 0).await?;
    let file = root.at(&path, OFlags::PATH | OFlags::NOFOLLOW)?;
    let inode = file.metadata().map_err(failed(&path))?.ino();
    let request = api::LocateFileRequest { reference: name_or_digest(&reference)?, inode };
    let found = client.locate_file(request).await?.into_inner().json;
    let found: Value = serde_json::from_str(&found).map_err(|_| incomplete("JSON"))?;
    if json {
        return output::json(&found);
    }
    let path = path.display();
    if found.get("layer").is_none() {
        return print(&format!("{path}: merged from {} layers\n", list_len(&found["layers"])));
    }
    let layer = &found["layer"];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = format!(
        "{path}: layer {} of {}\nblob: {}\ndiffID: {}\n",
        layer["number"],
        layer["of"],
        text(&layer["digest"]),
        text(&layer["diff_id"])
    );
    for extent in found["extents"].as_array().into_iter().flatten() {
        let (size, at) = (&extent["size"], &extent["tar_offset"]);
        lines.push_str(&format!("tar: {size} bytes at {at}\n"));
    }
    for span in found["spans"].as_array().into_iter().flatten() {
        lines.push_str(&format!(
            "span {}: {} bytes at {} of the {}\n",
            span["number"],
            span["size"],
            span["offset"],
            text(&span["in"])
        ));
    }
    print_more(&lines).map(drop)
}

fn list_len(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

/// `peel gc`.
pub(super) async fn gc(context: &Context, dry_run: bool, json: bool) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let request = api::CollectGarbageRequest { dry_run };
    let api::CollectGarbageResponse { items, freed } =
        client.collect_garbage(request).await?.into_inner();
    if json {
        let item = |item: &api::GarbageItem| json!({ "kind": item.kind, "id": item.id, "bytes": item.bytes });
        let items: Vec<_> = items.iter().map(item).collect();
        return output::json(&json!({ "dry_run": dry_run, "items": items, "freed": freed }));
    }
    if !items.is_empty() {
        let row = |item: &api::GarbageItem| {
            [item.kind.clone(), item.id.clone(), HumanBytes(item.bytes).to_string()]
        };
        output::table(["KIND", "ID", "SIZE"], &items.iter().map(row).collect::<Vec<_>>())?;
    }
    let verb = if dry_run { "would be freed" } else { "freed" };
    note(format_args!("{} {verb}", HumanBytes(freed)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_600_000_000, 5, "2020-09-13T12:26:40.000000005Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, nanoseconds, expected) in table {
            assert_eq!(time(seconds, nanoseconds), expected);
        }
    }

    #[test]
    fn modes() {
        let table = [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o4644, "rwSr--r--"),
            (0o1777, "rwxrwxrwt"),
            (0o2000, "-----S---"),
        ];
        for (mode, expected) in table {
            assert_eq!(permissions(mode), expected);
        }
    }
}
