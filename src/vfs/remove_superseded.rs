//! Removes objects that a rename or a commit has made superfluous.
//!
//! When such an object is to be removed, the new content is in its place on the drive. So the operation succeeds,
//! also if the removal fails. An object that the drive does not remove stays there as a leftover: the mount hides it,
//! the log names it, and a removal that failed for a passing reason is tried again.

use std::sync::Weak;
use std::time::{Duration, Instant};

use super::Vfs;
use super::superseded::{Reason, Superseded};
use crate::config::RemoveMode;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::CheckNameMode;
use crate::supervised;
use crate::tree::Removal;
use crate::tree::name::disambiguated;

/// Time until a retry. The calls themselves have their own retries.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a removal is tried, apart from outages.
const TRIES_MAX: u32 = 60;
/// Largest number in the new name of a hidden object.
const NUMBER_MAX: u32 = 20;

impl Vfs {
    /// Removes an object whose place on the drive another one has taken. Cannot fail: see above.
    pub(super) async fn remove_superseded(&self, superseded: Superseded) {
        let Superseded { object, former, reason } = superseded;
        self.pending.forget(&object.file_id);
        {
            let mut tree = self.tree();
            tree.supersede(object.clone());
            tree.add_tombstone(object.file_id.clone(), Instant::now());
        }
        let mode = self.mode_for(&object, &reason).await;
        if let Err(error) = self.remove_one(&object.file_id, former, mode).await {
            return self.leave_behind(object, reason, mode, &error).await;
        }
        let mut tree = self.tree();
        if matches!(reason, Reason::Unused) {
            tree.removed_object(object.file_id.clone(), Instant::now());
        }
        tree.removed_leftover(object.file_id, Instant::now());
    }

    async fn mode_for(&self, object: &FileMeta, reason: &Reason) -> RemoveMode {
        match reason {
            Reason::Copied(copy) if self.may_delete(object, copy).await => RemoveMode::Delete,
            Reason::Copied(_) => RemoveMode::Trash,
            Reason::Displaced(..) | Reason::Unused => self.config.options.remove,
        }
    }

    async fn remove_one(&self, file: &FileId, former: Option<Ino>, mode: RemoveMode) -> Result<()> {
        let configured = self.config.options.remove;
        match self.remove_object(file, former, mode).await {
            // The right to move objects to the recycle bin may be granted all the same.
            Err(error)
                if error.kind() == ErrorKind::Denied
                    && (mode, configured) == (RemoveMode::Delete, RemoveMode::Trash) =>
            {
                self.remove_object(file, former, configured).await
            }
            removed => removed,
        }
    }

    /// Whether an object is deleted for good. `copy` must have its content, and unless removals delete anyway, this
    /// mount must have created it as a temporary file. Both are read: other clients may have written them, and nothing
    /// has shown the hash of the copy yet.
    async fn may_delete(&self, object: &FileMeta, copy: &FileId) -> bool {
        let file = &object.file_id;
        let is_read = || self.files.all().iter().any(|open| open.pending_clone_of(file).is_some());
        let always = self.config.options.remove == RemoveMode::Delete;
        if !always && (!self.created.is_ours(object) || is_read()) {
            return false;
        }
        let is_temporary =
            async { always || self.drive.get(file).await.is_ok_and(|now| self.created.is_ours(&now)) };
        let (is_temporary, copy) = tokio::join!(is_temporary, self.drive.get(copy));
        let is_copied = |copy: FileMeta| (copy.size, copy.sha1) == (object.size, object.sha1);
        is_temporary && object.sha1.is_some() && copy.is_ok_and(is_copied)
    }

    /// Keeps an object hidden that the drive did not remove.
    async fn leave_behind(&self, object: FileMeta, reason: Reason, mode: RemoveMode, error: &Error) {
        let (file, name) = (&object.file_id, &object.name);
        if is_refused(error) {
            tracing::warn!(%file, %error, "the drive keeps a file that is not needed any more: {name}");
            if let (Reason::Displaced(dir_id, free), Some(from)) = (&reason, &object.parent_id) {
                // It gets the free name of the other object, so that the drive has no two files of one name.
                match self.move_on_drive(&object, (from, dir_id), free, true).await {
                    Ok(moved) => self.tree().moved_leftover(moved, Instant::now()),
                    Err(error) => tracing::error!(name, %error, "the drive has two files of one name"),
                }
            }
            self.tree().set_removal(file, Removal::Refused);
            return;
        }
        tracing::warn!(%file, %error, "a file that is not needed any more is not removed yet: {name}");
        let is_first = {
            let mut tree = self.tree();
            let is_first = tree.failed_removals().is_empty();
            tree.set_removal(file, Removal::Failed { tries: 1, to_bin: mode == RemoveMode::Trash });
            is_first
        };
        if is_first {
            let vfs = self.this.clone();
            tokio::spawn(supervised::run("leftovers", move || keep_removing(vfs.clone())));
        }
    }

    /// Gives the hidden object of a name another one, after the drive has refused the name. Returns whether it may be
    /// free now. An error is that of the caller's operation: the mount does not show what has the name.
    pub(super) async fn move_leftover_away(&self, dir_id: &FileId, name: &str) -> Result<bool> {
        let Some(object) = self.tree().leftover_at(dir_id, name).cloned() else { return Ok(false) };
        let file = &object.file_id;
        match self.drive.get(file).await {
            Ok(now) if self.tree().hides_leftover(&now) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.tree().removed_leftover(file.clone(), Instant::now());
                return Ok(true);
            }
            Ok(_) => return Ok(false),
            Err(error) => return Err(error),
        }
        for number in 2..=NUMBER_MAX {
            let free = disambiguated(name, number, object.kind);
            match self.drive.rename(file, &free, CheckNameMode::Refuse).await {
                Ok(moved) => {
                    self.tree().moved_leftover(moved, Instant::now());
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => {
                    tracing::warn!(%file, %error, "a file that is not needed any more keeps the name {name}");
                    return Err(error);
                }
            }
        }
        Ok(false)
    }

    /// Tries removals again that failed. Ends early if the drive is unreachable.
    pub(super) async fn retry_removals(&self) {
        let failed = self.tree().failed_removals();
        for (object, tries, to_bin) in failed {
            let file = &object.file_id;
            match self.drive.get(file).await {
                // Another client may have changed it.
                Ok(now) if !self.tree().hides_leftover(&now) => continue,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.tree().removed_leftover(file.clone(), Instant::now());
                    continue;
                }
                Err(error) if error.is_outage() => return,
                Err(_) => continue,
            }
            let mode = if to_bin { RemoveMode::Trash } else { self.config.options.remove };
            let Err(error) = self.remove_object(file, None, mode).await else {
                self.tree().removed_leftover(file.clone(), Instant::now());
                continue;
            };
            if error.is_outage() {
                return;
            }
            let is_last = is_refused(&error) || tries >= TRIES_MAX;
            if is_last {
                let name = &object.name;
                tracing::warn!(%file, %error, "the drive keeps a file that is not needed any more: {name}");
            }
            let removal =
                if is_last { Removal::Refused } else { Removal::Failed { tries: tries + 1, to_bin } };
            self.tree().set_removal(file, removal);
        }
    }
}

/// Whether the service has refused a removal for good. A gateway or a proxy may have sent other answers.
fn is_refused(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported)
}

/// Tries until no removal is pending, or the file system is gone.
async fn keep_removing(vfs: Weak<Vfs>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(vfs) = vfs.upgrade() else { return };
        vfs.retry_removals().await;
        if vfs.tree().failed_removals().is_empty() {
            return;
        }
    }
}
