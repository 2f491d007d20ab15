//! `import` and `export`, which are `load` and `save` as well.

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;

use super::{
    Context,
    images::name_or_digest,
    output::{note, print},
    progress::Progress,
};
use crate::{
    api::{self, pull_event::Event},
    client::path_bytes,
    failure::{Class, Failure},
};

/// `peel import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// An archive, the directory of an image layout, or - for standard input
    #[arg(value_name = "PATH", required_unless_present = "input")]
    pub path: Option<PathBuf>,
    /// The archive, as docker load names it
    #[arg(short, long, value_name = "FILE", conflicts_with = "path")]
    pub input: Option<PathBuf>,
    /// Name for images that have only a tag, or none [default: localhost/ and the file's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Platform: OS/ARCH[/VARIANT] [default: this machine's, or the only one]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// All platforms that an index names
    #[arg(long)]
    pub all_platforms: bool,
    /// No progress, only the names at the end
    #[arg(short, long)]
    pub quiet: bool,
}

/// `peel export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The images
    #[arg(required = true, value_name = "REF")]
    pub references: Vec<String>,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// What is written
    #[arg(long, value_enum, default_value_t = Format::OciArchive)]
    pub format: Format,
    /// All that an image's index names, or nothing
    #[arg(long)]
    pub all_platforms: bool,
}

/// What an export looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A tar of an image layout, which docker load takes as well
    OciArchive,
    /// A directory that is an image layout
    Oci,
    /// A tar as older Dockers wrote it, layers uncompressed
    DockerArchive,
}

pub(super) async fn import(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let path = args.path.or(args.input).unwrap_or_else(|| "-".into());
    let spooled = if path == Path::new("-") { Some(spool()?) } else { None };
    let path = match &spooled {
        Some(file) => file.path().to_owned(),
        None => fs::canonicalize(&path)
            .map_err(|e| Failure::io(&e, format!("cannot open {}: {e}", path.display())))?,
    };
    let request = api::ImportRequest {
        path: path_bytes(&path),
        name: args.name.unwrap_or_default(),
        platform: args.platform.unwrap_or_default(),
        all_platforms: args.all_platforms,
    };
    let mut client = context.connect().await?;
    let mut events = client.import(request).await?.into_inner();
    let mut progress = Progress::new(args.quiet);
    let mut names = String::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Resolved(resolved)) => progress.resolved(&resolved),
            Some(Event::Layer(layer)) => progress.layer(&layer),
            Some(Event::Done(image)) => {
                progress.done(&image.name, image.size);
                names.push_str(&format!("{}\n", image.name));
            }
            Some(Event::Credentials(_) | Event::Pushed(_)) | None => {}
        }
    }
    print(&names)
}

/// Standard input in a file: an archive is read here and there.
pub(super) fn spool() -> Result<tempfile::NamedTempFile, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::new(Class::Usage, "expected an archive on standard input")
            .hint("name a file: peel import FILE"));
    }
    let failed = |e: io::Error| Failure::io(&e, format!("cannot keep standard input: {e}"));
    let mut file = tempfile::Builder::new().prefix("import-").tempfile().map_err(failed)?;
    io::copy(&mut stdin.lock(), &mut file).map_err(failed)?;
    Ok(file)
}

/// Where an export goes.
enum Target {
    Stdout,
    /// A file under another name until it is whole.
    File(tempfile::NamedTempFile, PathBuf),
    /// A directory that is unpacked to, from a file of the same place.
    Dir(File, PathBuf),
}

impl Target {
    fn new(args: &ExportArgs) -> Result<Self, Failure> {
        let usage = |text: &str, hint: &str| Err(Failure::new(Class::Usage, text).hint(hint));
        let Some(path) = &args.output else {
            if args.format == Format::Oci {
                return usage("a layout needs a directory", "name one with: -o DIR");
            }
            if io::stdout().is_terminal() {
                return usage("cannot write an archive to a terminal", "name a file with: -o FILE");
            }
            return Ok(Self::Stdout);
        };
        let failed =
            |e: io::Error| Failure::io(&e, format!("cannot write {}: {e}", path.display()));
        if args.format == Format::Oci {
            match fs::create_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_empty(path) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let message = format!("{} is there already, and not empty", path.display());
                    return Err(Failure::new(Class::Conflict, message).hint("name another"));
                }
                made => made.map_err(failed)?,
            }
            let file = tempfile::tempfile_in(path).map_err(failed)?;
            return Ok(Self::Dir(file, path.clone()));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".export-")
            .tempfile_in(dir.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        Ok(Self::File(file, path.clone()))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().write_all(bytes),
            Self::File(file, _) => file.write_all(bytes),
            Self::Dir(file, _) => file.write_all(bytes),
        }
    }

    fn end(self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        match self {
            Self::Stdout => io::stdout().flush(),
            Self::File(file, path) => {
                let mode = 0o666 & !umask();
                file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
                file.persist(path).map(drop).map_err(|e| e.error)
            }
            Self::Dir(mut file, path) => {
                io::Seek::rewind(&mut file)?;
                let mut archive = tar::Archive::new(file);
                archive.set_preserve_mtime(false);
                archive.unpack(&path)?;
                // What Docker alone reads
                fs::remove_file(path.join("manifest.json"))
            }
        }
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// The file mode creation mask of this process.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}

pub(super) async fn export(context: &Context, args: ExportArgs) -> Result<(), Failure> {
    let references = args.references.iter().map(|reference| name_or_digest(reference));
    let request = api::ExportRequest {
        references: references.collect::<Result<_, _>>()?,
        format: match args.format {
            Format::OciArchive | Format::Oci => api::ArchiveFormat::Oci.into(),
            Format::DockerArchive => api::ArchiveFormat::Docker.into(),
        },
        all_platforms: args.all_platforms,
    };
    let mut client = context.connect().await?;
    let mut target = Target::new(&args)?;
    let shown = args.output.as_deref().unwrap_or(Path::new("standard output")).display();
    let failed = |e: io::Error| Failure::io(&e, format!("cannot write {shown}: {e}"));
    let mut chunks = client.export(request).await?.into_inner();
    let mut len = 0;
    while let Some(chunk) = chunks.message().await? {
        len += chunk.data.len() as u64;
        target.write(&chunk.data).map_err(failed)?;
    }
    target.end().map_err(failed)?;
    note(format_args!("exported to {shown}: {}", HumanBytes(len)));
    Ok(())
}
