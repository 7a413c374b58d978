//! Which running mounts a command is about.

use std::path::{Path, PathBuf};

use super::mount::resolve;
use super::{say, shown};
use crate::control::client::{self, Daemon, Found};
use crate::control::types::Status;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo;

/// The mounts that answer and are meant: all of them, or those that are called or mounted as `wanted` says.
/// Who does not answer is named on stderr.
pub(super) async fn mounts(wanted: Option<&str>) -> Result<Vec<(Daemon, Status)>> {
    let (meant, unknown) = mounts_and_unknown(wanted).await?;
    for what in unknown {
        say(format_args!("pdsfs: {what}"));
    }
    Ok(meant)
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
    let path = tokio::task::spawn_blocking({
        let path = PathBuf::from(wanted);
        move || resolve(&path).ok()
    });
    let path = path.await.ok().flatten();
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

/// Mounts that the kernel knows and nobody has answered for.
async fn unanswered(answering: &[(Daemon, Status)]) -> Vec<String> {
    let ours = tokio::task::spawn_blocking(mountinfo::ours).await;
    let Ok(Ok(ours)) = ours else { return Vec::new() };
    let paths = ours.into_iter().map(|mount| mount.path.to_string_lossy().into_owned());
    let unknown = paths.filter(|path| answering.iter().all(|(_, status)| status.mountpoint != *path));
    unknown
        .map(|path| {
            let path = shown::printable(&path);
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
