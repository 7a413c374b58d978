//! The entries of a desktop trash. Each stands for an object in the recycle bin of the drive.
//!
//! An entry is an inode without an object, with a name in `.Trash-UID/files`; its note is a local-only file in
//! `.Trash-UID/info`. The trash of the mounting user shows the recycle bin as far as its objects were below the root of
//! the mount. Trashes of other users show what came in by this mount: the objects of others are not theirs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::JoinHandle;

use super::Vfs;
use super::desktop_trash::{FILES, INFO, NOTE_SUFFIX, own_trash_name};
use super::types::{Caller, Entry, RecycledItem};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;
use crate::tree::name::disambiguated;
use crate::tree::{Identity, Name, display_name};

/// How long a look into the trash waits for the drive.
const SYNC_WAIT_MAX: Duration = Duration::from_secs(3);
/// Bytes of `Path=` that are encoded: all but those of paths as programs of the desktop write them.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl Vfs {
    /// Fails for an object in the recycle bin, which cannot be opened or changed there.
    pub(super) fn check_not_recycled(&self, ino: Ino) -> Result<()> {
        if self.trash_entries.get(ino).is_none() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotPermitted, "it is in the recycle bin of the drive: restore it first"))
    }

    /// Makes the trash of the mounting user, which exists for everyone who asks for it by name. Counts as a lookup.
    pub(super) fn offer_trash(&self, parent: Ino, name: &OsStr) -> Result<Option<Entry>> {
        let (uid, gid) = (self.config.uid, self.config.gid);
        if parent != Ino::ROOT || name != OsStr::new(&own_trash_name(uid)) || self.config.options.read_only {
            return Ok(None);
        }
        let (name, caller) = (Name::new(name)?, Caller { uid, gid, tid: 0 });
        let trash = self.make_local_dir(Ino::ROOT, &name, 0o700, caller)?;
        for child in [FILES, INFO] {
            let made = self.make_local_dir(trash.attr.ino, &Name::new(OsStr::new(child))?, 0o700, caller)?;
            self.forget(made.attr.ino, 1);
        }
        Ok(Some(trash))
    }

    /// The directories for the files and notes of the trash of the mounting user, if it exists.
    fn own_trash(&self) -> Option<(Ino, Ino)> {
        let tree = self.tree();
        let trash = tree.child(Ino::ROOT, &own_trash_name(self.config.uid))?;
        if tree.identity(trash) != Some(Identity::Local) {
            return None;
        }
        tree.child(trash, FILES).zip(tree.child(trash, INFO))
    }

    /// Reads the recycle bin if `dir` is of the trash of the mounting user, and what is known is stale. Does not wait.
    pub(super) fn prefetch_trash(&self, dir: Ino) {
        // A sync that runs holds the lock.
        let is_due = self.trash_entries.synced_at.try_lock().is_ok_and(|at| self.is_sync_due(*at));
        if is_due {
            self.spawn_sync(dir);
        }
    }

    /// Brings the trash of the mounting user up to date before `dir` is read.
    pub(super) async fn refresh_trash(&self, dir: Ino) {
        let Some(sync) = self.spawn_sync(dir) else { return };
        if let Ok(Ok(Err(error))) = tokio::time::timeout(SYNC_WAIT_MAX, sync).await {
            tracing::debug!(%error, "cannot read the recycle bin: the trash shows what is known");
        }
    }

    /// It goes on if the caller does not wait for its end.
    fn spawn_sync(&self, dir: Ino) -> Option<JoinHandle<Result<()>>> {
        self.own_trash().filter(|(files, info)| dir == *files || dir == *info)?;
        let vfs = self.this.upgrade()?;
        Some(self.upload_context.runtime.spawn(async move { vfs.sync_trash().await }))
    }

    fn is_sync_due(&self, synced_at: Option<Instant>) -> bool {
        synced_at.is_none_or(|at| Instant::now() >= at + self.config.options.metadata_ttl)
    }

    async fn sync_trash(&self) -> Result<()> {
        let mut synced_at = self.trash_entries.synced_at.lock().await;
        let now = Instant::now();
        if !self.is_sync_due(*synced_at) {
            return Ok(());
        }
        let read = self.read_trash(now).await;
        *synced_at = Some(Instant::now());
        read
    }

    async fn read_trash(&self, now: Instant) -> Result<()> {
        let (new, gone) = self.trash_entries.compare(self.recycle_bin().await?, now);
        for object in &gone {
            self.drop_trash_entry(object);
        }
        let mut numbers = HashMap::new();
        for item in new {
            let Some(dirs) = self.own_trash() else { return Ok(()) };
            let added = self.add_trash_entry(dirs, &item, now, &mut numbers).await;
            if let Err(error) = added {
                if error.kind() == ErrorKind::NoSpace {
                    return Err(error);
                }
                tracing::debug!(%error, path = item.path, "no entry in the trash");
            }
        }
        Ok(())
    }

    async fn add_trash_entry(
        &self,
        (files, info): (Ino, Ino),
        item: &RecycledItem,
        read_at: Instant,
        numbers: &mut HashMap<String, u32>,
    ) -> Result<()> {
        let (meta, plain) = (&item.meta, display_name(&item.meta.name, item.meta.kind).into_owned());
        let number = numbers.entry(plain.clone()).or_insert(1);
        let (name, note) = loop {
            let name = if *number == 1 { plain.clone() } else { disambiguated(&plain, *number, meta.kind) };
            *number += 1;
            let note = format!("{name}{NOTE_SUFFIX}");
            let tree = self.tree();
            if tree.child(files, &name).is_none() && tree.child(info, &note).is_none() {
                break (Name::new(OsStr::new(&name))?, note);
            }
        };
        let caller = Caller { uid: self.config.uid, gid: self.config.gid, tid: 0 };
        let mut posix = Posix::default();
        posix.perm = Some(0o600);
        let content = Bytes::from(note_text(&item.path, item.trashed_at.unwrap_or_else(clock::now)));
        let made = self.make_closed(info, OsStr::new(&note), Some(Arc::new(posix)), content, caller).await?;
        self.forget(made.attr.ino, 1);
        let added = self.link_trash_entry(files, &name, meta, read_at);
        if !matches!(added, Ok(true)) {
            self.mark_unlinked(made.attr.ino);
            self.tree().unlink(made.attr.ino, Instant::now());
        }
        added.map(|_| ())
    }

    /// Returns `false` if the object needs no entry any more.
    fn link_trash_entry(&self, files: Ino, name: &Name, meta: &FileMeta, read_at: Instant) -> Result<bool> {
        let mut tree = self.tree();
        let attrs = (meta.mtime, meta.posix.clone());
        let ino = match meta.kind {
            FileType::File => tree.create_local(files, name, Instant::now(), attrs)?,
            FileType::Folder => tree.create_local_dir(files, name, Instant::now(), attrs)?,
        };
        let is_added = self.trash_entries.add_listed(ino, meta.clone(), read_at);
        if !is_added {
            tree.unlink(ino, Instant::now());
        }
        Ok(is_added)
    }

    /// Removes the entries of an object that has left the recycle bin, with their notes.
    pub(super) fn drop_trash_entry(&self, object: &FileId) {
        for ino in self.trash_entries.remove(object) {
            self.unlink_trash_entry(ino);
        }
    }

    fn unlink_trash_entry(&self, ino: Ino) {
        let note = {
            let tree = self.tree();
            let trash = tree.parent(ino).and_then(|files| tree.parent(files));
            let info = trash.and_then(|trash| tree.child(trash, INFO));
            tree.display_name(ino)
                .zip(info)
                .and_then(|(name, info)| tree.child(info, &format!("{name}{NOTE_SUFFIX}")))
        };
        self.tree().unlink(ino, Instant::now());
        self.drop_detached_local_files();
        if let Some(note) = note.filter(|note| self.files.get(*note).is_some_and(|file| file.is_local())) {
            self.mark_unlinked(note);
            self.tree().unlink(note, Instant::now());
        }
    }

    /// Deletes the object of an entry for good. The note stays: the program that deletes removes it too.
    pub(super) async fn delete_trash_entry(&self, ino: Ino, object: &FileId) -> Result<()> {
        self.delete_from_bin(object).await?;
        self.trash_entries.remove(object);
        self.tree().unlink(ino, Instant::now());
        self.drop_detached_local_files();
        Ok(())
    }
}

/// A note in the form of the trash specification of freedesktop.org: the path is relative to the mountpoint.
fn note_text(path: &str, trashed_at: SystemTime) -> String {
    let at = Timestamp::try_from(trashed_at).unwrap_or_else(|_| Timestamp::now());
    let time = at.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let path = utf8_percent_encode(path.trim_start_matches('/'), ENCODED);
    format!("[Trash Info]\nPath={path}\nDeletionDate={time}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_has_an_encoded_relative_path() {
        let text = note_text("/dir/50% é\n.txt", clock::now());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["[Trash Info]", "Path=dir/50%25%20%C3%A9%0A.txt"]);
        let date = lines[2].strip_prefix("DeletionDate=").unwrap();
        assert!(date.parse::<jiff::civil::DateTime>().is_ok() && date.len() == 19, "{date}");
    }
}
