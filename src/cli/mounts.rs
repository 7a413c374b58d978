//! Finds the running mounts that a command applies to.
//!
//! With `--all`, and for a named mount, root asks the daemons of all users. An answer counts only if its daemon belongs to the owner of the mount or to
//! root ([`is_authoritative`]): a script may delete what `pdsfs wait` reports as saved. Any user can choose any name, so
//! a name selects only mounts of this user and of root ([`may_be_named`]).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::output::print_message;
use super::{format, named_drive};
use crate::control::client::{self, DaemonClient, FoundMounts};
use crate::control::socket_dirs::SocketUsers;
use crate::control::types::Status;
use crate::daemon::{has_died, resolve};
use crate::error::{Error, ErrorKind, Result};
use crate::escape::shell_word;
use crate::fuse::mountinfo::{self, Mount};
use crate::messages::status as texts;

/// Limit on resolving a path, which may hang.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The users whose mounts a command covers.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct UsersArgs {
    /// Also the mounts of other users; only root gets their answers
    #[arg(long, conflicts_with = "mount")]
    all: bool,
}

impl UsersArgs {
    /// A named mount may be that of any user.
    pub(super) fn of(self, wanted: Option<&str>) -> SocketUsers {
        if self.all || wanted.is_some() { SocketUsers::All } else { SocketUsers::Own }
    }
}

/// The mounts that answer: all, or those with the name or mountpoint `wanted`. Prints the silent ones to
/// stderr; with any of them, the exit code is a failure.
pub(super) async fn mounts(
    wanted: Option<&str>,
    users: SocketUsers,
) -> Result<(Vec<(DaemonClient, Status)>, ExitCode)> {
    let (mounts, silent) = answering_and_silent(wanted, users).await?;
    for message in &silent {
        print_message(format_args!("pdsfs: {message}"));
    }
    Ok((mounts, if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// The mounts that answer, and one message for each mount without an answer. Fails if the mount `wanted` does not
/// answer.
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
            silent = describe(silent_mounts(&all, &table, users)).await;
        }
        return Ok((all, silent));
    };
    let wanted_mount = WantedMount::find(wanted, &all, &table).await;
    let mut unanswered = describe(wanted_mount.unanswered(&all, &table)).await;
    if !unanswered.is_empty() {
        unanswered.append(&mut silent);
        return Err(Error::new(ErrorKind::Unsupported, unanswered.join("; ")));
    }
    let found: Vec<_> =
        all.into_iter().filter(|(daemon, status)| wanted_mount.is(daemon, status, &table)).collect();
    if found.is_empty() {
        let mut detail = texts::no_such_mount(wanted);
        for message in &silent {
            detail.extend(["; ", message]);
        }
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok((found, Vec::new()))
}

/// The one mount that is meant: the one with the name or mountpoint `wanted`, else the only mount of this user.
pub(super) async fn one_mount(wanted: Option<&str>) -> Result<(DaemonClient, Status)> {
    let users = if wanted.is_some() { SocketUsers::All } else { SocketUsers::Own };
    let (mut mounts, silent) = answering_and_silent(wanted, users).await?;
    let detail = match (mounts.pop(), mounts.is_empty()) {
        (Some(mount), true) => return Ok(mount),
        (Some(last), false) => {
            let all = mounts.iter().chain([&last]).map(|(_, status)| format::printable(&status.mountpoint));
            format!("you have several mounts: name one of {}", all.collect::<Vec<_>>().join(", "))
        }
        (None, _) if silent.is_empty() => texts::no_mounts(),
        (None, _) => silent.join("; "),
    };
    Err(Error::new(ErrorKind::NotFound, detail))
}

/// The mount that an argument selects.
#[derive(Debug)]
enum WantedMount<'a> {
    Name(&'a str),
    /// An absolute path, without links unless it cannot be resolved.
    Path(PathBuf),
    Nothing,
}

impl<'a> WantedMount<'a> {
    /// An argument with a slash is a path. Another one is a name, or else a path.
    async fn find(wanted: &'a str, all: &[(DaemonClient, Status)], table: &[Mount]) -> Self {
        if !wanted.contains('/') && !matches!(wanted, "." | "..") {
            let name = Self::Name(wanted);
            let is_known = all.iter().any(|(daemon, status)| name.is(daemon, status, table));
            if is_known || !name.unanswered(all, table).is_empty() {
                return name;
            }
        }
        // The file system may hang, so a mountpoint that needs no lookup gets none.
        let path = PathBuf::from(wanted);
        if table.iter().any(|mount| mount.path == path) {
            return Self::Path(path);
        }
        let resolved = resolve_within_limit(wanted).await;
        resolved.or_else(|| path.is_absolute().then_some(path)).map_or(Self::Nothing, Self::Path)
    }

    /// Whether `daemon` serves this mount.
    fn is(&self, daemon: &DaemonClient, status: &Status, table: &[Mount]) -> bool {
        match self {
            Self::Name(name) => status.name.as_deref() == Some(*name) && may_be_named(daemon),
            Self::Path(path) => match innermost(table, path) {
                Some(mount) => mount.path == Path::new(&status.mountpoint),
                // An unmounted daemon may still be saving.
                None => path.starts_with(&status.mountpoint),
            },
            Self::Nothing => false,
        }
    }

    /// The mounts in the mount table that are meant and whose daemons do not answer.
    fn unanswered<'t>(&self, all: &[(DaemonClient, Status)], table: &'t [Mount]) -> Vec<&'t Mount> {
        let is_meant = |mount: &Mount| match self {
            Self::Name(name) => {
                let uid = rustix::process::getuid().as_raw();
                mount.source.split(':').next() == Some(*name)
                    && mount.owner.is_none_or(|owner| is_trusted(owner, uid))
            }
            Self::Path(path) => innermost(table, path).is_some_and(|inner| inner.id == mount.id),
            Self::Nothing => false,
        };
        without_answer(all, table).into_iter().filter(|mount| is_meant(mount)).collect()
    }
}

