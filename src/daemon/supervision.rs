//! Reports the state of a mount to the service manager and to logind, from the first answer of the mount
//! until everything is on the drive.
//!
//! Each report follows from a fact. Readiness and watchdog messages follow a request to the mount through the
//! kernel, sent from the runtime that serves it. The stop timeout is extended only while there is progress.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::liveness::is_dead;
use super::progress_watch::ProgressWatch;
use crate::desktop::inhibit;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::MountControl;
use crate::pds::drive::Drive;
use crate::pds::tokens::AuthState;
use crate::status::systemd::SystemdNotifier;
use crate::status::{PauseReason, Progress, UnsavedSummary};
use crate::supervised;
use crate::units::{Size, count, exact_duration};
use crate::vfs::{UnsavedFile, Vfs};

/// Interval of status updates.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Paths in a status line.
const NAMES_MAX: usize = 3;
/// Limit on the first request to a new mount.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(60);
/// Watchdog messages in each watchdog timeout.
const MESSAGES_PER_TIMEOUT: u32 = 3;
/// Added to the stop limit of this program when the stop timeout of the service manager is extended.
const EXTENSION_MARGIN: Duration = Duration::from_secs(30);

/// Reports about one mount; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Supervision {
    notifier: Arc<SystemdNotifier>,
    progress_watch: ProgressWatch,
    is_stopping: watch::Sender<bool>,
    /// A stop without progress for this time is aborted.
    stop_limit: Duration,
    tasks: JoinSet<()>,
}

impl Supervision {
    /// Reports nothing before [`Self::start`].
    pub(super) fn new(
        notifier: SystemdNotifier,
        progress: Arc<Progress>,
        drive: Drive,
        stop_limit: Duration,
    ) -> Self {
        let progress_watch = ProgressWatch::new(progress, drive);
        let (is_stopping, _) = watch::channel(false);
        Self { notifier: Arc::new(notifier), progress_watch, is_stopping, stop_limit, tasks: JoinSet::new() }
    }

    /// Checks that the mount answers, then reports readiness. Must be called on a runtime.
    pub(super) async fn start(
        &mut self,
        progress: Arc<Progress>,
        vfs: &Arc<Vfs>,
        mount: &MountControl,
    ) -> Result<()> {
        let (notifier, drive, tasks) = (&self.notifier, vfs.drive().clone(), &mut self.tasks);
        check_new_mount(vfs, mount, notifier.is_connected()).await?;
        notifier.ready();
        if let Some(limit) = notifier.watchdog() {
            let (notifier, mount, pause) = (notifier.clone(), mount.clone(), limit / MESSAGES_PER_TIMEOUT);
            let send = move || send_watchdog(notifier.clone(), mount.clone(), pause);
            tasks.spawn(supervised::run("watchdog", send));
        }
        let shared = (drive.clone(), progress.clone());
        tasks.spawn(supervised::run("pauses", move || {
            follow_connectivity(shared.0.clone(), shared.1.clone())
        }));
        let shared = (drive, progress.clone());
        tasks.spawn(supervised::run("login state", move || follow_login(shared.0.clone(), shared.1.clone())));
        let (inhibit_tx, inhibit_reason) = watch::channel(None);
        let (notifier, weak, stopping) =
            (notifier.clone(), Arc::downgrade(vfs), self.is_stopping.subscribe());
        tasks.spawn(supervised::run("status line", move || {
            let (notifier, vfs, progress) = (notifier.clone(), weak.clone(), progress.clone());
            publish_status(notifier, vfs, progress, stopping.clone(), inhibit_tx.clone())
        }));
        tasks.spawn(supervised::run("sleep inhibitor", move || {
            inhibit::hold_while_needed(inhibit_reason.clone())
        }));
        Ok(())
    }

    /// Reports that the mount is about to stop.
    pub(super) fn stopping(&self) {
        self.is_stopping.send_replace(true);
        self.notifier.stopping();
    }

