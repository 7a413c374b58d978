//! `pdsfs umount`: asks the kernel to end a mount of ours, and only of ours.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::config::{ConfigArgs, Configuration};
use super::mount::{has_died, resolve};
use super::{EXIT_TIMEOUT, say};
use crate::config::quantities::{duration_within, show_duration};
use crate::control::client;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};
use crate::fuse::unmount;
use crate::printable::escaped;

/// How often a mount that is in use is tried again. The kernel does not tell when a file is closed.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How long a daemon that was unmounted has at least to say how it has ended.
const LAST_WORD_MAX: Duration = Duration::from_secs(10);
const DAY_S: u64 = 86_400;

/// Arguments of `pdsfs umount`.
#[derive(Debug, Args)]
#[command(after_help = "A file that is closed is on the drive already; with --lazy, files that are still \
    open are saved when they are closed. With --drain the exit code is 3 when the time was up.")]
pub struct UmountArgs {
    /// Take the mount away also while it is in use; what is open stays usable until it is closed
    #[arg(long)]
    lazy: bool,
    /// Wait until every program has closed its files and everything is on the drive, then unmount
    #[arg(long, conflicts_with_all = ["lazy", "dead"])]
    drain: bool,
    /// How long --drain waits, 0s to 1d; then the drive stays mounted
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "drain",
        value_parser = duration_within(0, DAY_S))]
    timeout: Duration,
    /// Only take away what a program that died has left; it is no mistake if there is nothing
    #[arg(long, conflicts_with = "lazy")]
    dead: bool,
    /// Where the drive is mounted; or its name in the configuration, which says where
    #[arg(value_name = "MOUNTPOINT|NAME")]
    target: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Unmounts; when this returns, nothing of ours is mounted there.