/// The visible mount of the table that contains the absolute path.
fn innermost<'t>(table: &'t [Mount], path: &Path) -> Option<&'t Mount> {
    // Of several mounts at one path the last one is visible, and `max_by_key` returns the last.
    let above = table.iter().filter(|mount| path.starts_with(&mount.path));
    above.max_by_key(|mount| mount.path.components().count())
}

/// Whether this user trusts the name that the daemon gives its mount.
fn may_be_named(daemon: &DaemonClient) -> bool {
    daemon.speaks_for(rustix::process::geteuid().as_raw())
}

/// Whether the user `uid` trusts what the user `owner` calls a mount.
pub(super) fn is_trusted(owner: u32, uid: u32) -> bool {
    owner == uid || owner == 0
}

/// The path without links; `None` if it does not exist or its file system does not answer.
async fn resolve_within_limit(wanted: &str) -> Option<PathBuf> {
    let path = PathBuf::from(wanted);
    let resolved = tokio::task::spawn_blocking(move || resolve(&path).ok());
    tokio::time::timeout(RESOLVE_MAX, resolved).await.ok()?.ok()?
}

/// The mounts of the table without a daemon that answers.
fn without_answer<'t>(answering: &[(DaemonClient, Status)], table: &'t [Mount]) -> Vec<&'t Mount> {
    let answers = |mount: &Mount| {
        answering.iter().any(|(_, status)| Path::new(&status.mountpoint) == mount.path.as_path())
    };
    let answering_devices: Vec<_> =
        table.iter().filter(|mount| answers(mount)).map(|mount| &mount.device).collect();
    // One mount may have several paths (`mount --bind`).
    table.iter().filter(|mount| !answering_devices.contains(&&mount.device)).collect()
}

/// The mounts of `users` in the mount table without a daemon that answers.
fn silent_mounts<'t>(
    answering: &[(DaemonClient, Status)],
    table: &'t [Mount],
    users: SocketUsers,
) -> Vec<&'t Mount> {
    let uid = rustix::process::getuid().as_raw();
    let is_seen = |mount: &&Mount| users != SocketUsers::Own || mount.owner.is_none_or(|owner| owner == uid);
    without_answer(answering, table).into_iter().filter(is_seen).collect()
}

/// One message for each mount, all probed at once.
async fn describe(silent: Vec<&Mount>) -> Vec<String> {
    let probe = |mount: Mount| async move {
        let probed = mount.clone();
        let has_died = tokio::task::spawn_blocking(move || has_died(&probed)).await.unwrap_or(false);
        silence_message(&mount, has_died)
    };
    let mut messages = Vec::new();
    for probe in silent.into_iter().cloned().map(probe).map(tokio::spawn).collect::<Vec<_>>() {
        messages.extend(probe.await);
    }
    messages
}

