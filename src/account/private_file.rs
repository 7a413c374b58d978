//! Files with secrets: read only where nobody else can read them, and replaced in one step.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// How long another process may hold a lock: it renews a token meanwhile.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(90);
/// How often is looked whether a lock is free.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// How the name of a file ends that is being written.
const UNFINISHED: &str = ".unfinished";

/// Reads a file that holds secrets; refuses one that somebody else can read or has made. The file that is judged is
/// the one that is read. A pipe is no file and is not waited for.
pub fn read_private(path: &Path, forbidden_mode: u32) -> Result<Vec<u8>> {
    let named = |e: std::io::Error| Error::from(e).context(path.display());
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(named)?;
    let metadata = file.metadata().map_err(named)?;
    let denied = |detail: String| Err(Error::new(ErrorKind::Denied, detail));
    let shown = path.display();
    if !metadata.is_file() {
        return denied(format!("{shown} is no regular file, and secrets are read from nothing else"));
    }
    // SAFETY: the call only reads the process's own id and cannot fail.
    if !may_own(metadata.uid(), unsafe { libc::geteuid() }) {
        let uid = metadata.uid();
        return denied(format!(
            "{shown} belongs to another user (uid {uid}), who can change it; make it yours"
        ));
    }
    if metadata.mode() & forbidden_mode != 0 {
        return denied(format!("{shown} can be read by others; run: chmod 600 {shown}"));
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(named)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is too large", path.display())));
    }
    Ok(text)
}

/// Whoever owns a file chooses what is in it.
fn may_own(owner: u32, ours: u32) -> bool {
    owner == ours || owner == 0
}

/// Replaces a file in one step; it is on disk when this returns, and only its owner can read it. One writer at a
/// time: what an earlier one has left unfinished goes.
pub fn replace_private(path: &Path, text: &[u8]) -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context(path.display());
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    sweep(folder, &prefix);
    // Temporary files are made with mode 0600.
    let mut temporary =
        tempfile::Builder::new().prefix(&prefix).suffix(UNFINISHED).tempfile_in(folder).map_err(named)?;
    temporary.write_all(text).map_err(named)?;
    temporary.as_file().sync_all().map_err(named)?;
    temporary.persist(path).map_err(|e| named(e.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(named)
}

/// Takes away what writers have left that were killed: it holds secrets too.
pub(super) fn sweep_unfinished(path: &Path) {
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        sweep(folder, &format!(".{}.", name.to_string_lossy()));
    }
}

fn sweep(folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_left =
            name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(UNFINISHED));
        if is_left && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(%error, "{} stays", entry.path().display());
        }
    }
}

/// Waits until no other process holds this file; closing it releases the lock.
pub async fn lock_file(file: File, path: &Path) -> Result<File> {
    lock_within(LOCK_WAIT_MAX, file, path).await
}

async fn lock_within(wait_max: Duration, file: File, path: &Path) -> Result<File> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // Nothing tells when it is free but a thread that waits for it, and that would wait for ever where the
            // holder is stopped.
            Err(TryLockError::WouldBlock) if began.elapsed() < wait_max => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(TryLockError::WouldBlock) => {
                let detail =
                    format!("another process holds {} for too long; see what it does", path.display());
                return Err(Error::new(ErrorKind::Timeout, detail));
            }
            Err(TryLockError::Error(e)) => return Err(Error::from(e).context(path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::PermissionsExt as _;

    const SHARED_MODE: u32 = 0o077;

    #[test]
    fn only_a_private_regular_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        replace_private(&path, b"S").unwrap();
        assert_eq!(read_private(&path, SHARED_MODE).unwrap(), b"S");
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path, SHARED_MODE).unwrap_err();
            assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("chmod 600"), "{error}");
        }
        // Nobody ever writes into this pipe.
        let pipe = folder.path().join("pipe");
        let name = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a string of C, and the call keeps nothing of it.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for wrong in [pipe.as_path(), folder.path(), Path::new("/dev/null")] {
            let error = read_private(wrong, 0).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        let large = folder.path().join("large");
        replace_private(&large, &vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(read_private(&large, SHARED_MODE).unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn a_secret_is_nobodys_but_ours_or_roots() {
        assert!(may_own(1000, 1000) && may_own(0, 1000) && may_own(0, 0));
        assert!(!may_own(1001, 1000) && !may_own(1000, 0));
    }

    #[test]
    fn what_a_killed_writer_has_left_goes_with_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("work.json");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        std::fs::write(folder.path().join(".work.json.a1B2c3.unfinished"), "torn").unwrap();
        std::fs::write(folder.path().join(".work2.json.a1B2c3.unfinished"), "of another").unwrap();
        replace_private(&path, b"whole").unwrap();
        assert_eq!(names(), [".work2.json.a1B2c3.unfinished", "work.json"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(folder.path().join(".work.json.d4E5f6.unfinished"), "torn").unwrap();
        sweep_unfinished(&path);
        assert_eq!(names(), [".work2.json.a1B2c3.unfinished", "work.json"]);
    }

    #[tokio::test]
    async fn a_lock_that_is_not_given_back_is_waited_for_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let open = || File::create(&path).unwrap();
        let held = lock_file(open(), &path).await.unwrap();
        let error = lock_within(Duration::from_millis(20), open(), &path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("lock"), "{error}");
        drop(held);
        lock_file(open(), &path).await.unwrap();
    }
}
