//! Attributes set by programs: mode, owner, times, extended attributes. Also symbolic links and special
//! files, which are small files with attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use super::Vfs;
use super::callers::SetIdRights;
use super::pending_attrs::DesiredAttrs;
use super::types::{Attr, Caller, Entry, Fh, SetAttr};
use crate::clock;
use crate::config::Owners;
use crate::content::open_file::WriteAt;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::posix::{Posix, Special};
use crate::rolling_sha1::RollingSha1;
use crate::tree::{FileKind, Identity, Tree};

/// The only supported namespace of extended attributes.
const USER_PREFIX: &[u8] = b"user.";
/// Read-only attributes that report the status of a file. Not stored on the drive.
const STATUS_PREFIX: &[u8] = b"pdsfs.";
/// Longest target of a symbolic link, in bytes.
const TARGET_BYTES_MAX: u64 = libc::PATH_MAX as u64 - 1;
/// Set-group-ID: new entries of such a directory inherit its group.
const SETGID_BIT: u16 = 0o2000;
/// Set-user-ID and set-group-ID: the file runs as its owner or group.
pub(super) const SETID_BITS: u16 = 0o6000;

/// Which attributes of the drive's tags are shown, and which changes are stored. Others may write tags too.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttrRules {
    keeps_owners: bool,
    special_bits: bool,
}

impl AttrRules {
    /// The permission bits in use. The sticky bit of a directory is always one: it only restricts.
    fn mode_mask(self, kind: FileKind) -> u16 {
        match kind {
            _ if self.special_bits => 0o7777,
            FileKind::Directory => 0o1777,
            FileKind::File | FileKind::Special(_) => 0o777,
        }
    }

    /// The permission bits that `posix` has, if any.
    pub(super) fn perm(self, posix: Option<&Posix>, kind: FileKind) -> Option<u16> {
        Some(posix?.perm? & self.mode_mask(kind))
    }

    /// The owner that `posix` has, if any. That of a directory without an object was set by this mount.
    pub(super) fn owner(self, posix: Option<&Posix>, is_remote: bool) -> Option<(u32, u32)> {
        posix.filter(|_| self.keeps_owners || !is_remote)?.owner
    }
}

impl Vfs {
    /// Changes attributes and returns the new ones.
    pub async fn setattr(&self, ino: Ino, fh: Option<Fh>, set: SetAttr, caller: Caller) -> Result<Entry> {
        self.check_not_recycled(ino)?;
        let sets_owner = set.uid.is_some() || set.gid.is_some();
        let sets_attrs = set.mode.is_some() || sets_owner || set.atime.is_some() || set.mtime.is_some();
        if sets_attrs {
            self.wait_for_attr_room().await?;
        }
        if let Some(size) = set.size {
            self.set_size(ino, fh, size, caller).await?;
            self.clear_setid_bits(ino, caller)?;
        }
        if sets_attrs {
            let rights = if sets_owner { SetIdRights::of(caller) } else { SetIdRights::default() };
            let rules = self.attr_rules();
            self.change_attrs(ino, set.mtime, |posix, current| set.apply(posix, current, &rights, rules))?;
        }
        self.getattr(ino).await
    }

    /// Clears set-user-ID and set-group-ID after a change of content, unless the caller has `CAP_FSETID`.
    pub fn clear_setid_bits(&self, ino: Ino, caller: Caller) -> Result<()> {
        let perm = self.posix_of(&self.tree(), ino).and_then(|posix| posix.perm);
        if perm.is_none_or(|perm| perm & SETID_BITS == 0) {
            return Ok(());
        }
        let rights = SetIdRights::of(caller);
        if rights.keeps_bits {
            return Ok(());
        }
        self.change_attrs(ino, None, |posix, current| {
            posix.clear_setid_bits(posix.perm.unwrap_or(current.perm), rights.is_member(current.gid));
        })
    }

    pub(super) fn attr_rules(&self) -> AttrRules {
        let options = &self.config.options;
        let keeps_owners = options.owners != Some(Owners::Mounter);
        AttrRules { keeps_owners, special_bits: options.special_bits }
    }

