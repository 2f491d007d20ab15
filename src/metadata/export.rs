//! The plain export: everything in one JSON file that a person can read and peel can start from.
//!
//! ```text
//! { "format": "peel-metadata", "version": 1, "generation": 17, "written_at_ns": …,
//!   "checksum": "sha256:…",           of the text of `records` without white space
//!   "records": { "counters": { "snapshot": 3, … }, "images": [ { "v": 1, … } ], … } }
//! ```

use std::path::{Path, PathBuf};

use peel_index::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Metadata,
    error::MetadataError,
    files,
    keep::{ContentRecord, LeaseRecord},
    keyed::KeyedSnapshot,
    record::{IdKind, ImageRecord, MountRecord, Record, SLOT_COUNTER, SnapshotRecord, counter_key},
    shared::{Shared, State},
    text,
    transaction::{self, Transaction, View},
};

const FORMAT: &str = "peel-metadata";
const VERSION: u64 = 1;

/// Bound of an export that is read. 100,000 images of ten layers each take about 300 MB.
const EXPORT_MAX: u64 = 512 << 20;

#[derive(Serialize, Deserialize)]
struct Document {
    format: String,
    version: u64,
    generation: u64,
    written_at_ns: i64,
    #[serde(with = "text::digest")]
    checksum: Digest,
    records: Value,
}

/// An export whose checksum agreed.
pub(super) struct Export {
    pub(super) generation: u64,
    pub(super) written_at_ns: i64,
    records: Value,
}

/// What stands where the export should.
pub(super) enum Found {
    Nothing,
    Export(Export),
    Damaged(String),
}

impl Found {
    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Self::Export(export) => Some(export.generation),
            Self::Nothing | Self::Damaged(_) => None,
        }
    }
}

impl Metadata {
    /// Everything, as `export.json` has it.
    pub fn dump(&self) -> Result<String, MetadataError> {
        let writer = self.shared.writer()?;
        let text = encode(&self.shared, *writer)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Puts an export in the place of the store in `dir`, which nobody may have open: the next
    /// [`Metadata::open`] takes it up. Gives how many records it holds, and where the database is
    /// that was there.
    ///
    /// # Errors
    /// Where it is no export, is damaged or of a newer version, or the store is in use.
    pub fn replace(dir: &Path, export: &Path) -> Result<(u64, Option<PathBuf>), MetadataError> {
        files::make_dir(dir)?;
        let _lock = files::lock(&dir.join("lock"))?;
        let damaged = |reason: String| MetadataError::Damaged {
            key: "-".to_owned(),
            path: export.to_owned(),
            reason,
        };
        let found = match read(export)? {
            Found::Export(found) => found,
            Found::Nothing => return Err(damaged("no such file".to_owned())),
            Found::Damaged(reason) => return Err(damaged(reason)),
        };
        let tables = found.records.as_object().into_iter().flatten();
        let count: usize = tables.filter_map(|(_, table)| Some(table.as_array()?.len())).sum();
        let bytes = std::fs::read(export).map_err(files::io_error("read", export))?;
        // The old one is kept, and the new one there, at every moment from here on
        files::replace(&dir.join("export.json"), &bytes)?;
        let database = dir.join("db");
        let aside = match database.exists() {
            true => Some(super::open::move_aside(&database)?),
            false => None,
        };
        files::sync_dir(dir)?;
        Ok((count as u64, aside))
    }
}

/// Reads an export; an error only where it cannot be read or is of a newer version.
pub(super) fn read(path: &Path) -> Result<Found, MetadataError> {
    let Some(bytes) = files::read_bounded(path, EXPORT_MAX)? else {
        return Ok(Found::Nothing);
    };
    let value: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(e) => return Ok(Found::Damaged(e.to_string())),
    };
    drop(bytes);
    let version = value.get("version").and_then(Value::as_u64);
    if let Some(found) = version.filter(|v| *v > VERSION)
        && value.get("format").and_then(Value::as_str) == Some(FORMAT)
    {
        let what = path.display().to_string();
        return Err(MetadataError::Newer { what, expected: VERSION, found });
    }
    let document: Document = match serde_json::from_value(value) {
        Ok(document) => document,
        Err(e) => return Ok(Found::Damaged(e.to_string())),
    };
    let found = Digest::sha256(document.records.to_string().as_bytes());
    if document.checksum != found {
        let expected = document.checksum;
        return Ok(Found::Damaged(format!("checksum: expected {expected}, found {found}")));
    }
    let Document { generation, written_at_ns, records, .. } = document;
    Ok(Found::Export(Export { generation, written_at_ns, records }))
}

