//! What snapshots by key need.

use std::collections::{HashMap, HashSet};

use peel_index::{Digest, chain_id};

use crate::metadata::{KeyedSnapshot, LayerRef};

/// All snapshots by key.
pub(super) struct Keyed(HashMap<String, KeyedSnapshot>);

impl Keyed {
    pub(super) fn of(snapshots: Vec<KeyedSnapshot>) -> Self {
        Self(snapshots.into_iter().map(|s| (s.key.clone(), s)).collect())
    }

    /// The layers that snapshots are or will be.
    pub(super) fn layers(&self) -> impl Iterator<Item = &LayerRef> {
        self.0.values().filter_map(|snapshot| snapshot.layer.as_ref())
    }

    /// Numbers of the snapshots that may have a directory.
    pub(super) fn uppers(&self) -> impl Iterator<Item = u64> {
        self.0.values().filter(|s| !s.is_layer()).map(|snapshot| snapshot.id)
    }

    /// chainIDs of the layers that something which is no layer stands on, or shows as its own.
    pub(super) fn chains(&self) -> HashSet<Digest> {
        let above = || self.0.values().filter(|snapshot| !snapshot.is_layer());
        let mut tops: HashSet<&str> = above().filter_map(|s| s.parent.as_deref()).collect();
        tops.extend(above().filter(|s| s.layer.is_some()).map(|s| s.key.as_str()));
        tops.into_iter().filter_map(|top| self.chain(top)).collect()
    }

    fn chain(&self, top: &str) -> Option<Digest> {
        let mut diff_ids = Vec::new();
        let mut next = Some(top);
        while let Some(snapshot) = next.and_then(|key| self.0.get(key)) {
            diff_ids.push(snapshot.layer.as_ref()?.diff_id);
            // A record in a circle is damaged; it must not hold the sweep up
            if diff_ids.len() > self.0.len() {
                return None;
            }
            next = snapshot.parent.as_deref();
        }
        diff_ids.reverse();
        chain_id(&diff_ids)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metadata::KeyedKind;

    fn snapshot(key: &str, parent: Option<&str>, layer: Option<u8>) -> KeyedSnapshot {
        let layer = layer.map(|n| LayerRef {
            digest: Digest::sha256(&[n, 0]),
            size: 1,
            media_type: String::new(),
            diff_id: Digest::sha256(&[n]),
        });
        KeyedSnapshot {
            key: key.to_owned(),
            id: key.len() as u64,
            parent: parent.map(str::to_owned),
            kind: if layer.is_some() { KeyedKind::Committed } else { KeyedKind::Active },
            layer,
            labels: BTreeMap::new(),
            created_at_ns: 0,
            updated_at_ns: 0,
            bytes: 0,
            inodes: 0,
        }
    }

    #[test]
    fn only_chains_with_something_on_them() {
        let keyed = Keyed::of(vec![
            snapshot("a", None, Some(1)),
            snapshot("b", Some("a"), Some(2)),
            snapshot("c", Some("b"), Some(3)),
            snapshot("upper", Some("b"), None),
            snapshot("on upper", Some("upper"), None),
            snapshot("loose", None, None),
        ]);
        let chain = chain_id(&[1, 2].map(|n| Digest::sha256(&[n]))).expect("chain");
        assert_eq!(keyed.chains(), HashSet::from([chain]));
        assert_eq!(keyed.layers().count(), 3);
        let uppers: HashSet<u64> = keyed.uppers().collect();
        assert_eq!(uppers, HashSet::from([5, 8]));
    }

    #[test]
    fn a_layer_that_is_not_committed_yet() {
        let applied =
            KeyedSnapshot { kind: KeyedKind::Active, ..snapshot("applied", Some("a"), Some(2)) };
        let keyed = Keyed::of(vec![snapshot("a", None, Some(1)), applied]);
        let chain = |numbers: &[u8]| {
            let diff_ids: Vec<_> = numbers.iter().map(|n| Digest::sha256(&[*n])).collect();
            chain_id(&diff_ids).expect("chain")
        };
        assert_eq!(keyed.chains(), HashSet::from([chain(&[1]), chain(&[1, 2])]));
        assert_eq!(keyed.layers().count(), 2);
        assert_eq!(keyed.uppers().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_circle_ends() {
        let keyed = Keyed::of(vec![
            snapshot("a", Some("b"), Some(1)),
            snapshot("b", Some("a"), Some(2)),
            snapshot("upper", Some("b"), None),
        ]);
        assert_eq!(keyed.chains(), HashSet::new());
    }
}
