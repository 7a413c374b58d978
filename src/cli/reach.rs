//! Which running mounts a command is about.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::mount::resolve;
use super::{say, shown};
use crate::control::client::{self, Daemon, Found};
use crate::control::types::Status;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};

/// How long a path may take to be found.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The mounts that answer and are meant: all of them, or those that are called or mounted as `wanted` says.
/// Who does not answer is named on stderr; the code is that of a command that has nothing else to complain of.
pub(super) async fn mounts(wanted: Option<&str>) -> Result<(Vec<(Daemon, Status)>, ExitCode)> {
    let (meant, unknown) = mounts_and_unknown(wanted).await?;
    for what in &unknown {
        say(format_args!("pdsfs: {what}"));
    }
    Ok((meant, if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// The same, and why nothing is known of others that may be meant.
pub(super) async fn mounts_and_unknown(wanted: Option<&str>) -> Result<(Vec<(Daemon, Status)>, Vec<String>)> {
    let Found { mounts: all, silent } = client::mounts().await;
    let mut unknown: Vec<_> = silent.iter().map(|error| shown::printable(&error.to_string())).collect();
    let Some(wanted) = wanted else {
        if unknown.is_empty() {
            unknown = unanswered(&all).await;
        }
        return Ok((all, unknown));
    };
    // What needs no look at the file system, which may hang, gets none.
    let is_named = all.iter().any(|(_, status)| is_meant(status, wanted, None));
    let path = if is_named { None } else { resolved(wanted).await };
    let found: Vec<_> =
        all.into_iter().filter(|(_, status)| is_meant(status, wanted, path.as_deref())).collect();
    if found.is_empty() {
        let mut detail = format!("no running mount of yours is called or mounted at {wanted}");
        for what in &unknown {
            detail.extend(["; ", what]);
        }
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok((found, Vec::new()))
}

/// A path without links; `None` where there is none, or where it leads into what does not answer.
async fn resolved(wanted: &str) -> Option<PathBuf> {
    let path = PathBuf::from(wanted);
    let resolved = tokio::task::spawn_blocking(move || resolve(&path).ok());
    tokio::time::timeout(RESOLVE_MAX, resolved).await.ok()?.ok()?
}

/// Mounts that the kernel knows and nobody has answered for.
async fn unanswered(answering: &[(Daemon, Status)]) -> Vec<String> {
    let ours = tokio::task::spawn_blocking(mountinfo::ours).await;
    let Ok(Ok(ours)) = ours else { return Vec::new() };
    // SAFETY: the call only reads the process's own id and cannot fail.
    let uid = unsafe { libc::getuid() };
    let answers = |mount: &Mount| {
        answering.iter().any(|(_, status)| Path::new(&status.mountpoint) == mount.path.as_path())
    };
    let known: Vec<_> = ours.iter().filter(|mount| answers(mount)).map(|mount| &mount.device).collect();
    let unknown = ours.iter().filter(|mount| {
        // The same mount may be seen at several places (`mount --bind`). What others have mounted is theirs; what root
        // has mounted is everybody's.
        !known.contains(&&mount.device)
            && mount.owner.is_none_or(|owner| uid == 0 || owner == uid || owner == 0)
    });
    unknown
        .map(|mount| {
            let path = shown::printable(&mount.path.to_string_lossy());
            format!("nobody answers for the mount at {path}: it is another user's (try sudo), or has died")
        })
        .collect()
}

/// `path` is `wanted` as a path without links, where there is such a one.
fn is_meant(status: &Status, wanted: &str, path: Option<&Path>) -> bool {
    if status.name.as_deref() == Some(wanted) || status.mountpoint == wanted {
        return true;
    }
    path.is_some_and(|path| path.starts_with(&status.mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_meant_by_its_name_its_place_or_anything_in_it() {
        let status = Status { name: Some("work".into()), mountpoint: "/mnt/a".into(), ..Status::default() };
        assert!(is_meant(&status, "work", None));
        assert!(is_meant(&status, "/mnt/a", None));
        assert!(is_meant(&status, "a/b", Some(Path::new("/mnt/a/b"))));
        assert!(!is_meant(&status, "ab", Some(Path::new("/mnt/ab"))));
        assert!(!is_meant(&status, "other", None));
    }
}
