//! Attributes that a program sets: modes, owners, times, extended attributes; and links and other special
//! files, which are files with attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use super::pending::Wanted;
use super::{Attr, Caller, Entry, Fh, SetAttr, Vfs};
use crate::content::finish::target;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::posix::{self, Posix, Special};
use crate::rolling_sha1::RollingSha1;
use crate::tree::{Identity, Kind, Tree};

/// The one name space of extended attributes that is kept.
const USER: &[u8] = b"user.";
/// What begins the attributes that are not kept anywhere: they say how a file stands.
const OWN: &[u8] = b"pdsfs.";
/// Longest target of a link, in bytes.
const TARGET_BYTES_MAX: u64 = libc::PATH_MAX as u64 - 1;
/// Set-group-ID: in a folder, what is made in it gets the folder's group.
const SET_GROUP_ID: u16 = 0o2000;
/// Both bits that let a program run as somebody else.
const SET_IDS: u16 = 0o6000;

impl Vfs {
    /// Changes attributes and gives them as they are then.
    pub async fn setattr(&self, ino: Ino, fh: Option<Fh>, set: SetAttr, caller: Caller) -> Result<Entry> {
        self.check_writable()?;
        if let Some(size) = set.size {
            self.set_size(ino, fh, size).await?;
            self.drop_set_ids(ino, caller)?;
        }
        let sets_owner = set.uid.is_some() || set.gid.is_some();
        if set.mode.is_some() || sets_owner || set.atime.is_some() || set.mtime.is_some() {
            self.change_attrs(ino, set.mtime, |posix, shown| set.apply(posix, shown))?;
        }
        self.getattr(ino).await
    }

    /// Somebody who is not root has changed the bytes of a file.
    pub fn drop_set_ids(&self, ino: Ino, caller: Caller) -> Result<()> {
        let perm = self.tree().posix(ino).and_then(|posix| posix.perm);
        if caller.uid == 0 || perm.is_none_or(|perm| perm & SET_IDS == 0) {
            return Ok(());
        }
        self.change_attrs(ino, None, |posix, shown| posix.drop_set_ids(shown.perm))
    }

    /// Changes what is known of an inode. An object of the drive is told soon; what is not on the drive yet
    /// takes it along.
    fn change_attrs(
        &self,
        ino: Ino,
        mtime: Option<SystemTime>,
        change: impl FnOnce(&mut Posix, &Attr),
    ) -> Result<()> {
        let shown = self.entry(ino)?.attr;
        let open = self.files.get(ino);
        let taken = mtime.is_some_and(|mtime| open.is_some_and(|file| file.set_mtime(mtime)));
        let mut tree = self.tree();
        let mut new = self.posix_of(&tree, ino).as_deref().cloned().unwrap_or_default();
        change(&mut new, &shown);
        let posix = (new != Posix::default()).then(|| Arc::new(new));
        if let (Some(known), Some(Identity::Remote(_))) = (tree.meta(ino), tree.identity(ino)) {
            let pending = self.wanted(&tree, ino).and_then(|(mtime, _)| mtime);
            let mtime = mtime.filter(|_| !taken).or(pending).unwrap_or(known.mtime);
            self.pending.set(known, Wanted { mtime, posix: posix.clone() });
        }
        if let Some(mtime) = mtime {
            tree.set_mtime(ino, mtime)?;
        }
        tree.set_posix(ino, posix)?;
        tree.attrs_set(ino, Instant::now(), posix::now());
        Ok(())
    }

    /// What is known of an inode, with what the drive was not told yet.
    pub(super) fn posix_of(&self, tree: &Tree, ino: Ino) -> Option<Arc<Posix>> {
        self.wanted(tree, ino).map_or_else(|| tree.posix(ino), |(_, posix)| posix)
    }

    /// What an inode shall become, where the drive does not have that yet: see [`PendingAttrs::get`].
    ///
    /// [`PendingAttrs::get`]: super::pending::PendingAttrs::get
    pub(super) fn wanted(&self, tree: &Tree, ino: Ino) -> Option<(Option<SystemTime>, Option<Arc<Posix>>)> {
        match tree.identity(ino)? {
            Identity::Remote(file) => self.pending.get(&file),
            Identity::Local => None,
        }
    }

    /// Modification time and attributes of a file as they are here, which may be newer than an `answer` of the drive.
    pub(super) fn attributes_of_now(
        &self,
        tree: &Tree,
        ino: Ino,
        answer: &FileMeta,
    ) -> (SystemTime, Option<Arc<Posix>>) {
        let (mtime, posix) = self.wanted(tree, ino).unwrap_or_else(|| (None, tree.posix(ino)));
        let mtime = mtime.or_else(|| tree.meta(ino).map(|meta| meta.mtime));
        (mtime.unwrap_or(answer.mtime), posix)
    }

