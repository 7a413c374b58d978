//! `pdsfs demo`: a drive, a mount and a progress display with one command.
//!
//! The drive is the embedded server in a process of its own. Teardown runs in reverse order, for every way
//! the demo can end: commit open files, unmount, stop the server, remove the mountpoint if the demo made it.

use std::path::PathBuf;
use std::process::ExitCode;

use self::server_process::DriveLimits;
use crate::error::Result;
use crate::units::parse_size;

mod cancel;
mod dirs;
mod live;
mod once;
mod probe;
mod report;
mod screen;
mod server_process;
mod setup;
mod source;
mod verify;

/// Arguments of `pdsfs demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Directory for the files of the demo drive, kept for the next run [default: $XDG_DATA_HOME/pdsfs/demo,
    /// else ~/.local/share/pdsfs/demo; with --once a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Capacity of the drive, in bytes or with KiB, MiB, GiB, to see what happens when it is full [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "once")]
    quota: Option<u64>,
    /// Rate of the line to the drive for all transfers together, such as 1MiB (in a second), to see slow uploads
    /// [default: as fast as this machine]
    #[arg(long, value_name = "RATE", value_parser = parse_rate, conflicts_with = "once")]
    line: Option<u64>,
    /// Copy a tree of files to the drive, verify every file, print the measurements and exit
    #[arg(long)]
    once: bool,
    /// With --once: seed of all file contents, to repeat a run [default: random]
    #[arg(long, requires = "once", hide_short_help = true)]
    seed: Option<u64>,
    /// An empty directory to mount on; made if it is missing [default: ./pdsfs-demo; with --once a temporary
    /// directory]
    mountpoint: Option<PathBuf>,
}

/// Runs the demo until a signal or an unmount; with `--once` until everything is verified.
pub async fn run(args: DemoArgs) -> Result<ExitCode> {
    let limits = DriveLimits { quota: args.quota, bytes_per_s: args.line };
    let (data_dir, mountpoint) = (args.data.as_deref(), args.mountpoint.as_deref());
    if args.once {
        once::run(data_dir, mountpoint, args.seed).await
    } else {
        live::run(data_dir, mountpoint, limits).await
    }
}

/// Bytes per second, such as `1MiB` or `1MiB/s`.
fn parse_rate(text: &str) -> std::result::Result<u64, String> {
    match parse_size(text.trim().trim_end_matches("/s"))? {
        0 => Err("a line of 0 bytes per second never ends".to_owned()),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_a_size_in_a_second() {
        assert_eq!((parse_rate("1MiB/s"), parse_rate("64KiB")), (Ok(1 << 20), Ok(64 << 10)));
        assert!(parse_rate("0").is_err() && parse_rate("fast").is_err());
    }
}
