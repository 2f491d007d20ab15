//! What the daemon is, apart from any process: descriptors, and a few facts.
//!
//! ```text
//! fuse     the FUSE connection        listen   gRPC socket        control  the keeper's socket
//! lock     lock of the state dir      owner    lock of the root   flights  requests under way
//! facts    a memory file: JSON, see Facts
//! ```
//! Whoever has it can be the keeper. A keeper gives it to each worker that it starts, to the next
//! version of itself at a reload, and to the service manager; a worker whose keeper has died gives
//! it to a new keeper. All but the service manager get it as one message on the socket that is
//! their standard input. That socket, the *line*, then stays open between keeper and worker: who
//! reads its end has lost the other.
//!
//! Locks go along as they belong to open files, not to processes: the daemon owns its directories
//! for as long as either process lives.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt as _, net::UnixListener},
    },
    sync::Arc,
};

use peel_fuse::flight::Flights;
use rustix::{
    fs::MemfdFlags,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};
use serde::{Deserialize, Serialize};

/// Descriptors in one message at most: those above and the line.
const FDS_MAX: usize = 16;
/// Their names, separated by commas.
const NAMES_MAX: usize = 512;
/// Facts are a few hundred bytes.
const FACTS_MAX: usize = 64 << 10;

const LINE: &str = "line";

/// Facts about the daemon that outlive its processes.
///
/// The next version of peel reads what this one wrote, and the other way round: fields that are
/// missing get their default, unknown ones are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Facts {
    /// What keeper and kernel agreed on, as text.
    pub(super) handshake: String,
    /// Log to the file alone.
    pub(super) background: bool,
    /// A service manager holds the descriptors as well, and starts the daemon again.
    pub(super) managed: bool,
    /// The worker that runs, or ran last.
    pub(super) worker: Option<i32>,
    /// Times a worker was started after the first.
    pub(super) restarts: u64,
    /// Deaths soon after a start, in a row.
    pub(super) quick_deaths: u32,
    /// Times the daemon was reloaded.
    pub(super) reloads: u64,
    /// A reload is under way: the worker has to end.
    pub(super) reloading: bool,
    /// Times another keeper took the place of one that had died.
    pub(super) keepers: u64,
    /// Mounts of a daemon that had died as a whole, cleaned up when this one started.
    pub(super) cleaned: u64,
    /// Seconds without progress after which the worker is killed; 0 for never.
    pub(super) patience_s: u64,
    /// How the last worker ended.
    pub(super) last_exit: Option<LastExit>,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastExit {
    /// In words.
    pub(super) reason: String,
    /// Unix time in nanoseconds.
    pub(super) at_ns: i64,
}

/// See the module.
pub(super) struct Estate {
    pub(super) fuse: OwnedFd,
    pub(super) listen: UnixListener,
    pub(super) control: UnixListener,
    pub(super) lock: OwnedFd,
    pub(super) owner: OwnedFd,
    pub(super) flights: Arc<Flights>,
    facts: File,
}

/// What comes with an estate that was handed over.
pub(super) struct Inherited {
    pub(super) estate: Estate,
    pub(super) facts: Facts,
    /// To the process that goes with this one: a keeper's worker, a worker's keeper.
    pub(super) line: OwnedFd,
}

