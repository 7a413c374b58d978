//! One mount, from the first check to the last saved byte.
//!
//! Start: check the mountpoint and the rights of this process, reach the drive, mount, attach the observers.
//! Stop: save open files, unmount, answer the last requests of the kernel, save the changes that arrived
//! during the unmount. Only then the process ends. [`MountEnd`] states whether everything is on the drive.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth;
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::broker::{BrokerClient, ExpectedMount};
use crate::fuse::{KernelMount, MountPlace};
use crate::pds::drive::Drive;
use crate::status::systemd::SystemdNotifier;
use crate::status::{Figures, Progress};
use crate::vfs::{DrainReport, Stage, StopDrains, Vfs};
use observers::{ObserverSetup, Observers};
#[cfg(feature = "server")]
use progress_watch::ProgressWatch;
use signals::Signals;
use supervision::Supervision;

pub mod background;
pub mod broker;
mod liveness;
mod mountpoint;
mod observers;
mod owners;
mod path_walk;
mod preflight;
mod progress_watch;
pub mod resolve;
pub mod signals;
mod supervision;

pub use liveness::{Liveness, has_died};
pub use mountpoint::{make_missing, resolve};
pub use preflight::{MountMethod, check_device, mount_method};

/// Limit on the checks of the mountpoint.
const PREPARE_MAX: Duration = Duration::from_secs(30);
/// How long a lazily unmounted file system is still served for programs with open files.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// Added to the commit timeout. A stop without progress for the sum is aborted.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// Added to the stall timeout, after which an idle transfer is retried. Under a service manager, a stop
/// without progress for the sum is aborted.
const STALL_MARGIN: Duration = Duration::from_secs(15);
/// When a stop first reports what it waits for, and how often after that.
const WAIT_NOTICE_FIRST: Duration = Duration::from_secs(1);
const WAIT_NOTICE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the end of the program waits for a token refresh that is under way, so that its result is stored.
pub const TOKEN_REFRESH_END_MAX: Duration = Duration::from_secs(5);

