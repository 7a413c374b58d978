//! Files with secrets: read only if other users cannot access them, and replaced atomically.
//!
//! The system's service has a user of its own, to whom its accounts belong. Root stores accounts for it: what root
//! writes to a store of another user belongs to that user.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind as IoKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::private_group::only_user_of_group;
use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_size;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// How long to wait for a lock. The holder may be refreshing a token.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(90);
/// Pause between attempts to take a lock.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Permission of the group to read.
const GROUP_READS: u32 = 0o040;
/// Suffix of temporary files.
const UNFINISHED: &str = ".unfinished";

/// The user to whom a private file must belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileOwner {
    /// This user or root.
    Own,
    /// For root, the owner of the directory; for others as `Own`.
    OfDirectory,
}

/// Reads a file with secrets, of this user or root.
pub fn read_private(path: &Path, forbidden_mode: u32) -> Result<Vec<u8>> {
    read_owned(path, forbidden_mode, FileOwner::Own)
}

/// Reads a file with secrets. Refuses one that another user owns, or that has any of the permissions
/// `forbidden_mode`; a group of one user may read it. The checks and the read use the same open file. Refuses
/// anything but regular files, without blocking on a pipe.
pub(super) fn read_owned(path: &Path, forbidden_mode: u32, owner: FileOwner) -> Result<Vec<u8>> {
    let foreign = foreign_owner(directory_of(path), owner);
    let named = |e: std::io::Error| Error::from(e).context(path.display());
    let name = path.display();
    let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    if foreign.is_some() {
        flags |= libc::O_NOFOLLOW;
    }
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|e| match e.kind() {
        IoKind::PermissionDenied => named(e).context(unreadable(path)),
        _ => named(e),
    })?;
    let metadata = file.metadata().map_err(named)?;
    let denied = |detail: String| Err(Error::new(ErrorKind::Denied, detail));
    if !metadata.is_file() {
        return denied(format!("{name} is not a regular file"));
    }
    let ours = rustix::process::geteuid().as_raw();
    let is_trusted = match foreign {
        Some((user, _)) => metadata.uid() == user,
        None => is_trusted_owner(metadata.uid(), ours),
    };
    if !is_trusted {
        let uid = metadata.uid();
        return denied(format!("{name} belongs to another user (uid {uid}); change its owner"));
    }
    let is_shared = match metadata.mode() & forbidden_mode {
        0 => false,
        GROUP_READS => only_user_of_group(metadata.gid()).is_none(),
        _ => true,
    };
    if is_shared {
        return denied(format!("{name} is accessible to other users; run: chmod 600 {name}"));
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(named)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{name} is larger than {}", exact_size(FILE_BYTES_MAX)),
        ));
    }
    Ok(text)
}

/// The remedy of a user who may not read a file.
fn unreadable(path: &Path) -> String {
    let (group, path) = (rustix::process::getegid().as_raw(), path.display());
    format!("this user may not read it (as root: chgrp {group} '{path}' && chmod 640 '{path}')")
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// User and group of a directory, if this process is root and the directory is not. Only that user and root can
/// place files there: a link of the user could lead to any file of root.
fn foreign_owner(directory: &Path, owner: FileOwner) -> Option<(u32, u32)> {
    if owner == FileOwner::Own || !rustix::process::geteuid().is_root() {
        return None;
    }
    let metadata = directory.metadata().ok()?;
    (metadata.uid() != 0).then(|| (metadata.uid(), metadata.gid()))
}

/// The owner of a file controls its content.
fn is_trusted_owner(owner: u32, ours: u32) -> bool {
    owner == ours || owner == 0
}

/// Replaces a file atomically; it is on disk when this returns. Only its owner can read it, and the group of the file
/// that it replaces if that could. The caller ensures one writer at a time. Temporary files of killed writers are
/// deleted.
pub fn replace_private(path: &Path, text: &[u8], owner: FileOwner) -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context(path.display());
    let directory = directory_of(path);
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    remove_unfinished(directory, &prefix);
    // Temporary files have mode 0600.
    let mut temporary =
        tempfile::Builder::new().prefix(&prefix).suffix(UNFINISHED).tempfile_in(directory).map_err(named)?;
    take_owner(temporary.as_file(), path, owner).map_err(named)?;
    temporary.write_all(text).map_err(named)?;
    temporary.as_file().sync_all().map_err(named)?;
    temporary.persist(path).map_err(|e| named(e.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(named)
}

/// Gives a new file to the user of its directory, or the group and the mode of the file at `path`.
fn take_owner(file: &File, path: &Path, owner: FileOwner) -> std::io::Result<()> {
    if let Some((user, group)) = foreign_owner(directory_of(path), owner) {
        return std::os::unix::fs::fchown(file, Some(user), Some(group));
    }
    let former =
        path.symlink_metadata().ok().filter(|former| former.is_file() && former.mode() & GROUP_READS != 0);
    if let Some(former) = former {
        std::os::unix::fs::fchown(file, None, Some(former.gid()))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    }
    Ok(())
}

/// Deletes temporary files of killed writers, which contain secrets too.
pub(super) fn remove_unfinished_writes(path: &Path) {
    if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
        remove_unfinished(directory, &format!(".{}.", name.to_string_lossy()));
    }
}

fn remove_unfinished(directory: &Path, prefix: &str) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_unfinished =
            name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(UNFINISHED));
        if is_unfinished && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(%error, "cannot delete {}", entry.path().display());
        }
    }
}

