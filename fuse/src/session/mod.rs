//! The life of the FUSE connection: mounting it, and adopting it in one worker after the other.
//!
//! ```text
//! keeper   clear_stale(dir) → mount(dir) → Mounted { device, handshake }
//!            │ spawns the worker with a copy of the device's descriptor and the handshake as text
//! worker   inherited_device(number), text.parse::<Handshake>()
//!            → adopt(device, &handshake, Filesystem::new(source), &options) → Server::run()
//! ```
//!
//! The connection lives as long as some process holds the device's open file description, so a
//! worker may die at any time: what it had taken is sent again to the next one. A worker stops by
//! exiting; nothing here unmounts when it does.
//!
//! Locking: none. Everything here runs once, at start.

mod adopt;
pub mod init;
mod lower;
mod mount;
mod mountinfo;
mod readahead;

pub use adopt::{AdoptError, BUSY_POLL, ServeOptions, Server, adopt, inherited_device};
pub use init::{Handshake, InitError};
pub use lower::{LowerMount, LowerState, clear_stale};
pub use mount::{FS_TYPE, MountError, Mounted, mount};
pub use readahead::{READAHEAD_KIB, ReadaheadError, raise_readahead};
