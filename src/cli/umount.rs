//! `pdsfs umount`: unmounts a pdsfs mount, and no other.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::config::{ConfigArgs, Configuration};
use super::format::{not_saved, reason};
use super::output::{EXIT_TIMEOUT, print_error, print_message};
use crate::control::client;
use crate::daemon::{has_died, resolve};
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};
use crate::fuse::unmount;
use crate::units::{duration_within, exact_duration};

/// Interval between attempts on a busy mount. The kernel does not report when a file is closed.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Least time that an unmounted daemon gets to report how it ended.
const END_REPORT_MIN: Duration = Duration::from_secs(10);
const DAY_S: u64 = 86_400;

#[derive(Debug, Args)]
#[command(after_help = "Closed files are on the drive already; with --lazy, open files are saved when they \
    are closed. With --drain, exit code 3 means timed out.")]
pub(super) struct UmountArgs {
    /// Detach the mount even if it is in use; open files stay usable until they are closed
    #[arg(long)]
    lazy: bool,
    /// Wait until all programs have closed their files and everything is on the drive, then unmount
    #[arg(long, conflicts_with_all = ["lazy", "dead"])]
    drain: bool,
    /// How long --drain waits, 0s to 1d; after that the drive stays mounted
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "drain",
        value_parser = duration_within(0, DAY_S))]
    timeout: Duration,
    /// Only remove a mount whose daemon has died; succeeds if there is none
    #[arg(long, conflicts_with = "lazy")]
    dead: bool,
    /// The mountpoint, or the name of a drive in the configuration
    #[arg(value_name = "MOUNTPOINT|NAME")]
    target: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &UmountArgs) -> Result<ExitCode> {
    let mountpoint = mountpoint(&args.target, &args.config)?;
    if args.dead {
        remove_dead(args.target.to_str(), &mountpoint)?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = resolve(&mountpoint).map_err(|e| Error::from(e).context(mountpoint.display()))?;
    let display = path.display();
    let mount = match mountinfo::at(&path)? {
        Some(mount) if mount.is_ours() => mount,
        Some(other) => {
            let detail = format!(
                "{display} is not a pdsfs mount but {} of type {}: unmount it with umount(8)",
                other.source, other.fs_type
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        None => {
            let detail = format!("nothing is mounted at {display} (pdsfs status lists the mounts)");
            return Err(Error::new(ErrorKind::NotFound, detail));
        }
    };
    if args.lazy {
        unmount::lazily(&mount)?;
    } else if args.drain {
        match drain(&path, &mount, args.timeout) {
            Err(error) if error.kind() == ErrorKind::Timeout => {
                print_error(&error);
                return Ok(ExitCode::from(EXIT_TIMEOUT));
            }
            outcome => outcome?,
        }
    } else if !unmount::if_idle(&mount)? {
        let detail = format!(
            "{display} is in use: close the programs that use it (fuser -vm '{display}' lists them), add \
             --drain to wait for them, or add --lazy to detach now"
        );
        return Err(Error::new(ErrorKind::NotPermitted, detail));
    }
    // A new mount of the same drive at another path may have the numbers of this one.
    if mountinfo::current(&mount)?.is_some_and(|now| now.path == path) {
        let detail = format!("{display} is still mounted: try again, or add --lazy");
        return Err(Error::new(ErrorKind::Io, detail));
    }
    print_message(format_args!("unmounted {display}"));
    Ok(ExitCode::SUCCESS)
}

/// Removes the dead mounts at a path, and those that this user has made of the drive `name`, wherever they are
/// now.
fn remove_dead(name: Option<&str>, mountpoint: &Path) -> Result<()> {
    let (path, uid) = (resolve(mountpoint).ok(), rustix::process::geteuid().as_raw());
    let is_meant = |mount: &Mount| {
        let drive = mount.source.split(':').next();
        path.as_ref() == Some(&mount.path) || drive == name && mount.owner == Some(uid)
    };
    // The last one at a path hides the others.
    for mount in mountinfo::ours()?.into_iter().rev().filter(is_meant) {
        if has_died(&mount) {
            unmount::lazily(&mount)?;
            print_message(format_args!("unmounted {}", mount.path.display()));
        }
    }
    Ok(())
}

/// An argument without a slash is the name of a configured drive, or else a path.
fn mountpoint(target: &Path, config: &ConfigArgs) -> Result<PathBuf> {
    let word = target.to_str().filter(|word| !word.contains('/') && !matches!(*word, "." | ".."));
    let Some(name) = word else { return Ok(target.to_owned()) };
    match Configuration::read(config)?.drive(name) {
        Ok(drive) => drive.mountpoint.ok_or_else(|| {
            let detail =
                format!("the configuration has no mountpoint for {name}: name the directory instead");
            Error::new(ErrorKind::Invalid, detail)
        }),
        Err(_) if target.symlink_metadata().is_ok() => Ok(target.to_owned()),
        Err(error) => Err(error),
    }
}

/// Unmounts once no file is open: a close returns when the file is on the drive. A drain request before that
/// would commit half-written files. Attributes may follow later, so this subscribes to the end of the mount
/// before the unmount.
fn drain(path: &Path, mount: &Mount, limit: Duration) -> Result<()> {
    let (display, end) = (path.display(), Instant::now() + limit);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ending = runtime.block_on(async {
        let (daemon, _) = client::find_at(path, mount.owner).await?;
        daemon.subscribe_end().await
    });
    let ending = ending.map_err(|e| {
        let detail = format!(
            "{display} stays mounted: its daemon does not answer ({e}), so it is unknown whether everything \
             is on the drive; unmount it anyway with pdsfs umount '{display}'"
        );
        Error::new(ErrorKind::Unreachable, detail)
    })?;
    let report = runtime.block_on(async {
        // Read the stream from now on: the daemon drops a client that does not take its keep-alive lines.
        let report = tokio::spawn(ending.wait());
        unmount_when_idle(mount, limit, end).await?;
        let rest = end.saturating_duration_since(Instant::now()).max(END_REPORT_MIN);
        let report = tokio::time::timeout(rest, report).await;
        Ok::<_, Error>(
            report.map(|report| report.map_err(|e| Error::from_source(ErrorKind::Io, e)).flatten()),
        )
    })?;
    let report = report.map_err(|_| {
        let detail = format!(
            "{display} is unmounted, but not everything is on the drive after {}; the daemon continues to \
             save (see pdsfs status)",
            exact_duration(limit)
        );
        Error::new(ErrorKind::Timeout, detail)
    })?;
    let report = report.map_err(|e| {
        let detail = format!(
            "{display} is unmounted, but its daemon exited before it reported whether everything is on the \
             drive ({e}): check the last files on the drive"
        );
        Error::new(ErrorKind::Io, detail)
    })?;
    for file in &report.unsaved {
        print_message(not_saved(&file.path, &reason(&file.error, file.cause.as_ref())));
    }
    if report.unsaved.is_empty() && !report.timed_out {
        return Ok(());
    }
    let detail = format!("{display} is unmounted, but not everything is on the drive");
    Err(Error::new(ErrorKind::Io, detail))
}

async fn unmount_when_idle(mount: &Mount, limit: Duration, end: Instant) -> Result<()> {
    let display = mount.path.display();
    let mut has_printed = false;
    loop {
        if unmount::if_idle(mount)? {
            return Ok(());
        }
        if !std::mem::replace(&mut has_printed, true) {
            print_message(format_args!(
                "waiting for the programs that use {display} (fuser -vm '{display}' lists them)"
            ));
        }
        if Instant::now() + RETRY_INTERVAL > end {
            let detail =
                format!("{display} is still in use after {}; it stays mounted", exact_duration(limit));
            return Err(Error::new(ErrorKind::Timeout, detail));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(path: &str, dead: bool) -> UmountArgs {
        let (lazy, drain, timeout, config) = (!dead, false, Duration::ZERO, ConfigArgs::default());
        UmountArgs { lazy, drain, timeout, dead, target: path.into(), config }
    }

    fn umount(path: &str) -> Error {
        run(&args(path, false)).unwrap_err()
    }

    #[test]
    fn dead_flag_ignores_other_mounts() {
        for path in ["/proc", "/proc/self"] {
            run(&args(path, true)).unwrap();
        }
        assert!(mountinfo::at(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn foreign_mounts_are_not_unmounted() {
        let error = umount("/proc");
        assert!(error.to_string().contains("not a pdsfs mount"), "{error}");
        assert!(mountinfo::at(Path::new("/proc")).unwrap().is_some());
        assert!(umount("/proc/self").to_string().contains("nothing is mounted"));
        assert_eq!(umount("/nonexistent/x").kind(), ErrorKind::NotFound);
    }

    #[test]
    fn drive_name_resolves_to_its_mountpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "[drives.photos]\nmountpoint = \"/mnt/photos\"\n[drives.none]\n").unwrap();
        let config = ConfigArgs { config: Some(path) };
        assert_eq!(mountpoint(Path::new("photos"), &config).unwrap(), Path::new("/mnt/photos"));
        assert_eq!(mountpoint(Path::new("./photos"), &config).unwrap(), Path::new("./photos"));
        assert!(
            mountpoint(Path::new("none"), &config)
                .unwrap_err()
                .to_string()
                .contains("no mountpoint for none")
        );
        assert!(mountpoint(Path::new("other"), &config).unwrap_err().to_string().contains("photos"));
    }
}
