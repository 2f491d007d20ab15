//! Reading and changing records, with changes held back until all of them can be committed.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    error::{MetadataError, show},
    record::{
        IdKind, ImageRecord, MountRecord, RECORD_VERSION, Record, SnapshotRecord, counter_key,
        id_key, image_key, mount_target_key, snapshot_name_key,
    },
    shared::Shared,
    store::{Changes, Pairs},
};

/// The document of a record: `v`, then its fields.
pub(super) fn encode<R: Record>(record: &R) -> Result<Value, serde_json::Error> {
    let mut document = Map::new();
    document.insert("v".to_owned(), RECORD_VERSION.into());
    if let Value::Object(mut fields) = serde_json::to_value(record)? {
        document.append(&mut fields);
    }
    Ok(Value::Object(document))
}

/// The record of a document; `place` and `key` are for the error.
pub(super) fn decode<R: Record>(
    mut document: Value,
    key: &[u8],
    place: &Path,
) -> Result<R, MetadataError> {
    let damaged =
        |reason: String| MetadataError::Damaged { key: show(key), path: place.to_owned(), reason };
    let version = document.as_object_mut().and_then(|fields| fields.shift_remove("v"));
    match version.as_ref().and_then(Value::as_u64) {
        Some(1..=RECORD_VERSION) => {}
        Some(found @ RECORD_VERSION..) => {
            return Err(MetadataError::Newer { what: show(key), expected: RECORD_VERSION, found });
        }
        Some(0) | None => return Err(damaged("no version".to_owned())),
    }
    serde_json::from_value(document).map_err(|e| damaged(e.to_string()))
}

/// A view of the records: the database, or a transaction over it.
pub(super) trait View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError>;
    fn scan(&self, prefix: &[u8]) -> Result<Pairs, MetadataError>;
    fn place(&self) -> &Path;

    fn load<R: Record>(&self, key: &[u8]) -> Result<Option<R>, MetadataError> {
        self.get(key)?.map(|value| parse(&value, key, self.place())).transpose()
    }

    fn list<R: Record>(&self) -> Result<Vec<R>, MetadataError> {
        let pairs = self.scan(format!("{}/", R::TABLE).as_bytes())?;
        pairs.iter().map(|(key, value)| parse(value, key, self.place())).collect()
    }

    /// A number: a counter, or the id that a unique name stands for.
    fn number(&self, key: &[u8]) -> Result<Option<u64>, MetadataError> {
        let Some(value) = self.get(key)? else {
            return Ok(None);
        };
        let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
        let damaged = || MetadataError::Damaged {
            key: show(key),
            path: self.place().to_owned(),
            reason: format!("not a number: {:?}", show(&value)),
        };
        number.map(Some).ok_or_else(damaged)
    }

    fn load_by_name<R: Record>(&self, name_key: &[u8]) -> Result<Option<R>, MetadataError> {
        let Some(id) = self.number(name_key)? else {
            return Ok(None);
        };
        self.load(&id_key::<R>(id))
    }
}

fn parse<R: Record>(value: &[u8], key: &[u8], place: &Path) -> Result<R, MetadataError> {
    let document = serde_json::from_slice(value).map_err(|e| MetadataError::Damaged {
        key: show(key),
        path: place.to_owned(),
        reason: e.to_string(),
    })?;
    decode(document, key, place)
}

impl View for Shared {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.check()?;
        self.store.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, MetadataError> {
        self.check()?;
        self.store.scan(prefix)
    }

    fn place(&self) -> &Path {
        self.store.place()
    }
}

/// Changes that belong together. Sees its own changes; nobody else does before the commit.
#[derive(Debug)]
pub struct Transaction<'a> {
    shared: &'a Shared,
    changes: Changes,
}

impl View for Transaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.shared.get(key),
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, MetadataError> {
        let mut pairs = self.shared.scan(prefix)?;
        pairs.retain(|(key, _)| !self.changes.contains_key(key));
        let changed = self.changes.range(prefix.to_vec()..);
        let changed = changed.take_while(|(key, _)| key.starts_with(prefix));
        pairs.extend(changed.filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        pairs.sort();
        Ok(pairs)
    }

    fn place(&self) -> &Path {
        self.shared.place()
    }
}