    /// Sets the modification time of an inode.
    pub(super) fn set_mtime_now(&self, ino: Ino) -> Result<()> {
        self.change_attrs(ino, Some(clock::now()), |_, _| {})
    }

    /// Changes the attributes of an inode. They are sent to the drive soon, or with the first commit of a new
    /// file.
    fn change_attrs(
        &self,
        ino: Ino,
        mtime: Option<SystemTime>,
        change: impl FnOnce(&mut Posix, &Attr),
    ) -> Result<()> {
        let current = self.entry(ino)?.attr;
        let open = self.files.get(ino);
        let commits_mtime = mtime.is_some_and(|mtime| open.is_some_and(|file| file.set_mtime(mtime)));
        let mut tree = self.tree();
        let mut new = self.posix_of(&tree, ino).as_deref().cloned().unwrap_or_default();
        change(&mut new, &current);
        let posix = (new != Posix::default()).then(|| Arc::new(new));
        if let (Some(known), Some(Identity::Remote(_))) = (tree.meta(ino), tree.identity(ino)) {
            let pending = self.pending_attrs(&tree, ino).and_then(|(mtime, _)| mtime);
            let mtime = mtime.filter(|_| !commits_mtime).or(pending).unwrap_or(known.mtime);
            self.pending.set(known, DesiredAttrs { mtime, posix: posix.clone() });
        }
        if let Some(mtime) = mtime {
            tree.set_mtime(ino, mtime)?;
        }
        tree.set_posix(ino, posix)?;
        tree.attrs_changed(ino, Instant::now(), clock::now());
        Ok(())
    }

    /// Waits while too many attributes are not on the drive.
    async fn wait_for_attr_room(&self) -> Result<()> {
        self.pending.wait_for_room(&self.drive, &self.tree).await
    }

    /// The attributes of an inode, including those that are not on the drive yet.
    pub(super) fn posix_of(&self, tree: &Tree, ino: Ino) -> Option<Arc<Posix>> {
        self.pending_attrs(tree, ino).map_or_else(|| tree.posix(ino), |(_, posix)| posix)
    }

    /// Attributes that are not on the drive yet: see [`PendingAttrs::get`].
    ///
    /// [`PendingAttrs::get`]: super::pending_attrs::PendingAttrs::get
    pub(super) fn pending_attrs(
        &self,
        tree: &Tree,
        ino: Ino,
    ) -> Option<(Option<SystemTime>, Option<Arc<Posix>>)> {
        match tree.identity(ino)? {
            Identity::Remote(file) => self.pending.get(&file),
            Identity::Local => None,
        }
    }

    /// Modification time and attributes as known here. They may be newer than `answer`.
    pub(super) fn current_attrs(
        &self,
        tree: &Tree,
        ino: Ino,
        answer: &FileMeta,
    ) -> (SystemTime, Option<Arc<Posix>>) {
        let (mtime, posix) = self.pending_attrs(tree, ino).unwrap_or_else(|| (None, tree.posix(ino)));
        let mtime = mtime.or_else(|| tree.meta(ino).map(|meta| meta.mtime));
        (mtime.unwrap_or(answer.mtime), posix)
    }

    /// Queues the local attributes for an object that the drive has as `meta`. Returns the object with these
    /// attributes.
    pub(super) async fn push_attrs(
        &self,
        meta: FileMeta,
        mtime: SystemTime,
        posix: Option<Arc<Posix>>,
    ) -> FileMeta {
        self.pending.forget(&meta.file_id);
        self.pending.set(&meta, DesiredAttrs { mtime, posix: posix.clone() });
        let special = |posix: &Option<Arc<Posix>>| posix.as_ref().and_then(|posix| posix.special);
        if special(&meta.posix) != special(&posix) {
            // Sent at once: other clients must not take a regular file for a link that it replaced.
            let sent = self.pending.flush_file(&self.drive, &self.tree, &meta.file_id).await;
            if let Err(error) = sent {
                tracing::warn!(file = %meta.file_id, %error, "cannot store the file type; it will be retried");
            }
        }
        FileMeta { mtime, posix, ..meta }
    }

