//! Objects that this mount does not need any more and that the drive does not remove. The tree hides them until
//! another client changes them.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;

/// Most hidden objects. The oldest appear again.
const COUNT_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// The removal of a hidden object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Its outcome is not known. The object must not get new content.
    Running,
    /// It has failed `tries` times and is tried again. The drive may still execute an earlier call. `to_bin`: the
    /// object may have the only copy of its content, so it is never deleted for good.
    Failed { tries: u32, to_bin: bool },
    /// The drive keeps the object.
    Refused,
    /// As `Refused`, and this file is about to overwrite it. If that fails, only this file may try again.
    Claimed(Ino),
}

/// A hidden object.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Leftover {
    pub(super) object: FileMeta,
    pub(super) removal: Removal,
}

#[derive(Debug)]
pub(super) struct Leftovers(LruCache<FileId, Leftover>);

impl Default for Leftovers {
    fn default() -> Self {
        Self(LruCache::new(COUNT_MAX))
    }
}

impl Leftovers {
    /// Hides an object whose removal begins.
    pub(super) fn add(&mut self, object: FileMeta) {
        self.0.put(object.file_id.clone(), Leftover { object, removal: Removal::Running });
    }

    /// Makes an object visible again.
    pub(super) fn remove(&mut self, file: &FileId) {
        self.0.pop(file);
    }

    pub(super) fn get(&self, file: &FileId) -> Option<&Leftover> {
        self.0.peek(file)
    }

    pub(super) fn get_mut(&mut self, file: &FileId) -> Option<&mut Leftover> {
        self.0.peek_mut(file)
    }

    /// Whether an object is a hidden one that no other client has changed.
    pub(super) fn has_unchanged(&self, listed: &FileMeta) -> bool {
        self.get(&listed.file_id).is_some_and(|Leftover { object, .. }| {
            object.name == listed.name
                && is_same(object.parent_id.as_ref(), listed.parent_id.as_ref())
                && has_same_content(object, listed)
        })
    }

    /// Like [`Self::has_unchanged`]. A changed object is visible from then on.
    pub(super) fn hides(&mut self, listed: &FileMeta) -> bool {
        let is_hidden = self.has_unchanged(listed);
        if !is_hidden {
            self.0.pop(&listed.file_id);
        }
        is_hidden
    }

    /// The hidden object at a location.
    pub(super) fn at(&self, parent: &FileId, name: &str) -> Option<&FileMeta> {
        let is_there = |object: &&FileMeta| object.name == name && object.parent_id.as_ref() == Some(parent);
        self.iter().map(|left| &left.object).find(is_there)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Leftover> {
        self.0.iter().map(|(_, left)| left)
    }
}

/// Whether two answers about an object show the same content. Without revision ids, a hash and the time of the last
/// change decide.
fn has_same_content(one: &FileMeta, other: &FileMeta) -> bool {
    let hashes = [
        one.sha1.zip(other.sha1).map(|(one, other)| one == other),
        one.crc64.zip(other.crc64).map(|(one, other)| one == other),
    ];
    let is_same_revision = match (&one.revision, &other.revision) {
        (Some(one), Some(other)) => one == other,
        _ => hashes.contains(&Some(true)) && one.changed_at == other.changed_at,
    };
    is_same_revision && one.size == other.size && !hashes.contains(&Some(false))
}

/// Whether two values are equal, as far as both are known.
fn is_same<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}
