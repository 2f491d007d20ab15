//! Measures FUSE passthrough against reading without an open request, on peel's own data path.
//! What came out, and what follows from it, is in fuse/PASSTHROUGH.md.
//!
//! ```text
//! cargo run --release --example passthrough -- ROOT DIR [ROUNDS]
//! ```
//!
//! `ROOT` is a root directory of peel's that no daemon uses and that holds one image with a big
//! file; `DIR` is an empty directory on a fresh ext4 with room for that file and 4,000 small ones.
//! Needs root. The content is served by several mounts at once, which take turns:
//!
//! ```text
//! DIR/plain                ext4, for comparison
//! DIR/quiet                FUSE as peel has it: open is answered ENOSYS, once
//! DIR/asked                FUSE, each open a round trip, pages kept
//! DIR/through              FUSE, each open a round trip, the big file passed through to DIR/objects
//! DIR/plain-overlay        kernel overlay on plain
//! DIR/quiet-overlay        kernel overlay on quiet
//! DIR/split-overlay        kernel overlay on two connections: one like quiet, on which the big file
//!                          is a metacopy, and one like through, that holds only its data
//! ```

mod filesystem;
mod work;

use std::{
    error::Error,
    ffi::CString,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use filesystem::{Mode, Served, Source};
use peel::{content::ContentStore, layers::Layers};
use peel_fuse::{Filesystem, fs::Lookup};
use rustix::mount::{MountFlags, UnmountFlags};
use work::{Files, Kind};

/// Small files that are read.
const SMALL_FILES: usize = 4000;
/// Longest of them, in bytes.
const SMALL_LEN: u64 = 64 << 10;
/// Bytes read at once from the source.
const CHUNK: u32 = 1 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [root, dir, rounds @ ..] = &*arguments else {
        return Err("usage: passthrough ROOT DIR [ROUNDS]".into());
    };
    let rounds = match rounds.first().and_then(|text| text.to_str()) {
        Some(text) => text.parse()?,
        None => 5,
    };
    let (root, dir) = (PathBuf::from(root), fs::canonicalize(dir)?);
    let source = Arc::new(Source::open(move || {
        let content = Arc::new(ContentStore::open(&root.join("content"))?);
        Ok(Layers::open(&root, content, peel::layers::SPAN_CACHE_BYTES)?)
    })?);
    let image = Image::find(&source)?;
    println!("big file: {} ({} MiB)", image.big.0, image.big.1.attr.size >> 20);
    image.extract(&source, &dir)?;

    let served = Mounts::all(&source, &image, &dir)?;
    let [plain, others @ ..] = &*served.places else { return Err("nothing to read".into()) };
    for (name, place) in others {
        if !work::same(&plain.1.join(&image.big.0), &place.join(&image.big.0))? {
            return Err(format!("wrong bytes on {name}").into());
        }
    }
    let mut table = work::Table::default();
    for round in 0..rounds {
        for kind in Kind::ALL {
            for place in 0..served.places.len() {
                // Rotated, so that none is always first
                let (name, path) = &served.places[(place + round) % served.places.len()];
                let files = Files { big: path.join(&image.big.0), small: image.small(path) };
                if kind.is_cold() {
                    source.reset()?;
                    fs::write("/proc/sys/vm/drop_caches", "3")?;
                }
                table.note(kind, name, kind.run(&files, round as u64)?);
            }
        }
    }
    print!("{}", table.markdown(&served.places));
    Ok(())
}

/// The files of the image that take part.
struct Image {
    tree: String,
    big: (String, peel_fuse::fs::Inode),
    small: Vec<(String, peel_fuse::fs::Inode)>,
}

impl Image {
    fn find(source: &Arc<Source>) -> Result<Self> {
        let filesystem = Filesystem::new(Arc::clone(source));
        let tree = source.a_tree().ok_or("no tree below the root: mount the image once")?;
        let Lookup::Found(top) = filesystem.lookup(1, tree.as_bytes())? else {
            return Err("the tree is not served".into());
        };
        let mut files = Vec::new();
        let mut queue = vec![(String::new(), top.ino)];
        while let Some((prefix, ino)) = queue.pop() {
            filesystem.readdirplus(ino, 0, &mut |entry, inode| {
                let name = String::from_utf8_lossy(entry.name);
                let path = if prefix.is_empty() { name.into() } else { format!("{prefix}/{name}") };
                match inode.attr.kind {
                    _ if entry.name == b"." || entry.name == b".." => {}
                    peel_index::FileKind::Directory => queue.push((path, inode.ino)),
                    peel_index::FileKind::Regular => files.push((path, *inode)),
                    _ => {}
                }
                false
            })?;
        }
        let big = files.iter().max_by_key(|(_, inode)| inode.attr.size).cloned();
        let big = big.ok_or("an image without files")?;
        files.retain(|(_, inode)| (1..=SMALL_LEN).contains(&inode.attr.size));
        files.truncate(SMALL_FILES);
        Ok(Self { tree, big, small: files })
    }

