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
use crate::status::notify::Notifier;
use crate::vfs::Vfs;
use arguments::Serving;
use supervision::Supervision;

pub use arguments::MountArgs;
use onlookers::Onlookers;

mod arguments;
mod background;
mod onlookers;
mod place;
mod rights;
mod supervision;
pub(super) mod tab;

pub(super) use place::{has_died, resolve};

/// How long looking at the folder may take.
const PREPARE_MAX: Duration = Duration::from_secs(30);
/// How long a lazily unmounted file system is served for programs that still hold files of it open.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// What stopping may take beyond the commit timeout.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// How long nothing may move while a service manager waits, beyond the time after which a transfer that
/// stands still is begun anew.
const STANDSTILL_MARGIN: Duration = Duration::from_secs(15);

/// A drive that is mounted by this process.
#[derive(Debug)]
pub struct Mounted {
    vfs: Arc<Vfs>,
    kernel: KernelMount,
    stop_max: Duration,
    standstill_max: Duration,
    onlookers: Onlookers,
}

/// Checks the folder, asks the drive whether it knows us, and mounts it.
pub async fn mount_in_process(mut config: MountConfig, progress: Arc<Progress>) -> Result<Mounted> {
    let (wanted, allow_other) = (config.mountpoint.clone(), config.allow_other);
    let shown = wanted.display().to_string();
    let prepared = tokio::task::spawn_blocking(move || place::prepare(&wanted, allow_other));
    let prepared = tokio::time::timeout(PREPARE_MAX, prepared).await.map_err(|_| {
        Error::new(ErrorKind::Timeout, format!("{shown} does not answer; it may lie in a mount that hangs"))
    })?;
    config.mountpoint = prepared.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))??;
    if config.spill_dir.starts_with(&config.mountpoint) {
        return Err(Error::new(ErrorKind::Invalid, "the spill folder must not be inside the mount"));
    }
    let drive = Drive::new(&config)?;
    // A wrong token, drive or folder is told now, and not by the first `ls`.
    let reached = drive.list_page(&config.root_id, "").await;
    reached.map_err(|e| {
        let advice = match e.kind() {
            ErrorKind::NotFound => "; pdsfs drives lists those that there are",
            _ => "",
        };
        Error::new(e.kind(), format!("cannot reach drive {}: {e}{advice}", config.drive_id))
    })?;
    let folder = std::mem::take(&mut config.folder);
    for name in folder.names() {
        let found = drive.folder_of(&config.root_id, name).await;
        config.root_id = found.map_err(|e| e.context(format!("folder {folder}")))?;
    }
    let config = Arc::new(config);
    let onlookers = Onlookers::prepare(&config).await?;
    let vfs = Vfs::new(config.clone(), drive, progress.clone());
    let kernel = KernelMount::start(vfs.clone(), &config).await.map_err(rights::explain)?;
    let stop_max = config.commit_timeout + STOP_MARGIN;
    let standstill_max = config.stall_timeout + STANDSTILL_MARGIN;
    let onlookers = onlookers.begin(vfs.clone(), config, progress);
    Ok(Mounted { vfs, kernel, stop_max, standstill_max, onlookers })
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
            let waited = crate::config::quantities::show_duration(self.stop_max);
            Error::new(ErrorKind::Timeout, format!("files were still being saved after {waited}"))
        })
    }
}

/// Mounts as the arguments say. The outer error is a mistake in them.
pub(super) fn start(args: MountArgs, notifier: Notifier) -> Result<Result<ExitCode>> {
    let serving = args.serving();
    let config = args.into_config()?;
    Ok(match serving {
        Serving::Background => {
            let detached =
                |argument| if argument == "--background" { background::DETACHED.into() } else { argument };
            background::start(std::env::args_os().skip(1).map(detached))
        }
        Serving::Foreground | Serving::Detached => super::on_runtime(run(config, serving, notifier)),
    })
}

/// Serves the mount.
async fn run(config: MountConfig, serving: Serving, notifier: Notifier) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let drive_id = config.drive_id.clone();
    let progress = Progress::new();
    let mut mounted = tokio::select! {
        mounted = mount_in_process(config, progress.clone()) => mounted?,
        signal = signals.next() => return Err(given_up(signal, "nothing was mounted")),
    };
    let path = mounted.kernel.path().to_owned();
    let drive = mounted.vfs.drive().clone();
    let supervision = Supervision::begin(notifier, progress, drive, &path, mounted.standstill_max).await;
    let supervision = match supervision {
        Ok(supervision) => supervision,
        Err(error) => {
            mounted.kernel.detach().await?;
            return Err(error);
        }
    };
    say(format_args!("mounted drive {drive_id} at {}", path.display()));
    if serving == Serving::Detached {
        background::ready()?;
    }
    tokio::select! {
        () = mounted.wait() => tracing::info!("unmounted from outside"),
        signal = signals.next() => tracing::info!("{signal}: saving open files, then unmounting"),
    }
    supervision.stopping();
    let vfs = mounted.vfs.clone();
    let unsaved = tokio::select! {
        unsaved = mounted.end() => unsaved,
        error = supervision.standstill() => Err(error),
        signal = signals.next() => Err(given_up(signal, "what was not yet saved is not on the drive")),
    };
    let unsaved = match unsaved {
        Ok(unsaved) => unsaved,
        Err(error) => {
            for name in vfs.unsaved() {
                say(format_args!("pdsfs: not saved: {name}"));
            }
            // A dead mount hangs every program that looks at it, so it goes in any case.
            mounted.kernel.detach().await?;
            return Err(error);
        }
    };
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