/// Progress of a mount that the caller of [`run`] prints.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// The mount answers.
    Mounted { drive_id: &'a str, path: &'a Path },
    /// The stop waits for these files, or, without files, for programs that use the mount.
    Waiting { files: &'a [WaitingFile] },
    /// A program still had this file open. What it had written is on the drive.
    PartlySaved { path: &'a str, bytes: u64 },
    /// The stop leaves this file unsaved.
    NotSaved { path: &'a str, error: &'a Error },
    /// The mount is gone, and everything is on the drive.
    Unmounted { path: &'a Path },
}

/// A file that a stop waits for.
#[derive(Clone, Debug)]
pub struct WaitingFile {
    /// Path below the mountpoint.
    pub path: String,
    pub figures: Figures,
}

/// How a mount has ended.
#[derive(Debug)]
pub enum MountEnd {
    /// Everything is on the drive.
    Saved,
    /// Files are not on the drive; each was reported.
    Unsaved,
    /// Nothing was mounted, and a retry fails until a person changes something.
    NotMountable(Error),
}

/// A drive that was reached, before it is mounted. Dropping it leaves nothing to undo.
#[derive(Debug)]
struct ReachedDrive {
    config: MountConfig,
    place: MountPlace,
    drive: Drive,
    progress: Arc<Progress>,
    observers: ObserverSetup,
}

/// A mount served by this process.
#[derive(Debug)]
pub struct RunningMount {
    vfs: Arc<Vfs>,
    kernel: KernelMount,
    #[cfg(feature = "server")]
    progress_watch: ProgressWatch,
    /// A stop without progress for this time is aborted.
    stop_limit: Duration,
    /// The same under a service manager.
    managed_stop_limit: Duration,
    observers: Observers,
}

/// Checks the mountpoint, reaches the drive and mounts it. For the demo.
#[cfg(feature = "server")]
pub async fn mount_in_process(config: MountConfig, progress: Arc<Progress>) -> Result<RunningMount> {
    let (config, place) = check_mountpoint(config).await?;
    ReachedDrive::new(config, place, progress).await?.mount().await
}

/// Checks the mountpoint, removes a dead mount from it, and opens it. The path of the result has no links.
async fn check_mountpoint(mut config: MountConfig) -> Result<(MountConfig, MountPlace)> {
    let display = config.mountpoint.display().to_string();
    let prepared = tokio::task::spawn_blocking(move || {
        let (place, path) = open_mountpoint(&config)?;
        config.mountpoint = path;
        if config.spill_dir.starts_with(&config.mountpoint) {
            let detail = format!(
                "{} for staged files is inside the mountpoint: choose another directory with --spill-dir",
                config.spill_dir.display()
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok((config, place))
    });
    let prepared = tokio::time::timeout(PREPARE_MAX, prepared).await.map_err(|_| {
        let detail =
            format!("{display} does not answer: it may be inside a hanging mount (see pdsfs status)");
        Error::new(ErrorKind::Timeout, detail)
    })?;
    prepared.map_err(|e| Error::from_source(ErrorKind::Io, e))?
}

/// Opens the mountpoint, or has the broker do it. The path has no links.
fn open_mountpoint(config: &MountConfig) -> Result<(MountPlace, PathBuf)> {
    let Some(socket) = &config.broker else {
        let dir = mountpoint::prepare(&config.mountpoint, &config.options)?;
        let path = dir.path().to_owned();
        return Ok((MountPlace::Own(dir), path));
    };
    let drive = config.name.clone().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "the broker mounts drives of the configuration file only: name one")
    })?;
    let options = &config.options;
    let expected = ExpectedMount {
        mountpoint: config.mountpoint.clone(),
        allow_non_empty: options.allow_non_empty,
        allow_other: options.allow_other,
        allow_user_mountpoint: options.allow_user_mountpoint,
        read_only: options.read_only,
        noexec: options.noexec,
        nosymfollow: options.nosymfollow,
    };
    let broker = BrokerClient::connect(socket)?;
    let path = broker.prepare(drive, expected)?;
    Ok((MountPlace::OfBroker(broker), path))
}

impl ReachedDrive {
    /// Sends the first calls now: a wrong token, drive or folder fails the mount instead of the first `ls`.
    async fn new(mut config: MountConfig, place: MountPlace, progress: Arc<Progress>) -> Result<Self> {
        let drive = Drive::new(&config)?;
        let listed = drive.list_page(&config.root_id, "").await;
        listed.map_err(|e| {
            let advice = match e.kind() {
                ErrorKind::NotFound | ErrorKind::NoDrive => {
                    " (pdsfs drives lists the drives of an account)".to_owned()
                }
                ErrorKind::Unreachable => {
                    format!(" (check the network and the endpoint {})", config.endpoint)
                }
                _ => String::new(),
            };
            Error::with_source(e.kind(), format!("cannot open drive {}{advice}", config.drive_id), e)
        })?;
        let folder = std::mem::take(&mut config.folder);
        for name in folder.names() {
            let found = drive.find_folder(&config.root_id, name).await;
            config.root_id = found.map_err(|e| {
                e.context(format!("cannot open drive folder {folder} (check setting folder)"))
            })?;
        }
        config.options.owners = Some(owners::in_effect(&config, &drive).await?);
        let observers = Observers::prepare(&config).await?;
        Ok(Self { config, place, drive, progress, observers })
    }

    /// Must not be cancelled: the kernel completes a requested mount even if this future is dropped, and no
    /// daemon would serve it.
    async fn mount(self) -> Result<RunningMount> {
        let Self { config, place, drive, progress, observers } = self;
        let config = Arc::new(config);
        #[cfg(feature = "server")]
        let progress_watch = ProgressWatch::new(progress.clone(), drive.clone());
        let vfs = Vfs::new(config.clone(), drive, progress.clone());
        let kernel = KernelMount::start(vfs.clone(), &config, place).await.map_err(preflight::explain)?;
        let stop_limit = config.options.commit_timeout + STOP_MARGIN;
        let managed_stop_limit = config.options.stall_timeout + STALL_MARGIN;
        let observers = observers.start(vfs.clone(), kernel.control().clone(), config, progress);
        Ok(RunningMount {
            vfs,
            kernel,
            #[cfg(feature = "server")]
            progress_watch,
            stop_limit,
            managed_stop_limit,
            observers,
        })
    }
}

/// How a stop has ended.
#[derive(Debug)]
pub struct StopOutcome {
    pub files: DrainReport,
    /// Why the stop was cut short. Then `files.unsaved` are the files that were not saved by then.
    pub failure: Option<Error>,
}

impl RunningMount {
    /// Returns when the mount was unmounted from outside.
    pub async fn wait(&self) {
        self.kernel.wait().await;
    }

    /// Fails all calls to the drive from now on: it is gone for good.
    #[cfg(feature = "server")]
    pub fn abandon_drive(&self, why: &str) {
        self.vfs.drive().abandon(why);
    }

    /// Saves and unmounts, until `given_up` resolves. For the demo.
    #[cfg(feature = "server")]
    pub async fn stop(mut self, given_up: impl Future<Output = Error>) -> StopOutcome {
        let (progress_watch, limit) = (self.progress_watch.clone(), self.stop_limit);
        let given_up = async {
            tokio::select! {
                error = progress_watch.stalled(limit, || ()) => error,
                error = given_up => error,
            }
        };
        let outcome = self.end(given_up).await;
        self.observers.close();
        outcome
    }

    /// Saves and unmounts. If `given_up` resolves first, it only unmounts.
    async fn end(&mut self, given_up: impl Future<Output = Error>) -> StopOutcome {
        self.vfs.begin_stop();
        let drains = StopDrains::default();
        let drained = tokio::select! {
            // Boxed: the future is deep, and so are those of its callers.
            drained = Box::pin(self.drain_and_unmount(&drains)) => drained,
            error = given_up => Err(error),
        };
        let error = match drained {
            Ok(files) => return StopOutcome { files, failure: None },
            Err(error) => error,
        };
        let files = self.vfs.given_up_report(&drains, &error);
        // A dead mount hangs every program that looks into it, so it is removed in any case.
        if let Err(error) = self.kernel.detach().await {
            tracing::error!("{error}");
        }
        StopOutcome { files, failure: Some(error) }
    }

    /// Has no time limit of its own. `drains` gets the results that are known when this is dropped.
    async fn drain_and_unmount(&mut self, drains: &StopDrains) -> Result<DrainReport> {
        // The second drain repeats commits that fail here.
        self.vfs.drain_first(drains).await;
        self.kernel.detach().await?;
        if !self.kernel.finish(LINGER_MAX).await {
            tracing::warn!("programs still use files of the mount: their further requests will fail");
        }
        Ok(self.vfs.drain_again(drains).await)
    }
}

/// Mounts and serves until a signal or an unmount. `is_detached`: the process was started by
/// [`background::start`] and leaves the terminal once the mount answers.
pub async fn run(
    config: MountConfig,
    is_detached: bool,
    notifier: SystemdNotifier,
    report: impl Fn(Notice<'_>),
) -> Result<MountEnd> {
    let mut signals = Signals::new()?;
    preflight::raise_open_files();
    preflight::protect_memory();
    let drive_id = config.drive_id.clone();
    let progress = Progress::new();
    let (config, place) = match unless_interrupted(&mut signals, check_mountpoint(config)).await {
        Ok(checked) => checked,
        Err(error) if mountpoint::is_final(&error) => return Ok(MountEnd::NotMountable(error)),
        Err(error) => return Err(error),
    };
    let reach = Box::pin(ReachedDrive::new(config, place, progress.clone()));
    let reached = match unless_interrupted(&mut signals, reach).await {
        Ok(reached) => reached,
        // The user dismissed the prompt of the keyring: a restart must not prompt again.
        Err(error) if auth::keyring_unlock_refused() => return Ok(MountEnd::NotMountable(error)),
        Err(error) => return Err(error),
    };
    let mounted = reached.mount().await?;
    let path = mounted.kernel.path().to_owned();
    let stop_limit = if notifier.is_connected() { mounted.managed_stop_limit } else { mounted.stop_limit };
    let (vfs, mut signal_at) = (mounted.vfs.clone(), None);
    let mut supervision = Supervision::new(notifier, progress.clone(), vfs.drive().clone(), stop_limit);
    let started = tokio::select! {
        started = supervision.start(progress, &vfs, mounted.kernel.control()) => started,
        signal = signals.next() => {
            signal_at = Some(Instant::now());
            Err(interrupted(signal, "nothing is mounted"))
        }
    };
    if let Err(error) = started {
        // Programs may have used the mount already.
        finish(mounted, supervision, &mut signals, signal_at, report).await?;
        return Err(error);
    }
    report(Notice::Mounted { drive_id: drive_id.as_str(), path: &path });
    // If the command that started this process is gone, the mount was cancelled.
    let not_detached = if is_detached { background::detach().err() } else { None };
    let mut aborted = None;
    if not_detached.is_none() {
        tokio::select! {
            () = mounted.wait() => match mounted.kernel.detach_if_aborted(has_died).await {
                Ok(false) => tracing::info!("unmounted from outside"),
                detached => {
                    let detail = "the kernel aborted the connection of the mount";
                    tracing::error!("{detail}: saving open files");
                    aborted = Some(detached.err().unwrap_or_else(|| Error::new(ErrorKind::Io, detail)));
                }
            },
            () = mounted.kernel.control().lost() => {
                let detail = "the broker has ended, so the mount cannot be ended in order";
                tracing::error!("{detail}: saving open files");
                aborted = Some(Error::new(ErrorKind::Io, detail));
            }
            signal = signals.next() => {
                signal_at = Some(Instant::now());
                mounted.vfs.begin_stop();
                tracing::info!("{signal}: saving open files, then unmounting; a second signal stops at once");
            }
        }
    }
    let end = finish(mounted, supervision, &mut signals, signal_at, report).await?;
    not_detached.or(aborted).map_or(Ok(end), Err)
}

/// A signal ends work that has not mounted anything yet.
async fn unless_interrupted<T>(signals: &mut Signals, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        signal = signals.next() => Err(interrupted(signal, "nothing is mounted")),
    }
}

/// Stops the mount and reports the files that are not on the drive.
async fn finish(
    mut mounted: RunningMount,
    supervision: Supervision,
    signals: &mut Signals,
    signal_at: Option<Instant>,
    report: impl Fn(Notice<'_>),
) -> Result<MountEnd> {
    supervision.stopping();
    let vfs = mounted.vfs.clone();
    let given_up = async {
        tokio::select! {
            error = supervision.stalled() => error,
            signal = signals.second_request(signal_at) => {
                interrupted(signal, "unsaved changes are not on the drive")
            }
            never = report_waiting(&vfs, &report) => match never {},
        }
    };
    let StopOutcome { files, failure } = mounted.end(given_up).await;
    for file in &files.partly_saved {
        report(Notice::PartlySaved { path: &file.path, bytes: file.bytes });
    }
    for file in &files.unsaved {
        report(Notice::NotSaved { path: &file.path, error: &file.error });
    }
    tokio::time::timeout(TOKEN_REFRESH_END_MAX, vfs.drive().store_credentials()).await.ok();
    supervision.end(&files.unsaved);
    let is_saved = files.unsaved.is_empty();
    mounted.observers.finish(files.unsaved, failure.is_some()).await;
    if let Some(error) = failure {
        return Err(error);
    }
    if is_saved {
        report(Notice::Unmounted { path: mounted.kernel.path() });
        return Ok(MountEnd::Saved);
    }
    Ok(MountEnd::Unsaved)
}

/// Reports what a stop waits for, while it waits.
async fn report_waiting(vfs: &Vfs, report: impl Fn(Notice<'_>)) -> Infallible {
    let mut pause = WAIT_NOTICE_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        let files = vfs.unsaved_files().into_iter().filter(|file| file.status.stage != Stage::Failed);
        let files = files.map(|file| WaitingFile { path: file.path, figures: file.status.figures() });
        report(Notice::Waiting { files: &files.collect::<Vec<_>>() });
        pause = WAIT_NOTICE_INTERVAL;
    }
}

fn interrupted(signal: &str, consequence: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("interrupted by {signal}: {consequence}"))
}
