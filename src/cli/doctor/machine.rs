//! Checks of this machine. They may block, so each group runs on a thread of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::finding::Finding;
use super::targets::Target;
use super::{text, units};
use crate::config::MountOptions;
use crate::daemon::resolve::staging_dir;
use crate::daemon::{MountMethod, check_device, mount_method};
use crate::local_disk::free_bytes;
use crate::pds::transport::ExtraRoots;

/// Sysctls of Linux 6.14 and later, in seconds; 0 is no limit.
const REQUEST_TIMEOUTS: [&str; 2] =
    ["/proc/sys/fs/fuse/max_request_timeout", "/proc/sys/fs/fuse/default_request_timeout"];
/// Added to the commit timeout: the longest wait of a request.
const COMMIT_MARGIN: Duration = Duration::from_secs(60);

/// Blocks.
type Group = Box<dyn FnOnce() -> Vec<Finding> + Send>;

/// The groups of checks, each with the name that a hanging one is reported by.
pub(super) fn groups(targets: &[Target]) -> Vec<(&'static str, Group)> {
    let options: Vec<_> = targets.iter().map(|target| target.settings.options()).collect();
    let options = if options.is_empty() { vec![MountOptions::default()] } else { options };
    let mut dirs: Vec<Option<PathBuf>> =
        targets.iter().map(|target| target.settings.spill_dir.clone()).collect();
    dirs.push(None);
    dirs.sort();
    dirs.dedup();
    // A drive that names its directory does not need the default one.
    if dirs.len() > 1 && targets.iter().all(|target| target.settings.spill_dir.is_some()) {
        dirs.remove(0);
    }
    let ca_files = options.iter().map(|options| options.ca_file.clone()).collect::<Vec<_>>();
    let least_free = options.iter().map(|options| options.cache_min_free).max().unwrap_or_default();
    let commit = options.iter().map(|options| options.commit_timeout).max().unwrap_or_default();
    vec![
        ("fuse", Box::new(|| vec![device(), fusermount()])),
        ("ca-roots", Box::new(move || roots(ca_files))),
        (
            "staging-disk",
            Box::new(move || dirs.iter().map(|dir| staging(dir.as_deref(), least_free)).collect()),
        ),
        ("request-timeout", Box::new(move || vec![request_timeout(commit)])),
        ("unit", Box::new(units::check)),
    ]
}

/// Such as `Linux 6.1.0`.
pub(super) fn kernel() -> String {
    let uname = rustix::system::uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

fn device() -> Finding {
    Finding::of("fuse", check_device().map(|()| text::device(&kernel())))
}

fn fusermount() -> Finding {
    Finding::of(
        "fusermount3",
        mount_method().map(|method| match method {
            MountMethod::Direct => text::FUSERMOUNT_NOT_NEEDED.to_owned(),
            MountMethod::Fusermount(path) => text::fusermount(&path),
        }),
    )
}

fn roots(mut ca_files: Vec<Option<PathBuf>>) -> Vec<Finding> {
    ca_files.sort();
    ca_files.dedup();
    let check = |file: &Option<PathBuf>| match ExtraRoots::read(file.as_deref()) {
        Err(error) => Finding::error("ca-roots", &error),
        Ok(roots) => match roots.count_with_system() {
            0 => Finding::problem("ca-roots", text::NO_ROOTS, text::NO_ROOTS_REMEDY),
            count => Finding::ok("ca-roots", text::roots(count)),
        },
    };
    ca_files.iter().map(check).collect()
}

fn staging(setting: Option<&Path>, least_free: u64) -> Finding {
    let check = "staging-disk";
    let dir = match staging_dir(setting) {
        Ok(dir) => dir,
        Err(error) => return Finding::error(check, &error),
    };
    match free_bytes(&dir) {
        None => Finding::skipped(check, text::NO_FREE_SPACE_KNOWN),
        Some(free) if free < least_free => {
            Finding::problem(check, text::staging_full(&dir, free, least_free), text::STAGING_REMEDY)
        }
        Some(free) => Finding::ok(check, text::staging(&dir, free)),
    }
}

fn request_timeout(commit: Duration) -> Finding {
    let [max, default] = REQUEST_TIMEOUTS.map(|path| {
        let seconds = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        seconds.unwrap_or(0)
    });
    judge_request_timeout(max, default, commit)
}

/// A mount that names no limit gets the default one, at most the largest one.
fn judge_request_timeout(max_s: u64, default_s: u64, commit: Duration) -> Finding {
    let check = "request-timeout";
    let limit = [max_s, default_s].into_iter().filter(|seconds| *seconds > 0).min();
    let Some(limit) = limit.map(Duration::from_secs) else {
        return Finding::ok(check, text::NO_REQUEST_TIMEOUT);
    };
    if limit < commit + COMMIT_MARGIN {
        let detail = text::request_timeout_short(limit, commit);
        return Finding::problem(check, detail, text::REQUEST_TIMEOUT_REMEDY);
    }
    Finding::ok(check, text::request_timeout(limit))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn request_timeout_below_a_commit_is_a_problem() {
        let commit = Duration::from_secs(600);
        for (max, default, state) in [
            (0, 0, State::Ok),
            (3600, 0, State::Ok),
            (0, 3600, State::Ok),
            (60, 0, State::Problem),
            (3600, 30, State::Problem),
            (0, 30, State::Problem),
        ] {
            let found = judge_request_timeout(max, default, commit);
            assert_eq!(found.state, state, "{max} {default}: {found:?}");
            assert_eq!(
                found.remedy.is_some_and(|remedy| remedy.contains("sysctl -w")),
                state == State::Problem
            );
        }
    }

    #[test]
    fn full_or_missing_staging_disk_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(staging(Some(dir.path()), 0).state, State::Ok);
        let full = staging(Some(dir.path()), u64::MAX);
        assert!(
            full.state == State::Problem && full.remedy.unwrap().contains("--spill-dir"),
            "{}",
            full.detail
        );
        let missing = staging(Some(&dir.path().join("none")), 0);
        assert!(missing.state == State::Problem && missing.detail.contains("create it first"), "{missing:?}");
    }

    #[test]
    fn unreadable_ca_file_is_a_problem() {
        let found = roots(vec![Some("/no/such/file.pem".into())]);
        assert!(found[0].state == State::Problem && found[0].detail.contains("does not exist"), "{found:?}");
    }
}
