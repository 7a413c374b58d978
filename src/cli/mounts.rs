//! Finds the running mounts that a command applies to.
//!
//! Root asks the daemons of all users. An answer counts only if its daemon belongs to the owner of the mount or to
//! root ([`is_authoritative`]): a script may delete what `pdsfs wait` reports as saved.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::format;
use super::output::print_message;
use crate::control::client::{self, DaemonClient, FoundMounts};
use crate::control::socket_dirs::SocketUsers;
use crate::control::types::Status;
use crate::daemon::resolve;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};

/// Printed if this user has no mounts.
pub(super) const NO_MOUNTS: &str = "you have no mounted drives (pdsfs mount mounts one)";

/// Limit on resolving a path, which may hang.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The mounts that answer: all, or those with the name or mountpoint `wanted`. Prints the silent ones to
/// stderr; with any of them, the exit code is a failure.
pub(super) async fn mounts(wanted: Option<&str>) -> Result<(Vec<(DaemonClient, Status)>, ExitCode)> {
    let (mounts, silent) = answering_and_silent(wanted, SocketUsers::All).await?;
    for message in &silent {
        print_message(format_args!("pdsfs: {message}"));
    }
    Ok((mounts, if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// The mounts that answer, and one message for each mount without an answer.
pub(super) async fn answering_and_silent(
    wanted: Option<&str>,
    users: SocketUsers,
) -> Result<(Vec<(DaemonClient, Status)>, Vec<String>)> {
    let FoundMounts { mounts: mut all, errors } = client::mounts(users).await;
    let table = tokio::task::spawn_blocking(mountinfo::ours).await;
    let table = table.map_err(|e| Error::from_source(ErrorKind::Io, e))?.unwrap_or_default();
    all.retain(|(daemon, status)| is_authoritative(daemon, status, &table));
    let mut silent: Vec<_> = errors.iter().map(|error| format::printable(&error.to_string())).collect();
    let Some(wanted) = wanted else {
        if silent.is_empty() {
            silent = silent_mounts(&all, &table, users);
        }
        return Ok((all, silent));
    };
    // The file system may hang, so a name that needs no path lookup gets none.
    let is_named = all.iter().any(|(_, status)| matches_mount(status, wanted, None));
    let path = if is_named { None } else { resolve_within_limit(wanted).await };
    let found: Vec<_> =
        all.into_iter().filter(|(_, status)| matches_mount(status, wanted, path.as_deref())).collect();
    if found.is_empty() {
        let mut detail =
            format!("no running mount has the name or mountpoint {wanted} (pdsfs status lists the mounts)");
        for message in &silent {
            detail.extend(["; ", message]);
        }
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok((found, Vec::new()))
}

/// The path without links; `None` if it does not exist or its file system does not answer.
async fn resolve_within_limit(wanted: &str) -> Option<PathBuf> {
    let path = PathBuf::from(wanted);
    let resolved = tokio::task::spawn_blocking(move || resolve(&path).ok());
    tokio::time::timeout(RESOLVE_MAX, resolved).await.ok()?.ok()?
}

/// One message for each mount in the mount table without a daemon that answers.
fn silent_mounts(answering: &[(DaemonClient, Status)], table: &[Mount], users: SocketUsers) -> Vec<String> {
    let uid = rustix::process::getuid().as_raw();
    let sees_all = uid == 0 && users != SocketUsers::Own;
    let answers = |mount: &Mount| {
        answering.iter().any(|(_, status)| Path::new(&status.mountpoint) == mount.path.as_path())
    };
    let answering_devices: Vec<_> =
        table.iter().filter(|mount| answers(mount)).map(|mount| &mount.device).collect();
    let silent = table.iter().filter(|mount| {
        // One mount may have several paths (`mount --bind`). Mounts of other users are left out, except those
        // of root: they serve all users.
        !answering_devices.contains(&&mount.device)
            && mount.owner.is_none_or(|owner| sees_all || owner == uid || owner == 0)
    });
    silent
        .map(|mount| {
            let path = format::printable(&mount.path.to_string_lossy());
            format!(
                "the mount at {path} does not answer: it belongs to another user (try sudo), or its daemon \
                 has died (pdsfs mount mounts it again)"
            )
        })
        .collect()
}

/// Whether the user of the daemon may speak for the mount: this user and root for every mount, others for the
/// visible mount of theirs at that path.
fn is_authoritative(daemon: &DaemonClient, status: &Status, table: &[Mount]) -> bool {
    let at_path = || table.iter().rev().find(|mount| mount.path == Path::new(&status.mountpoint));
    let is_trusted = daemon.speaks_for(rustix::process::geteuid().as_raw())
        || at_path().and_then(|mount| mount.owner).is_some_and(|owner| daemon.speaks_for(owner));
    if !is_trusted {
        tracing::debug!(uid = ?daemon.uid(), "ignored a claim about the mount at {}", status.mountpoint);
    }
    is_trusted
}

/// `path` is `wanted` resolved to a path without links, if it is one.
fn matches_mount(status: &Status, wanted: &str, path: Option<&Path>) -> bool {
    if status.name.as_deref() == Some(wanted) || status.mountpoint == wanted {
        return true;
    }
    path.is_some_and(|path| path.starts_with(&status.mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_matches_name_mountpoint_or_path_inside() {
        let status = Status { name: Some("work".into()), mountpoint: "/mnt/a".into(), ..Status::default() };
        assert!(matches_mount(&status, "work", None));
        assert!(matches_mount(&status, "/mnt/a", None));
        assert!(matches_mount(&status, "a/b", Some(Path::new("/mnt/a/b"))));
        assert!(!matches_mount(&status, "ab", Some(Path::new("/mnt/ab"))));
        assert!(!matches_mount(&status, "other", None));
    }
}
