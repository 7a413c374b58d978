//! Unmounting: root by the system call, other users by the set-uid program `fusermount3`. The mount is known
//! by its id, so it is found where it is now, and no other mount is touched.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;

use super::mount_root::{FoundRoot, MountRoot, descriptor_path};
use super::mountinfo::{self, Mount};
use crate::error::{Error, ErrorKind, Result};

/// Unmounts if the mount is not in use. `false` if it is busy.
pub fn if_idle(mount: &Mount) -> Result<bool> {
    let Some(now) = mountinfo::current(mount)? else { return Ok(true) };
    match umount_idle(&now) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(e) if is_for_fusermount(&e) => match fusermount(&now.path, &["-u"])? {
            None => Ok(true),
            Some(message) if message.to_lowercase().contains("busy") => Ok(false),
            Some(message) => Err(Error::new(ErrorKind::Denied, message)),
        },
        Err(e) => Err(cannot_unmount(&now, e)),
    }
}

/// Unmounts lazily (`MNT_DETACH`): hides the mount now; it ends with its last use.
pub fn lazily(mount: &Mount) -> Result<()> {
    let root = match MountRoot::of(mount).map_err(|e| cannot_unmount(mount, e))? {
        FoundRoot::Root(root) => root,
        FoundRoot::Ended => return Ok(()),
        FoundRoot::Hidden => {
            let path = mount.path.display();
            let detail = format!("cannot unmount {path}: another mount hides it; unmount that one first");
            return Err(Error::new(ErrorKind::Busy, detail));
        }
    };
    match umount_lazily(&root.link()) {
        Ok(()) => Ok(()),
        Err(e) if is_for_fusermount(&e) => match fusermount(&root.mount.path, &["-u", "-z"])? {
            None => Ok(()),
            Some(message) => Err(Error::new(ErrorKind::Denied, message)),
        },
        Err(e) => Err(cannot_unmount(&root.mount, e)),
    }
}

/// Unmounts lazily what a descriptor's path leads to.
pub(super) fn umount_lazily(link: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(link, UnmountFlags::DETACH)?)
}

/// The set-uid program for mounts by ordinary users. Root does not use it.
pub fn fusermount_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/bin".into(), "/usr/bin".into(), "/sbin".into()]).collect();
    let mut candidates =
        ["fusermount3", "fusermount"].iter().flat_map(|n| dirs.iter().map(move |f| f.join(n)));
    candidates.find(|candidate| candidate.is_file())
}

fn cannot_unmount(mount: &Mount, cause: io::Error) -> Error {
    Error::with_source(ErrorKind::Io, format!("cannot unmount {}", mount.path.display()), cause)
}

/// An open root would make the mount busy, so this goes by the name in the parent directory. The kernel does
/// not rename a directory on which something is mounted.
fn umount_idle(mount: &Mount) -> io::Result<()> {
    let (Some(parent), Some(name)) = (mount.path.parent(), mount.path.file_name()) else {
        return Err(io::Error::other("the root directory cannot be unmounted"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    let path = descriptor_path(&parent).join(name);
    if MountRoot::at(&path)?.is_none_or(|found| found.mount.id != mount.id) {
        return Err(io::Error::other("the mount was moved, or another one hides it"));
    }
    Ok(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// Root never runs a program that `$PATH` selects, and does not need it.
fn is_for_fusermount(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root()
}

/// `None` on success, else the error text of the program.
fn fusermount(path: &Path, options: &[&str]) -> Result<Option<String>> {
    let program = fusermount_path().ok_or_else(|| {
        Error::new(ErrorKind::Denied, "only root can unmount without fusermount3; install the package fuse3")
    })?;
    let output = Command::new(program)
        .args(options)
        .arg("--")
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::from(e).context("cannot run fusermount3"))?;
    if output.status.success() {
        return Ok(None);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Some(if message.is_empty() { format!("fusermount3 failed: {}", output.status) } else { message }))
}
