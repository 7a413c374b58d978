//! Ending a mount by its path: by the system call where that is allowed, else by the set-uid
//! `fusermount3`. The caller has looked at `mountinfo` first.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// Ends the mount now if nothing uses it; `false` if something does.
pub fn if_idle(path: &Path) -> Result<bool> {
    match umount(path, 0) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let said = fusermount(path, &["-u"])?;
            match said {
                None => Ok(true),
                Some(said) if said.to_lowercase().contains("busy") => Ok(false),
                Some(said) => Err(Error::new(ErrorKind::Denied, said)),
            }
        }
        Err(e) => Err(failed(path, &e)),
    }
}

/// Takes the mount out of the name space now; it ends when nothing uses it any more.
pub fn lazily(path: &Path) -> Result<()> {
    match umount(path, libc::MNT_DETACH) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => match fusermount(path, &["-u", "-z"])? {
            None => Ok(()),
            Some(said) => Err(Error::new(ErrorKind::Denied, said)),
        },
        Err(e) => Err(failed(path, &e)),
    }
}

/// The set-uid helper that lets ordinary users mount and unmount.
pub fn fusermount_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/bin".into(), "/usr/bin".into(), "/sbin".into()]).collect();
    let mut candidates =
        ["fusermount3", "fusermount"].iter().flat_map(|n| folders.iter().map(move |f| f.join(n)));
    candidates.find(|candidate| candidate.is_file())
}

fn failed(path: &Path, e: &io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot unmount {}: {e}", path.display()))
}

fn umount(path: &Path, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that outlives the call; the call keeps no pointer.
    if unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// `None` when it did what it was told, else what it said.
fn fusermount(path: &Path, options: &[&str]) -> Result<Option<String>> {
    let program = fusermount_path().ok_or_else(|| {
        Error::new(
            ErrorKind::Denied,
            "only root may unmount here: fusermount3 is not installed (package fuse3)",
        )
    })?;
    let output = Command::new(program)
        .args(options)
        .arg("--")
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::from(e).context("fusermount3"))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Some(if said.is_empty() { format!("fusermount3 failed: {}", output.status) } else { said }))
}
