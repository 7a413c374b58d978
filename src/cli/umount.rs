//! `pdsfs umount`: unmounts a pdsfs mount, and no other.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::config::ConfigArgs;
use super::format::{not_saved, reason};
use super::named_drive;
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
    /// The mountpoint, or the drive or account as pdsfs mount takes it
    #[arg(value_name = "MOUNTPOINT|NAME")]
    target: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &UmountArgs) -> Result<ExitCode> {
    let mountpoint = mountpoint(&args.target, &args.config);
    if args.dead {
        // A name may have several dead mounts, or none.
        let is_missing = mountpoint.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound);
        if is_missing && named_drive::find(&args.target.to_string_lossy(), &args.config).is_err() {
            mountpoint?;
        } else {
            remove_dead(args.target.to_str(), mountpoint.ok().as_deref())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mountpoint = mountpoint?;
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
fn remove_dead(name: Option<&str>, mountpoint: Option<&Path>) -> Result<()> {
    let path = mountpoint.and_then(|path| resolve(path).ok());
    let uid = rustix::process::geteuid().as_raw();
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

/// What `pdsfs mount` takes: a path, a drive of the configuration or an account, as NAME or NAME:/FOLDER. A name means
/// the mount at its configured directory, else the only mount of that name.
fn mountpoint(target: &Path, config: &ConfigArgs) -> Result<PathBuf> {
    let Some(name) = target.to_str().filter(|text| !named_drive::is_path(text)) else {
        return Ok(target.to_owned());
    };
    let configured = configured(name, config);
    if let Ok(path) = &configured
        && resolve(path).is_ok_and(|path| mountinfo::at(&path).is_ok_and(|mount| mount.is_some()))
    {
        return configured;
    }
    let mounted = named_drive::mounted(name)?;
    match (mounted.as_slice(), configured) {
        ([], Err(_)) if target.symlink_metadata().is_ok() => Ok(target.to_owned()),
        ([], configured) => configured,
        ([only], _) => Ok(only.path.clone()),
        (several, _) => {
            let paths: Vec<_> = several.iter().map(|mount| mount.path.display().to_string()).collect();
            let detail = format!("{name} is mounted at {}: name one of these directories", paths.join(", "));
            Err(Error::new(ErrorKind::Invalid, detail))
        }
    }
}

/// The mountpoint of a drive that is not mounted.
fn configured(name: &str, config: &ConfigArgs) -> Result<PathBuf> {
    let drive = name.split(':').next().unwrap_or_default();
    let entry = named_drive::find(drive, config)?;
    entry.mountpoint.ok_or_else(|| {
        let detail = format!("{name} is not mounted, and the configuration has no mountpoint for it");
        Error::new(ErrorKind::NotFound, detail)
    })
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
            mountpoint(Path::new("none"), &config).unwrap_err().to_string().contains("none is not mounted")
        );
        assert!(mountpoint(Path::new("other"), &config).unwrap_err().to_string().contains("photos"));
    }
}
