//! The directories of the demo: its data directory with the token, and its mountpoint.
//!
//! Invariant: nothing here deletes anything but an *empty* directory that the demo itself made. A mount that
//! could not be unmounted must never be emptied through its mountpoint.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Length of a token before it is written as hex.
const TOKEN_BYTES: usize = 32;

/// `$XDG_DATA_HOME/pdsfs/demo`, else `~/.local/share/pdsfs/demo`.
pub(super) fn default_data_dir() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    let base = base.ok_or_else(|| {
        let detail = "neither XDG_DATA_HOME nor HOME is set: choose a data directory with --data";
        Error::new(ErrorKind::Invalid, detail)
    })?;
    Ok(base.join("pdsfs/demo"))
}

/// Makes a directory with mode 0700, and its parents. An existing directory is accepted as it is.
pub(super) fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| with_path(e, path))
}

/// The token in a data directory; the first call makes it.
pub(super) fn token(data_dir: &Path) -> Result<Secret<String>> {
    let path = data_dir.join("token");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let token = random_hex(TOKEN_BYTES)?;
            file.write_all(token.as_bytes()).map_err(|e| with_path(e, &path))?;
            Ok(Secret::new(token))
        }
        Err(e) if e.kind() == IoKind::AlreadyExists => {
            let mut text = String::new();
            let file = std::fs::File::open(&path).map_err(|e| with_path(e, &path))?;
            file.take(4096).read_to_string(&mut text).map_err(|e| with_path(e, &path))?;
            if text.trim().len() < TOKEN_BYTES {
                let detail = format!("{} contains no token: remove it and start again", path.display());
                return Err(Error::new(ErrorKind::Invalid, detail));
            }
            Ok(Secret::new(text.trim().to_owned()))
        }
        Err(e) => Err(with_path(e, &path)),
    }
}

/// `bytes` random bytes as hex.
pub(super) fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|e| Error::with_source(ErrorKind::Io, "no random bytes", e))?;
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    Ok(random.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
}

/// The mountpoint. Dropping it removes the directory if the demo made it and it is empty.
#[derive(Debug)]
pub(super) struct MountDir {
    path: PathBuf,
    created: bool,
}

impl MountDir {
    /// Uses an existing empty directory, or makes one.
    pub(super) fn prepare(path: &Path) -> Result<Self> {
        let created = match std::fs::create_dir(path) {
            Ok(()) => true,
            Err(e) if e.kind() == IoKind::AlreadyExists => false,
            Err(e) => return Err(with_path(e, path)),
        };
        let mut dir = Self { path: path.to_owned(), created };
        dir.path = path.canonicalize().map_err(|e| unusable(e, path))?;
        let mut entries = std::fs::read_dir(&dir.path).map_err(|e| unusable(e, path))?;
        if entries.next().is_some() {
            let detail = format!(
                "cannot mount the demo at {}: not empty (choose an empty directory: pdsfs demo DIR)",
                path.display()
            );
            return Err(Error::new(ErrorKind::NotEmpty, detail));
        }
        Ok(dir)
    }

    /// A new directory with a unique name below the directory for temporary files.
    pub(super) fn temporary() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pdsfs-demo-mount-").tempdir()?;
        Ok(Self { path: dir.keep().canonicalize()?, created: true })
    }

    /// Absolute, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MountDir {
    fn drop(&mut self) {
        if self.created {
            // Fails while it is mounted or contains files: then it stays.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn with_path(e: std::io::Error, path: &Path) -> Error {
    Error::from(e).context(path.display())
}

/// Why a mountpoint cannot be used. A mount whose daemon was killed answers every call with ENOTCONN.
fn unusable(e: std::io::Error, path: &Path) -> Error {
    let path = path.display();
    match e.kind() {
        IoKind::NotConnected => {
            let detail =
                format!("{path} is a mount whose daemon has died; unmount it with: pdsfs umount {path}");
            Error::new(ErrorKind::Stale, detail)
        }
        IoKind::NotADirectory => {
            let detail =
                format!("cannot mount the demo at {path}: not a directory (choose another: pdsfs demo DIR)");
            Error::new(Error::from(e).kind(), detail)
        }
        _ => Error::from(e).context(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn token_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = token(dir.path()).unwrap();
        assert_eq!(first.expose().len(), 2 * TOKEN_BYTES);
        assert_eq!(token(dir.path()).unwrap(), first);
        let mode = std::fs::metadata(dir.path().join("token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join("token"), "").unwrap();
        assert_eq!(token(dir.path()).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn only_a_created_mountpoint_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mountpoint");
        let created = MountDir::prepare(&path).unwrap();
        assert!(path.is_dir() && created.path().is_absolute());
        drop(created);
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        drop(MountDir::prepare(&path).unwrap());
        assert!(path.is_dir());
    }

    #[test]
    fn files_in_a_mountpoint_are_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let existing = dir.path().join("existing");
        std::fs::create_dir(&existing).unwrap();
        std::fs::write(existing.join("precious"), "x").unwrap();
        assert_eq!(MountDir::prepare(&existing).unwrap_err().kind(), ErrorKind::NotEmpty);
        assert!(existing.join("precious").is_file());
        let file = MountDir::prepare(&existing.join("precious")).unwrap_err();
        assert!(file.to_string().contains("not a directory"), "{file}");
        let path = dir.path().join("created");
        let created = MountDir::prepare(&path).unwrap();
        std::fs::write(path.join("late"), "x").unwrap();
        drop(created);
        assert!(path.join("late").is_file());
    }

    #[test]
    fn private_directory_has_mode_0700() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        create_private(&inner).unwrap();
        create_private(&inner).unwrap();
        assert_eq!(std::fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