/// The text of an export of everything in the store.
///
/// The caller holds the writer, so that `state` and what is read belong together.
pub(super) fn encode(shared: &Shared, state: State) -> Result<Vec<u8>, MetadataError> {
    let mut records = Map::new();
    let mut counters = Map::new();
    for name in IdKind::ALL.map(IdKind::name).into_iter().chain([SLOT_COUNTER]) {
        if let Some(number) = shared.number(&counter_key(name))? {
            counters.insert(name.to_owned(), number.into());
        }
    }
    records.insert("counters".to_owned(), counters.into());
    add_table::<ImageRecord>(shared, &mut records)?;
    add_table::<SnapshotRecord>(shared, &mut records)?;
    add_table::<MountRecord>(shared, &mut records)?;
    add_table::<LeaseRecord>(shared, &mut records)?;
    add_table::<ContentRecord>(shared, &mut records)?;
    add_table::<KeyedSnapshot>(shared, &mut records)?;
    let records = Value::Object(records);
    let document = Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        generation: state.generation,
        written_at_ns: super::now_ns(),
        checksum: Digest::sha256(records.to_string().as_bytes()),
        records,
    };
    let mut text = serde_json::to_vec_pretty(&document).map_err(|e| damaged(shared, "-", e))?;
    text.push(b'\n');
    Ok(text)
}

fn add_table<R: Record>(shared: &Shared, to: &mut Map<String, Value>) -> Result<(), MetadataError> {
    let records = shared.list::<R>()?;
    let documents = records.iter().map(transaction::encode).collect::<Result<Vec<_>, _>>();
    let documents = documents.map_err(|e| damaged(shared, R::TABLE, e))?;
    to.insert(R::TABLE.to_owned(), documents.into());
    Ok(())
}

fn damaged(shared: &Shared, key: &str, error: serde_json::Error) -> MetadataError {
    let (key, path) = (key.to_owned(), shared.dir.clone());
    MetadataError::Damaged { key, path, reason: error.to_string() }
}

impl Export {
    /// Puts everything into an empty store in one commit; returns how many records came.
    pub(super) fn restore(self, shared: &Shared, path: &Path) -> Result<u64, MetadataError> {
        let mut writer = shared.writer()?;
        let mut into = Transaction::new(shared);
        if let Some(counters) = self.records.get("counters").and_then(Value::as_object) {
            for (name, number) in counters {
                let Some(number) = number.as_u64() else {
                    return Err(MetadataError::Damaged {
                        key: format!("counter/{name}"),
                        path: path.to_owned(),
                        reason: format!("not a number: {number}"),
                    });
                };
                into.raise_counter(name, number)?;
            }
        }
        let mut count = 0;
        count += restore_table::<ImageRecord>(&self.records, &mut into, path)?;
        count += restore_table::<SnapshotRecord>(&self.records, &mut into, path)?;
        count += restore_table::<MountRecord>(&self.records, &mut into, path)?;
        count += restore_table::<LeaseRecord>(&self.records, &mut into, path)?;
        count += restore_table::<ContentRecord>(&self.records, &mut into, path)?;
        count += restore_table::<KeyedSnapshot>(&self.records, &mut into, path)?;
        shared.commit(&mut writer, into.into_changes())?;
        Ok(count)
    }
}

fn restore_table<R: Record>(
    records: &Value,
    into: &mut Transaction<'_>,
    path: &Path,
) -> Result<u64, MetadataError> {
    let documents = records.get(R::TABLE).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for document in documents {
        let record: R = transaction::decode(document.clone(), R::TABLE.as_bytes(), path)?;
        into.put(&record)?;
    }
    Ok(documents.len() as u64)
}