pub fn run(args: &UmountArgs) -> Result<ExitCode> {
    let mountpoint = mountpoint(&args.target, &args.config)?;
    let path = resolve(&mountpoint).map_err(|e| Error::from(e).context(mountpoint.display()))?;
    let shown = path.display();
    let mount = match mountinfo::at(&path)? {
        Some(mount) if mount.is_ours() => mount,
        _ if args.dead => return Ok(ExitCode::SUCCESS),
        Some(other) => {
            let what = format!("{shown} is not a pdsfs mount ({} of type {})", other.source, other.fs_type);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        None => return Err(Error::new(ErrorKind::NotFound, format!("nothing is mounted at {shown}"))),
    };
    if args.dead && !has_died(&path) {
        return Ok(ExitCode::SUCCESS);
    }
    if args.lazy || args.dead {
        unmount::lazily(&path)?;
    } else if args.drain {
        match drained(&path, &mount, args.timeout) {
            Err(error) if error.kind() == ErrorKind::Timeout => {
                say(format_args!("pdsfs: {error}"));
                return Ok(ExitCode::from(EXIT_TIMEOUT));
            }
            outcome => outcome?,
        }
    } else if !unmount::if_idle(&path)? {
        let what = format!(
            "{shown} is in use; end the programs that use it (fuser -vm '{shown}' lists them), or add --drain \
             to wait for them, or --lazy"
        );
        return Err(Error::new(ErrorKind::NotPermitted, what));
    }
    if mountinfo::at(&path)?.is_some_and(|left| left.device == mount.device) {
        return Err(Error::new(ErrorKind::Io, format!("{shown} is still mounted")));
    }
    say(format_args!("unmounted {shown}"));
    Ok(ExitCode::SUCCESS)
}

/// A word without a slash is a drive if the configuration has one of that name, else a folder.
fn mountpoint(target: &Path, config: &ConfigArgs) -> Result<PathBuf> {
    let word = target.to_str().filter(|word| !word.contains('/') && !matches!(*word, "." | ".."));
    let Some(name) = word else { return Ok(target.to_owned()) };
    match Configuration::read(config)?.drive(name) {
        Ok(drive) => drive.mountpoint.ok_or_else(|| {
            let detail = format!("the configuration does not say where {name} is mounted; name the folder");
            Error::new(ErrorKind::Invalid, detail)
        }),
        Err(_) if target.symlink_metadata().is_ok() => Ok(target.to_owned()),
        Err(error) => Err(error),
    }
}

/// Unmounts when nothing is open any more: closing a file returns when it is on the drive. To ask for it
/// before would bring half of what is being written to the drive. Attributes follow a little later; the last
/// word is the daemon's, which promises it before anything is unmounted.
fn drained(path: &Path, mount: &Mount, limit: Duration) -> Result<()> {
    let (shown, end) = (path.display(), Instant::now() + limit);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ending = runtime.block_on(async {
        let (daemon, _) = client::find_at(path, mount.owner).await?;
        daemon.ending().await
    });
    let ending = ending.map_err(|e| {
        let what = format!(
            "{shown} stays mounted: nobody says whether everything is on the drive ({e}); to unmount it all the \
             same: pdsfs umount '{shown}'"
        );
        Error::new(ErrorKind::Unreachable, what)
    })?;
    let last = runtime.block_on(async {
        // Listened to from now on: a daemon gives up who does not take its signs of life.
        let word = tokio::spawn(ending.word());
        unmounted_when_idle(path, mount, limit, end).await?;
        let rest = end.saturating_duration_since(Instant::now()).max(LAST_WORD_MAX);
        let word = tokio::time::timeout(rest, word).await;
        Ok::<_, Error>(word.map(|word| word.map_err(|e| Error::new(ErrorKind::Io, e.to_string())).flatten()))
    })?;
    let last = last.map_err(|_| {
        let what = format!(
            "{shown} is unmounted, but after {} not everything is on the drive; its program goes on saving",
            show_duration(limit)
        );
        Error::new(ErrorKind::Timeout, what)
    })?;
    let lost = |why: &str| {
        let what = format!("{shown} is unmounted, but not everything is known to be on the drive{why}");
        Error::new(ErrorKind::Io, what)
    };
    let last = last.map_err(|e| lost(&format!(": its program ended without a word ({e})")))?;
    for left in &last.unsaved {
        say(format_args!("pdsfs: not saved: {}: {}", escaped(&left.path), escaped(&left.error)));
    }
    if last.unsaved.is_empty() && !last.timed_out { Ok(()) } else { Err(lost("")) }
}

async fn unmounted_when_idle(path: &Path, mount: &Mount, limit: Duration, end: Instant) -> Result<()> {
    let shown = path.display();
    let mut has_said = false;
    loop {
        // Whatever else may come to be there is not ours to unmount.
        if mountinfo::at(path)?.is_none_or(|seen| seen.device != mount.device) || unmount::if_idle(path)? {
            return Ok(());
        }
        if !std::mem::replace(&mut has_said, true) {
            say(format_args!("waiting for the programs that use {shown} (fuser -vm '{shown}' lists them)"));
        }
        if Instant::now() + TRY_EVERY > end {
            let what = format!("{shown} is still in use after {}; it stays mounted", show_duration(limit));
            return Err(Error::new(ErrorKind::Timeout, what));
        }
        tokio::time::sleep(TRY_EVERY).await;
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
    fn only_what_has_died_is_taken_away_and_nothing_is_no_mistake() {
        for path in ["/proc", "/proc/self"] {
            run(&args(path, true)).unwrap();
        }
        assert!(mountinfo::at(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn what_is_not_ours_stays_mounted() {
        let error = umount("/proc");
        assert!(error.to_string().contains("not a pdsfs mount"), "{error}");
        assert!(mountinfo::at(Path::new("/proc")).unwrap().is_some());
        assert!(umount("/proc/self").to_string().contains("nothing is mounted"));
        assert_eq!(umount("/nonexistent/x").kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_name_leads_to_the_folder_that_the_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "[drives.photos]\nmountpoint = \"/mnt/photos\"\n[drives.none]\n").unwrap();
        let config = ConfigArgs { config: Some(path) };
        assert_eq!(mountpoint(Path::new("photos"), &config).unwrap(), Path::new("/mnt/photos"));
        assert_eq!(mountpoint(Path::new("./photos"), &config).unwrap(), Path::new("./photos"));
        assert!(
            mountpoint(Path::new("none"), &config).unwrap_err().to_string().contains("does not say where")
        );
        assert!(mountpoint(Path::new("other"), &config).unwrap_err().to_string().contains("photos"));
    }
}