    /// The initial attributes of a new inode, derived from the mode, the caller and the directory.
    pub(super) fn initial_posix(
        &self,
        parent: Ino,
        kind: FileKind,
        mode: u32,
        caller: Caller,
    ) -> Result<Option<Arc<Posix>>> {
        if !self.config.options.metadata {
            return Ok(None);
        }
        let (dir, rules) = (self.entry(parent)?.attr, self.attr_rules());
        let (mut perm, mut owner) = (mode as u16 & rules.mode_mask(kind), (caller.uid, caller.gid));
        if dir.perm & SETGID_BIT != 0 {
            owner.1 = dir.gid;
            if kind == FileKind::Directory {
                perm |= SETGID_BIT;
            }
        }
        let special = match kind {
            FileKind::Special(special) => Some(special),
            FileKind::File | FileKind::Directory => None,
        };
        let mut posix = Posix::default();
        posix.special = special;
        posix.perm = Some(perm).filter(|perm| *perm != self.default_mode(kind));
        let mounter = (self.config.uid, self.config.gid);
        posix.owner = Some(owner).filter(|owner| rules.keeps_owners && *owner != mounter);
        Ok((posix != Posix::default()).then(|| Arc::new(posix)))
    }

    /// Permission bits of a file without stored ones.
    pub(super) fn default_mode(&self, kind: FileKind) -> u16 {
        match kind {
            FileKind::Directory => 0o777 & !self.config.options.umask,
            FileKind::Special(Special::Link) => 0o777,
            FileKind::File | FileKind::Special(_) => 0o666 & !self.config.options.umask,
        }
    }

    /// Creates a regular file, a named pipe, a socket or a device node.
    pub async fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry> {
        if kind != FileKind::File && !self.config.options.metadata {
            return Err(no_metadata());
        }
        let posix = self.initial_posix(parent, kind, mode, caller)?;
        self.make_closed(parent, name, posix, Bytes::new(), caller).await
    }