impl Estate {
    /// Puts an estate together; `facts` are written to a new memory file.
    pub(super) fn new(
        fuse: OwnedFd,
        [listen, control]: [UnixListener; 2],
        [lock, owner]: [OwnedFd; 2],
        facts: &Facts,
    ) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("peel-facts", MemfdFlags::CLOEXEC)?;
        let flights = Arc::new(Flights::create()?);
        let estate = Self { fuse, listen, control, lock, owner, flights, facts: file.into() };
        estate.write(facts)?;
        Ok(estate)
    }

    /// Every descriptor under its name.
    pub(super) fn fds(&self) -> [(&'static str, BorrowedFd<'_>); 7] {
        [
            ("fuse", self.fuse.as_fd()),
            ("listen", self.listen.as_fd()),
            ("control", self.control.as_fd()),
            ("lock", self.lock.as_fd()),
            ("owner", self.owner.as_fd()),
            ("flights", self.flights.as_fd()),
            ("facts", self.facts.as_fd()),
        ]
    }

    /// The estate that these descriptors make.
    ///
    /// # Errors
    /// Where one is missing, or facts cannot be read.
    pub(super) fn from_fds(mut fds: HashMap<String, OwnedFd>) -> io::Result<(Self, Facts)> {
        let mut take = |name: &str| {
            let missing = || {
                let message = format!("no descriptor named {name} was handed over");
                io::Error::new(io::ErrorKind::InvalidData, message)
            };
            fds.remove(name).ok_or_else(missing)
        };
        let flights = Flights::open(take("flights")?).or_else(|error| {
            // Of another version: what was under way is not known then
            tracing::warn!(%error, "starting a new table of requests");
            Flights::create()
        })?;
        let estate = Self {
            fuse: take("fuse")?,
            listen: take("listen")?.into(),
            control: take("control")?.into(),
            lock: take("lock")?,
            owner: take("owner")?,
            flights: Arc::new(flights),
            facts: take("facts")?.into(),
        };
        let facts = estate.read()?;
        Ok((estate, facts))
    }

    /// Writes the facts down for whoever comes next.
    pub(super) fn write(&self, facts: &Facts) -> io::Result<()> {
        let text = serde_json::to_vec(facts)?;
        // Cut after: whoever dies in between leaves a document and a rest that is passed over
        self.facts.write_all_at(&text, 0)?;
        self.facts.set_len(text.len() as u64)
    }

    fn read(&self) -> io::Result<Facts> {
        let mut text = vec![0; FACTS_MAX];
        let len = self.facts.read_at(&mut text, 0)?;
        let mut documents = serde_json::Deserializer::from_slice(&text[..len]).into_iter();
        documents.next().ok_or(io::ErrorKind::UnexpectedEof)?.map_err(Into::into)
    }

    /// Puts the estate into `socket`, with the line where the reader needs one that is not the
    /// socket itself.
    pub(super) fn send(&self, socket: impl AsFd, line: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let (mut names, mut fds): (Vec<_>, Vec<_>) = self.fds().into_iter().unzip();
        if let Some(line) = line {
            names.push(LINE);
            fds.push(line);
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let names = names.join(",");
        let message = [IoSlice::new(names.as_bytes())];
        rustix::net::sendmsg(socket, &message, &mut control, SendFlags::empty())?;
        Ok(())
    }

    /// Takes the estate from standard input, which is nothing after that.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn inherit() -> io::Result<Inherited> {
        let stdin = io::stdin();
        let (mut fds, given) = receive(stdin.as_fd())?;
        let line = match given {
            Some(line) => line,
            None => rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3)?,
        };
        nothing_to_read()?;
        fds.remove(LINE);
        let (estate, facts) = Self::from_fds(fds)?;
        Ok(Inherited { estate, facts, line })
    }
}

/// Makes standard input what a daemon has there.
pub(super) fn nothing_to_read() -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdin(File::open("/dev/null")?)?)
}

type Named = HashMap<String, OwnedFd>;

fn receive(socket: BorrowedFd<'_>) -> io::Result<(Named, Option<OwnedFd>)> {
    let mut names = [0; NAMES_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut into = [IoSliceMut::new(&mut names)];
    let received = rustix::net::recvmsg(socket, &mut into, &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let names = String::from_utf8_lossy(&names[..received.bytes]);
    let mut named: Named = names.split(',').map(str::to_owned).zip(fds).collect();
    let line = named.remove(LINE);
    Ok((named, line))
}

/// A new line: two ends, closed on exec.
pub(super) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// What a worker tells its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It answers gRPC.
    Ready,
    /// It is about to end because it was asked to end the daemon.
    Stop,
    /// It is about to end, and another is to take its place.
    Again,
}

impl Word {
    const ALL: [Self; 3] = [Self::Ready, Self::Stop, Self::Again];

    fn text(self) -> &'static [u8] {
        match self {
            Self::Ready => b"ready",
            Self::Stop => b"stop",
            Self::Again => b"again",
        }
    }

    /// Says it; the other end may be gone.
    pub(super) fn say(self, line: impl AsFd) {
        let _ = rustix::net::send(line, self.text(), SendFlags::NOSIGNAL);
    }
}

