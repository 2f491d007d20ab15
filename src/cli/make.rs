//! `commit`, `convert`, `diff`.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use rustix::fs::{Mode, OFlags, openat};
use serde_json::json;

use super::{
    Context, copy,
    images::{canonical, name_or_digest},
    look::{Root, again, time},
    output::{self, note, print},
};
use crate::{
    api,
    client::{bytes_path, path_bytes},
    failure::{Class, Failure},
};

/// `peel commit`.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    /// A snapshot, or the directory that it is mounted on or a bundle of
    #[arg(value_name = "SNAPSHOT|DIR")]
    pub snapshot: PathBuf,
    /// Name of the new image
    #[arg(value_name = "REF")]
    pub target: String,
    /// What it is for
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub message: String,
    /// Who makes it
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub author: String,
    /// An instruction that changes the config: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL,
    /// USER, VOLUME or WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// How the new layer is compressed
    #[arg(long, value_enum, default_value_t = Compression::Gzip)]
    pub compression: Compression,
    /// When it was made, in seconds since 1970 [default: now]
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS")]
    pub created: Option<i64>,
}

/// `peel convert`.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// The image
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Name of the new image
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// How its layers are compressed
    #[arg(long, value_enum)]
    pub compression: Compression,
    /// Media types of OCI, whatever the image has
    #[arg(long)]
    pub oci: bool,
}

/// `peel diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// A snapshot, the directory that it is mounted on or a bundle of, or an image
    #[arg(value_name = "SNAPSHOT|DIR|REF")]
    pub first: PathBuf,
    /// Another image, to be compared with the first
    #[arg(value_name = "REF")]
    pub second: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Compression {
    /// gzip
    Gzip,
    /// zstd, in frames that can be read one by one
    Zstd,
    /// Not at all
    None,
}

impl Compression {
    fn name(self) -> String {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
        .to_owned()
    }
}

/// A snapshot's name, or the absolute path of a directory.
fn snapshot(text: &Path) -> Vec<u8> {
    match text.components().count() {
        1 if !text.is_dir() => path_bytes(text),
        _ => path_bytes(&fs::canonicalize(text).unwrap_or_else(|_| text.to_owned())),
    }
}

pub(super) async fn commit(context: &Context, args: CommitArgs) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = args.created.unwrap_or(i64::try_from(now.as_secs()).unwrap_or(0));
    let mut client = context.connect().await?;
    let mut request = api::CommitImageRequest {
        snapshot: snapshot(&args.snapshot),
        target: canonical(&args.target)?,
        compression: args.compression.name(),
        created: time(seconds, 0),
        author: args.author,
        message: args.message,
        changes: args.changes,
    };
    let mut made = client.commit_image(request.clone()).await.map_err(Failure::from);
    // A directory may have the name of a snapshot, as the default has it
    if made.as_ref().is_err_and(|failure| failure.class == Class::NotFound)
        && args.snapshot.components().count() == 1
    {
        request.snapshot = path_bytes(&args.snapshot);
        made = client.commit_image(request).await.map_err(Failure::from);
    }
    let image = made?.into_inner();
    note(format_args!("committed {}: {}", image.name, HumanBytes(image.size)));
    print(&format!("{}\n", image.target))
}

pub(super) async fn convert(context: &Context, args: ConvertArgs) -> Result<(), Failure> {
    let request = api::ConvertImageRequest {
        reference: name_or_digest(&args.reference)?,
        target: canonical(&args.target)?,
        compression: args.compression.name(),
        oci: args.oci,
    };
    let image = context.connect().await?.convert_image(request).await?.into_inner();
    note(format_args!("converted {}: {}", image.name, HumanBytes(image.size)));
    print(&format!("{}\n", image.target))
}

/// Kinds and paths.
type Changes = Vec<(char, PathBuf)>;

