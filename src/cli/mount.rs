//! `pdsfs mount`: a drive, a mount, and the order in which they come and go.
//!
//! At the end: settle what is open, take the mount out of the name space, answer what is still
//! asked, settle again what came in between. Only then does the process end, and its exit code says
//! whether everything that was written is on the drive.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::signals::Signals;
use super::{EXIT_USAGE, say};
use crate::account;
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::KernelMount;
use crate::pds::drive::Drive;
use crate::printable::escaped;
use crate::status::Progress;
use crate::status::notify::Notifier;
use crate::vfs::Vfs;
use arguments::Serving;
use movement::Movement;
use onlookers::{Onlookers, Prepared};
use supervision::Supervision;

pub use arguments::MountArgs;

mod arguments;
mod background;
mod movement;
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
/// How long nothing may move while the drive is unmounted, beyond the time that a close waits for the drive.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// The same while a service manager waits, beyond the time after which a transfer that stands still is begun anew.
const STANDSTILL_MARGIN: Duration = Duration::from_secs(15);

/// Everything that has to be so before a drive is mounted. Nothing has to be undone where this is dropped.
#[derive(Debug)]
struct Checked {
    config: MountConfig,
    drive: Drive,
    progress: Arc<Progress>,
    onlookers: Prepared,
}

/// A drive that is mounted by this process.
#[derive(Debug)]
pub struct Mounted {
    vfs: Arc<Vfs>,
    kernel: KernelMount,
    movement: Movement,
    stop_max: Duration,
    standstill_max: Duration,
    onlookers: Onlookers,
}

/// Checks the folder, asks the drive whether it knows us, and mounts it.
pub async fn mount_in_process(config: MountConfig, progress: Arc<Progress>) -> Result<Mounted> {
    Checked::new(free_place(config).await?, progress).await?.mount().await
}

/// The folder to mount at, without links and with nothing mounted there.
async fn free_place(mut config: MountConfig) -> Result<MountConfig> {
    let shown = config.mountpoint.display().to_string();
    let prepared = tokio::task::spawn_blocking(move || {
        config.mountpoint = place::prepare(&config)?;
        if config.spill_dir.starts_with(&config.mountpoint) {
            return Err(Error::new(ErrorKind::Invalid, "the spill folder must not be inside the mount"));
        }
        Ok(config)
    });
    let prepared = tokio::time::timeout(PREPARE_MAX, prepared).await.map_err(|_| {
        Error::new(ErrorKind::Timeout, format!("{shown} does not answer; it may lie in a mount that hangs"))
    })?;
    prepared.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
}

impl Checked {
    /// A wrong token, drive or folder is told now, and not by the first `ls`.
    async fn new(mut config: MountConfig, progress: Arc<Progress>) -> Result<Self> {
        let drive = Drive::new(&config)?;
        let reached = drive.list_page(&config.root_id, "").await;
        reached.map_err(|e| {
            let advice = match e.kind() {
                ErrorKind::NotFound | ErrorKind::NoDrive => "; pdsfs drives lists those that there are",
                _ => "",
            };
            Error::new(e.kind(), format!("cannot reach drive {}: {e}{advice}", config.drive_id))
        })?;
        let folder = std::mem::take(&mut config.folder);
        for name in folder.names() {
            let found = drive.folder_of(&config.root_id, name).await;
            config.root_id = found.map_err(|e| e.context(format!("folder {folder}")))?;
        }
        let onlookers = Onlookers::prepare(&config).await?;
        Ok(Self { config, drive, progress, onlookers })
    }

    /// Not to be dropped before it is ready: what the kernel is asked for by then comes to be all the same, with
    /// nobody behind it.
    async fn mount(self) -> Result<Mounted> {
        let Self { config, drive, progress, onlookers } = self;
        let config = Arc::new(config);
        let movement = Movement::new(progress.clone(), drive.clone());
        let vfs = Vfs::new(config.clone(), drive, progress.clone());
        let kernel = KernelMount::start(vfs.clone(), &config).await.map_err(rights::explain)?;
        let stop_max = config.commit_timeout + STOP_MARGIN;
        let standstill_max = config.stall_timeout + STANDSTILL_MARGIN;
        let onlookers = onlookers.begin(vfs.clone(), config, progress);
        Ok(Mounted { vfs, kernel, movement, stop_max, standstill_max, onlookers })
    }
}

impl Mounted {
    /// Returns when somebody else has unmounted it.
    pub async fn wait(&mut self) {
        self.kernel.wait().await;
    }

    /// Settles, unmounts, and returns the names and errors of what is not on the drive.
    pub async fn stop(mut self) -> Result<Vec<(String, Error)>> {
        let (movement, limit) = (self.movement.clone(), self.stop_max);
        let outcome = tokio::select! {
            unsaved = self.end() => unsaved,
            error = movement.standstill(limit, || ()) => Err(error),
        };
        if outcome.is_err() {
            self.kernel.detach().await?;
        }
        self.onlookers.close();
        outcome
    }

