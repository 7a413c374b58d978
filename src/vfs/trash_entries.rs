//! The table of the entries of desktop trashes. A leaf: [`super::sync_trash`] fills it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::types::RecycledItem;
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;

/// Most entries with which the trash gets more of the recycle bin. Their notes are local files.
const ENTRIES_MAX: usize = 1000;
/// How long the recycle bin may list an object that has left it, or lack one that has come.
const BIN_LAG: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct TrashEntries {
    /// A leaf lock.
    state: Mutex<State>,
    /// The last time that the recycle bin was read. Held while it is read.
    pub(super) synced_at: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Ino, (FileMeta, Instant)>,
    /// When objects have left the recycle bin.
    left: HashMap<FileId, Instant>,
    /// Objects that a rename moves to the recycle bin: the rename makes the entry.
    entering: HashSet<FileId>,
}

impl State {
    fn knows(&self, id: &FileId, read_at: Instant) -> bool {
        self.entering.contains(id)
            || self.left.get(id).is_some_and(|at| read_at < *at + BIN_LAG)
            || self.entries.values().any(|(meta, _)| meta.file_id == *id)
    }
}

/// An object on its way to the recycle bin. A sync makes no entry for it before the drop.
#[derive(Debug)]
pub(super) struct Entering<'e> {
    entries: &'e TrashEntries,
    id: FileId,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.entries.state.lock().entering.remove(&self.id);
    }
}

impl TrashEntries {
    pub(super) fn get(&self, ino: Ino) -> Option<FileMeta> {
        self.state.lock().entries.get(&ino).map(|(meta, _)| meta.clone())
    }

    pub(super) fn begin(&self, id: &FileId) -> Entering<'_> {
        self.state.lock().entering.insert(id.clone());
        Entering { entries: self, id: id.clone() }
    }

    /// Adds an entry for an object that was listed at `read_at`. Returns `false` if the object has an entry, gets one,
    /// or has left the recycle bin since.
    pub(super) fn add_listed(&self, ino: Ino, meta: FileMeta, read_at: Instant) -> bool {
        let mut state = self.state.lock();
        if state.knows(&meta.file_id, read_at) {
            return false;
        }
        state.entries.insert(ino, (meta, Instant::now()));
        true
    }

    /// Adds an entry for an object that this mount moved to the recycle bin.
    pub(super) fn add(&self, ino: Ino, meta: FileMeta) {
        let mut state = self.state.lock();
        state.left.remove(&meta.file_id);
        state.entries.insert(ino, (meta, Instant::now()));
    }

    /// Records that an object has left the recycle bin. Returns its entries.
    pub(super) fn remove(&self, object: &FileId) -> Vec<Ino> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.left.retain(|_, at| now < *at + BIN_LAG);
        state.left.insert(object.clone(), now);
        state.entries.extract_if(|_, (meta, _)| meta.file_id == *object).map(|(ino, _)| ino).collect()
    }

    /// The objects of the recycle bin that have no entry, and the objects of the entries that it lacks.
    pub(super) fn compare(
        &self,
        items: Vec<RecycledItem>,
        read_at: Instant,
    ) -> (Vec<RecycledItem>, Vec<FileId>) {
        let state = self.state.lock();
        let listed: HashSet<&FileId> = items.iter().map(|item| &item.meta.file_id).collect();
        let is_gone =
            |meta: &FileMeta, since: Instant| !listed.contains(&meta.file_id) && read_at > since + BIN_LAG;
        let entries = state.entries.values();
        let gone = entries
            .clone()
            .filter(|(meta, since)| is_gone(meta, *since))
            .map(|(meta, _)| meta.file_id.clone());
        let gone: Vec<_> = gone.collect();
        let known: HashSet<&FileId> = entries.map(|(meta, _)| &meta.file_id).collect();
        let has_left = |id: &FileId| state.left.get(id).is_some_and(|at| read_at < *at + BIN_LAG);
        let free = (ENTRIES_MAX + gone.len()).saturating_sub(state.entries.len());
        let new = items.into_iter().filter(|item| {
            let id = &item.meta.file_id;
            !known.contains(id) && !state.entering.contains(id) && !has_left(id)
        });
        (new.take(free).collect(), gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(id: &str) -> FileMeta {
        let text = format!(r#"{{"file_id":"{id}","name":"{id}","type":"file","size":1}}"#);
        FileMeta::try_from(serde_json::from_str::<crate::pds::types::File>(&text).unwrap()).unwrap()
    }

    #[test]
    fn recycle_bin_may_lag_behind_the_entries() {
        let entries = TrashEntries::default();
        entries.add(Ino(7), object("entry"));
        entries.add(Ino(8), object("left"));
        assert_eq!(entries.remove(&object("left").file_id), [Ino(8)]);
        let item = |id: &str| RecycledItem { meta: object(id), trashed_at: None, path: format!("/{id}") };
        let compared = |items: &[&str], read_at| {
            let (new, gone) = entries.compare(items.iter().map(|id| item(id)).collect(), read_at);
            let new: Vec<_> = new.into_iter().map(|item| item.meta.name).collect();
            (new, gone.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (now, later) = (Instant::now(), Instant::now() + BIN_LAG);
        assert_eq!(compared(&["left", "new"], now), (vec!["new".into()], vec![]));
        assert_eq!(compared(&["left", "entry"], later), (vec!["left".into()], vec![]));
        assert_eq!(compared(&[], later), (vec![], vec!["entry".into()]));
    }
}
