//! Between the fuser crate and [`Filesystem`]: unpacks requests, packs replies, logs errors.
//!
//! Requests about metadata are answered on the thread that took them, as they never wait, and so are
//! short reads of what is decoded. Other reads go to the pool.
//!
//! `open` and `opendir` are answered ENOSYS, once each a connection: the kernel then opens files
//! without asking, keeps their pages, and keeps listings. So are `flush`, `fsync`, `lseek` and
//! whatever else the kernel can do, or do without, by itself.

mod busy_poll;
mod convert;
mod records;

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc, time::SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Generation,
    INodeNo, IoctlFlags, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

pub(crate) use self::{busy_poll::BusyPoll, records::Records};
use self::{
    busy_poll::Outcome,
    convert::{file_attr, file_type, nothing},
    records::{Part, answer, call},
};
use crate::{
    error::Error,
    flight::{Call, name_hash},
    fs::{BLOCK_SIZE, Filesystem, Inode, Lookup},
    metrics::{Arrived, Kind, Metrics},
    pool::{Pool, Queues, Work},
    source::{Ahead, FileSource, Sink, Spare},
};

/// Longest name of an entry, in bytes.
const NAME_MAX: u32 = 255;

/// Reads up to this length, in bytes, are answered on the thread that took them where the bytes are
/// in memory: copying them takes less than the way through the pool.
const AT_ONCE: u32 = 128 << 10;

/// Numbers are never used again, so there is one generation.
const GENERATION: Generation = Generation(0);

/// The filesystem as fuser sees it.
#[derive(Debug)]
pub(crate) struct Adapter<S: FileSource> {
    filesystem: Filesystem<S>,
    reads: Pool<Read, Ahead>,
    records: Records,
    busy_poll: Arc<BusyPoll>,
}

/// A read on its way through the pool.
#[derive(Debug)]
struct Read {
    call: Call,
    arrived: Arrived,
    reply: ReplyData,
}

/// Answers a read with the bytes as they lie in memory, and queues what is worth doing ahead.
struct ReadAnswer<'a> {
    reply: Option<ReplyData>,
    metrics: &'a Metrics,
    queues: &'a Queues<Read, Ahead>,
}

impl Sink for ReadAnswer<'_> {
    fn data(&mut self, bytes: &[u8]) {
        if let Some(reply) = self.reply.take() {
            self.metrics.read_bytes(bytes.len());
            reply.data(bytes);
        }
    }

    fn ahead(&mut self, wish: Ahead) {
        self.queues.offer(wish);
    }
}

impl Spare for Queues<Read, Ahead> {
    fn go_on(&self) -> bool {
        !self.job_waits()
    }

    fn offer(&self, wish: Ahead) {
        self.offer(wish);
    }
}

impl<S: FileSource> Adapter<S> {
    pub(crate) fn new(
        filesystem: Filesystem<S>,
        read_threads: usize,
        ahead_threads: usize,
        records: Records,
        busy_poll: Arc<BusyPoll>,
    ) -> io::Result<Self> {
        let (reader, written) = (filesystem.clone(), records.clone());
        let work = move |work: Work<Read, Ahead>, buffer: &mut Vec<u8>, queues: &Queues<_, _>| {
            match work {
                Work::Job(read) => {
                    let Read { call, arrived, reply } = read;
                    let (Call { ino, at, len, .. }, metrics) = (call, &*written.metrics);
                    metrics.read_taken(arrived);
                    let mut answered = ReadAnswer { reply: Some(reply), metrics, queues };
                    let run = || reader.read(ino, at, len, buffer, &mut answered);
                    let result = answer(&written, &call, Part::Whole, run);
                    if let (Err(errno), Some(reply)) = (result, answered.reply) {
                        reply.error(errno);
                    }
                    metrics.answered(Kind::Read, arrived);
                }
                Work::Ahead(wish) => reader.ahead(wish, queues),
            }
        };
        let reads = Pool::start(read_threads, ahead_threads, work)?;
        Ok(Self { filesystem, reads, records, busy_poll })
    }

    /// Counts a request, answers it by `run`, and counts the answer.
    fn count(&self, kind: Kind, request: &Request, run: impl FnOnce()) {
        let metrics = &self.records.metrics;
        let arrived = metrics.arrived(kind, request.unique().0);
        run();
        metrics.answered(kind, arrived);
        self.look_out();
    }

    /// What the thread for requests does when it is done with one.
    fn look_out(&self) {
        if let Some((outcome, took)) = self.busy_poll.look_out(|| self.reads.queues().at_work()) {
            self.records.metrics.looked_out(outcome == Outcome::Found, took);
        }
    }

    fn answer<T>(&self, call: Call, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Errno> {
        answer(&self.records, &call, Part::Whole, run)
    }
}

/// Answers a request for extended attributes by its rules: size 0 asks for the length.
fn reply_xattr(result: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

/// Checks that an answer fits where its length is not what was asked for.
fn fits(bytes: Vec<u8>, size: u32) -> Result<Vec<u8>, Error> {
    match size as usize {
        room if room != 0 && room < bytes.len() => Err(Error::Room { needed: bytes.len(), room }),
        _ => Ok(bytes),
    }
}

/// The number that the caller of an operation gets without more ado.
fn refusal(error: Error) -> Errno {
    Errno::from_i32(error.errno())
}

impl<S: FileSource> fuser::Filesystem for Adapter<S> {
    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Kind::Lookup, req, || {
            let find = || self.filesystem.lookup(parent.0, name.as_bytes());
            let call = call(Kind::Lookup, req, parent).at(name_hash(name.as_bytes()));
            let found = self.answer(call, find);
            match found {
                Ok(Lookup::Found(inode)) => {
                    let Inode { attr_ttl, entry_ttl, .. } = &inode;
                    reply.entry_with_ttls(attr_ttl, entry_ttl, &file_attr(&inode), GENERATION);
                }
                Ok(Lookup::Missing { ttl }) => {
                    self.records.metrics.negative_lookup();
                    match ttl.is_zero() {
                        true => reply.error(refusal(Error::NotFound)),
                        false => reply.entry(&ttl, &nothing(), GENERATION),
                    }
                }
                Err(errno) => reply.error(errno),
            }
            if found.is_ok() {
                let (metrics, queues) = (&*self.records.metrics, self.reads.queues());
                let mut offered = ReadAnswer { reply: None, metrics, queues };
                self.filesystem.visited(parent.0, &mut offered);
            }
        });
    }