/// Creates a lock file if it is missing, and waits until no other process holds it. Only its owner can open it: a
/// lock needs no permission but to open a file. Closing the file releases the lock.
pub async fn lock_private(path: &Path, owner: FileOwner) -> Result<File> {
    let file = open_lock(path, owner).map_err(|e| Error::from(e).context(path.display()))?;
    lock_within(LOCK_WAIT_MAX, file, path).await
}

/// Locks a private file by a lock file beside it. In a directory that this process cannot write to, it cannot be
/// replaced, so it is locked itself.
pub async fn lock_beside(path: &Path) -> Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lock = path.with_file_name(format!(".{name}.lock"));
    let file = open_lock(&lock, FileOwner::Own).or_else(|e| match e.kind() {
        IoKind::PermissionDenied | IoKind::ReadOnlyFilesystem => File::open(path),
        _ => Err(e),
    });
    lock_within(LOCK_WAIT_MAX, file.map_err(|e| Error::from(e).context(lock.display()))?, &lock).await
}

fn open_lock(path: &Path, owner: FileOwner) -> std::io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    // A pipe must not block the open.
    options.write(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match options.create_new(true).open(path) {
        Ok(file) => {
            take_owner(&file, path, owner)?;
            Ok(file)
        }
        // Another process may have removed it since, and the error says so.
        Err(e) if e.kind() == IoKind::AlreadyExists => options.create_new(false).open(path),
        Err(e) => Err(e),
    }
}