/// What was said on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something.
    Word(Word),
    /// Something that a neighbouring version says.
    Unknown,
    /// Nothing for now.
    Nothing,
    /// The other end is gone.
    End,
}

/// Listens on a line; waits for a word where `wait`.
pub(super) fn hear(line: impl AsFd, wait: bool) -> Heard {
    let mut room = [0; 64];
    let mut flags = RecvFlags::empty();
    flags.set(RecvFlags::DONTWAIT, !wait);
    loop {
        let heard = rustix::net::recv(&line, &mut room[..], flags);
        return match heard {
            Ok((_, 0)) => Heard::End,
            Ok((_, len)) => {
                let word = Word::ALL.into_iter().find(|word| word.text() == &room[..len]);
                word.map_or(Heard::Unknown, Heard::Word)
            }
            Err(rustix::io::Errno::AGAIN) => Heard::Nothing,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => Heard::End,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn estate(dir: &std::path::Path, facts: &Facts) -> Estate {
        let listen = |name: &str| UnixListener::bind(dir.join(name)).expect("bind");
        let file = || File::open("/dev/null").expect("/dev/null").into();
        let fuse = File::open("/dev/zero").expect("/dev/zero").into();
        Estate::new(fuse, [listen("a"), listen("b")], [file(), file()], facts)
            .expect("memory files")
    }

    #[test]
    fn an_estate_crosses_a_socket_with_its_facts_and_line() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let facts = Facts {
            handshake: "v1.1".to_owned(),
            restarts: 7,
            last_exit: Some(LastExit { reason: "killed".to_owned(), at_ns: -1 }),
            ..Facts::default()
        };
        let estate = estate(dir.path(), &facts);
        let (near, far) = line().expect("socket pair");
        let (mine, theirs) = line().expect("socket pair");
        estate.send(&near, Some(theirs.as_fd())).expect("sent");
        drop(theirs);
        let (fds, line) = receive(far.as_fd()).expect("received");
        let (other, found) = Estate::from_fds(fds).expect("complete");
        assert_eq!(found, facts);
        let ino = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).expect("open").st_ino;
        for ((name, a), (_, b)) in estate.fds().into_iter().zip(other.fds()) {
            assert_ne!(a.as_raw_fd(), b.as_raw_fd());
            assert_eq!(ino(a), ino(b), "{name}");
        }
        // Facts are one file, whoever writes them
        other.write(&Facts { restarts: 8, ..Facts::default() }).expect("written");
        assert_eq!(estate.read().expect("facts").restarts, 8);

        Word::Ready.say(line.expect("handed over"));
        assert_eq!(hear(&mine, true), Heard::Word(Word::Ready));
        assert_eq!(hear(&mine, false), Heard::End);
    }

    #[test]
    fn facts_outlive_versions_and_half_written_ones() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let estate = estate(dir.path(), &Facts::default());
        let text = br#"{"restarts":3,"of a later version":[1]} and a rest"#;
        estate.facts.write_all_at(text, 0).expect("written");
        assert_eq!(estate.read().expect("facts"), Facts { restarts: 3, ..Facts::default() });
        estate.facts.set_len(0).expect("cut");
        assert!(estate.read().is_err());
    }

    #[test]
    fn a_part_of_an_estate_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let estate = estate(dir.path(), &Facts::default());
        let part = estate.fds().into_iter().filter(|(name, _)| *name != "lock");
        let part = part.map(|(name, fd)| (name.to_owned(), fd.try_clone_to_owned().expect("dup")));
        let error = Estate::from_fds(part.collect()).err().expect("refused");
        assert!(error.to_string().contains("lock"), "{error}");
    }
}
