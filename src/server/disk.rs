//! The data folder: its lock, and the removal and syncing of files in it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The lock of a data folder. The thread that writes the catalog holds it until its last write.
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Fails with `ResourceBusy` if another server uses the folder.
    pub(super) fn acquire(dir: &Path) -> io::Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
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