pub(super) async fn diff(context: &Context, args: DiffArgs) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let changes: Changes = match &args.second {
        None => {
            let listed = async |client: &mut crate::client::Client, snapshot| {
                let request = api::ListChangesRequest { snapshot };
                client.list_changes(request).await.map_err(Failure::from)
            };
            let mut found = listed(&mut client, snapshot(&args.first)).await;
            if found.as_ref().is_err_and(|failure| failure.class == Class::NotFound)
                && args.first.components().count() == 1
            {
                found = listed(&mut client, path_bytes(&args.first)).await;
            }
            let changes = found?.into_inner().changes.into_iter();
            changes
                .map(|c| (c.kind.chars().next().unwrap_or('?'), bytes_path(&c.path).to_owned()))
                .collect()
        }
        Some(second) => {
            let first = args
                .first
                .to_str()
                .ok_or_else(|| Failure::new(Class::Usage, "the name of an image is not UTF-8"))?;
            let first = Root::open(&mut client, first, 0).await?;
            let second = Root::open(&mut client, second, 0).await?;
            let mut changes = Vec::new();
            let (first, second) = (File::from(first.dir), File::from(second.dir));
            compare(&first, &second, Path::new("/"), &mut changes)?;
            changes
        }
    };
    if args.json {
        let changes = changes.iter().map(
            |(kind, path)| json!({ "kind": kind.to_string(), "path": path.to_string_lossy() }),
        );
        return output::json(&changes.collect());
    }
    let lines = changes.iter().map(|(kind, path)| {
        let path = path.to_string_lossy();
        match path.chars().any(char::is_control) {
            true => format!("{kind} {}\n", path.escape_debug()),
            false => format!("{kind} {path}\n"),
        }
    });
    print(&lines.collect::<String>())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.to_owned();
    move |e| Failure::io(&e, format!("cannot read {}: {e}", path.display()))
}

fn entries(dir: &File) -> io::Result<BTreeMap<OsString, File>> {
    fs::read_dir(again(dir))?
        .map(|entry| {
            let name = entry?.file_name();
            let file = child(dir, &name)?;
            Ok((name, file))
        })
        .collect()
}

fn child(dir: &File, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(dir.as_fd(), name, flags, Mode::empty())?))
}

/// What turns one tree into another; what is in an added or removed directory is not listed.
fn compare(first: &File, second: &File, path: &Path, changes: &mut Changes) -> Result<(), Failure> {
    let failed = failed(path);
    let (old, new) = (entries(first).map_err(&failed)?, entries(second).map_err(&failed)?);
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.as_bytes().cmp(b.as_bytes()),
        };
        let (gone, come) = match order {
            Ordering::Less => (old.next(), None),
            Ordering::Greater => (None, new.next()),
            Ordering::Equal => (old.next(), new.next()),
        };
        match (gone, come) {
            (Some((name, _)), None) => changes.push(('D', path.join(name))),
            (None, Some((name, _))) => changes.push(('A', path.join(name))),
            (Some((name, old)), Some((_, new))) => {
                let path = path.join(name);
                let failed = self::failed(&path);
                if !same(&old, &new).map_err(&failed)? {
                    changes.push(('C', path.clone()));
                }
                let is_dir = |file: &File| file.metadata().is_ok_and(|found| found.is_dir());
                if is_dir(&old) && is_dir(&new) {
                    compare(&old, &new, &path, changes)?;
                }
            }
            (None, None) => {}
        }
    }
}

/// Whether two files look the same, whatever is in them where they are directories.
fn same(old: &File, new: &File) -> io::Result<bool> {
    let (a, b) = (old.metadata()?, new.metadata()?);
    // One inode of a shared layer
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return Ok(true);
    }
    let seen = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.rdev());
    if seen(&a) != seen(&b) {
        return Ok(false);
    }
    let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    if a.is_symlink() {
        let target = |file: &File| rustix::fs::readlinkat(file.as_fd(), "", Vec::new());
        return Ok(target(old)? == target(new)?);
    }
    if (a.is_file() || a.is_dir()) && copy::xattrs(old)? != copy::xattrs(new)? {
        return Ok(false);
    }
    if !a.is_file() {
        return Ok(true);
    }
    if a.len() != b.len() || times(&a) != times(&b) {
        return Ok(false);
    }
    let (mut old, mut new) = (File::open(again(old))?, File::open(again(new))?);
    let (mut left, mut right) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    loop {
        let n = old.read(&mut left)?;
        if n == 0 {
            return Ok(true);
        }
        new.read_exact(&mut right[..n])?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}
