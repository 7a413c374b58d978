//! `pdsfs mount`: a drive, a mount, and the order in which they come and go.
//!
//! At the end: settle what is open, take the mount out of the name space, answer what is still
//! asked, settle again what came in between. Only then does the process end, and its exit code says
//! whether everything that was written is on the drive.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::say;
use super::signals::Signals;
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::KernelMount;
use crate::pds::drive::Drive;
use crate::status::Progress;
use crate::vfs::Vfs;

pub use arguments::MountArgs;
use onlookers::Onlookers;

mod arguments;
mod onlookers;
mod place;

pub(super) use place::resolve;

/// How long a lazily unmounted file system is served for programs that still hold files of it open.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// What stopping may take beyond the commit timeout.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// A drive that is mounted by this process.
#[derive(Debug)]
pub struct Mounted {
    vfs: Arc<Vfs>,
    kernel: KernelMount,
    stop_max: Duration,
    onlookers: Onlookers,
}

/// Checks the folder, asks the drive whether it knows us, and mounts it.
pub async fn mount_in_process(mut config: MountConfig, progress: Arc<Progress>) -> Result<Mounted> {
    let (wanted, allow_other) = (config.mountpoint.clone(), config.allow_other);
    config.mountpoint = tokio::task::spawn_blocking(move || place::prepare(&wanted, allow_other))
        .await
        .map_err(|e| Error::new(ErrorKind::Io, e.to_string()))??;
    if config.spill_dir.starts_with(&config.mountpoint) {
        return Err(Error::new(ErrorKind::Invalid, "the spill folder must not be inside the mount"));
    }
    let drive = Drive::new(&config)?;
    // A wrong token, drive or folder is told now, and not by the first `ls`.
    let reached = drive.list_page(&config.root_id, "").await;
    reached.map_err(|e| e.context(format!("cannot reach drive {}", config.drive_id)))?;
    let config = Arc::new(config);
    let onlookers = Onlookers::prepare(&config).await?;
    let vfs = Vfs::new(config.clone(), drive, progress.clone());
    let kernel = KernelMount::start(vfs.clone(), &config).await?;
    let stop_max = config.commit_timeout + STOP_MARGIN;
    let onlookers = onlookers.begin(vfs.clone(), config, progress);
    Ok(Mounted { vfs, kernel, stop_max, onlookers })
}

impl Mounted {
    /// Returns when somebody else has unmounted it.
    pub async fn wait(&mut self) {
        self.kernel.wait().await;
    }

    /// Settles, unmounts, and returns the names and errors of what is not on the drive.
    pub async fn stop(mut self) -> Result<Vec<(String, Error)>> {
        self.end().await
    }

    async fn end(&mut self) -> Result<Vec<(String, Error)>> {
        let end = Instant::now() + self.stop_max;
        // What fails here may succeed the second time, so only that one counts.
        self.drain(end).await.ok();
        self.kernel.detach().await?;
        if !self.kernel.finish(LINGER_MAX).await {
            tracing::warn!("programs still use files of the mount; what they do from now on fails");
        }
        let unsaved = self.drain(end.max(Instant::now() + LINGER_MAX)).await;
        self.onlookers.close();
        unsaved
    }

    async fn drain(&self, end: Instant) -> Result<Vec<(String, Error)>> {
        tokio::time::timeout_at(end.into(), self.vfs.drain()).await.map_err(|_| {
            let waited = super::quantities::show_duration(self.stop_max);
            Error::new(ErrorKind::Timeout, format!("files were still being saved after {waited}"))
        })
    }
}

/// Serves the mount in the foreground.
pub async fn run(config: MountConfig) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let drive_id = config.drive_id.clone();
    let mut mounted = tokio::select! {
        mounted = mount_in_process(config, Progress::new()) => mounted?,
        signal = signals.next() => return Err(given_up(signal, "nothing was mounted")),
    };
    let path = mounted.kernel.path().to_owned();
    say(format_args!("mounted drive {drive_id} at {}", path.display()));
    tokio::select! {
        () = mounted.wait() => tracing::info!("unmounted from outside"),
        signal = signals.next() => tracing::info!("{signal}: saving open files, then unmounting"),
    }
    let unsaved = tokio::select! {
        unsaved = mounted.end() => unsaved,
        signal = signals.next() => Err(given_up(signal, "what was not yet saved is not on the drive")),
    };
    if unsaved.is_err() {
        // A dead mount hangs every program that looks at it, so it goes in any case.
        mounted.kernel.detach().await?;
    }
    let unsaved = unsaved?;
    for (name, error) in &unsaved {
        say(format_args!("pdsfs: not saved: {name}: {error}"));
    }
    if unsaved.is_empty() {
        say(format_args!("unmounted {}", path.display()));
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn given_up(signal: &str, consequence: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("given up at {signal}: {consequence}"))
}
