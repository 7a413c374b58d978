//! Which running mounts a command is about.

use std::path::{Path, PathBuf};

use super::mount::resolve;
use crate::control::client::{self, Daemon};
use crate::control::types::Status;
use crate::error::{Error, ErrorKind, Result};

/// The mounts that answer and are meant: all of them, or those that are called or mounted as `wanted` says.
pub(super) async fn mounts(wanted: Option<&str>) -> Result<Vec<(Daemon, Status)>> {
    let all = client::mounts().await;
    let Some(wanted) = wanted else { return Ok(all) };
    let path = tokio::task::spawn_blocking({
        let path = PathBuf::from(wanted);
        move || resolve(&path).ok()
    });
    let path = path.await.ok().flatten();
    let found: Vec<_> =
        all.into_iter().filter(|(_, status)| is_meant(status, wanted, path.as_deref())).collect();
    if found.is_empty() {
        let detail = format!("no running mount of yours is called or mounted at {wanted}");
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok(found)
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