    /// Creates a symbolic link. Other clients of the drive see a small file that contains the target.
    pub async fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, caller: Caller) -> Result<Entry> {
        if !self.config.options.metadata {
            return Err(no_metadata());
        }
        let initial = self.initial_posix(parent, FileKind::Special(Special::Link), 0o777, caller)?;
        let mut posix = initial.as_deref().cloned().unwrap_or_default();
        posix.link = Some(target.as_bytes().to_vec());
        let content = Bytes::copy_from_slice(target.as_bytes());
        self.make_closed(parent, name, Some(Arc::new(posix)), content, caller).await
    }

    /// Creates a file and commits it.
    pub(super) async fn make_closed(
        &self,
        parent: Ino,
        name: &OsStr,
        posix: Option<Arc<Posix>>,
        content: Bytes,
        caller: Caller,
    ) -> Result<Entry> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let (entry, opened) = self.create_as(parent, name, flags, posix, caller).await?;
        let written =
            if content.is_empty() { Ok(0) } else { self.write(opened.fh, WriteAt::End, content).await };
        let closed = written.and(self.release(opened.fh).await);
        if closed.is_err() {
            self.forget(entry.attr.ino, 1);
        }
        closed?;
        self.entry(entry.attr.ino)
    }

    /// Needs no call to the drive if the target is stored in the attributes.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let (posix, meta) = {
            let tree = self.tree();
            (self.posix_of(&tree, ino), tree.meta(ino).cloned())
        };
        let posix = posix.filter(|posix| posix.special == Some(Special::Link));
        let posix = posix.ok_or_else(|| Error::new(ErrorKind::Invalid, "not a symbolic link"))?;
        if let Some(link) = &posix.link
            && meta.as_ref().and_then(|meta| meta.sha1).is_none_or(|sha1| {
                // Another client may have changed the content. Then the content is the target.
                let mut hash = RollingSha1::default();
                hash.update(link);
                hash.digest() == sha1
            })
        {
            return Ok(Bytes::copy_from_slice(link));
        }
        let meta = meta
            .ok_or_else(|| Error::new(ErrorKind::Stale, "the content of the link is not on the drive yet"))?;
        if meta.size == 0 || meta.size > TARGET_BYTES_MAX {
            let detail = format!("invalid symbolic link: its target has {} bytes", meta.size);
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        self.reader.read(&ReadTarget::of(&meta), &self.reader.cursor(), 0, meta.size).await
    }

    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let name = self.user_attribute(name)?;
        if let Some(own) = name.strip_prefix(STATUS_PREFIX) {
            return self.status_attribute(ino, own);
        }
        let posix = self.posix_of(&self.tree(), ino);
        let value = posix.as_ref().and_then(|posix| posix.xattr(name)).map(<[u8]>::to_vec);
        value.ok_or_else(no_attribute)
    }

    /// The names of all extended attributes, each followed by NUL. `user.pdsfs.*` are left out: `cp -a` and
    /// `rsync -X` copy the listed ones.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        // The same check as in the other calls. Its error decides whether the kernel calls again.
        self.user_attribute(OsStr::new("user."))?;
        let Some(posix) = self.posix_of(&self.tree(), ino) else { return Ok(Vec::new()) };
        Ok(posix.xattr_names().flat_map(|name| [USER_PREFIX, name, b"\0"].concat()).collect())
    }

    /// `flags` as in setxattr(2).
    pub async fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let name = self.settable_attribute(name)?;
        self.wait_for_attr_room().await?;
        let exists = self.posix_of(&self.tree(), ino).is_some_and(|posix| posix.xattr(name).is_some());
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(Error::new(ErrorKind::Exists, "extended attribute exists"));
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(no_attribute());
        }
        let mut fits = false;
        self.change_attrs(ino, None, |posix, _| fits = posix.set_xattr(name, value))?;
        let detail =
            "extended attribute too large: a file can have about 990 attributes of up to 1,900 bytes each";
        if fits { Ok(()) } else { Err(Error::new(ErrorKind::NoSpace, detail)) }
    }

    pub async fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let name = self.settable_attribute(name)?;
        self.wait_for_attr_room().await?;
        let mut existed = false;
        self.change_attrs(ino, None, |posix, _| existed = posix.remove_xattr(name))?;
        if existed { Ok(()) } else { Err(no_attribute()) }
    }

    /// The name without its namespace. Fails for read-only status attributes.
    fn settable_attribute<'a>(&self, name: &'a OsStr) -> Result<&'a [u8]> {
        let name = self.user_attribute(name)?;
        if name.starts_with(STATUS_PREFIX) {
            let detail = "attributes user.pdsfs.* are read-only";
            return Err(Error::new(ErrorKind::NotPermitted, detail));
        }
        Ok(name)
    }

    /// The name without its namespace.
    fn user_attribute<'a>(&self, name: &'a OsStr) -> Result<&'a [u8]> {
        if !self.config.options.metadata {
            return Err(Error::new(ErrorKind::NotImplemented, "extended attributes need --metadata on"));
        }
        let unsupported =
            || Error::new(ErrorKind::Unsupported, "only extended attributes user.NAME are supported");
        name.as_bytes().strip_prefix(USER_PREFIX).ok_or_else(unsupported)
    }
}

impl SetAttr {
    /// Applies the change to `posix`. Values equal to `current` are not stored on the drive.
    fn apply(&self, posix: &mut Posix, current: &Attr, rights: &SetIdRights, rules: AttrRules) {
        // With bits that are not shown: a change of the mode removes them.
        let mut perm = posix.perm.unwrap_or(current.perm);
        if let Some(mode) = self.mode {
            let new = mode as u16 & rules.mode_mask(current.kind);
            if new != perm {
                posix.perm = Some(new);
            }
            perm = new;
        }
        let owner = (self.uid.unwrap_or(current.uid), self.gid.unwrap_or(current.gid));
        if rules.keeps_owners && owner != (current.uid, current.gid) {
            posix.owner = Some(owner);
        }
        if (self.uid.is_some() || self.gid.is_some()) && current.kind != FileKind::Directory {
            posix.clear_setid_bits(perm, rights.is_member(current.gid));
        }
        if let Some(atime) = self.atime {
            // An unknown access time is shown as the creation time.
            posix.atime = Some(atime).filter(|atime| *atime != current.crtime);
        }
    }
}

pub(super) fn no_attribute() -> Error {
    Error::new(ErrorKind::NoAttribute, "no such extended attribute")
}

fn no_metadata() -> Error {
    Error::new(ErrorKind::NotPermitted, "symbolic links and special files need --metadata on")
}
