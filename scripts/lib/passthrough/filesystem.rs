//! One filesystem in several modes of opening.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BackingId, Config, Errno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
    SessionACL,
};
use peel::layers::Layers;
use peel_fuse::{
    FileSource, Filesystem, ReadError, Sink,
    fs::{FOREVER, Inode, Lookup},
    session::{READAHEAD_KIB, raise_readahead},
};
use peel_index::{FileKind, Layer, Slot, Tree};

/// Threads of each mount; reads are answered on them.
const THREADS: usize = 4;

/// How files are opened, and what there is.
pub(crate) enum Mode {
    /// Without a request.
    Quiet,
    /// With a request each, pages being kept.
    Asked,
    /// As asked, but the file `big` is read from `object` by the kernel.
    Through { big: u64, object: PathBuf },
    /// As quiet, but `big` has no data of its own: an overlay finds it in a data-only layer.
    Metacopy { big: u64 },
    /// That layer: the root holds `big`, named by its number and passed through.
    Objects { big: u64, object: PathBuf },
}

impl Mode {
    fn passed(&self, ino: u64) -> Option<&Path> {
        match self {
            Self::Through { big, object } | Self::Objects { big, object } if *big == ino => {
                Some(object)
            }
            _ => None,
        }
    }
}

type Open = Box<dyn Fn() -> Result<Layers, Box<dyn std::error::Error>> + Send + Sync>;

/// Peel's indexes and span cache, which can be made to start anew.
pub(crate) struct Source {
    open: Open,
    layers: RwLock<Arc<Layers>>,
}

impl Source {
    pub(crate) fn open(
        open: impl Fn() -> Result<Layers, Box<dyn std::error::Error>> + Send + Sync + 'static,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let layers = RwLock::new(Arc::new(open()?));
        Ok(Self { open: Box::new(open), layers })
    }

    /// Forgets all that was read.
    pub(crate) fn reset(&self) -> Result<(), Box<dyn std::error::Error>> {
        let fresh = Arc::new((self.open)()?);
        *self.layers.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Name of the directory of some tree.
    pub(crate) fn a_tree(&self) -> Option<String> {
        self.layers().tree_slots().first().map(|(_, slot)| slot.to_string())
    }

    fn layers(&self) -> Arc<Layers> {
        Arc::clone(&self.layers.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FileSource for Source {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.layers().tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.layers().layer(slot)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        self.layers().read(layer, number, offset, len, sink)
    }
}

/// A mount that is served until it is dropped.
pub(crate) struct Served {
    _session: BackgroundSession,
}

impl Served {
    pub(crate) fn mount(source: Arc<Source>, mode: Mode, target: &Path) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let adapter =
            Adapter { filesystem: Filesystem::new(source), mode, backing: OnceLock::new() };
        let session = fuser::spawn_mount(adapter, target, &config)?;
        raise_readahead(target, READAHEAD_KIB).map_err(io::Error::other)?;
        Ok(Self { _session: session })
    }
}

struct Adapter {
    filesystem: Filesystem<Source>,
    mode: Mode,
    /// Of the one file that is passed through: one for all its openers, as the kernel demands.
    backing: OnceLock<BackingId>,
}

fn errno(error: peel_fuse::Error) -> Errno {
    Errno::from_i32(error.errno())
}

fn file_attr(ino: u64, inode: &Inode) -> FileAttr {
    let attr = &inode.attr;
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: inode.blocks(),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH + Duration::from_secs(attr.mtime_sec.unsigned_abs()),
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: match attr.kind {
            FileKind::Regular => FileType::RegularFile,
            FileKind::Directory => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::CharDevice => FileType::CharDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Fifo => FileType::NamedPipe,
        },
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_PASSTHROUGH;
        config
            .add_capabilities(wanted)
            .map_err(|missing| io::Error::other(format!("the kernel has no {missing:?}")))?;
        let out_of_range = |nearest| io::Error::other(format!("out of range: {nearest}"));
        config.set_max_stack_depth(1).map_err(out_of_range)?;
        config.set_max_write(1 << 20).map_err(out_of_range)?;
        config
            .set_max_background(64)
            .map_err(|nearest| io::Error::other(format!("out of range: {nearest}")))?;
        Ok(())
    }

    fn lookup(&self, _r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match &self.mode {
            Mode::Objects { big, .. } if name.as_bytes() == big.to_string().as_bytes() => {
                self.filesystem.getattr(*big).map(Lookup::Found)
            }
            _ => self.filesystem.lookup(parent.0, name.as_bytes()),
        };
        match found {
            Ok(Lookup::Found(inode)) => {
                let attr = file_attr(inode.ino, &inode);
                reply.entry_with_ttls(&inode.attr_ttl, &inode.entry_ttl, &attr, Generation(0));
            }
            Ok(Lookup::Missing { .. }) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _r: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.filesystem.getattr(ino.0) {
            Ok(inode) => reply.attr(&FOREVER, &file_attr(ino.0, &inode)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _r: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.filesystem.readdirplus(ino.0, offset, &mut |entry, inode| {
            let attr = file_attr(entry.ino, inode);
            let name = OsStr::from_bytes(entry.name);
            reply.add(attr.ino, entry.offset, name, &inode.entry_ttl, &attr, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn opendir(&self, _r: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn open(&self, _r: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if matches!(self.mode, Mode::Quiet | Mode::Metacopy { .. }) {
            return reply.error(Errno::ENOSYS);
        }
        let Some(object) = self.mode.passed(ino.0) else {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        };
        if self.backing.get().is_none() {
            match File::open(object).and_then(|file| reply.open_backing(file)) {
                // Of two openers at once, one wins, and the other's is closed with its reference
                Ok(backing) => drop(self.backing.set(backing)),
                Err(error) => {
                    eprintln!("no passthrough: {error}");
                    return reply.error(Errno::EIO);
                }
            }
        }
        let backing = self.backing.get().expect("just set");
        reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), backing);
    }

    fn release(
        &self,
        _r: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn flush(&self, _r: &Request, _i: INodeNo, _f: FileHandle, _o: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _r: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        len: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (mut buffer, mut out) = (Vec::new(), Vec::with_capacity(len as usize));
        match self.filesystem.read(ino.0, offset, len, &mut buffer, &mut out) {
            Ok(()) => reply.data(&out),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(&self, _r: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = match &self.mode {
            Mode::Metacopy { big } if *big == ino.0 => match name.as_bytes() {
                b"trusted.overlay.metacopy" => Some(Vec::new()),
                b"trusted.overlay.redirect" => Some(format!("/{big}").into_bytes()),
                _ => None,
            },
            _ => None,
        };
        match value {
            None => reply.error(Errno::NO_XATTR),
            Some(value) if size == 0 => reply.size(value.len() as u32),
            Some(value) => reply.data(&value),
        }
    }
}