    /// Ends the reports, and sends the last status line.
    pub(super) fn end(self, unsaved: &[UnsavedFile]) {
        if let Some(line) = end_line(unsaved) {
            self.notifier.last_status(&line);
        }
    }

    /// Extends the stop timeout while there is progress. Resolves after the stop limit without progress.
    pub(super) async fn stalled(&self) -> Error {
        let extend = || self.notifier.extend_timeout(self.stop_limit + EXTENSION_MARGIN);
        self.progress_watch.stalled(self.stop_limit, extend).await
    }
}

/// Updates the status line of the service manager and the reason that inhibits sleep.
async fn publish_status(
    notifier: Arc<SystemdNotifier>,
    vfs: Weak<Vfs>,
    progress: Arc<Progress>,
    is_stopping: watch::Receiver<bool>,
    inhibit_reason: watch::Sender<Option<String>>,
) {
    let mut last_line = String::new();
    let mut activity = SaveActivity::new(Instant::now());
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(vfs) = vfs.upgrade() else { return };
        let (unsaved, is_stopping) = (vfs.unsaved_sum(), *is_stopping.borrow());
        let paths = if is_stopping { vfs.unsaved_files() } else { Vec::new() };
        drop(vfs);
        let line =
            status_line(&progress, &unsaved, is_stopping.then(|| paths.iter().map(|file| &*file.path)));
        if line != last_line {
            notifier.status(&line);
            last_line = line;
        }
        let bytes_written = progress.totals().bytes_written;
        let is_paused = !progress.pauses().is_empty();
        let inhibits_sleep = activity.inhibits_sleep(&unsaved, bytes_written, is_paused, Instant::now());
        let reason = inhibits_sleep.then(|| unsaved.to_string());
        inhibit_reason.send_if_modified(|now| std::mem::replace(now, reason.clone()) != reason);
    }
}

/// The status line of the unit. A stop shows the `waiting` paths.
fn status_line<'a>(
    progress: &Progress,
    unsaved: &UnsavedSummary,
    waiting: Option<impl Iterator<Item = &'a str>>,
) -> String {
    let line = match (unsaved.files, waiting) {
        (0, Some(_)) => "unmounting".to_owned(),
        (0, None) => {
            let totals = progress.totals();
            let files = totals.files_committed();
            let noun = if files == 1 { "file" } else { "files" };
            let saved = format!("{files} {noun} ({}) saved since the start", Size(totals.bytes_committed));
            match progress.failed_file_count() {
                0 => format!("nothing to save; {saved}"),
                failed => format!("nothing to save; {saved}, {failed} not saved"),
            }
        }
        (_, Some(paths)) => {
            let files = count(unsaved.files, "file");
            format!("saving before unmounting: {files} ({}), {}", some_of(paths), unsaved.figures)
        }
        (_, None) => format!("saving: {}, {}", count(unsaved.files, "file"), unsaved.figures),
    };
    match progress.pauses().first().map(|pause| pause.reason) {
        Some(PauseReason::LoginNeeded) => format!("paused: login needed (pdsfs login); {line}"),
        Some(reason) => format!("paused: {}; {line}", reason.name()),
        None => line,
    }
}

/// The last status line of a mount that leaves files unsaved.
fn end_line(unsaved: &[UnsavedFile]) -> Option<String> {
    match unsaved {
        [] => None,
        [file] => Some(format!("1 file not saved: {}: {}", file.path, file.error)),
        files => {
            let paths = some_of(files.iter().map(|file| &*file.path));
            Some(format!("{} not saved: {paths}", count(files.len() as u64, "file")))
        }
    }
}

/// The first few paths, and the number of the others.
fn some_of<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<_> = paths.by_ref().take(NAMES_MAX).collect();
    let shown = shown.join(", ");
    match paths.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Decides whether unsaved files keep the machine awake.
///
/// A file that is only kept open does not: a stop saves it, and sleep does no harm. A commit that waits for
/// the network or a login does not either: that may take days.
#[derive(Debug)]
struct SaveActivity {
    /// Bytes written and bytes unsaved at `since`.
    last_counts: (u64, u64),
    since: Instant,
}

