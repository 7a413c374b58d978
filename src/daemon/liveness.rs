//! Checks whether the daemon behind a mount answers.
//!
//! A mount whose daemon hangs blocks every program that looks into it, so a check that must return runs on a
//! thread of its own with a time limit.

use std::io;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A mount that takes longer than this to answer counts as alive but hanging.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Requests the attributes of the root of a mount from its daemon, past the attribute cache of the kernel.
/// Blocks for as long as the mount hangs.
pub(super) fn probe(path: &Path) -> io::Result<()> {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    statx(CWD, path, flags, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// [`probe`] on a thread of its own; `None` if there is no answer within [`ANSWER_MAX`].
pub(super) fn probe_with_limit(path: &Path) -> Option<io::Result<()>> {
    let (answer_tx, answer) = channel();
    let path = path.to_owned();
    std::thread::spawn(move || answer_tx.send(probe(&path)).ok());
    answer.recv_timeout(ANSWER_MAX).ok()
}

/// Whether a [`probe`] failed because the daemon is gone.
pub(super) fn is_dead(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted)
}

/// Whether the daemon behind the mount at `path` is gone.
pub fn has_died(path: &Path) -> bool {
    probe_with_limit(path).is_some_and(|answer| answer.is_err_and(|e| is_dead(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_reports_a_missing_path() {
        probe(Path::new("/")).unwrap();
        assert_eq!(probe(Path::new("/no/such/directory")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
