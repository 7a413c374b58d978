//! The listing of one folder, kept in all four orders, so that a page costs its entries and
//! nothing else, wherever it begins.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::records::Node;
use crate::ids::FileId;
use crate::server::clock::{hex, unhex};

/// What a listing is ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Order {
    #[default]
    CreatedAt,
    UpdatedAt,
    Size,
    Name,
}

const ORDERS: [Order; 4] = [Order::CreatedAt, Order::UpdatedAt, Order::Size, Order::Name];

/// Where an entry stands in an order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::server) enum Key {
    Number(i64),
    Text(String),
}

impl Key {
    pub(in crate::server) fn of(order: Order, node: &Node) -> Self {
        match order {
            Order::CreatedAt => Self::Number(node.created_ms),
            Order::UpdatedAt => Self::Number(node.updated_ms),
            Order::Size => Self::Number(i64::try_from(node.size()).unwrap_or(i64::MAX)),
            Order::Name => Self::Text(node.name.clone()),
        }
    }
}

/// The last entry of a page. Goes to the client as an opaque word and begins the next page after
/// that entry, whether it is still there or not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Marker {
    #[serde(rename = "o")]
    pub(in crate::server) order: Order,
    #[serde(rename = "d")]
    pub(in crate::server) descending: bool,
    #[serde(rename = "p")]
    pub(in crate::server) parent: FileId,
    /// None before the first entry.
    #[serde(rename = "k")]
    pub(in crate::server) last: Option<(Key, FileId)>,
    /// This page is an empty one.
    #[serde(rename = "e", default)]
    pub(in crate::server) pause: bool,
}

impl Marker {
    pub(in crate::server) fn encode(&self) -> String {
        serde_json::to_vec(self).map(|raw| hex(&raw)).unwrap_or_default()
    }

    pub(in crate::server) fn decode(word: &str) -> Option<Self> {
        serde_json::from_slice(&unhex(word)?).ok()
    }
}

/// The entries of a folder.
#[derive(Debug, Default)]
pub(in crate::server) struct Folder {
    orders: [BTreeSet<(Key, FileId)>; 4],
    names: HashMap<String, Vec<FileId>>,
}

impl Folder {
    /// Adds an entry. `name` is its name as names are compared.
    pub(super) fn insert(&mut self, node: &Node, name: String) {
        for (order, set) in ORDERS.into_iter().zip(&mut self.orders) {
            set.insert((Key::of(order, node), node.file_id.clone()));
        }
        self.names.entry(name).or_default().push(node.file_id.clone());
    }

    /// Removes an entry; `node` is as it was when it was inserted.
    pub(super) fn remove(&mut self, node: &Node, name: &str) {
        for (order, set) in ORDERS.into_iter().zip(&mut self.orders) {
            set.remove(&(Key::of(order, node), node.file_id.clone()));
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

    /// The entries of this name, oldest first.
    pub(super) fn named(&self, name: &str) -> &[FileId] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// Everything, in no order that matters.
    pub(in crate::server) fn ids(&self) -> impl Iterator<Item = &FileId> {
        self.orders[0].iter().map(|(_, id)| id)
    }

    /// Entries in an order, after `last`.
    pub(in crate::server) fn walk<'a>(
        &'a self,
        order: Order,
        descending: bool,
        last: Option<&(Key, FileId)>,
    ) -> Box<dyn Iterator<Item = &'a (Key, FileId)> + 'a> {
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

/// Compares two nodes in an order; for searches, which have no index.
pub(in crate::server) fn compare(order: Order, a: &Node, b: &Node) -> Ordering {
    Key::of(order, a).cmp(&Key::of(order, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DriveId;
    use crate::server::catalog::records::{Kind, Traits};

    fn node(id: &str, name: &str, at_ms: i64) -> Node {
        Node {
            file_id: FileId::new(id).unwrap(),
            drive_id: DriveId::new("1").unwrap(),
            parent: FileId::root(),
            name: name.into(),
            kind: Kind::Folder,
            created_ms: at_ms,
            updated_ms: -at_ms,
            trashed_ms: None,
            traits: Traits::default(),
        }
    }

    #[test]
    fn pages_go_on_after_an_entry_that_is_gone() {
        let nodes = [node("a", "z", 1), node("b", "y", 2), node("c", "x", 3)];
        let mut folder = Folder::default();
        for node in &nodes {
            folder.insert(node, node.name.clone());
        }
        let ids = |order, desc, last: Option<&(Key, FileId)>| {
            folder.walk(order, desc, last).map(|(_, id)| id.as_str().to_owned()).collect::<String>()
        };
        assert_eq!(ids(Order::CreatedAt, false, None), "abc");
        assert_eq!(ids(Order::Name, false, None), "cba");
        assert_eq!(ids(Order::UpdatedAt, false, None), "cba");
        assert_eq!(ids(Order::Name, true, None), "abc");
        let last = (Key::of(Order::Name, &nodes[1]), nodes[1].file_id.clone());
        folder.remove(&nodes[1], "y");
        let rest: Vec<_> = folder.walk(Order::Name, false, Some(&last)).map(|(_, id)| id.as_str()).collect();
        assert_eq!(rest, ["a"]);
        assert!(folder.named("y").is_empty() && folder.named("x").len() == 1);
    }

    #[test]
    fn markers_are_one_word() {
        let marker = Marker {
            order: Order::Name,
            descending: true,
            parent: FileId::root(),
            last: Some((Key::Text("ü \"".into()), FileId::root())),
            pause: false,
        };
        let word = marker.encode();
        assert!(word.bytes().all(|c| c.is_ascii_alphanumeric()));
        assert_eq!(Marker::decode(&word), Some(marker));
        assert_eq!(Marker::decode("nonsense"), None);
    }
}