    /// The drive has an object as `meta`. Sees to it that it becomes what it is here, and gives it so.
    pub(super) async fn impose(
        &self,
        meta: FileMeta,
        mtime: SystemTime,
        posix: Option<Arc<Posix>>,
    ) -> FileMeta {
        self.pending.forget(&meta.file_id);
        self.pending.set(&meta, Wanted { mtime, posix: posix.clone() });
        let special = |posix: &Option<Arc<Posix>>| posix.as_ref().and_then(|posix| posix.special);
        if special(&meta.posix) != special(&posix) {
            // Others must not take a file for the link whose place it took.
            let sent = self.pending.flush_file(&self.drive, &self.tree, &meta.file_id).await;
            if let Err(error) = sent {
                tracing::warn!(file = %meta.file_id, %error, "what kind of file it is will be told later");
            }
        }
        FileMeta { mtime, posix, ..meta }
    }

    /// What an inode of that kind and mode, made in a folder, begins with.
    pub(super) fn newborn(
        &self,
        parent: Ino,
        kind: Kind,
        mode: u32,
        caller: Caller,
    ) -> Result<Option<Arc<Posix>>> {
        if !self.config.metadata {
            return Ok(None);
        }
        let folder = self.entry(parent)?.attr;
        let (mut perm, mut owner) = ((mode & 0o7777) as u16, (caller.uid, caller.gid));
        if folder.perm & SET_GROUP_ID != 0 {
            owner.1 = folder.gid;
            if kind == Kind::Folder {
                perm |= SET_GROUP_ID;
            }
        }
        let special = match kind {
            Kind::Special(special) => Some(special),
            Kind::File | Kind::Folder => None,
        };
        let mut posix = Posix::default();
        posix.special = special;
        posix.perm = Some(perm).filter(|perm| *perm != self.usual_perm(kind));
        posix.owner = Some(owner).filter(|owner| *owner != (self.config.uid, self.config.gid));
        Ok((posix != Posix::default()).then(|| Arc::new(posix)))
    }

    /// Permission bits where none are known.
    pub(super) fn usual_perm(&self, kind: Kind) -> u16 {
        match kind {
            Kind::Folder => 0o777 & !self.config.umask,
            Kind::Special(Special::Link) => 0o777,
            Kind::File | Kind::Special(_) => 0o666 & !self.config.umask,
        }
    }

    /// Makes a file, a named pipe or a socket.
    pub async fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry> {
        if kind != Kind::File && !self.config.metadata {
            return Err(no_metadata());
        }
        let posix = self.newborn(parent, kind, mode, caller)?;
        self.make_closed(parent, name, posix, Bytes::new(), caller).await
    }

