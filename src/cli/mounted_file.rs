//! Finds the mount and the inode of a path, for commands about one file or directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};

use super::{format, mounts};
use crate::control::client::DaemonClient;
use crate::control::socket_dirs::SocketUsers;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo;
use crate::units::exact_duration;

/// Limit on opening a path, which may hang.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// A file or directory in a mount. While this exists, the daemon keeps the inode number.
#[derive(Debug)]
pub(super) struct MountedFile {
    pub(super) daemon: DaemonClient,
    /// The inode number.
    pub(super) ino: u64,
    /// Opened as a path only.
    file: OwnedFd,
}

impl MountedFile {
    /// Fails if `path` is not in a mount whose daemon answers. Follows symbolic links.
    pub(super) async fn find(path: &Path) -> Result<Self> {
        let named = |error: Error| error.context(format::printable(&path.to_string_lossy()));
        let (file, ino, mountpoint) = within_limit(path.to_owned(), locate).await.map_err(named)?;
        let wanted = mountpoint.to_string_lossy();
        let (mounts, _) = mounts::answering_and_silent(Some(&wanted), SocketUsers::All).await?;
        let (daemon, _) = mounts.into_iter().next().ok_or_else(|| named(not_mounted()))?;
        Ok(Self { daemon, ino, file })
    }

    /// Makes the kernel ask for the attributes again, although it may have fresh ones: the daemon has changed the
    /// file without a request of the kernel.
    pub(super) fn refresh(&self) -> Result<()> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        statx(&self.file, "", flags, StatxFlags::BASIC_STATS).map(drop).map_err(|e| io::Error::from(e).into())
    }
}

/// The file, its inode number, and the mountpoint above it.
fn locate(path: &Path) -> Result<(OwnedFd, u64, PathBuf)> {
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
    let mount = mountinfo::of(&file)?.filter(mountinfo::Mount::is_ours).ok_or_else(not_mounted)?;
    let found = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::INO).map_err(io::Error::from)?;
    // A bind mount has another path than the one that the daemon serves.
    let all = mountinfo::ours()?;
    let served = all.into_iter().find(|other| other.device == mount.device).unwrap_or(mount);
    Ok((file, found.stx_ino, served.path))
}

async fn within_limit<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let task = tokio::task::spawn_blocking(move || work(&path));
    let Ok(done) = tokio::time::timeout(OPEN_MAX, task).await else {
        let detail = format!("its file system did not answer within {}", exact_duration(OPEN_MAX));
        return Err(Error::new(ErrorKind::Timeout, detail));
    };
    done.map_err(|e| Error::from_source(ErrorKind::Io, e))?
}

fn not_mounted() -> Error {
    Error::new(ErrorKind::NotFound, "not in a mounted drive (pdsfs status lists the mounts)")
}
