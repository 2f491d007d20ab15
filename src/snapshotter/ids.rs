//! Snapshots for containers in user namespaces: ids mapped by the mounts, not by changing owners.
//!
//! ```text
//!                     on disk        in the overlay, as the host sees it       in the container
//! tree (idmapped)     0              1000000                                   0
//! upper               1000000        1000000                                   0
//! ```
//! containerd's labels say how, and the options `uidmap=` and `gidmap=` of an answer have its client
//! (2.0 and newer) bind what is below with these ids before it mounts the overlay. Uppers hold the
//! host's ids, as those of containerd's own snapshotter do. Source: `plugins/snapshots/overlay` and
//! `core/mount/mount_linux.go` of containerd.

use std::collections::BTreeMap;

use super::{SnapshotterError, mounts::Lower};

/// How the users of a namespace are mapped; source: `snapshots.LabelSnapshotUIDMapping`.
pub(super) const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// The same for its groups.
pub(super) const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// Most lines that the kernel takes of a map.
const MAX_LINES: usize = 340;

/// A map of ids: lines of the first one inside, the first one outside, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Map {
    text: String,
    /// Where its 0 is outside.
    root: u32,
}

/// What the labels of a snapshot ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMaps {
    uids: Map,
    gids: Map,
}

impl Map {
    fn parse(label: &str, text: &str) -> Result<Self, SnapshotterError> {
        let bad = |why: &str| SnapshotterError::Invalid(format!("label {label}={text:?}: {why}"));
        let mut root = None;
        for (number, line) in text.split(',').enumerate() {
            let numbers = line.split(':').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>();
            let (inside, outside, len) = match numbers.as_deref() {
                Ok([inside, outside, len]) => (*inside, *outside, *len),
                _ => return Err(bad("expected numbers as in 0:1000000:65536")),
            };
            let fits = |first: u32| first.checked_add(len).is_some();
            if len == 0 || !fits(inside) || !fits(outside) || number >= MAX_LINES {
                return Err(bad("the kernel takes no such map"));
            }
            if inside == 0 {
                root = Some(outside);
            }
        }
        let root = root.ok_or_else(|| bad("it does not map 0"))?;
        Ok(Self { text: text.to_owned(), root })
    }
}

impl IdMaps {
    /// What labels ask for, if anything.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Result<Option<Self>, SnapshotterError> {
        match (labels.get(UID_LABEL), labels.get(GID_LABEL)) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Self {
                uids: Map::parse(UID_LABEL, uids)?,
                gids: Map::parse(GID_LABEL, gids)?,
            })),
            _ => {
                let message = format!("expected both labels or none: {UID_LABEL}, {GID_LABEL}");
                Err(SnapshotterError::Invalid(message))
            }
        }
    }

    /// The owner and group of a directory that the container's root is to own.
    pub(super) fn root(&self) -> (u32, u32) {
        (self.uids.root, self.gids.root)
    }

    /// The options that have a client map what is below; none where there is nothing, or where its
    /// owners were changed: containerd does that itself with a snapshotter that it does not know to
    /// map ids, and passes the labels on all the same.
    pub(super) fn options(&self, lowers: &[Lower]) -> Result<Vec<String>, SnapshotterError> {
        let Some(top) = lowers.first() else { return Ok(Vec::new()) };
        if (top.uid, top.gid) == self.root() {
            return Ok(Vec::new());
        }
        if lowers.iter().any(|lower| !lower.maps_ids) {
            return Err(SnapshotterError::Precondition(
                "this kernel maps no ids of a FUSE mount (Linux 6.12 does): take \"remap-ids\" out \
                 of peel's capabilities in containerd's configuration, and it changes owners itself"
                    .to_owned(),
            ));
        }
        Ok(vec![format!("uidmap={}", self.uids.text), format!("gidmap={}", self.gids.text)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        for (text, root) in [
            ("0:1000000:65536", 1_000_000),
            ("0:0:4294967295", 0),
            ("1:5:10,0:3:1", 3),
            ("0:3:1,1:5:10", 3),
        ] {
            assert_eq!(Map::parse(UID_LABEL, text).expect(text).root, root, "{text}");
        }
        for text in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "1:1000:5",
            "a:b:c",
            "0:-1:5",
            "0:4294967295:2",
            "5:1:4294967295,0:1:1",
            "0:1:1,",
            "0:1:1, 1:2:1",
        ] {
            Map::parse(UID_LABEL, text).expect_err(text);
        }
        let lines: Vec<_> = (0..=MAX_LINES).map(|n| format!("{n}:{n}:1")).collect();
        Map::parse(UID_LABEL, &lines[..MAX_LINES].join(",")).expect("as many as may be");
        Map::parse(UID_LABEL, &lines.join(",")).expect_err("one too many");
    }

    #[test]
    fn one_label_alone_is_refused() {
        let labels = |keys: &[&str]| {
            keys.iter()
                .map(|key| ((*key).to_owned(), "0:5:1".to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(IdMaps::of(&labels(&["other"])).expect("nothing asked for"), None);
        IdMaps::of(&labels(&[UID_LABEL])).expect_err("no groups");
        IdMaps::of(&labels(&[GID_LABEL])).expect_err("no users");
        let maps = IdMaps::of(&labels(&[UID_LABEL, GID_LABEL])).expect("good").expect("asked for");
        assert_eq!(maps.root(), (5, 5));
    }
}
