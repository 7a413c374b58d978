//! Opens the mountpoint, one name after the other, and checks for root that no other user can lead the path
//! elsewhere.
//!
//! Each step opens a name in a directory that is already open, and no step follows a link by itself. So the
//! directory that was checked is the directory of the next step.
//!
//! An entry of a directory can be replaced by the owner of the directory, and by every user who may write in
//! it. In a sticky directory, such as `/tmp`, other users can replace only entries of their own. The owner of
//! the mountpoint itself cannot replace it, unless its parent is sticky.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, openat, readlinkat, statx};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::preflight;
use crate::error::{Error, ErrorKind};
use crate::fuse::{MountDir, mountinfo};

const STICKY: u32 = 0o1000;
const WRITE_OF_OTHERS: u32 = 0o022;
const LINKS_MAX: usize = 40;
/// Group of a thread with the rights of a user. Groups of the user are not used.
const NO_GROUP: u32 = 65_534;

/// The users that may be able to replace a part of the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trust {
    /// All: the process has no rights that the user lacks.
    Everyone,
    Root,
    /// Root, and the owner of the mountpoint. From the first directory of the owner on, the path is resolved
    /// with the rights of that user.
    RootAndOwner,
}

/// Why a path was not opened.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A system call failed.
    Io(io::Error),
    /// Another user could replace a part of the path.
    Unsafe(Error),
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

type Outcome<T> = std::result::Result<T, Refusal>;

/// Opens the file at `path`. An automount point on the way is triggered.
pub(super) fn open(path: &Path, trust: Trust) -> Outcome<MountDir> {
    let mut walk = Walk::new(trust)?;
    let mut names = VecDeque::new();
    push_names(&mut names, &std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        walk.check_parent(&name)?;
        let entry = walk.enter(&name)?;
        if entry.kind != FileType::Symlink {
            walk.here = entry;
            walk.path.push(&name);
            continue;
        }
        walk.check_link(&name)?;
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::other("too many levels of symbolic links").into());
        }
        let target = PathBuf::from(OsString::from_vec(readlinkat(&entry.file, "", Vec::new())?.into_bytes()));
        if target.is_absolute() {
            walk.restart()?;
        }
        push_names(&mut names, &target);
    }
    walk.check_end()?;
    Ok(MountDir::new(walk.here.file)?)
}

/// Puts the names of `path` before the other ones.
fn push_names(names: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        if let Component::Normal(_) | Component::ParentDir = component {
            names.push_front(component.as_os_str().to_owned());
        }
    }
}

/// An open file without access to its content.
#[derive(Debug)]
struct Entry {
    file: OwnedFd,
    kind: FileType,
    /// The user who mounted the file system, if that is not root; else the owner.
    owner: u32,
    mode: u32,
    device: (u32, u32),
    mounter: Option<u32>,
}

impl Entry {
    /// Sends no request to a FUSE daemon.
    fn new(file: OwnedFd, parent: Option<&Self>) -> Outcome<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&file, "", flags, StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let mounter = match parent {
            Some(parent) if parent.device == device => parent.mounter,
            // What a FUSE file system says of owners is true if root has mounted it.
            _ => mountinfo::of(&file)?.and_then(|mount| mount.owner).filter(|owner| *owner != 0),
        };
        Ok(Self {
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            owner: mounter.unwrap_or(stat.stx_uid),
            mode: stat.stx_mode.into(),
            file,
            device,
            mounter,
        })
    }

    fn is_sticky(&self) -> bool {
        self.mode & STICKY != 0
    }

    fn is_shared(&self) -> bool {
        self.mode & WRITE_OF_OTHERS != 0
    }
}

#[derive(Debug)]
struct Walk {
    trust: Trust,
    here: Entry,
    path: PathBuf,
    /// The user who can replace the rest of the path.
    user: Option<u32>,
    is_root_of_machine: bool,
}

impl Walk {
    fn new(trust: Trust) -> Outcome<Self> {
        Ok(Self {
            trust,
            here: root_directory()?,
            path: PathBuf::from("/"),
            user: None,
            is_root_of_machine: is_in_initial_user_namespace(),
        })
    }

    fn restart(&mut self) -> Outcome<()> {
        (self.here, self.path) = (root_directory()?, PathBuf::from("/"));
        Ok(())
    }

    /// Root of a user namespace sees all ids outside of it, that of the real root too, as the overflow id.
    fn is_root(&self, uid: u32) -> bool {
        uid == 0 || !self.is_root_of_machine && uid == NO_GROUP
    }

    /// Checks which users can replace the entry `name` of the present directory.
    fn check_parent(&mut self, name: &OsStr) -> Outcome<()> {
        if self.trust == Trust::Everyone {
            return Ok(());
        }
        if self.user.is_none() && !self.is_root(self.here.owner) {
            let path = self.path.clone();
            self.hand_over(self.here.owner, &path)?;
        }
        if self.user.is_some() {
            return if name == ".." {
                Err(unsafe_path("has .. in a directory of another user: write the path without it"))
            } else {
                Ok(())
            };
        }
        if self.here.is_shared() && !self.here.is_sticky() {
            let shared = self.path.display();
            return Err(unsafe_path(format!(
                "is not safe for a mount by root: other users may write in {shared} and can replace it. Run chmod \
                 go-w '{shared}', or choose another directory"
            )));
        }
        Ok(())
    }

