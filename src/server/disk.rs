//! The data folder: its permissions, its lock, and the removal and syncing of files in it.
//!
//! It holds content, names and the key that signs URLs, so only its owner may read what is in it. The folder itself
//! belongs to the user, who may have given it another mode.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a folder with mode 0700, and its missing parents.
pub(super) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes the permissions of others from a folder or a file that an older version made.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
    }
    Ok(())
}

/// Options for a new file with mode 0600, opened for writing.
pub(super) fn private_file() -> OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600);
    options
}

/// Fails with `PermissionDenied` if other users own the data folder or can write to it.
pub(super) fn check_owner(dir: &Path) -> io::Result<()> {
    let metadata = fs::metadata(dir)?;
    let (uid, name) = (rustix::process::geteuid().as_raw(), dir.display());
    let detail = if metadata.uid() != uid {
        format!("the data folder {name} belongs to another user (uid {}): choose another one", metadata.uid())
    } else if metadata.mode() & 0o022 != 0 {
        format!("other users can write to the data folder {name}; run: chmod 700 {name}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, detail))
}

/// The lock of a data folder. The thread that writes the catalog holds it until its last write.
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Fails with `ResourceBusy` if another server uses the folder.
    pub(super) fn acquire(dir: &Path) -> io::Result<Self> {
        let file = private_file().create(true).truncate(false).open(dir.join("lock"))?;
        make_private(&dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => {
                let detail = format!(
                    "the data folder {} is in use by another pdsfs serve or pdsfs demo: stop it, or choose another \
                     folder with --data",
                    dir.display()
                );
                Err(io::Error::new(io::ErrorKind::ResourceBusy, detail))
            }
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Removes a file or a folder. A failure is logged; the next start of the server tries again.
pub(super) fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove; the next start tries again");
    }
}

/// Syncs the entries of a folder to the disk.
pub(super) fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}