impl SaveActivity {
    /// After this time without a write, open files are only kept open.
    const IDLE_MAX: Duration = Duration::from_secs(60);
    /// After this time a pause is not expected to end soon.
    const PAUSED_MAX: Duration = Duration::from_secs(600);

    fn new(now: Instant) -> Self {
        Self { last_counts: (0, 0), since: now }
    }

    fn inhibits_sleep(
        &mut self,
        unsaved: &UnsavedSummary,
        bytes_written: u64,
        is_paused: bool,
        now: Instant,
    ) -> bool {
        let counts = (bytes_written, unsaved.bytes);
        if counts != self.last_counts {
            (self.last_counts, self.since) = (counts, now);
        }
        let idle = now.saturating_duration_since(self.since);
        let is_committing = unsaved.committing > 0 && !(is_paused && idle >= Self::PAUSED_MAX);
        is_committing || unsaved.files > 0 && idle < Self::IDLE_MAX
    }
}

/// Pauses and resumes with the connectivity of the drive.
async fn follow_connectivity(drive: Drive, progress: Arc<Progress>) {
    let mut online = drive.online();
    loop {
        if *online.borrow_and_update() {
            if progress.resume(PauseReason::Offline) {
                tracing::info!("the drive can be reached again");
            }
        } else {
            let cause = drive.outage();
            if progress.pause(PauseReason::Offline, &cause.to_string(), Some(&cause)) {
                tracing::warn!(op = "pause", "the drive cannot be reached; transfers wait: {cause}");
            }
        }
        if online.changed().await.is_err() {
            return;
        }
    }
}

