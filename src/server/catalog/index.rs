//! The index of one folder in all four sort orders. The cost of a page depends only on its length, not on its
//! position.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::records::Node;
use crate::ids::FileId;
use crate::server::clock::{decode_hex, hex};

/// The sort order of a listing: `order_by`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum SortOrder {
    #[default]
    CreatedAt,
    UpdatedAt,
    Size,
    Name,
}

const ORDERS: [SortOrder; 4] = [SortOrder::CreatedAt, SortOrder::UpdatedAt, SortOrder::Size, SortOrder::Name];

/// The position of an entry in a sort order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::server) enum SortKey {
    Number(i64),
    Text(String),
}

impl SortKey {
    pub(in crate::server) fn of(order: SortOrder, node: &Node) -> Self {
        match order {
            SortOrder::CreatedAt => Self::Number(node.created_ms),
            SortOrder::UpdatedAt => Self::Number(node.updated_ms),
            SortOrder::Size => Self::Number(i64::try_from(node.size()).unwrap_or(i64::MAX)),
            SortOrder::Name => Self::Text(node.name.clone()),
        }
    }
}

/// The last entry of a page, as an opaque word for the client. The next page begins after that entry, even if
/// it was removed in between.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Marker {
    #[serde(rename = "o")]
    pub(in crate::server) order: SortOrder,
    #[serde(rename = "d")]
    pub(in crate::server) descending: bool,
    #[serde(rename = "p")]
    pub(in crate::server) parent: FileId,
    /// `None` before the first entry.
    #[serde(rename = "k")]
    pub(in crate::server) last: Option<(SortKey, FileId)>,
    /// The next page is an empty one (quirk `list_empty_pages`).
    #[serde(rename = "e", default)]
    pub(in crate::server) empty_page: bool,
}

impl Marker {
    pub(in crate::server) fn encode(&self) -> String {
        serde_json::to_vec(self).map(|raw| hex(&raw)).unwrap_or_default()
    }

    pub(in crate::server) fn decode(word: &str) -> Option<Self> {
        serde_json::from_slice(&decode_hex(word)?).ok()
    }
}

/// The entries of a folder.
#[derive(Debug, Default)]
pub(in crate::server) struct Folder {
    orders: [BTreeSet<(SortKey, FileId)>; 4],
    names: HashMap<String, Vec<FileId>>,
}

impl Folder {
    /// Adds an entry. `name` is case-folded if names are case-insensitive.
    pub(super) fn insert(&mut self, node: &Node, name: String) {
        for (order, set) in ORDERS.into_iter().zip(&mut self.orders) {
            set.insert((SortKey::of(order, node), node.file_id.clone()));
        }
        self.names.entry(name).or_default().push(node.file_id.clone());
    }

    /// Removes an entry. `node` must be unchanged since its insertion.
    pub(super) fn remove(&mut self, node: &Node, name: &str) {
        for (order, set) in ORDERS.into_iter().zip(&mut self.orders) {
            set.remove(&(SortKey::of(order, node), node.file_id.clone()));
        }
        if let Some(named) = self.names.get_mut(name) {
            named.retain(|id| *id != node.file_id);
            if named.is_empty() {
                self.names.remove(name);
            }
        }
    }

    pub(in crate::server) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The entries with this name, oldest first.
    pub(super) fn named(&self, name: &str) -> &[FileId] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// All entries, in no particular order.
    pub(in crate::server) fn ids(&self) -> impl Iterator<Item = &FileId> {
        self.orders[0].iter().map(|(_, id)| id)
    }

    /// The entries after `last`, in a sort order.
    pub(in crate::server) fn walk<'a>(
        &'a self,
        order: SortOrder,
        descending: bool,
        last: Option<&(SortKey, FileId)>,
    ) -> Box<dyn Iterator<Item = &'a (SortKey, FileId)> + 'a> {
        let at = ORDERS.iter().position(|o| *o == order).unwrap_or(0);
        let set = &self.orders[at];
        match (last, descending) {
            (None, false) => Box::new(set.iter()),
            (None, true) => Box::new(set.iter().rev()),
            (Some(last), false) => Box::new(set.range((Bound::Excluded(last), Bound::Unbounded))),
            (Some(last), true) => Box::new(set.range((Bound::Unbounded, Bound::Excluded(last))).rev()),
        }
    }
}

/// Compares two nodes. For searches, which have no index.
pub(in crate::server) fn compare(order: SortOrder, a: &Node, b: &Node) -> Ordering {
    SortKey::of(order, a).cmp(&SortKey::of(order, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DriveId;
    use crate::server::catalog::records::{ClientAttrs, NodeKind};

    fn node(id: &str, name: &str, at_ms: i64) -> Node {
        Node {
            file_id: FileId::new(id).unwrap(),
            drive_id: DriveId::new("1").unwrap(),
            parent: FileId::root(),
            name: name.into(),
            kind: NodeKind::Folder,
            created_ms: at_ms,
            updated_ms: -at_ms,
            trashed_ms: None,
            attrs: ClientAttrs::default(),
        }
    }

    #[test]
    fn pages_continue_after_a_removed_entry() {
        let nodes = [node("a", "z", 1), node("b", "y", 2), node("c", "x", 3)];
        let mut folder = Folder::default();
        for node in &nodes {
            folder.insert(node, node.name.clone());
        }
        let ids = |order, desc, last: Option<&(SortKey, FileId)>| {
            folder.walk(order, desc, last).map(|(_, id)| id.as_str().to_owned()).collect::<String>()
        };
        assert_eq!(ids(SortOrder::CreatedAt, false, None), "abc");
        assert_eq!(ids(SortOrder::Name, false, None), "cba");
        assert_eq!(ids(SortOrder::UpdatedAt, false, None), "cba");
        assert_eq!(ids(SortOrder::Name, true, None), "abc");
        let last = (SortKey::of(SortOrder::Name, &nodes[1]), nodes[1].file_id.clone());
        folder.remove(&nodes[1], "y");
        let rest: Vec<_> =
            folder.walk(SortOrder::Name, false, Some(&last)).map(|(_, id)| id.as_str()).collect();
        assert_eq!(rest, ["a"]);
        assert!(folder.named("y").is_empty() && folder.named("x").len() == 1);
    }

    #[test]
    fn markers_round_trip_as_one_word() {
        let marker = Marker {
            order: SortOrder::Name,
            descending: true,
            parent: FileId::root(),
            last: Some((SortKey::Text("ü \"".into()), FileId::root())),
            empty_page: false,
        };
        let word = marker.encode();
        assert!(word.bytes().all(|c| c.is_ascii_alphanumeric()));
        assert_eq!(Marker::decode(&word), Some(marker));
        assert_eq!(Marker::decode("nonsense"), None);
    }
}
