//! Opening the store, and what is done where its files are not what they were.
//!
//! | found | done |
//! | --- | --- |
//! | files that sled refuses, records that do not add up | moved aside, restored from the export |
//! | no database, but an export | restored from the export |
//! | an older state than the last commit, consistent in itself | the newer of it and the export |
//! | a record or export of a newer version | refused, nothing is touched |
//! | a damaged export beside a sound database | written again at the next export |

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    Metadata,
    error::MetadataError,
    export::{self, Found},
    files::{self, Mark, Spare, io_error},
    keep::{ContentRecord, LeaseRecord},
    keyed::KeyedSnapshot,
    record::{ImageRecord, MountRecord, SnapshotRecord},
    shared::{STATE_KEY, Shared, State, sum_of},
    slots::SlotAllocator,
    store::{OpenFailure, Pairs, Store},
    transaction::View,
};

pub(super) const GENERATION_NAME: &str = "generation";

/// An open store, and what had to be done to open it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub metadata: Metadata,
    /// Present where something was wrong. The caller rebuilds what it can from the
    /// content-addressed files and tells the user.
    pub recovered: Option<Recovered>,
}

/// What was wrong with the store and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What was wrong.
    pub cause: Cause,
    /// Where the bad database is now; `None` where there was none or it was kept.
    pub moved_to: Option<PathBuf>,
    /// What the store holds now.
    pub source: RestoredFrom,
}

/// Why a store had to be recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The database is damaged.
    Damaged {
        /// What the database or the check of its records said.
        reason: String,
    },
    /// There is no database, although there was one.
    Missing,
    /// The database is sound but older than the last change that was acknowledged.
    RolledBack {
        /// Generation of the last acknowledged change.
        expected: u64,
        /// Generation that the database holds.
        found: u64,
    },
}

/// What a recovered store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoredFrom {
    /// The records of the plain export.
    Export {
        /// Generation of the export; changes after it are lost.
        generation: u64,
        /// When it was written, in nanoseconds since 1970.
        written_at_ns: i64,
        /// How many records came out of it.
        records: u64,
    },
    /// What the database still held, which is newer than any export.
    Kept,
    /// Nothing: there was no usable export.
    Nothing,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Damaged { reason } => write!(f, "metadata was damaged ({reason})")?,
            Cause::Missing => f.write_str("the metadata database was missing")?,
            Cause::RolledBack { expected, found } => {
                write!(f, "metadata lost changes: expected generation {expected}, found {found}")?
            }
        }
        match &self.source {
            RestoredFrom::Export { generation, records, .. } => {
                write!(
                    f,
                    ", restored {records} records from the export of generation {generation}"
                )?;
            }
            RestoredFrom::Kept => f.write_str(", kept what was left")?,
            RestoredFrom::Nothing => f.write_str(", no usable export: starting empty")?,
        }
        match &self.moved_to {
            Some(path) => write!(f, "; the old files are in {path:?}"),
            None => Ok(()),
        }
    }
}

/// What opening the database came to, before anything is changed.
pub(super) enum Checked {
    Sound(Store, State),
    Empty(Store),
    Damaged(String),
}

pub(super) fn open(dir: &Path) -> Result<Opened, MetadataError> {
    files::make_dir(dir)?;
    let lock = files::lock(&dir.join("lock"))?;
    let database = dir.join("db");
    let export_path = dir.join("export.json");
    let mark_path = dir.join(GENERATION_NAME);
    let marked = files::read_number(&mark_path, GENERATION_NAME)?.unwrap_or(0);
    let export = export::read(&export_path)?;
    if let Found::Damaged(reason) = &export {
        tracing::error!(path = %export_path.display(), %reason, "the metadata export is damaged");
    }

    let exported = export.generation();
    let spare = Spare::new(dir.join("spare"));
    let (store, state, cause, from_export) = match check(&database, Some(&spare))? {
        Checked::Empty(store) if exported.is_none() && marked == 0 => {
            (store, State::default(), None, false)
        }
        Checked::Empty(store) => (store, State::default(), Some((Cause::Missing, None)), true),
        Checked::Sound(store, state) if state.generation >= marked => (store, state, None, false),
        Checked::Sound(store, state) => {
            let cause = Cause::RolledBack { expected: marked, found: state.generation };
            if exported > Some(state.generation) {
                drop(store);
                let (store, moved_to) = start_over(&database)?;
                (store, State::default(), Some((cause, Some(moved_to))), true)
            } else {
                (store, state, Some((cause, None)), false)
            }
        }
        Checked::Damaged(reason) => {
            let (store, moved_to) = start_over(&database)?;
            (store, State::default(), Some((Cause::Damaged { reason }, Some(moved_to))), true)
        }
    };
    files::sync_dir(dir)?;

    // Generations never go back, or the mark could not tell a later loss
    let generation = match cause {
        Some(_) => state.generation.max(marked).max(exported.unwrap_or(0)),
        None => state.generation,
    };
    let mark = Mark::open(&mark_path, GENERATION_NAME)?;
    spare.fill();
    let shared = Shared::new(dir.to_owned(), store, mark, spare, State { generation, ..state });
    let recovered = match cause {
        None => None,
        Some((cause, moved_to)) => {
            let source = if from_export {
                restore(&shared, export, &export_path)?
            } else {
                RestoredFrom::Kept
            };
            shared.restate()?;
            let recovered = Recovered { cause, moved_to, source };
            tracing::error!("{recovered}");
            Some(recovered)
        }
    };
    let shared = Arc::new(shared);
    shared.set_mark()?;
    let slots = SlotAllocator::open(Arc::clone(&shared))?;
    // A store without changes needs no export
    let exported = Mutex::new(exported.unwrap_or(0));
    let metadata = Metadata { shared, slots, exported, export_path, _lock: lock };
    Ok(Opened { metadata, recovered })
}