    /// Makes a symbolic link. Other clients of the drive see a small file that holds the target.
    pub async fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, caller: Caller) -> Result<Entry> {
        if !self.config.metadata {
            return Err(no_metadata());
        }
        let newborn = self.newborn(parent, Kind::Special(Special::Link), 0o777, caller)?;
        let mut posix = newborn.as_deref().cloned().unwrap_or_default();
        posix.link = Some(target.as_bytes().to_vec());
        let content = Bytes::copy_from_slice(target.as_bytes());
        self.make_closed(parent, name, Some(Arc::new(posix)), content, caller).await
    }

    /// Makes a file that is on the drive when this returns.
    async fn make_closed(
        &self,
        parent: Ino,
        name: &OsStr,
        posix: Option<Arc<Posix>>,
        content: Bytes,
        caller: Caller,
    ) -> Result<Entry> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let (entry, opened) = self.create_as(parent, name, flags, posix, caller).await?;
        let written = if content.is_empty() { Ok(0) } else { self.write(opened.fh, 0, content).await };
        let closed = written.and(self.release(opened.fh).await);
        if closed.is_err() {
            self.forget(entry.attr.ino, 1);
        }
        closed?;
        self.entry(entry.attr.ino)
    }

    /// Where a symbolic link leads. Costs no call where the target is among the attributes.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let (posix, meta) = {
            let tree = self.tree();
            (self.posix_of(&tree, ino), tree.meta(ino).cloned())
        };
        let posix = posix.filter(|posix| posix.special == Some(Special::Link));
        let posix = posix.ok_or_else(|| Error::new(ErrorKind::Invalid, "not a symbolic link"))?;
        if let Some(link) = &posix.link
            && meta.as_ref().and_then(|meta| meta.sha1).is_none_or(|sha1| {
                // Another client may have changed the content, which is what counts.
                let mut hash = RollingSha1::default();
                hash.update(link);
                hash.digest() == sha1
            })
        {
            return Ok(Bytes::copy_from_slice(link));
        }
        let meta = meta.ok_or_else(|| Error::new(ErrorKind::Stale, "the link is not on the drive"))?;
        if meta.size == 0 || meta.size > TARGET_BYTES_MAX {
            let detail = format!("the link holds {} bytes, which is no path", meta.size);
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        self.reader.read(&target(&meta), &self.reader.cursor(), 0, meta.size).await
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let name = self.user_attribute(name)?;
        if let Some(own) = name.strip_prefix(OWN) {
            return self.own_attribute(ino, own);
        }
        let posix = self.posix_of(&self.tree(), ino);
        let value = posix.as_ref().and_then(|posix| posix.xattr(name)).map(<[u8]>::to_vec);
        value.ok_or_else(no_attribute)
    }

    /// The names of all extended attributes, each with a NUL behind it. Those that the mount answers by
    /// itself are not among them: `cp -a` and `rsync -X` copy what is listed.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        // In the same order of words as the others: which it is says whether the kernel asks again.
        self.user_attribute(OsStr::new("user."))?;
        let Some(posix) = self.posix_of(&self.tree(), ino) else { return Ok(Vec::new()) };
        Ok(posix.xattr_names().flat_map(|name| [USER, name, b"\0"].concat()).collect())
    }

    /// Sets an extended attribute; `flags` are those of setxattr(2).
    pub fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.check_writable()?;
        let name = self.settable_attribute(name)?;
        let exists = self.posix_of(&self.tree(), ino).is_some_and(|posix| posix.xattr(name).is_some());
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(Error::new(ErrorKind::Exists, "the extended attribute exists"));
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(no_attribute());
        }
        let mut fits = false;
        self.change_attrs(ino, None, |posix, _| fits = posix.set_xattr(name, value))?;
        let detail = "the drive keeps about 1,900 bytes of one extended attribute, and 990 of them";
        if fits { Ok(()) } else { Err(Error::new(ErrorKind::NoSpace, detail)) }
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let name = self.settable_attribute(name)?;
        let mut existed = false;
        self.change_attrs(ino, None, |posix, _| existed = posix.remove_xattr(name))?;
        if existed { Ok(()) } else { Err(no_attribute()) }
    }

    /// The name without its name space, unless the mount answers it by itself.
    fn settable_attribute<'a>(&self, name: &'a OsStr) -> Result<&'a [u8]> {
        let name = self.user_attribute(name)?;
        if name.starts_with(OWN) {
            let detail = "attributes user.pdsfs.* say how a file stands; they cannot be set";
            return Err(Error::new(ErrorKind::NotPermitted, detail));
        }
        Ok(name)
    }

    /// The name without its name space.
    fn user_attribute<'a>(&self, name: &'a OsStr) -> Result<&'a [u8]> {
        if !self.config.metadata {
            return Err(Error::new(ErrorKind::NotImplemented, "mounted without metadata"));
        }
        let unsupported = || Error::new(ErrorKind::Unsupported, "only attributes user.NAME are kept");
        name.as_bytes().strip_prefix(USER).ok_or_else(unsupported)
    }
}

impl SetAttr {
    /// Makes of `posix`, which is shown as `shown`, what was asked for. What is shown so already needs no
    /// place on the drive.
    fn apply(&self, posix: &mut Posix, shown: &Attr) {
        let mut perm = shown.perm;
        if let Some(mode) = self.mode {
            perm = (mode & 0o7777) as u16;
            if perm != shown.perm {
                posix.perm = Some(perm);
            }
        }
        let owner = (self.uid.unwrap_or(shown.uid), self.gid.unwrap_or(shown.gid));
        if owner != (shown.uid, shown.gid) {
            posix.owner = Some(owner);
        }
        if (self.uid.is_some() || self.gid.is_some()) && shown.kind != Kind::Folder {
            posix.drop_set_ids(perm);
        }
        if let Some(atime) = self.atime {
            // What is not known is shown as the modification time.
            posix.atime = Some(atime).filter(|atime| *atime != self.mtime.unwrap_or(shown.mtime));
        }
    }
}

fn no_attribute() -> Error {
    Error::new(ErrorKind::NoAttribute, "no such extended attribute")
}

fn no_metadata() -> Error {
    Error::new(ErrorKind::NotPermitted, "links and special files need --metadata on")
}
