//! Changing names: mkdir, rename. What is removed is in `removal.rs`.
//!
//! The drive is changed first and the tree after it, so that a failure leaves what was believed.

use std::ffi::OsStr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::{Caller, Entry, Kind, RenameMode, Vfs};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::{CheckNameMode, FileType};
use crate::posix;
use crate::tree::{Identity, Name, Objects, shown};

/// How long what is known of a file's content is good enough for removing the file.
const CONTENT_TTL: Duration = Duration::from_secs(2);

/// A name in a folder.
#[derive(Clone, Debug)]
pub(super) struct At {
    pub(super) dir: Ino,
    pub(super) name: Name,
}

impl Vfs {
    /// Makes a folder.
    pub async fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32, caller: Caller) -> Result<Entry> {
        self.check_writable()?;
        let name = Name::new(name)?;
        if self.resolve(parent, &name).await?.is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("{name} exists")));
        }
        if self.is_trash_folder(parent, &name) {
            return self.make_trash_folder(parent, &name, mode, caller);
        }
        let folder = self.folder_id(parent)?;
        let posix = self.newborn(parent, Kind::Folder, mode, caller)?;
        let tags = posix::tags(posix.as_deref(), UNIX_EPOCH);
        let made = self.drive.create_folder(&folder, &name.remote(), &tags).await;
        let meta = made.inspect_err(|error| {
            if error.kind() == ErrorKind::Exists {
                self.tree().distrust(parent, Instant::now());
            }
        })?;
        let mtime = meta.mtime;
        let meta = self.impose(meta, mtime, posix).await;
        let ino = {
            let mut tree = self.tree();
            let ino = tree.insert(parent, &name, meta, Instant::now())?;
            tree.names_set(&[parent, ino], &[], posix::now());
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        self.entry(ino)
    }

    pub(super) fn folder_id(&self, dir: Ino) -> Result<FileId> {
        let tree = self.tree();
        if tree.kind(dir)? != FileType::Folder {
            return Err(Error::new(ErrorKind::NotDirectory, "not a folder"));
        }
        match tree.identity(dir) {
            Some(Identity::Remote(file_id)) => Ok(file_id),
            Some(Identity::Local) | None => Err(Error::new(ErrorKind::NotFound, "the folder was removed")),
        }
    }

    /// Renames a file or folder.
    pub async fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<()> {
        self.check_writable()?;
        if mode == RenameMode::Exchange {
            return Err(Error::new(ErrorKind::Invalid, "the drive cannot swap two names"));
        }
        let from = At { dir: from.0, name: Name::new(from.1)? };
        let to = At { dir: to.0, name: Name::new(to.1)? };
        let renamed = match self.rename_once(&from, &to, mode).await {
            // Somebody else has made the name since the folder was read: look again, once.
            Err(error) if error.kind() == ErrorKind::Exists && mode == RenameMode::Replace => {
                self.tree().distrust(to.dir, Instant::now());
                self.rename_once(&from, &to, mode).await?
            }
            outcome => outcome?,
        };
        self.tree().names_set(&[from.dir, to.dir], &[renamed], posix::now());
        Ok(())
    }

    /// Gives the inode that has the new name.
    async fn rename_once(&self, from: &At, to: &At, mode: RenameMode) -> Result<Ino> {
        let source = self.resolve_existing(from.dir, &from.name).await?;
        let target = self.resolve(to.dir, &to.name).await?;
        if target == Some(source) {
            return Ok(source);
        }
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(Error::new(ErrorKind::Exists, format!("{} exists", to.name)));
        }
        let kind = self.check_kinds(source, target, to)?;
        if self.rename_into_trash(source, kind, from, to).await? {
            return Ok(source);
        }
        if let Some(open) = target.and_then(|target| self.files.get(target))
            && let Some(mut running) = open.running()
        {
            // It would land on top of what is to replace it. How it ends does not matter.
            let _ = running.wait_for(Option::is_some).await.is_ok();
        }
        if kind == FileType::Folder {
            if let Some(target) = target {
                self.remove_folder(target).await?;
            }
            self.move_object(source, to).await?;
            return Ok(source);
        }
        let open = self.files.get(source);
        if let Some(file) = &open
            && self.tree().replaces(source).is_some()
        {
            // It is to take the place of one object already, which must not go before it is there, nor stay behind
            // a name that others may have from now on.
            self.settle(file).await?;
        }
        if let Some(file) = open.as_ref().filter(|file| file.is_local()) {
            self.rename_local(file, from, target, to).await?;
            return Ok(source);
        }
        let mover = loop {
            let is_local = self.tree().identity(source) == Some(Identity::Local);
            // Opened meanwhile, perhaps.
            let open = self.files.get(source);
            if is_local || open.as_ref().is_some_and(|file| file.is_unsaved()) {
                self.rename_unsaved(source, open, target, to).await?;
                return Ok(source);
            }
            let mover = self.moving.begin([Some(source), target].into_iter().flatten());
            let running = target.and_then(|target| self.files.get(target)).and_then(|open| open.running());
            if let Some(mut running) = running {
                drop(mover);
                let _ = running.wait_for(Option::is_some).await.is_ok();
            } else if self.files.get(source).is_none_or(|file| !file.is_unsaved()) {
                break mover;
            }
        };
        match target {
            Some(target) => self.replace(source, target, to).await,
            None => self.move_object(source, to).await,
        }?;
        drop(mover);
        if let Some(open) = self.files.get(source) {
            open.renamed(&self.name_of(source));
        }
        Ok(source)
    }

    fn check_kinds(&self, source: Ino, target: Option<Ino>, to: &At) -> Result<FileType> {
        let tree = self.tree();
        let kind = tree.kind(source)?;
        if kind == FileType::Folder && tree.is_below(to.dir, source) {
            return Err(Error::new(ErrorKind::Invalid, "a folder cannot be moved below itself"));
        }
        let Some(target) = target else { return Ok(kind) };
        match (kind, tree.kind(target)?) {
            (FileType::File, FileType::Folder) => {
                Err(Error::new(ErrorKind::IsDirectory, format!("{} is a folder", to.name)))
            }
            (FileType::Folder, FileType::File) => {
                Err(Error::new(ErrorKind::NotDirectory, format!("{} is a file", to.name)))
            }
            _ => Ok(kind),
        }
    }

    /// A committed file over another file.
    async fn replace(&self, source: Ino, target: Ino, to: &At) -> Result<()> {
        let Objects { here, elsewhere } = self.tree().objects(target);
        if let Some(here) = here {
            self.replace_object(source, (target, here), to).await?;
        } else {
            self.move_object(source, to).await?;
            self.orphan(target);
        }
        // An unsaved target had not come to its place yet, and is not awaited there any more.
        if let Some(former) = elsewhere {
            self.remove_superseded(former, Some(target)).await?;
        }
        Ok(())
    }

    async fn replace_object(
        &self,
        source: Ino,
        (target, mut target_meta): (Ino, FileMeta),
        to: &At,
    ) -> Result<()> {
        let source_meta = self.current(source).await?;
        // With what the drive was not told yet.
        let pending = self.wanted(&self.tree(), source);
        let (mtime, posix) = pending.unwrap_or_else(|| (None, source_meta.posix.clone()));
        let mtime = mtime.unwrap_or(source_meta.mtime);
        target_meta.parent_id = Some(self.folder_id(to.dir)?);
        let held = self.hold(&[source, target]);
        let replaced = self.replace_committed(&target_meta, &source_meta).await;
        drop(held);
        let meta = replaced.inspect_err(|_| {
            // Some of it may have happened.
            let mut tree = self.tree();
            tree.distrust(to.dir, Instant::now());
            if let Some(parent) = tree.parent(source) {
                tree.distrust(parent, Instant::now());
            }
        })?;
        self.reader.forget(&meta.file_id);
        if let Some(file) = self.files.get(source) {
            file.rebased(&meta);
        }
        let gone = if meta.file_id == source_meta.file_id { target_meta } else { source_meta };
        self.pending.forget(&gone.file_id);
        let meta = self.impose(meta, mtime, posix).await;
        let mut tree = self.tree();
        self.orphan(target);
        tree.entomb(gone.file_id, Instant::now());
        tree.replaced(source, target, meta, Instant::now())
    }

    /// The object behind an inode as it is now: its content is about to be put elsewhere, and the
    /// object removed.
    async fn current(&self, ino: Ino) -> Result<FileMeta> {
        let (meta, age) = {
            let tree = self.tree();
            (tree.meta(ino).cloned().ok_or_else(gone)?, tree.attrs_age(ino, Instant::now()))
        };
        if age.is_some_and(|age| age < CONTENT_TTL) {
            return Ok(meta);
        }
        let asked_at = Instant::now();
        let meta = self.drive.get(&meta.file_id).await?;
        self.tree().observe(meta.clone(), asked_at);
        Ok(meta)
    }

    /// Puts the content of `source` in the place of `target`, which exists at every moment: by a new
    /// revision of it, or (where the service has no instant upload) by two siblings of one name, of
    /// which the older one then goes.
    pub(super) async fn replace_committed(&self, target: &FileMeta, source: &FileMeta) -> Result<FileMeta> {
        let replaced = match self.drive.replace(target, source).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Perhaps somebody else has deleted the target: then there is nothing to replace.
                match self.drive.get(&target.file_id).await {
                    Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                    _ => return Err(error),
                }
                let from = source.parent_id.as_ref();
                let to = target.parent_id.as_ref().or(from);
                let (from, to) = from.zip(to).ok_or(error)?;
                return self.move_on_drive(source, (from, to), &target.name, true).await;
            }
            replaced => replaced?,
        };
        if let Some(meta) = replaced {
            let former = self.tree().ino_of(&source.file_id);
            self.remove_object(&source.file_id, former, self.config.remove).await?;
            return Ok(meta);
        }
        let way = target.parent_id.as_ref().zip(source.parent_id.as_ref()).filter(|(to, from)| to != from);
        if let Some((to, _)) = way {
            self.drive.relocate(&source.file_id, to, CheckNameMode::Ignore).await?;
        }
        let renamed = self.drive.rename(&source.file_id, &target.name, CheckNameMode::Ignore).await;
        let meta = match (renamed, way) {
            (Err(error), Some((_, from))) => {
                self.move_back(&source.file_id, from).await;
                return Err(error);
            }
            (renamed, _) => renamed?,
        };
        let former = self.tree().ino_of(&target.file_id);
        self.remove_object(&target.file_id, former, self.config.remove).await?;
        Ok(meta)
    }

    /// The second step of a change has failed: the first one is undone.
    async fn move_back(&self, file: &FileId, folder: &FileId) {
        if let Err(error) = self.drive.relocate(file, folder, CheckNameMode::Ignore).await {
            tracing::error!(%file, %error, "a rename was half done and could not be undone");
        }
    }

    /// A committed object to a name that is free.
    async fn move_object(&self, ino: Ino, to: &At) -> Result<()> {
        let to_folder = self.folder_id(to.dir)?;
        let (meta, place) = {
            let tree = self.tree();
            (tree.meta(ino).cloned().ok_or_else(gone)?, tree.place(ino).ok_or_else(gone)?)
        };
        let old_name_is_free =
            place.parent == to.dir || self.tree().child(to.dir, &shown(&meta.name, meta.kind)).is_none();
        let held = self.hold(&[ino]);
        let moved = self
            .move_on_drive(&meta, (&place.parent_id, &to_folder), &to.name.remote(), old_name_is_free)
            .await;
        drop(held);
        let moved = moved.inspect_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                self.tree().distrust(place.parent, Instant::now());
            }
        })?;
        let mut tree = self.tree();
        // What was set meanwhile is newer than the answer.
        let (mtime, posix) = self.attributes_of_now(&tree, ino, &moved);
        tree.moved(ino, to.dir, &to.name, FileMeta { mtime, posix, ..moved }, Instant::now())
    }

    /// Two calls where both folder and name change; the first is undone where the second fails.
    pub(super) async fn move_on_drive(
        &self,
        meta: &FileMeta,
        (from, to): (&FileId, &FileId),
        name: &str,
        old_name_is_free: bool,
    ) -> Result<FileMeta> {
        const REFUSE: CheckNameMode = CheckNameMode::Refuse;
        let file = &meta.file_id;
        let is_to_be_left = {
            let tree = self.tree();
            self.is_to_be_left(&tree, to, name, tree.ino_of(file))
        };
        let at_the_end = if is_to_be_left { CheckNameMode::Ignore } else { REFUSE };
        if from == to {
            return self.drive.rename(file, name, at_the_end).await;
        }
        if meta.name == name {
            self.drive.relocate(file, to, at_the_end).await?;
            return self.drive.get(file).await;
        }
        let mode = if old_name_is_free { REFUSE } else { CheckNameMode::Ignore };
        self.drive.relocate(file, to, mode).await?;
        match self.drive.rename(file, name, at_the_end).await {
            Ok(meta) => Ok(meta),
            Err(error) => {
                self.move_back(file, from).await;
                Err(error)
            }
        }
    }

    pub(super) fn hold(&self, inodes: &[Ino]) -> Held<'_> {
        let mut tree = self.tree();
        for &ino in inodes {
            tree.hold(ino);
        }
        Held { vfs: self, inodes: inodes.to_vec() }
    }
}

/// Inodes that calls under way are moving. They are released also where the task is stopped.
pub(super) struct Held<'a> {
    vfs: &'a Vfs,
    inodes: Vec<Ino>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut tree = self.vfs.tree();
        for &ino in &self.inodes {
            tree.release(ino);
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the file was removed")
}