async fn lock_within(wait_max: Duration, file: File, path: &Path) -> Result<File> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A blocking wait cannot be bounded: it never ends if the holder is stopped.
            Err(TryLockError::WouldBlock) if began.elapsed() < wait_max => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(TryLockError::WouldBlock) => {
                let detail = format!(
                    "timed out waiting for the lock of {0}: another process holds it (fuser -v {0} lists it)",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Timeout, detail));
            }
            Err(TryLockError::Error(e)) => return Err(Error::from(e).context(path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const SHARED_MODE: u32 = 0o077;

    #[test]
    fn only_private_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        replace_private(&path, b"S", FileOwner::Own).unwrap();
        assert_eq!(read_private(&path, SHARED_MODE).unwrap(), b"S");
        // A group of several users, if there is one.
        let shared_group = (0..100).find(|group| only_user_of_group(*group).is_none());
        for mode in [0o640, 0o604, 0o620] {
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(&path, None, shared_group).unwrap();
            } else if mode == 0o640 {
                continue;
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path, SHARED_MODE).unwrap_err();
            assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("chmod 600"), "{error}");
        }
        // A read of this pipe would block for ever.
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for wrong in [pipe.as_path(), dir.path(), Path::new("/dev/null")] {
            let error = read_private(wrong, 0).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let large = dir.path().join("large");
        replace_private(&large, &vec![b'x'; FILE_BYTES_MAX as usize + 1], FileOwner::Own).unwrap();
        assert!(read_private(&large, SHARED_MODE).unwrap_err().to_string().contains("larger than"));
    }

    #[test]
    fn only_the_user_and_root_are_trusted_owners() {
        assert!(is_trusted_owner(1000, 1000) && is_trusted_owner(0, 1000) && is_trusted_owner(0, 0));
        assert!(!is_trusted_owner(1001, 1000) && !is_trusted_owner(1000, 0));
    }

    #[test]
    fn group_of_one_user_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        replace_private(&path, b"S", FileOwner::Own).unwrap();
        let alone = (0..60_000).find(|group| only_user_of_group(*group).is_some());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, None, alone).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!(read_private(&path, SHARED_MODE).unwrap(), b"S");
            replace_private(&path, b"T", FileOwner::Own).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!((Some(metadata.gid()), metadata.mode() & 0o777), (alone, 0o640), "replaced");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        assert!(read_private(&path, SHARED_MODE).is_err(), "the group may write");
    }

    /// As root only: others cannot have files of another user.
    #[tokio::test]
    async fn root_writes_files_of_the_directory_owner() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(7_001), Some(7_002)).unwrap();
        let (path, lock) = (dir.path().join("work.json"), dir.path().join(".work.lock"));
        replace_private(&path, b"S", FileOwner::OfDirectory).unwrap();
        drop(lock_private(&lock, FileOwner::OfDirectory).await.unwrap());
        for file in [&path, &lock] {
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (7_001, 7_002), "{file:?}");
        }
        assert_eq!(read_owned(&path, SHARED_MODE, FileOwner::OfDirectory).unwrap(), b"S");
        // The user may lead root to another place, where the open of a file has effects, or to a file of root.
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::chown(elsewhere.path(), Some(7_001), Some(7_002)).unwrap();
        let secret = tempfile::NamedTempFile::new().unwrap();
        for target in [elsewhere.path(), secret.path()] {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(target, &path).unwrap();
            let error = read_owned(&path, SHARED_MODE, FileOwner::OfDirectory).unwrap_err().to_string();
            assert!(error.contains("symbolic links"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(secret.path(), &path).unwrap();
        let error = read_owned(&path, SHARED_MODE, FileOwner::OfDirectory).unwrap_err().to_string();
        assert!(error.contains("belongs to another user (uid 0)"), "{error}");
        // A lock that exists is not given away.
        drop(lock_private(&path, FileOwner::OfDirectory).await.unwrap());
        assert_eq!(secret.as_file().metadata().unwrap().uid(), 0);
    }

    /// A lock must not hold up the users of another file, and no pipe must hold up its caller.
    #[tokio::test]
    async fn links_and_pipes_are_no_locks() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, pipe) = (dir.path().join(".work.lock"), dir.path().join(".pipe.lock"));
        let target = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(target.path(), &lock).unwrap();
        let error = lock_private(&lock, FileOwner::OfDirectory).await.unwrap_err().to_string();
        assert!(error.contains("symbolic links"), "{error}");
        assert!(lock_beside(&dir.path().join("work")).await.is_err());
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (opened_tx, opened) = std::sync::mpsc::channel();
        std::thread::spawn(move || opened_tx.send(open_lock(&pipe, FileOwner::OfDirectory)));
        opened.recv_timeout(LOCK_WAIT_MAX).expect("the open waits for a reader").unwrap_err();
    }

    #[test]
    fn next_write_deletes_unfinished_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("work.json");
        let names = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        std::fs::write(dir.path().join(".work.json.a1B2c3.unfinished"), "torn").unwrap();
        std::fs::write(dir.path().join(".work2.json.a1B2c3.unfinished"), "of another account").unwrap();
        replace_private(&path, b"whole", FileOwner::Own).unwrap();
        assert_eq!(names(), [".work2.json.a1B2c3.unfinished", "work.json"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(dir.path().join(".work.json.d4E5f6.unfinished"), "torn").unwrap();
        remove_unfinished_writes(&path);
        assert_eq!(names(), [".work2.json.a1B2c3.unfinished", "work.json"]);
    }

    #[tokio::test]
    async fn file_is_locked_where_none_can_be_created() {
        // The kernel lets no process create a file there.
        let path = Path::new("/sys/devices/system/cpu/online");
        let locked = lock_beside(path).await.unwrap();
        assert!(matches!(File::open(path).unwrap().try_lock(), Err(TryLockError::WouldBlock)));
        drop(locked);
        let dir = tempfile::tempdir().unwrap();
        let _locked = lock_beside(&dir.path().join("token")).await.unwrap();
        let lock = File::open(dir.path().join(".token.lock")).unwrap();
        assert_eq!(lock.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
    }

    #[tokio::test]
    async fn lock_wait_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let locked = lock_private(&path, FileOwner::Own).await.unwrap();
        let other = File::open(&path).unwrap();
        let error = lock_within(Duration::from_millis(20), other, &path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("lock"), "{error}");
        drop(locked);
        lock_private(&path, FileOwner::Own).await.unwrap();
    }
}