    /// Takes as long as it takes; the caller decides what is too long.
    async fn end(&mut self) -> Result<Vec<(String, Error)>> {
        // What fails here may succeed the second time.
        let first = self.vfs.drain().await;
        self.kernel.detach().await?;
        if !self.kernel.finish(LINGER_MAX).await {
            tracing::warn!("programs still use files of the mount; what they do from now on fails");
        }
        let left = self.vfs.drain_again(first).await;
        Ok(left.into_iter().map(|left| (left.name, left.error)).collect())
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
    rights::raise_open_files();
    let drive_id = config.drive_id.clone();
    let progress = Progress::new();
    let config = match unless_stopped(&mut signals, free_place(config)).await {
        Ok(config) => config,
        // Whoever would try again is told that it is of no use.
        Err(error) if place::is_final(&error) => {
            say(format_args!("pdsfs: {error}"));
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        Err(error) => return Err(error),
    };
    let checked = match unless_stopped(&mut signals, Checked::new(config, progress.clone())).await {
        Ok(checked) => checked,
        // A user who does not unlock the keyring is asked by nobody again and again.
        Err(error) if account::keyring_is_refused() => {
            say(format_args!("pdsfs: {error}"));
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        Err(error) => return Err(error),
    };
    let mut mounted = checked.mount().await?;
    let path = mounted.kernel.path().to_owned();
    let standstill_max = if notifier.is_heard() { mounted.standstill_max } else { mounted.stop_max };
    let supervision = Supervision::begin(notifier, progress, &mounted.vfs, &path, standstill_max);
    let supervision = match unless_stopped(&mut signals, supervision).await {
        Ok(supervision) => supervision,
        Err(error) => {
            mounted.stop().await?;
            return Err(error);
        }
    };
    say(format_args!("mounted drive {drive_id} at {}", path.display()));
    // Who waited for it and is gone does not want it any more.
    let unheard = if serving == Serving::Detached { background::ready().err() } else { None };
    let (mut asked_at, mut cut_off) = (None, None);
    if unheard.is_none() {
        tokio::select! {
            () = mounted.wait() => match mounted.kernel.detach_cut_off(place::has_died).await {
                Ok(false) => tracing::info!("unmounted from outside"),
                was_cut_off => {
                    let detail = "the kernel has cut the mount off (its connection was aborted)";
                    tracing::error!("{detail}: saving open files");
                    cut_off = Some(was_cut_off.err().unwrap_or_else(|| Error::new(ErrorKind::Io, detail)));
                }
            },
            signal = signals.next() => {
                asked_at = Some(Instant::now());
                tracing::info!("{signal}: saving open files, then unmounting");
            }
        }
    }
    let ended = finish(mounted, &supervision, &mut signals, asked_at).await?;
    unheard.or(cut_off).map_or(Ok(ended), Err)
}

/// A signal ends what has not mounted anything yet, or nothing that anybody was told of.
async fn unless_stopped<T>(signals: &mut Signals, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        signal = signals.next() => Err(given_up(signal, "nothing is mounted")),
    }
}

/// Stops, and says what is not on the drive.
async fn finish(
    mut mounted: Mounted,
    supervision: &Supervision,
    signals: &mut Signals,
    asked_at: Option<Instant>,
) -> Result<ExitCode> {
    supervision.stopping();
    let outcome = tokio::select! {
        unsaved = mounted.end() => unsaved,
        error = supervision.standstill() => Err(error),
        signal = signals.insists(asked_at) => {
            Err(given_up(signal, "what was not yet saved is not on the drive"))
        }
    };
    let (unsaved, failure) = match outcome {
        Ok(unsaved) => (unsaved, None),
        Err(error) => {
            let names = mounted.vfs.unsaved().into_iter();
            (names.map(|name| (name, error.clone())).collect(), Some(error))
        }
    };
    for (name, error) in &unsaved {
        say(format_args!("pdsfs: not saved: {}: {}", escaped(name), escaped(&error.to_string())));
    }
    // A dead mount hangs every program that looks at it, so it goes in any case.
    if failure.is_some()
        && let Err(error) = mounted.kernel.detach().await
    {
        tracing::error!("{error}");
    }
    tokio::time::timeout(super::RENEWAL_END_MAX, mounted.vfs.drive().store_credentials()).await.ok();
    let is_done = unsaved.is_empty();
    mounted.onlookers.finish(unsaved, failure.is_some()).await;
    if let Some(error) = failure {
        return Err(error);
    }
    if is_done {
        say(format_args!("unmounted {}", mounted.kernel.path().display()));
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn given_up(signal: &str, consequence: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("given up at {signal}: {consequence}"))
}
