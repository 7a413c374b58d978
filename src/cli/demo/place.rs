//! Where the demo keeps things on this machine: the data folder, the token, the mount folder.
//!
//! Nothing here deletes anything but an *empty* folder that the demo itself made: a mount that
//! could not be taken away must never be emptied through it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Random bytes of a token; it is written as hex.
const TOKEN_BYTES: usize = 32;

/// `$XDG_DATA_HOME/pdsfs/demo`, or below `~/.local/share`.
pub(super) fn default_data_dir() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    let base = base.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "neither XDG_DATA_HOME nor HOME is set; name a folder with --data")
    })?;
    Ok(base.join("pdsfs/demo"))
}

/// Makes a folder that only its owner can enter, with its parents.
pub(super) fn private_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| named(e, path))
}

/// The token of this data folder; made at the first start.
pub(super) fn token(data_dir: &Path) -> Result<Secret<String>> {
    let path = data_dir.join("token");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let token = random_hex(TOKEN_BYTES)?;
            file.write_all(token.as_bytes()).map_err(|e| named(e, &path))?;
            Ok(Secret::new(token))
        }
        Err(e) if e.kind() == IoKind::AlreadyExists => {
            let mut text = String::new();
            let file = std::fs::File::open(&path).map_err(|e| named(e, &path))?;
            file.take(4096).read_to_string(&mut text).map_err(|e| named(e, &path))?;
            if text.trim().len() < TOKEN_BYTES {
                let what = format!("{} holds no token; remove it and start again", path.display());
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            Ok(Secret::new(text.trim().to_owned()))
        }
        Err(e) => Err(named(e, &path)),
    }
}

/// So many random bytes, as hex.
pub(super) fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|e| Error::new(ErrorKind::Io, format!("no random bytes: {e}")))?;
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    Ok(random.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
}

/// The folder that is mounted over.
#[derive(Debug)]
pub(super) struct MountFolder {
    path: PathBuf,
    made_here: bool,
}

impl MountFolder {
    /// Takes an existing empty folder, or makes one.
    pub(super) fn prepare(path: &Path) -> Result<Self> {
        let made_here = match std::fs::create_dir(path) {
            Ok(()) => true,
            Err(e) if e.kind() == IoKind::AlreadyExists => false,
            Err(e) => return Err(named(e, path)),
        };
        let mut folder = Self { path: path.to_owned(), made_here };
        folder.path = path.canonicalize().map_err(|e| dead_mount(e, path))?;
        let mut entries = std::fs::read_dir(&folder.path).map_err(|e| dead_mount(e, path))?;
        if entries.next().is_some() {
            let what = format!(
                "{} is not empty: the demo hides what is in the folder, so it takes an empty one",
                path.display()
            );
            return Err(Error::new(ErrorKind::NotEmpty, what));
        }
        Ok(folder)
    }

    /// A fresh folder with a name of its own among the temporary files.
    pub(super) fn temporary() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pdsfs-demo-mount-").tempdir()?;
        Ok(Self { path: dir.keep().canonicalize()?, made_here: true })
    }

    /// Absolute, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MountFolder {
    fn drop(&mut self) {
        if self.made_here {
            // Fails if something is still mounted or was put there: then it stays.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn named(e: std::io::Error, path: &Path) -> Error {
    Error::from(e).context(path.display())
}

/// The folder of a mount whose daemon was killed answers nothing but ENOTCONN.
fn dead_mount(e: std::io::Error, path: &Path) -> Error {
    if e.kind() == IoKind::NotConnected {
        let path = path.display();
        return Error::new(
            ErrorKind::Stale,
            format!("{path} is a mount whose program has died; `pdsfs umount {path}` takes it away"),
        );
    }
    named(e, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
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
    fn a_folder_that_was_made_goes_again_and_one_that_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        let folder = MountFolder::prepare(&made).unwrap();
        assert!(made.is_dir() && folder.path().is_absolute());
        drop(folder);
        assert!(!made.exists());
        std::fs::create_dir(&made).unwrap();
        drop(MountFolder::prepare(&made).unwrap());
        assert!(made.is_dir());
    }

    #[test]
    fn what_is_in_the_folder_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        std::fs::create_dir(&there).unwrap();
        std::fs::write(there.join("precious"), "x").unwrap();
        assert_eq!(MountFolder::prepare(&there).unwrap_err().kind(), ErrorKind::NotEmpty);
        assert!(there.join("precious").is_file());
        let made = dir.path().join("made");
        let folder = MountFolder::prepare(&made).unwrap();
        std::fs::write(made.join("late"), "x").unwrap();
        drop(folder);
        assert!(made.join("late").is_file());
    }

    #[test]
    fn a_private_folder_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        private_dir(&inner).unwrap();
        private_dir(&inner).unwrap();
        assert_eq!(std::fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
