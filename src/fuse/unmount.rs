//! Unmounting by path: by the system call where permitted, else by the set-uid helper `fusermount3`. Callers
//! check `mountinfo` first.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use crate::error::{Error, ErrorKind, Result};

/// Unmounts if the mount is not in use. `false` if it is busy.
pub fn if_idle(path: &Path) -> Result<bool> {
    match umount(path, UnmountFlags::empty()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let message = fusermount(path, &["-u"])?;
            match message {
                None => Ok(true),
                Some(message) if message.to_lowercase().contains("busy") => Ok(false),
                Some(message) => Err(Error::new(ErrorKind::Denied, message)),
            }
        }
        Err(e) => Err(cannot_unmount(path, e)),
    }
}

/// Unmounts lazily (`MNT_DETACH`): hides the mount now; it ends with its last use.
pub fn lazily(path: &Path) -> Result<()> {
    match umount(path, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => match fusermount(path, &["-u", "-z"])? {
            None => Ok(()),
            Some(message) => Err(Error::new(ErrorKind::Denied, message)),
        },
        Err(e) => Err(cannot_unmount(path, e)),
    }
}

/// The set-uid helper for mounts by ordinary users.
pub fn fusermount_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/bin".into(), "/usr/bin".into(), "/sbin".into()]).collect();
    let mut candidates =
        ["fusermount3", "fusermount"].iter().flat_map(|n| dirs.iter().map(move |f| f.join(n)));
    candidates.find(|candidate| candidate.is_file())
}

fn cannot_unmount(path: &Path, cause: io::Error) -> Error {
    Error::with_source(ErrorKind::Io, format!("cannot unmount {}", path.display()), cause)
}

fn umount(path: &Path, flags: UnmountFlags) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)?)
}

/// `None` on success, else the error text of the helper.
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
