//! Changing names: mkdir, unlink, rmdir, rename.
//!
//! The drive is changed first and the tree after it, so that a failure leaves what was believed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::{Caller, Entry, Kind, RenameMode, Vfs, leave_session_thread};
use crate::config::RemoveMode;
use crate::content::finish::target;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::{CheckNameMode, FileType};
use crate::posix;
use crate::tree::{Identity, Name, Objects, shown};

/// Pages that are read to find out that a folder is empty.
const EMPTY_PAGES_MAX: usize = 100;
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

    /// Removes a file: to the recycle bin, or for good.
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::Folder {
            return Err(Error::new(ErrorKind::IsDirectory, format!("{name} is a folder")));
        }
        self.remove_file(ino, self.config.remove).await?;
        self.tree().names_set(&[parent], &[ino], posix::now());
        Ok(())
    }

    /// A file is an orphan only when the drive has let go of it: where that fails, it is what it
    /// was, and what is written to it is not lost.
    pub(super) async fn remove_file(&self, ino: Ino, mode: RemoveMode) -> Result<()> {
        if let Some(file) = self.files.get(ino) {
            leave_session_thread().await;
            tokio::task::block_in_place(|| file.take_back());
        }
        let known = self.tree().meta(ino).cloned();
        let mut removed = HashSet::new();
        loop {
            let next = {
                let mut tree = self.tree();
                let object = match tree.identity(ino) {
                    Some(Identity::Remote(file_id)) => Some(file_id),
                    Some(Identity::Local) | None => None,
                };
                let replaced = tree.replaces(ino).map(|meta| meta.file_id.clone());
                // A commit that ended meanwhile has made another object.
                let next = [object, replaced].into_iter().flatten().find(|id| !removed.contains(id));
                if next.is_none() {
                    // From now on no commit of it begins; one that runs removes what it makes.
                    self.orphan(ino);
                    tree.unlink(ino, Instant::now());
                }
                next
            };
            let Some(file_id) = next else { break };
            let held = self.hold_open(ino, &file_id).await;
            self.drive.remove(&file_id, mode).await.inspect_err(|_| {
                if let Some(held) = held {
                    self.reader.let_go(&held);
                }
            })?;
            self.pending.forget(&file_id);
            removed.insert(file_id);
        }
        if let (Some(meta), None) = (known, self.files.get(ino)) {
            drop(self.env.space.kept().take(&target(&meta)));
        }
        let mut tree = self.tree();
        for file_id in removed {
            tree.entomb(file_id, Instant::now());
        }
        Ok(())
    }

    /// Who has a file open goes on reading it when it is deleted.
    async fn hold_open(&self, ino: Ino, file_id: &FileId) -> Option<ReadTarget> {
        let base = self.files.get(ino).and_then(|file| file.base());
        let held = target(&base.filter(|base| base.file_id == *file_id && base.size > 0)?);
        match self.reader.hold(&held).await {
            Ok(()) => Some(held),
            Err(error) => {
                // The deletion itself will tell of a drive that does not answer.
                tracing::debug!(%file_id, %error, "an open file will not be readable once it is deleted");
                None
            }
        }
    }

    /// Removes an empty folder.
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::File {
            return Err(Error::new(ErrorKind::NotDirectory, format!("{name} is a file")));
        }
        self.remove_folder(ino).await?;
        self.tree().names_set(&[parent], &[ino], posix::now());
        Ok(())
    }

    async fn remove_folder(&self, ino: Ino) -> Result<()> {
        if self.is_here_only(ino) {
            return self.remove_trash_folder(ino);
        }
        let folder = self.folder_id(ino)?;
        self.check_empty(ino, &folder).await?;
        self.drive.remove(&folder, self.config.remove).await?;
        self.tree().unlink(ino, Instant::now());
        Ok(())
    }

    /// Asks the drive, not the tree: removing a folder takes everything in it along.
    async fn check_empty(&self, ino: Ino, folder: &FileId) -> Result<()> {
        let not_empty = || Error::new(ErrorKind::NotEmpty, "the folder is not empty");
        let started = Instant::now();
        let own = self.tree().own_entries(ino, started);
        for entry in own {
            let Some(file) = entry else { return Err(not_empty()) };
            // No listing need show it yet, but somebody else may have taken it away.
            match self.drive.get(&file).await {
                Ok(meta) if meta.parent_id.as_ref() == Some(folder) => return Err(not_empty()),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let mut marker = String::new();
        for _ in 0..EMPTY_PAGES_MAX {
            let page = self.drive.list_page(folder, &marker).await?;
            let tree = self.tree();
            // A listing may still show what was removed here a moment ago.
            if page.items.iter().any(|item| !tree.is_removed(ino, &item.file_id, started)) {
                return Err(not_empty());
            }
            match page.next_marker {
                Some(next) => marker = next,
                None => return Ok(()),
            }
        }
        Err(not_empty())
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
        let is_local = self.tree().identity(source) == Some(Identity::Local);
        if is_local || open.as_ref().is_some_and(|file| file.is_unsaved()) {
            self.rename_unsaved(source, target, to).await?;
            return Ok(source);
        }
        match target {
            Some(target) => self.replace(source, target, to).await,
            None => self.move_object(source, to).await,
        }?;
        if let Some(open) = open {
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
            self.remove_superseded(former).await?;
        }
        Ok(())
    }

    /// Removes an object that nothing here stands for any more.
    pub(super) async fn remove_superseded(&self, object: FileMeta) -> Result<()> {
        self.drive.remove(&object.file_id, self.config.remove).await?;
        self.pending.forget(&object.file_id);
        self.tree().superseded(object.file_id, Instant::now());
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
        if let Some(meta) = self.drive.replace(target, source).await? {
            self.drive.remove(&source.file_id, self.config.remove).await?;
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
        self.drive.remove(&target.file_id, self.config.remove).await?;
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
        let (mtime, posix) = self.wanted(&tree, ino).unwrap_or_else(|| (None, tree.posix(ino)));
        let mtime = mtime.or_else(|| tree.meta(ino).map(|meta| meta.mtime)).unwrap_or(moved.mtime);
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
        let is_to_be_left = self.is_to_be_left(&self.tree(), to, name);
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
