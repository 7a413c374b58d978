//! `pdsfs demo`: a drive, a mount and a progress display with one command.
//!
//! The drive is the embedded server in a process of its own. Teardown runs in reverse order, for every way
//! the demo can end: commit open files, unmount, stop the server, remove the mountpoint if the demo made it.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::Result;

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
    let (data_dir, mountpoint) = (args.data.as_deref(), args.mountpoint.as_deref());
    if args.once {
        once::run(data_dir, mountpoint, args.seed).await
    } else {
        live::run(data_dir, mountpoint).await
    }
}
