//! Mounts whose program has died or hangs.
//!
//! A request to a mount that hangs cannot be cancelled, and the kernel keeps a process that waits for one. So each
//! mount is probed by a process of its own, which is left behind if it does not end.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinSet;

use super::finding::Finding;
use super::text;
use crate::cli::named_drive;
use crate::daemon::Liveness;
use crate::error::Result;
use crate::fuse::mountinfo::{self, Mount};

const CHECK: &str = "mounts";
/// Longer than the limit of the probe itself.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Exit code of a probe that found a dead mount.
const DEAD: u8 = 3;
/// Exit code of a probe without an answer.
const HANGS: u8 = 4;

/// The mounts of this user; root sees all.
pub(super) async fn check() -> Vec<Finding> {
    let uid = rustix::process::geteuid().as_raw();
    let mounts = match mountinfo::ours() {
        Ok(mounts) => mounts,
        Err(e) => return vec![Finding::error(CHECK, &e.into())],
    };
    let mounts = mounts.into_iter().filter(|mount| uid == 0 || mount.owner == Some(uid));
    let mut probes: JoinSet<_> = mounts.map(|mount| async { (answer(&mount).await, mount) }).collect();
    let (count, mut found) = (probes.len(), Vec::new());
    while let Some(probe) = probes.join_next().await {
        found.extend(probe.ok().and_then(|(answer, mount)| problem(answer, &mount)));
    }
    if found.is_empty() {
        let detail = if count == 0 { text::NO_MOUNTS.to_owned() } else { text::mounts_alive(count) };
        found.push(Finding::ok(CHECK, detail));
    }
    found
}

/// Probes a mount in this process. The exit code is the answer.
pub(super) fn probe(path: &Path) -> Result<ExitCode> {
    let mount = mountinfo::at(path)?.filter(Mount::is_ours);
    Ok(match mount.as_ref().map(Liveness::of) {
        Some(Liveness::Dead) => ExitCode::from(DEAD),
        Some(Liveness::Hangs) => ExitCode::from(HANGS),
        Some(Liveness::Answers) | None => ExitCode::SUCCESS,
    })
}

async fn answer(mount: &Mount) -> Liveness {
    let Ok(program) = std::env::current_exe() else { return Liveness::Answers };
    let mut command = Command::new(program);
    command.args(["doctor", "--probe"]).arg(&mount.path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Liveness::Answers };
    match tokio::time::timeout(PROBE_MAX, child.wait()).await {
        Ok(Ok(status)) if status.code() == Some(i32::from(DEAD)) => Liveness::Dead,
        Ok(Ok(status)) if status.code() == Some(i32::from(HANGS)) => Liveness::Hangs,
        Ok(_) => Liveness::Answers,
        Err(_) => Liveness::Hangs,
    }
}

fn problem(answer: Liveness, mount: &Mount) -> Option<Finding> {
    let path = &mount.path;
    let name = named_drive::mount_name(mount).map(|name| (name.to_owned(), "DRIVE"));
    let private = name.into_iter().chain([(path.to_string_lossy().into_owned(), "MOUNTPOINT")]);
    let found = match answer {
        Liveness::Answers => None,
        Liveness::Dead => {
            let remedy = match named_drive::mount_name(mount) {
                Some(name) => text::mount_died_remedy(path, name),
                None => text::unnamed_mount_died_remedy(path),
            };
            Some(Finding::problem(CHECK, text::mount_died(path), remedy))
        }
        Liveness::Hangs => {
            Some(Finding::problem(CHECK, text::mount_hangs(path), text::mount_hangs_remedy(path)))
        }
    };
    found.map(|finding| finding.with_private(private))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_mounts_are_named_with_their_commands() {
        let found = |answer, source: &str| {
            let (device, fs_type) = ("0:1".into(), mountinfo::FS_TYPE.into());
            let (path, source, options) = ("/mnt/p".into(), source.into(), String::new());
            problem(answer, &Mount { id: 1, device, path, fs_type, source, options, owner: Some(7) })
        };
        let remedy = |answer, source| found(answer, source).unwrap().remedy.unwrap();
        assert!(remedy(Liveness::Dead, "photos:/").starts_with("pdsfs mount photos "));
        assert_eq!(remedy(Liveness::Dead, "pds:1"), "pdsfs umount --dead '/mnt/p'");
        assert_eq!(remedy(Liveness::Dead, "$(x):/"), "pdsfs umount --dead '/mnt/p'");
        assert!(remedy(Liveness::Hangs, "pds:1").contains("umount --lazy '/mnt/p'"));
        assert_eq!(found(Liveness::Answers, "pds:1"), None);
    }
}
