//! Changing names: mkdir and rename.
//!
//! The drive is changed first and the tree after it, so that a failure leaves the tree unchanged.

use std::ffi::OsStr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Vfs;
use super::close::process_of;
use super::superseded::{Reason, Superseded};
use super::types::{Caller, Entry, NameInDir, RenameMode};
use crate::content::commit_target::TargetResolver;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::{CheckNameMode, FileType};
use crate::tree::{FileKind, Identity, Name, NameState, Objects, display_name};
use crate::{clock, posix};

/// How old the known attributes of a file may be when its object is about to be removed.
const CONTENT_TTL: Duration = Duration::from_secs(2);

impl Vfs {
    pub async fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32, caller: Caller) -> Result<Entry> {
        self.check_not_recycled(parent)?;
        let name = Name::new(name)?;
        let known = self.tree().find(parent, name.as_str(), Instant::now())?;
        let is_taken = match known {
            // The drive refuses a taken name: nothing waits for a listing.
            NameState::Unknown | NameState::Absent => false,
            NameState::Fresh(_) => true,
            NameState::Stale(_) => self.resolve(parent, &name).await?.is_some(),
        };
        if is_taken {
            return Err(Error::new(ErrorKind::Exists, format!("{name} exists")));
        }
        if self.is_local_dir_name(parent, &name) {
            return self.make_local_dir(parent, &name, mode, caller);
        }
        let dir_id = self.dir_id(parent)?;
        let posix = self.initial_posix(parent, FileKind::Directory, mode, caller)?;
        let tags = posix::tags(posix.as_deref(), UNIX_EPOCH);
        let remote = name.remote();
        let mut made = self.drive.create_folder(&dir_id, &remote, &tags).await;
        if is_taken_on_drive(&made) && self.move_leftover_away(&dir_id, &remote).await? {
            made = self.drive.create_folder(&dir_id, &remote, &tags).await;
        }
        let meta = made.inspect_err(|error| {
            if error.kind() == ErrorKind::Exists {
                self.tree().invalidate(parent, Instant::now());
            }
        })?;
        let mtime = meta.mtime;
        let meta = self.push_attrs(meta, mtime, posix).await;
        let ino = {
            let mut tree = self.tree();
            let ino = tree.insert(parent, &name, meta, Instant::now())?;
            tree.names_changed(&[parent, ino], &[], clock::now());
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        self.entry(ino)
    }

    pub(super) fn dir_id(&self, dir: Ino) -> Result<FileId> {
        let tree = self.tree();
        if tree.kind(dir)? != FileType::Folder {
            return Err(Error::new(ErrorKind::NotDirectory, "not a directory"));
        }
        match tree.identity(dir) {
            Some(Identity::Remote(file_id)) => Ok(file_id),
            Some(Identity::Local) | None => Err(Error::new(ErrorKind::NotFound, "the directory was removed")),
        }
    }

    pub async fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        mode: RenameMode,
        caller: Caller,
    ) -> Result<()> {
        if mode == RenameMode::Exchange {
            return Err(Error::new(
                ErrorKind::Invalid,
                "RENAME_EXCHANGE is not supported: the drive cannot swap two names",
            ));
        }
        let from = NameInDir { dir: from.0, name: Name::new(from.1)? };
        let to = NameInDir { dir: to.0, name: Name::new(to.1)? };
        let renamed = match self.rename_once(&from, &to, mode, caller).await {
            // Another client created the name after the last listing: resolve it again, once.
            Err(error) if error.kind() == ErrorKind::Exists && mode == RenameMode::Replace => {
                self.tree().invalidate(to.dir, Instant::now());
                self.rename_once(&from, &to, mode, caller).await?
            }
            outcome => outcome?,
        };
        self.tree().names_changed(&[from.dir, to.dir], &[renamed], clock::now());
        Ok(())
    }

    /// Returns the inode that has the new name.
    async fn rename_once(
        &self,
        from: &NameInDir,
        to: &NameInDir,
        mode: RenameMode,
        caller: Caller,
    ) -> Result<Ino> {
        let source = self.resolve_existing(from.dir, &from.name).await?;
        let target = self.resolve(to.dir, &to.name).await?;
        if target == Some(source) {
            return Ok(source);
        }
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(Error::new(ErrorKind::Exists, format!("{} exists", to.name)));
        }
        let kind = self.check_kinds(source, target, to)?;
        if let Some(recycled) = self.trash_entries.get(source) {
            return self.rename_out_of_trash((source, recycled), target, to).await.map(|()| source);
        }
        if self.rename_into_trash((source, kind), from, to, caller).await? {
            return Ok(source);
        }
        if let Some(open) = target.and_then(|target| self.files.get(target))
            && let Some(mut running) = open.running_commit()
        {
            // The commit would overwrite the renamed file. Its result does not matter.
            let _ = self.bounded(running.wait_for(Option::is_some)).await?.is_ok();
        }
        if kind == FileType::Folder {
            if let Some(target) = target {
                self.remove_dir(target).await?;
            }
            self.move_object(source, to).await?;
            return Ok(source);
        }
        let open = self.files.get(source);
        if let Some(file) = &open
            && self.tree().replaces(source).is_some()
        {
            // The source is to replace another object already. That object must not be removed before the
            // commit, and must not keep its name: other files may get the name from now on.
            self.commit_for(&[process_of(caller)], file).await?;
        }
        if let Some(file) = open.as_ref().filter(|file| file.is_local()) {
            self.rename_local(file, from, (target, to), caller).await?;
            return Ok(source);
        }
        self.rename_ordinary(source, (target, to), caller).await?;
        Ok(source)
    }

    /// Renames a file that is not local-only.
    async fn rename_ordinary(
        &self,
        source: Ino,
        (target, to): (Option<Ino>, &NameInDir),
        caller: Caller,
    ) -> Result<()> {
        let guard = loop {
            let is_local = self.tree().identity(source) == Some(Identity::Local);
            // The source may have been opened by now.
            let open = self.files.get(source);
            if is_local || open.as_ref().is_some_and(|file| file.has_local_content()) {
                return self.rename_unsaved((source, open), (target, to), caller).await;
            }
            let guard = self.active_renames.begin([Some(source), target].into_iter().flatten());
            let running =
                target.and_then(|target| self.files.get(target)).and_then(|open| open.running_commit());
            if let Some(mut running) = running {
                drop(guard);
                let _ = self.bounded(running.wait_for(Option::is_some)).await?.is_ok();
            } else if self.files.get(source).is_none_or(|file| !file.has_local_content()) {
                break guard;
            }
        };
        match target {
            Some(target) => self.replace(source, target, to).await,
            None => self.move_to_free_name(source, to).await,
        }?;
        drop(guard);
        if let Some(open) = self.files.get(source) {
            open.set_path(&self.path_of(source));
        }
        Ok(())
    }

    fn check_kinds(&self, source: Ino, target: Option<Ino>, to: &NameInDir) -> Result<FileType> {
        let tree = self.tree();
        let kind = tree.kind(source)?;
        if kind == FileType::Folder && tree.is_below(to.dir, source) {
            return Err(Error::new(ErrorKind::Invalid, "cannot move a directory below itself"));
        }
        let Some(target) = target else { return Ok(kind) };
        match (kind, tree.kind(target)?) {
            (FileType::File, FileType::Folder) => {
                Err(Error::new(ErrorKind::IsDirectory, format!("{} is a directory", to.name)))
            }
            (FileType::Folder, FileType::File) => {
                Err(Error::new(ErrorKind::NotDirectory, format!("{} is not a directory", to.name)))
            }
            _ => Ok(kind),
        }
    }

    /// Renames a committed file over another file.
    async fn replace(&self, source: Ino, target: Ino, to: &NameInDir) -> Result<()> {
        let Objects { in_place: here, elsewhere } = self.tree().objects(target);
        // The former object of an unsaved target is not needed any more. No commit may overwrite it from now on.
        if let Some(object) = &elsewhere {
            self.tree().supersede(object.clone());
        }
        let replaced = match here {
            Some(here) => self.replace_object(source, (target, here), to).await,
            None => self.move_object(source, to).await.inspect(|()| self.mark_unlinked(target)),
        };
        if let (Err(_), Some(object)) = (&replaced, &elsewhere) {
            self.tree().show_leftover(&object.file_id);
        }
        replaced?;
        if let Some(object) = elsewhere {
            self.remove_superseded(Superseded { object, former: Some(target), reason: Reason::Unused }).await;
        }
        Ok(())
    }

    async fn replace_object(
        &self,
        source: Ino,
        (target, mut target_meta): (Ino, FileMeta),
        to: &NameInDir,
    ) -> Result<()> {
        let source_meta = self.current_meta(source).await?;
        // Including changes that are not on the drive yet.
        let pending = self.pending_attrs(&self.tree(), source);
        let (mtime, posix) = pending.unwrap_or_else(|| (None, source_meta.posix.clone()));
        let mtime = mtime.unwrap_or(source_meta.mtime);
        target_meta.parent_id = Some(self.dir_id(to.dir)?);
        let moving = self.mark_moving(&[source, target]);
        let replaced = self.replace_committed(&target_meta, &source_meta).await;
        drop(moving);
        let (meta, superseded) = replaced.inspect_err(|_| {
            // The calls may have partly succeeded.
            let mut tree = self.tree();
            tree.invalidate(to.dir, Instant::now());
            if let Some(parent) = tree.parent(source) {
                tree.invalidate(parent, Instant::now());
            }
        })?;
        self.reader.forget(&meta.file_id);
        if let Some(file) = self.files.get(source) {
            file.set_base(&meta);
        }
        let removed = if meta.file_id == source_meta.file_id { target_meta } else { source_meta };
        self.pending.forget(&removed.file_id);
        let meta = self.push_attrs(meta, mtime, posix).await;
        let recorded = {
            let mut tree = self.tree();
            self.mark_unlinked(target);
            tree.add_tombstone(removed.file_id, Instant::now());
            if let Some(superseded) = &superseded {
                tree.supersede(superseded.object.clone());
            }
            tree.replaced(source, target, meta, Instant::now())
        };
        if let Some(superseded) = superseded {
            self.remove_superseded(superseded).await;
        }
        recorded
    }

    /// The current attributes of an object that is about to be removed after its content was moved.
    async fn current_meta(&self, ino: Ino) -> Result<FileMeta> {
        let (meta, age) = {
            let tree = self.tree();
            (tree.meta(ino).cloned().ok_or_else(gone)?, tree.attrs_age(ino, Instant::now()))
        };
        if age.is_some_and(|age| age < CONTENT_TTL) {
            return Ok(meta);
        }
        let requested_at = Instant::now();
        let meta = self.drive.get(&meta.file_id).await?;
        self.tree().merge_object(meta.clone(), requested_at);
        Ok(meta)
    }

    /// Replaces the content of `target` with that of `source`. A file exists under the name at every moment:
    /// by a new revision of `target`, or, if the service has no instant upload, by two siblings with equal
    /// names. Also returns the object that the caller removes, after it has recorded the change.
    pub(super) async fn replace_committed(
        &self,
        target: &FileMeta,
        source: &FileMeta,
    ) -> Result<(FileMeta, Option<Superseded>)> {
        let replaced = match self.drive.replace(target, source).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // If another client deleted the target, there is nothing to replace.
                match self.drive.get(&target.file_id).await {
                    Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                    _ => return Err(error),
                }
                let from = source.parent_id.as_ref();
                let to = target.parent_id.as_ref().or(from);
                let (from, to) = from.zip(to).ok_or(error)?;
                let moved = self.move_on_drive(source, (from, to), &target.name, true).await?;
                return Ok((moved, None));
            }
            replaced => replaced?,
        };
        let former = |object: &FileMeta| self.tree().ino_of(&object.file_id);
        if let Some(meta) = replaced {
            let (former, reason) = (former(source), Reason::Copied(meta.file_id.clone()));
            return Ok((meta, Some(Superseded { object: source.clone(), former, reason })));
        }
        let dirs = target.parent_id.as_ref().zip(source.parent_id.as_ref()).filter(|(to, from)| to != from);
        if let Some((to, _)) = dirs {
            self.drive.move_to(&source.file_id, to, CheckNameMode::Ignore).await?;
        }
        let renamed = self.drive.rename(&source.file_id, &target.name, CheckNameMode::Ignore).await;
        let meta = match (renamed, dirs) {
            (Err(error), Some((_, from))) => {
                self.undo_move(&source.file_id, from).await;
                return Err(error);
            }
            (renamed, _) => renamed?,
        };
        let free = source.parent_id.as_ref().or(target.parent_id.as_ref());
        let reason =
            free.map_or(Reason::Unused, |dir_id| Reason::Displaced(dir_id.clone(), source.name.clone()));
        Ok((meta, Some(Superseded { object: target.clone(), former: former(target), reason })))
    }

    /// Undoes the first step of a change whose second step failed.
    async fn undo_move(&self, file: &FileId, dir_id: &FileId) {
        if let Err(error) = self.drive.move_to(file, dir_id, CheckNameMode::Ignore).await {
            let state = "the file is in the new directory, under its old name";
            tracing::error!(%file, %error, "rename failed and was not undone: {state}");
        }
    }

    /// Moves a committed file to a name that no visible file has. A leftover of the name is overwritten.
    async fn move_to_free_name(&self, ino: Ino, to: &NameInDir) -> Result<()> {
        let dir_id = self.dir_id(to.dir)?;
        let leftover = self.tree().leftover_at(&dir_id, &to.name.remote()).cloned();
        let Some(leftover) = leftover.filter(|object| self.claim(&object.file_id, ino)) else {
            return self.move_object(ino, to).await;
        };
        // Another client may have changed it since. Then it is an ordinary target, which the caller looks up.
        match self.drive.get(&leftover.file_id).await {
            Ok(now) if self.tree().hides_leftover(&now) => {}
            Ok(_) => return Err(Error::new(ErrorKind::Exists, format!("{} exists", to.name))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.tree().removed_leftover(leftover.file_id, Instant::now());
                return self.move_object(ino, to).await;
            }
            Err(error) => return Err(error),
        }
        let source = self.current_meta(ino).await?;
        let (mtime, posix) = self.current_attrs(&self.tree(), ino, &source);
        let moving = self.mark_moving(&[ino]);
        let replaced = self.replace_committed(&leftover, &source).await;
        drop(moving);
        let (meta, superseded) = replaced?;
        self.reader.forget(&meta.file_id);
        if let Some(file) = self.files.get(ino) {
            file.set_base(&meta);
        }
        let meta = self.push_attrs(meta, mtime, posix).await;
        let recorded = {
            let mut tree = self.tree();
            if let Some(superseded) = &superseded {
                tree.supersede(superseded.object.clone());
            }
            tree.moved(ino, to.dir, &to.name, meta, Instant::now())
        };
        if let Some(superseded) = superseded {
            self.remove_superseded(superseded).await;
        }
        recorded
    }

    /// Moves a committed object to a free name.
    async fn move_object(&self, ino: Ino, to: &NameInDir) -> Result<()> {
        let to_dir_id = self.dir_id(to.dir)?;
        let (meta, location) = {
            let tree = self.tree();
            (tree.meta(ino).cloned().ok_or_else(gone)?, tree.location(ino).ok_or_else(gone)?)
        };
        let old_name_is_free = location.parent == to.dir
            || self.tree().child(to.dir, &display_name(&meta.name, meta.kind)).is_none();
        let moving = self.mark_moving(&[ino]);
        let moved = self
            .move_on_drive(&meta, (&location.parent_id, &to_dir_id), &to.name.remote(), old_name_is_free)
            .await;
        drop(moving);
        let moved = moved.inspect_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                self.tree().invalidate(location.parent, Instant::now());
            }
        })?;
        let mut tree = self.tree();
        // Attributes set during the call are newer than the answer.
        let (mtime, posix) = self.current_attrs(&tree, ino, &moved);
        tree.moved(ino, to.dir, &to.name, FileMeta { mtime, posix, ..moved }, Instant::now())
    }

    /// Changes directory and name of an object. A hidden object of the name makes room.
    pub(super) async fn move_on_drive(
        &self,
        meta: &FileMeta,
        (from, to): (&FileId, &FileId),
        name: &str,
        old_name_is_free: bool,
    ) -> Result<FileMeta> {
        // A hidden object may have it.
        let old_name_is_free = old_name_is_free && self.tree().leftover_at(to, &meta.name).is_none();
        let moved = self.try_to_move_on_drive(meta, (from, to), name, old_name_is_free).await;
        if is_taken_on_drive(&moved) && self.move_leftover_away(to, name).await? {
            return self.try_to_move_on_drive(meta, (from, to), name, old_name_is_free).await;
        }
        moved
    }

    /// Takes two calls if directory and name change. If the second call fails, the first is undone.
    async fn try_to_move_on_drive(
        &self,
        meta: &FileMeta,
        (from, to): (&FileId, &FileId),
        name: &str,
        old_name_is_free: bool,
    ) -> Result<FileMeta> {
        const REFUSE: CheckNameMode = CheckNameMode::Refuse;
        let file = &meta.file_id;
        let is_name_reserved = {
            let tree = self.tree();
            self.is_name_reserved(&tree, to, name, tree.ino_of(file))
        };
        let final_mode = if is_name_reserved { CheckNameMode::Ignore } else { REFUSE };
        if from == to {
            return self.drive.rename(file, name, final_mode).await;
        }
        if meta.name == name {
            return self.drive.moved_to(meta, to, final_mode).await;
        }
        let mode = if old_name_is_free { REFUSE } else { CheckNameMode::Ignore };
        self.drive.move_to(file, to, mode).await?;
        match self.drive.rename(file, name, final_mode).await {
            Ok(meta) => Ok(meta),
            Err(error) => {
                self.undo_move(file, from).await;
                Err(error)
            }
        }
    }

    pub(super) fn mark_moving(&self, inodes: &[Ino]) -> MovingGuard<'_> {
        let mut tree = self.tree();
        for &ino in inodes {
            tree.begin_move(ino);
        }
        MovingGuard { vfs: self, inodes: inodes.to_vec() }
    }
}

/// Inodes whose objects are being moved. Released on drop, also if the task is aborted.
pub(super) struct MovingGuard<'a> {
    vfs: &'a Vfs,
    inodes: Vec<Ino>,
}

impl Drop for MovingGuard<'_> {
    fn drop(&mut self) {
        let mut tree = self.vfs.tree();
        for &ino in &self.inodes {
            tree.end_move(ino);
        }
    }
}

fn is_taken_on_drive<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Exists)
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the file was removed")
}
