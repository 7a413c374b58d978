//! `pdsfs umount`: asks the kernel to end a mount of ours, and only of ours.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::mount::resolve;
use super::say;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::{mountinfo, unmount};

/// Arguments of `pdsfs umount`.
#[derive(Debug, Args)]
#[command(after_help = "A file that is closed is on the drive already; with --lazy, files that are still \
    open are saved when they are closed.")]
pub struct UmountArgs {
    /// Take the mount away also while it is in use; what is open stays usable until it is closed
    #[arg(long)]
    lazy: bool,
    /// Where the drive is mounted
    mountpoint: PathBuf,
}

/// Unmounts; when this returns, nothing of ours is mounted there.
pub fn run(args: &UmountArgs) -> Result<ExitCode> {
    let named = |e: std::io::Error| Error::from(e).context(args.mountpoint.display());
    let path = resolve(&args.mountpoint).map_err(named)?;
    let shown = path.display();
    let mount = match mountinfo::at(&path)? {
        Some(mount) if mount.is_ours() => mount,
        Some(other) => {
            let what = format!("{shown} is not a pdsfs mount ({} of type {})", other.source, other.fs_type);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        None => return Err(Error::new(ErrorKind::NotFound, format!("nothing is mounted at {shown}"))),
    };
    if args.lazy {
        unmount::lazily(&path)?;
    } else if !unmount::if_idle(&path)? {
        let what = format!(
            "{shown} is in use; end the programs that use it (fuser -vm '{shown}' lists them), or add --lazy"
        );
        return Err(Error::new(ErrorKind::NotPermitted, what));
    }
    if mountinfo::at(&path)?.is_some_and(|left| left.device == mount.device) {
        return Err(Error::new(ErrorKind::Io, format!("{shown} is still mounted")));
    }
    say(format_args!("unmounted {shown}"));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn umount(path: &str) -> Error {
        run(&UmountArgs { lazy: true, mountpoint: path.into() }).unwrap_err()
    }

    #[test]
    fn what_is_not_ours_stays_mounted() {
        let error = umount("/proc");
        assert!(error.to_string().contains("not a pdsfs mount"), "{error}");
        assert!(mountinfo::at(std::path::Path::new("/proc")).unwrap().is_some());
        assert!(umount("/proc/self").to_string().contains("nothing is mounted"));
        assert_eq!(umount("/nonexistent/x").kind(), ErrorKind::NotFound);
    }
}