    fn small(&self, below: &Path) -> Vec<PathBuf> {
        self.small.iter().map(|(path, _)| below.join(path)).collect()
    }

    /// Writes the files to DIR/plain, and the big one to DIR/objects; says what that took.
    fn extract(&self, source: &Arc<Source>, dir: &Path) -> Result<()> {
        let filesystem = Filesystem::new(Arc::clone(source));
        let write = |inode: &peel_fuse::fs::Inode, path: &Path| -> Result<()> {
            fs::create_dir_all(path.parent().ok_or("a path without a directory")?)?;
            let mut file = File::create(path)?;
            let (mut buffer, mut chunk) = (Vec::new(), Vec::new());
            for offset in (0..inode.attr.size).step_by(CHUNK as usize) {
                buffer.clear();
                chunk.clear();
                filesystem.read(inode.ino, offset, CHUNK, &mut buffer, &mut chunk)?;
                file.write_all(&chunk)?;
            }
            Ok(file.sync_all()?)
        };
        for (path, inode) in self.small.iter().chain([&self.big]) {
            write(inode, &dir.join("plain").join(path))?;
        }
        let start = Instant::now();
        write(&self.big.1, &dir.join("objects").join(self.big.1.ino.to_string()))?;
        println!("decoding the big file to disk: {:.2} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Everything mounted, unmounted again when dropped.
struct Mounts {
    places: Vec<(&'static str, PathBuf)>,
    overlays: Vec<PathBuf>,
    _served: Vec<Served>,
}

impl Mounts {
    fn all(source: &Arc<Source>, image: &Image, dir: &Path) -> Result<Self> {
        let objects = dir.join("objects");
        let big = image.big.1.ino;
        let serve = |name: &str, mode| -> Result<Served> {
            let target = dir.join(name);
            fs::create_dir_all(&target)?;
            Ok(Served::mount(Arc::clone(source), mode, &target)?)
        };
        let through = || Mode::Through { big, object: objects.join(big.to_string()) };
        let served = vec![
            serve("quiet", Mode::Quiet)?,
            serve("asked", Mode::Asked)?,
            serve("through", through())?,
            serve("split", Mode::Metacopy { big })?,
            serve("data", Mode::Objects { big, object: objects.join(big.to_string()) })?,
        ];
        let mut mounts = Self {
            places: vec![("ext4", dir.join("plain"))],
            overlays: Vec::new(),
            _served: served,
        };
        for name in ["quiet", "asked", "through"] {
            mounts.places.push((name, dir.join(name).join(&image.tree)));
        }
        let tree = |name: &str| dir.join(name).join(&image.tree).display().to_string();
        let overlays = [
            ("plain-overlay", dir.join("plain").display().to_string()),
            ("quiet-overlay", tree("quiet")),
            ("split-overlay", format!("{}::{}", tree("split"), dir.join("data").display())),
        ];
        for (name, lower) in overlays {
            let target = dir.join(name);
            let [upper, work] =
                ["upper", "work"].map(|part| dir.join("overlays").join(name).join(part));
            for dir in [&target, &upper, &work] {
                fs::create_dir_all(dir)?;
            }
            let options = format!(
                "lowerdir={lower},upperdir={},workdir={},index=off,metacopy=on,redirect_dir=on,xino=on",
                upper.display(),
                work.display()
            );
            let options = CString::new(options)?;
            rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), &*options)?;
            mounts.places.push((name, target.clone()));
            mounts.overlays.push(target);
        }
        Ok(mounts)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for overlay in &self.overlays {
            if let Err(error) = rustix::mount::unmount(overlay, UnmountFlags::DETACH) {
                eprintln!("cannot unmount {}: {error}", overlay.display());
            }
        }
    }
}