/// Fills the empty store; an export that does not fit is moved aside and its text kept.
fn restore(shared: &Shared, found: Found, path: &Path) -> Result<RestoredFrom, MetadataError> {
    let reason = match found {
        Found::Nothing => return Ok(RestoredFrom::Nothing),
        Found::Damaged(reason) => reason,
        Found::Export(export) => {
            let (generation, written_at_ns) = (export.generation, export.written_at_ns);
            match export.restore(shared, path) {
                Ok(records) => {
                    return Ok(RestoredFrom::Export { generation, written_at_ns, records });
                }
                Err(e @ (MetadataError::Damaged { .. } | MetadataError::Taken { .. })) => {
                    e.to_string()
                }
                Err(e) => return Err(e),
            }
        }
    };
    let moved_to = move_aside(path)?;
    tracing::error!(moved_to = %moved_to.display(), %reason, "the metadata export is of no use");
    Ok(RestoredFrom::Nothing)
}

/// Opens a database and reads all of it; `spare` is given up where the disk is full.
pub(super) fn check(database: &Path, spare: Option<&Spare>) -> Result<Checked, MetadataError> {
    let mut opened = Store::open(database);
    if let (Err(OpenFailure::NoSpace(_)), Some(spare)) = (&opened, spare) {
        spare.release();
        opened = Store::open(database);
    }
    let (store, pairs) = match opened {
        Ok(opened) => opened,
        Err(OpenFailure::Damaged(reason)) => return Ok(Checked::Damaged(reason)),
        Err(OpenFailure::Error(e) | OpenFailure::NoSpace(e)) => return Err(e),
    };
    if pairs.is_empty() {
        return Ok(Checked::Empty(store));
    }
    let state = pairs.binary_search_by(|(key, _)| key.as_slice().cmp(STATE_KEY));
    let Ok(state) = state.map(|index| pairs[index].1.as_slice()) else {
        return Ok(Checked::Damaged("records without a state".to_owned()));
    };
    let state = match State::decode(state) {
        Ok(state) => state,
        Err(reason) => return Ok(Checked::Damaged(reason)),
    };
    match check_records(&store, &pairs, state) {
        Ok(()) => Ok(Checked::Sound(store, state)),
        Err(MetadataError::Damaged { key, reason, .. }) => {
            Ok(Checked::Damaged(format!("key {key}: {reason}")))
        }
        Err(e) => Err(e),
    }
}

/// The sum of all records, and that each of them can be read.
fn check_records(store: &Store, pairs: &Pairs, state: State) -> Result<(), MetadataError> {
    let found = sum_of(pairs);
    if found != state.sum {
        return Err(MetadataError::Damaged {
            key: "-".to_owned(),
            path: store.place().to_owned(),
            reason: format!("sum of all records: expected {:032x}, found {found:032x}", state.sum),
        });
    }
    store.list::<ImageRecord>()?;
    store.list::<SnapshotRecord>()?;
    store.list::<MountRecord>()?;
    store.list::<LeaseRecord>()?;
    store.list::<ContentRecord>()?;
    store.list::<KeyedSnapshot>()?;
    Ok(())
}

fn start_over(database: &Path) -> Result<(Store, PathBuf), MetadataError> {
    let moved_to = move_aside(database)?;
    match Store::open(database) {
        Ok((store, _)) => Ok((store, moved_to)),
        Err(OpenFailure::Error(e) | OpenFailure::NoSpace(e)) => Err(e),
        Err(OpenFailure::Damaged(reason)) => {
            Err(MetadataError::Damaged { key: "-".to_owned(), path: database.to_owned(), reason })
        }
    }
}

/// Renames to `<name>.corrupt-<unix seconds>`, with a further number where that is taken.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, MetadataError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut moved_to = path.as_os_str().to_owned();
    moved_to.push(format!(".corrupt-{now}"));
    let mut moved_to = PathBuf::from(moved_to);
    let first = moved_to.clone();
    for number in 1.. {
        if !moved_to.exists() {
            break;
        }
        moved_to = first.with_added_extension(number.to_string());
    }
    fs::rename(path, &moved_to).map_err(io_error("move aside", path))?;
    Ok(moved_to)
}