    fn forget(&self, req: &Request, _ino: INodeNo, _nlookup: u64) {
        // Many come in one message, and none has an answer to be timed
        self.records.metrics.arrived(Kind::Forget, req.unique().0);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Kind::Getattr, req, || {
            match self.answer(call(Kind::Getattr, req, ino), || self.filesystem.getattr(ino.0)) {
                Ok(inode) => reply.attr(&inode.attr_ttl, &file_attr(&inode)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Kind::Readlink, req, || {
            match self.answer(call(Kind::Readlink, req, ino), || self.filesystem.readlink(ino.0)) {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Open, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        len: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Records { metrics, flights } = &self.records;
        let arrived = metrics.arrived(Kind::Read, req.unique().0);
        let call = Call { len, ..call(Kind::Read, req, ino).at(offset) };
        let mut answered = ReadAnswer { reply: Some(reply), metrics, queues: self.reads.queues() };
        // Suspects may have to wait for their turn, which no thread for requests does
        let calm = flights.as_ref().is_none_or(|flights| flights.is_calm());
        if len <= AT_ONCE && calm {
            let ready = || Ok(self.filesystem.read_ready(ino.0, offset, len, &mut answered));
            // A panic drops nothing: the read goes on to the pool, which meets it again
            let _ = answer(&self.records, &call, Part::First, ready);
        }
        match answered.reply {
            Some(reply) => self.reads.submit(Read { call, arrived, reply }),
            None => {
                metrics.read_taken(arrived);
                metrics.answered(Kind::Read, arrived);
            }
        }
        self.look_out();
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn fsync(&self, req: &Request, _i: INodeNo, _f: FileHandle, _d: bool, reply: ReplyEmpty) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn opendir(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Opendir, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Kind::Readdir, req, || {
            let mut add = |entry: crate::fs::DirEntry<'_>| {
                let name = OsStr::from_bytes(entry.name);
                reply.add(INodeNo(entry.ino), entry.offset, file_type(entry.kind), name)
            };
            let list = || self.filesystem.readdir(ino.0, offset, &mut add);
            match self.answer(call(Kind::Readdir, req, ino).at(offset), list) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(Kind::Readdirplus, req, || {
            let mut add = |entry: crate::fs::DirEntry<'_>, inode: &Inode| {
                let name = OsStr::from_bytes(entry.name);
                let (number, ttl) = (INodeNo(entry.ino), &inode.entry_ttl);
                let attr = FileAttr { ino: number, ..file_attr(inode) };
                reply.add(number, entry.offset, name, ttl, &attr, GENERATION)
            };
            let list = || self.filesystem.readdirplus(ino.0, offset, &mut add);
            match self.answer(call(Kind::Readdirplus, req, ino).at(offset), list) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn fsyncdir(&self, req: &Request, _i: INodeNo, _f: FileHandle, _d: bool, reply: ReplyEmpty) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Kind::Statfs, req, || {
            match self.answer(call(Kind::Statfs, req, ino), || self.filesystem.statfs(ino.0)) {
                Ok(s) => {
                    reply.statfs(s.blocks, 0, 0, s.inodes, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Kind::Getxattr, req, || {
            let get = || fits(self.filesystem.getxattr(ino.0, name.as_bytes())?, size);
            let call = call(Kind::Getxattr, req, ino).at(name_hash(name.as_bytes()));
            reply_xattr(self.answer(call, get), size, reply);
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Kind::Listxattr, req, || {
            let list = || fits(self.filesystem.listxattr(ino.0)?, size);
            reply_xattr(self.answer(call(Kind::Listxattr, req, ino), list), size, reply);
        });
    }

    fn access(&self, req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // default_permissions: the kernel checks by itself
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn ioctl(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn poll(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _handle: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Kind::Declined, req, || reply.error(refusal(Error::NotProvided)));
    }

    // The mount is read-only, so the kernel lets none of what follows through. It is refused here
    // too, as nothing but the mount's flags stands before it.

    fn setattr(
        &self,
        req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn mknod(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn mkdir(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn unlink(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn rmdir(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn symlink(&self, req: &Request, _p: INodeNo, _n: &OsStr, _t: &Path, reply: ReplyEntry) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn rename(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn link(&self, req: &Request, _i: INodeNo, _p: INodeNo, _n: &OsStr, reply: ReplyEntry) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn setxattr(
        &self,
        req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn removexattr(&self, req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn create(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Kind::Change, req, || reply.error(refusal(Error::ReadOnly)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_extended_attributes() {
        assert!(fits(vec![0; 8], 0).is_ok(), "the length was asked for");
        assert!(fits(vec![0; 8], 8).is_ok());
        let small = fits(vec![0; 8], 7).expect_err("too small");
        assert_eq!(small.errno(), libc::ERANGE);
    }
}