fn silence_message(mount: &Mount, has_died: bool) -> String {
    let path = format::printable(&mount.path.to_string_lossy());
    if has_died {
        return match named_drive::mount_name(mount) {
            Some(name) => texts::program_died(&path, name),
            None => texts::unnamed_program_died(&path, &shell_word(&path)),
        };
    }
    let uid = rustix::process::getuid().as_raw();
    match mount.owner.filter(|owner| *owner != uid) {
        Some(owner) if uid != 0 => texts::mount_of_other(&path, owner),
        _ => texts::program_hangs(&path),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u64, path: &str, source: &str, owner: u32) -> Mount {
        let device = format!("0:{id}");
        let (path, source) = (PathBuf::from(path), source.to_owned());
        let (fs_type, options) = (mountinfo::FS_TYPE.to_owned(), String::new());
        Mount { id, device, path, fs_type, source, options, owner: Some(owner) }
    }

    fn status(mountpoint: &str) -> (DaemonClient, Status) {
        let status = Status { mountpoint: mountpoint.into(), ..Status::default() };
        (DaemonClient::at(PathBuf::new()), status)
    }

    #[test]
    fn path_selects_the_innermost_mount() {
        let table = [mount(1, "/mnt", "pds:1", 7), mount(2, "/mnt/a", "work:/", 0)];
        let (outer, inner) = (status("/mnt"), status("/mnt/a"));
        let selects = |path: &str, (daemon, status): &(DaemonClient, Status)| {
            WantedMount::Path(path.into()).is(daemon, status, &table)
        };
        assert!(selects("/mnt/a", &inner) && selects("/mnt/a/b", &inner) && selects("/mnt/ab", &outer));
        assert!(!selects("/mnt/a/b", &outer) && !selects("/mnt/ab", &inner) && !selects("/", &outer));
        let gone = status("/unmounted");
        assert!(selects("/unmounted/x", &gone) && !selects("/unmounted2", &gone));
        assert!(!WantedMount::Nothing.is(&outer.0, &outer.1, &table));
    }

    #[test]
    fn name_of_an_unknown_user_selects_nothing() {
        let (daemon, mut status) = status("/mnt/a");
        status.name = Some("work".into());
        assert!(!WantedMount::Name("work").is(&daemon, &status, &[]));
    }

    #[test]
    fn selected_mount_without_answer_is_reported() {
        let uid = rustix::process::getuid().as_raw();
        let table = [mount(1, "/mnt", "pds:1", 7), mount(2, "/mnt/a", "work:/", uid)];
        let reported = |wanted: &WantedMount<'_>, answering| wanted.unanswered(answering, &table).len();
        let (outer, inner) = ([status("/mnt")], [status("/mnt/a")]);
        for wanted in [WantedMount::Path("/mnt/a/b".into()), WantedMount::Name("work")] {
            assert_eq!((reported(&wanted, &outer[..]), reported(&wanted, &inner[..])), (1, 0), "{wanted:?}");
        }
        assert_eq!(reported(&WantedMount::Name("other"), &[]), 0);
    }

    #[test]
    fn silent_mount_is_described_by_its_state() {
        let uid = rustix::process::getuid().as_raw();
        let named = mount(1, "/home/a/Photos", "photos:/", uid);
        let died = "the program behind /home/a/Photos has died; pdsfs mount photos mounts it again";
        assert_eq!(silence_message(&named, true), died);
        let unnamed = mount(2, "/mnt", "pds:1", uid);
        let died = "the program behind /mnt has died; pdsfs umount '/mnt' removes the mount";
        assert_eq!(silence_message(&unnamed, true), died);
        let chosen = mount(3, "/mnt/'$(x)'", "$(x):/", uid);
        let printed = silence_message(&chosen, true);
        assert!(printed.ends_with(r"pdsfs umount '/mnt/'\''$(x)'\''' removes the mount"), "{printed}");
        assert!(silence_message(&unnamed, false).contains("does not answer"));
    }

    #[test]
    fn mounts_of_other_users_need_all() {
        let uid = rustix::process::getuid().as_raw();
        let table = [mount(1, "/own", "pds:1", uid), mount(2, "/other", "pds:2", uid + 1)];
        let silent = |users| silent_mounts(&[], &table, users).len();
        assert_eq!((silent(SocketUsers::Own), silent(SocketUsers::All)), (1, 2));
    }

    #[tokio::test]
    async fn argument_with_a_slash_is_no_name() {
        let table = [mount(1, "/mnt/a", "work:/", rustix::process::getuid().as_raw())];
        let found = async |wanted: &'static str| WantedMount::find(wanted, &[], &table).await;
        assert!(matches!(found("work").await, WantedMount::Name("work")));
        assert!(matches!(found("/mnt/a").await, WantedMount::Path(_)));
        assert!(matches!(found("/nonexistent/x").await, WantedMount::Path(_)));
        assert!(matches!(found("nonexistent").await, WantedMount::Nothing));
    }
}