impl<'a> Transaction<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, changes: Changes::new() }
    }

    pub(super) fn into_changes(self) -> Changes {
        self.changes
    }

    pub(super) fn put<R: Record>(&mut self, record: &R) -> Result<(), MetadataError> {
        let key = record.key();
        let unique = record.unique();
        if let Some(unique) = &unique
            && let Some(found) = self.number(&unique.key)?
            && found != unique.id
        {
            let (what, expected) = (unique.what, unique.id);
            return Err(MetadataError::Taken { what, name: show(&unique.key), expected, found });
        }
        // Its old name, where it is renamed or moved
        self.forget_name(self.load::<R>(&key)?.as_ref());
        if let Some(unique) = unique {
            self.changes.insert(unique.key, Some(unique.id.to_string().into_bytes()));
        }
        let document = encode(record).and_then(|document| serde_json::to_vec(&document));
        let value = document.map_err(|e| MetadataError::Damaged {
            key: show(&key),
            path: self.place().to_owned(),
            reason: e.to_string(),
        })?;
        self.changes.insert(key, Some(value));
        Ok(())
    }

    fn forget_name<R: Record>(&mut self, record: Option<&R>) {
        if let Some(unique) = record.and_then(Record::unique) {
            self.changes.insert(unique.key, None);
        }
    }

    pub(super) fn remove<R: Record>(&mut self, key: Vec<u8>) -> Result<Option<R>, MetadataError> {
        let record = self.load::<R>(&key)?;
        if record.is_some() {
            self.forget_name(record.as_ref());
            self.changes.insert(key, None);
        }
        Ok(record)
    }

    pub(super) fn raise_counter(&mut self, name: &str, used: u64) -> Result<(), MetadataError> {
        let key = counter_key(name);
        if self.number(&key)?.is_none_or(|last| last < used) {
            self.changes.insert(key, Some(used.to_string().into_bytes()));
        }
        Ok(())
    }

    /// The next number of a kind, from 1; never given out again once the transaction is committed.
    pub fn next_id(&mut self, kind: IdKind) -> Result<u64, MetadataError> {
        let id = self.number(&counter_key(kind.name()))?.unwrap_or(0).saturating_add(1);
        self.raise_counter(kind.name(), id)?;
        Ok(id)
    }

    /// Says that `used` is in use (found on disk): [`next_id`](Self::next_id) will go on above it.
    pub fn raise_id(&mut self, kind: IdKind, used: u64) -> Result<(), MetadataError> {
        self.raise_counter(kind.name(), used)
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<ImageRecord>, MetadataError> {
        self.list()
    }

    /// The image of that canonical name.
    pub fn image(&self, name: &str) -> Result<Option<ImageRecord>, MetadataError> {
        self.load(&image_key(name))
    }

    /// Adds an image or replaces the one of its name.
    pub fn put_image(&mut self, image: &ImageRecord) -> Result<(), MetadataError> {
        self.put(image)
    }

    /// Removes an image's name; returns what it was, `None` where there was none.
    pub fn remove_image(&mut self, name: &str) -> Result<Option<ImageRecord>, MetadataError> {
        self.remove(image_key(name))
    }

    /// All snapshots, by id.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>, MetadataError> {
        self.list()
    }

    /// The snapshot of that number.
    pub fn snapshot(&self, id: u64) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.load(&id_key::<SnapshotRecord>(id))
    }

    /// The snapshot of that name.
    pub fn snapshot_named(&self, name: &str) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.load_by_name(&snapshot_name_key(name))
    }

    /// Adds a snapshot or replaces the one of its id; [`MetadataError::Taken`] where another has
    /// its name.
    pub fn put_snapshot(&mut self, snapshot: &SnapshotRecord) -> Result<(), MetadataError> {
        self.put(snapshot)
    }

    /// Removes a snapshot; returns what it was, `None` where there was none.
    pub fn remove_snapshot(&mut self, id: u64) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.remove(id_key::<SnapshotRecord>(id))
    }

    /// All mounts, by id.
    pub fn mounts(&self) -> Result<Vec<MountRecord>, MetadataError> {
        self.list()
    }

    /// The mount of that number.
    pub fn mount(&self, id: u64) -> Result<Option<MountRecord>, MetadataError> {
        self.load(&id_key::<MountRecord>(id))
    }

    /// The mount at a canonical path in a mount namespace, given by its inode number.
    pub fn mount_at(
        &self,
        mount_ns: u64,
        target: &Path,
    ) -> Result<Option<MountRecord>, MetadataError> {
        self.load_by_name(&mount_target_key(mount_ns, target))
    }

    /// Adds a mount or replaces the one of its id; [`MetadataError::Taken`] where another has its
    /// target in its mount namespace.
    pub fn put_mount(&mut self, mount: &MountRecord) -> Result<(), MetadataError> {
        self.put(mount)
    }

    /// Removes a mount; returns what it was, `None` where there was none.
    pub fn remove_mount(&mut self, id: u64) -> Result<Option<MountRecord>, MetadataError> {
        self.remove(id_key::<MountRecord>(id))
    }
}