    fn check_link(&self, name: &OsStr) -> Outcome<()> {
        let Some(user) = self.user else { return Ok(()) };
        let link = self.path.join(name);
        Err(unsafe_path(format!(
            "is not safe: {} is a symbolic link that user {user} can change. Name the directory itself",
            link.display()
        )))
    }

    /// Opens an entry of the present directory.
    fn enter(&mut self, name: &OsStr) -> Outcome<Entry> {
        let file = match self.user {
            None => open_entry(&self.here.file, name)?,
            Some(user) => open_entry_as(user, &self.here.file, name)?,
        };
        let entry = Entry::new(file, Some(&self.here))?;
        let is_replaceable = self.trust != Trust::Everyone
            && self.user.is_none()
            && self.here.is_shared()
            && !self.is_root(entry.owner);
        if is_replaceable {
            let path = self.path.join(name);
            self.hand_over(entry.owner, &path)?;
        }
        Ok(entry)
    }

    /// Goes on with the rights of `user`, to whom `path` belongs.
    fn hand_over(&mut self, user: u32, path: &Path) -> Outcome<()> {
        if self.trust == Trust::RootAndOwner {
            self.user = Some(user);
            return Ok(());
        }
        let path = path.display();
        Err(unsafe_path(format!(
            "is not safe for a mount by root: {path} belongs to user {user}, who can replace it. Choose a \
             directory below directories of root, mount as that user, or set allow_user_mountpoint"
        )))
    }

    fn check_end(&self) -> Outcome<()> {
        match self.user {
            Some(user) if self.here.owner != user => Err(unsafe_path(format!(
                "belongs to user {}, but user {user} can replace it: only a directory of that user can be the \
                 mountpoint",
                self.here.owner
            ))),
            _ => Ok(()),
        }
    }
}

/// `why` follows the path.
fn unsafe_path(why: impl AsRef<str>) -> Refusal {
    Refusal::Unsafe(Error::new(ErrorKind::Denied, why))
}

fn root_directory() -> Outcome<Entry> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Entry::new(rustix::fs::open("/", flags, Mode::empty())?, None)
}

/// Opens without following a link. Only an open that asks for a directory triggers an automount.
fn open_entry(dir: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(dir, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(io::Error::from) {
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(openat(dir, name, flags, Mode::empty())?),
        opened => opened,
    }
}

/// [`open_entry`] with the rights of a user, in a thread that ends.
fn open_entry_as(user: u32, dir: &OwnedFd, name: &OsStr) -> Outcome<OwnedFd> {
    let opened = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            take_rights_of(user).map_err(|e| {
                let detail = format!("cannot take the rights of user {user} (CAP_SETUID, CAP_SETGID): {e}");
                Refusal::Unsafe(Error::new(ErrorKind::Denied, detail))
            })?;
            Ok(open_entry(dir, name)?)
        });
        opening.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked").into()))
    });
    // The kernel applies fs.suid_dumpable to the process when a thread changes its ids.
    preflight::protect_memory();
    opened
}

/// Changes the rights of this thread only, and for good.
fn take_rights_of(user: u32) -> io::Result<()> {
    set_thread_groups(&[])?;
    set_thread_res_gid(None::<Gid>, Gid::from_raw(NO_GROUP), None::<Gid>)?;
    Ok(set_thread_res_uid(None::<Uid>, Uid::from_raw(user), None::<Uid>)?)
}

fn is_in_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn opened(path: &Path, trust: Trust) -> PathBuf {
        open(path, trust).unwrap().path().to_owned()
    }

    #[test]
    fn links_and_parents_are_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let real = dir.join("real");
        std::fs::create_dir(&real).unwrap();
        symlink("real", dir.join("link")).unwrap();
        symlink(dir.join("link"), dir.join("absolute")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        for path in ["real", "link", "absolute", "real/../link/.", "../../proc/../tmp/./"] {
            let expected = dir.join(path).canonicalize().unwrap();
            for trust in [Trust::Everyone, Trust::Root, Trust::RootAndOwner] {
                if rustix::process::geteuid().is_root() || trust == Trust::Everyone {
                    assert_eq!(opened(&dir.join(path), trust), expected, "{path} {trust:?}");
                }
            }
        }
        assert_eq!(opened(Path::new("/"), Trust::Root), Path::new("/"));
        for (path, kind) in [
            ("loop", io::ErrorKind::Other),
            ("missing", io::ErrorKind::NotFound),
            ("real/missing/..", io::ErrorKind::NotFound),
        ] {
            match open(&dir.join(path), Trust::Everyone) {
                Err(Refusal::Io(e)) => assert_eq!(e.kind(), kind, "{path}: {e}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}