/// Pauses while a login is needed.
async fn follow_login(drive: Drive, progress: Arc<Progress>) {
    let mut states = drive.auth_state();
    loop {
        match &*states.borrow_and_update() {
            AuthState::Valid => drop(progress.resume(PauseReason::LoginNeeded)),
            AuthState::Revoked { reason, cause, .. } => {
                if progress.pause(PauseReason::LoginNeeded, reason, cause.as_ref()) {
                    tracing::error!(op = "pause", "{reason}; uploads wait until then");
                }
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Sends a watchdog message after each answer of the mount.
async fn send_watchdog(notifier: Arc<SystemdNotifier>, mount: MountControl, pause: Duration) {
    loop {
        let probed = mount.clone();
        match tokio::task::spawn_blocking(move || probed.probe()).await {
            Ok(Ok(())) => notifier.keep_alive(),
            Ok(Err(e)) if !is_dead(&e) => notifier.keep_alive(),
            outcome => tracing::error!(
                ?outcome,
                "the mount does not answer: without a watchdog message, systemd restarts the unit"
            ),
        }
        tokio::time::sleep(pause).await;
    }
}

/// `with_listing` also lists the root directory, which needs the drive.
async fn check_new_mount(vfs: &Vfs, mount: &MountControl, with_listing: bool) -> Result<()> {
    let probed = mount.clone();
    let answer = async {
        let probed = tokio::task::spawn_blocking(move || probed.probe()).await;
        probed.map_err(|e| Error::from_source(ErrorKind::Io, e))??;
        // Not through the kernel, which would lock the directory until the drive answers.
        if with_listing { vfs.check_root_listing().await } else { Ok(()) }
    };
    let outcome = tokio::time::timeout(FIRST_ANSWER_MAX, answer).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {}", exact_duration(FIRST_ANSWER_MAX));
        Err(Error::new(ErrorKind::Timeout, detail))
    });
    outcome.map_err(|e| e.context(format!("the new mount at {} does not work", mount.mount().path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ino;
    use crate::status::{CommitMethod, Figures};

    #[test]
    fn status_line_shows_unsaved_and_pauses() {
        let progress = Progress::new();
        let figures = Figures::new(6 << 20, 3 << 20, true, 0);
        let one = UnsavedSummary { files: 1, bytes: 3 << 20, figures, ..UnsavedSummary::default() };
        let waiting = |stopping: bool| stopping.then(|| ["/a"].into_iter());
        let line = |stopping| status_line(&progress, &one, waiting(stopping));
        let idle = |stopping| status_line(&progress, &UnsavedSummary::default(), waiting(stopping));
        assert_eq!(idle(false), "nothing to save; 0 files (0 B) saved since the start");
        assert_eq!(line(false), "saving: 1 file, 50 % of 6.0 MiB");
        assert_eq!(line(true), "saving before unmounting: 1 file (/a), 50 % of 6.0 MiB");
        assert_eq!(
            status_line(
                &progress,
                &UnsavedSummary { figures: Figures { rate_bytes_s: 1 << 20, ..figures }, ..one },
                waiting(false)
            ),
            "saving: 1 file, 50 % of 6.0 MiB, 1.0 MiB/s, 3.0 s left"
        );
        progress.pause(PauseReason::Offline, "no route", None);
        assert_eq!(line(false), "paused: offline; saving: 1 file, 50 % of 6.0 MiB");
        progress.pause(PauseReason::LoginNeeded, "refused", None);
        assert!(
            line(false).starts_with("paused: login needed"),
            "the reason that needs a person comes first"
        );
        progress.resume(PauseReason::LoginNeeded);
        progress.resume(PauseReason::Offline);
        progress.begin(Ino(1), "a").committed(3 << 20, CommitMethod::Uploaded);
        progress.begin(Ino(2), "b").failed(&Error::new(ErrorKind::Io, "x"));
        assert_eq!(idle(false), "nothing to save; 1 file (3.0 MiB) saved since the start, 1 not saved");
        assert_eq!(idle(true), "unmounting");
    }

    #[test]
    fn end_line_names_the_unsaved_files() {
        let file = |path: &str| UnsavedFile {
            ino: None,
            path: path.to_owned(),
            error: Error::new(ErrorKind::Stopping, "still writing"),
        };
        assert_eq!(end_line(&[]), None);
        assert_eq!(end_line(&[file("/a")]).unwrap(), "1 file not saved: /a: still writing");
        let five = ["/a", "/b", "/c", "/d", "/e"].map(file);
        assert_eq!(end_line(&five).unwrap(), "5 files not saved: /a, /b, /c and 2 more");
    }

    #[test]
    fn idle_open_file_does_not_inhibit_sleep() {
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        let mut activity = SaveActivity::new(start);
        let writing = UnsavedSummary { files: 1, bytes: 100, ..UnsavedSummary::default() };
        let mut is_unsaved =
            |unsaved: &UnsavedSummary, bytes, at| activity.inhibits_sleep(unsaved, bytes, false, at);
        assert!(!is_unsaved(&UnsavedSummary::default(), 0, start));
        assert!(is_unsaved(&writing, 100, later(1)));
        assert!(is_unsaved(&writing, 100, later(60)));
        assert!(!is_unsaved(&writing, 100, later(61)));
        assert!(is_unsaved(&writing, 101, later(62)), "another write");
        let committing = UnsavedSummary { committing: 1, ..writing };
        assert!(is_unsaved(&committing, 101, later(900)), "a commit always counts");
        assert!(!is_unsaved(&UnsavedSummary::default(), 101, later(901)));
    }

    #[test]
    fn long_pause_does_not_inhibit_sleep() {
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        let mut activity = SaveActivity::new(start);
        let parked = UnsavedSummary { files: 1, committing: 1, bytes: 100, ..UnsavedSummary::default() };
        assert!(activity.inhibits_sleep(&parked, 100, true, start));
        assert!(activity.inhibits_sleep(&parked, 100, true, later(599)), "the pause may end soon");
        assert!(!activity.inhibits_sleep(&parked, 100, true, later(600)));
        assert!(activity.inhibits_sleep(&parked, 100, false, later(601)), "resumed");
    }
}
