//! What a service manager and the machine are told of a mount, from the moment that it answers to the
//! moment that everything is on the drive.
//!
//! Only facts are told. Readiness and each sign of life follow a look into the mount by way of the
//! kernel, and are sent by the runtime that serves it; more time to stop is asked for only while
//! something moves.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::movement::Movement;
use super::place::is_dead;
use crate::config::quantities::show_duration;
use crate::desktop::inhibit;
use crate::error::{Error, ErrorKind, Result};
use crate::pds::auth::AuthState;
use crate::pds::drive::Drive;
use crate::status::notify::Notifier;
use crate::status::{PauseReason, Progress, Size, Unsaved};
use crate::vfs::Vfs;

/// How often what is told is looked at.
const GRAIN: Duration = Duration::from_secs(1);
/// How long the first look into a new mount may take.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(60);
/// How many signs of life are sent in the time that the service manager waits for one.
const SIGNS_PER_LIMIT: u32 = 3;
/// What is asked for beyond the time that this program gives itself to stop.
const EXTENSION_MARGIN: Duration = Duration::from_secs(30);

/// The talk about one mount; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Supervision {
    notifier: Arc<Notifier>,
    movement: Movement,
    is_stopping: watch::Sender<bool>,
    /// Stopping is given up when nothing has moved for so long.
    standstill_max: Duration,
    _tasks: JoinSet<()>,
}

impl Supervision {
    /// Looks into the mount and tells that it is ready. Must be called on a runtime.
    pub(super) async fn begin(
        notifier: Notifier,
        progress: Arc<Progress>,
        vfs: &Arc<Vfs>,
        path: &Path,
        standstill_max: Duration,
    ) -> Result<Self> {
        let (notifier, drive) = (Arc::new(notifier), vfs.drive().clone());
        let (is_stopping, stops) = watch::channel(false);
        let (reasons, reason) = watch::channel(None);
        let mut tasks = JoinSet::new();
        first_look(path, notifier.is_heard()).await?;
        notifier.ready();
        if let Some(limit) = notifier.watchdog() {
            tasks.spawn(show_life(notifier.clone(), path.to_owned(), limit / SIGNS_PER_LIMIT));
        }
        tasks.spawn(follow_reach(drive.clone(), progress.clone()));
        tasks.spawn(follow_login(drive.clone(), progress.clone()));
        tasks.spawn(tell(notifier.clone(), Arc::downgrade(vfs), progress.clone(), stops, reasons));
        tasks.spawn(inhibit::keep(reason));
        let movement = Movement::new(progress, drive);
        Ok(Self { notifier, movement, is_stopping, standstill_max, _tasks: tasks })
    }

    /// The mount is on its way out.
    pub(super) fn stopping(&self) {
        self.is_stopping.send_replace(true);
        self.notifier.stopping();
    }

    /// Asks for more time while something moves. Resolves when nothing has moved for so long that stopping is
    /// given up.
    pub(super) async fn standstill(&self) -> Error {
        let more = || self.notifier.extend(self.standstill_max + EXTENSION_MARGIN);
        self.movement.standstill(self.standstill_max, more).await
    }
}

/// Keeps the status line and the reason against sleep up to date.
async fn tell(
    notifier: Arc<Notifier>,
    vfs: Weak<Vfs>,
    progress: Arc<Progress>,
    stops: watch::Receiver<bool>,
    reasons: watch::Sender<Option<String>>,
) {
    let mut told = String::new();
    let mut activity = Activity::new(Instant::now());
    let mut ticks = tokio::time::interval(GRAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(unsaved) = vfs.upgrade().map(|vfs| vfs.unsaved_sum()) else { return };
        let line = status_line(&progress, &unsaved, *stops.borrow());
        if line != told {
            notifier.status(&line);
            told = line;
        }
        let bytes_written = progress.totals().bytes_written;
        let is_paused = !progress.pauses().is_empty();
        let is_unsaved = activity.is_unsaved(&unsaved, bytes_written, is_paused, Instant::now());
        let reason = is_unsaved.then(|| unsaved.to_string());
        reasons.send_if_modified(|now| std::mem::replace(now, reason.clone()) != reason);
    }
}

fn status_line(progress: &Progress, unsaved: &Unsaved, is_stopping: bool) -> String {
    let line = match (unsaved.files, is_stopping) {
        (0, true) => "unmounting".to_owned(),
        (0, false) => {
            let totals = progress.totals();
            let files = totals.files_committed();
            let noun = if files == 1 { "file" } else { "files" };
            let saved = format!("{files} {noun} ({}) saved since the start", Size(totals.bytes_committed));
            match totals.files_failed {
                0 => format!("nothing to save; {saved}"),
                failed => format!("nothing to save; {saved}, {failed} failed"),
            }
        }
        (_, true) => format!("saving before unmounting: {unsaved}"),
        (_, false) => format!("saving: {unsaved}"),
    };
    match (progress.pauses().first().map(|pause| pause.reason), unsaved.eta) {
        (Some(PauseReason::LoginNeeded), _) => format!("paused: login needed (pdsfs login); {line}"),
        (Some(reason), _) => format!("paused: {}; {line}", reason.name()),
        (None, Some(eta)) => format!("{line}, {}", show_duration(Duration::from_secs(eta.as_secs().max(1)))),
        (None, None) => line,
    }
}

/// Whether files that are written are still being written. One that a program merely keeps open is no
/// reason to keep the machine awake: stopping saves it, and sleep does not harm it. Nor is one that waits for a
/// network or a login: that may take days.
#[derive(Debug)]
struct Activity {
    seen: (u64, u64),
    since: Instant,
}

impl Activity {
    /// A file that nobody writes to for so long is merely open.
    const IDLE_MAX: Duration = Duration::from_secs(60);
    /// A pause that lasts so long is not about to end.
    const PAUSED_MAX: Duration = Duration::from_secs(600);

    fn new(now: Instant) -> Self {
        Self { seen: (0, 0), since: now }
    }

    fn is_unsaved(&mut self, unsaved: &Unsaved, bytes_written: u64, is_paused: bool, now: Instant) -> bool {
        let seen = (bytes_written, unsaved.bytes);
        if seen != self.seen {
            (self.seen, self.since) = (seen, now);
        }
        let idle = now.saturating_duration_since(self.since);
        let is_committing = unsaved.committing > 0 && !(is_paused && idle >= Self::PAUSED_MAX);
        is_committing || unsaved.files > 0 && idle < Self::IDLE_MAX
    }
}

/// Passes on whether the service can be reached.
async fn follow_reach(drive: Drive, progress: Arc<Progress>) {
    let mut online = drive.online();
    loop {
        if *online.borrow_and_update() {
            progress.resume(PauseReason::Offline);
        } else {
            progress.pause(PauseReason::Offline, "the service cannot be reached");
        }
        if online.changed().await.is_err() {
            return;
        }
    }
}

/// Passes on whether the service takes us.
async fn follow_login(drive: Drive, progress: Arc<Progress>) {
    let mut states = drive.auth_state();
    loop {
        match &*states.borrow_and_update() {
            AuthState::Fine => drop(progress.resume(PauseReason::LoginNeeded)),
            AuthState::Dead { reason, .. } => drop(progress.pause(PauseReason::LoginNeeded, reason)),
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Tells, again and again, that the mount has just answered.
async fn show_life(notifier: Arc<Notifier>, path: PathBuf, pause: Duration) {
    loop {
        let looked_at = path.clone();
        match tokio::task::spawn_blocking(move || look(&looked_at)).await {
            Ok(Ok(())) => notifier.alive(),
            Ok(Err(e)) if !is_dead(&e) => notifier.alive(),
            outcome => tracing::error!(?outcome, "the mount does not answer"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// With `lists`, the whole way to the drive and back is gone.
async fn first_look(path: &Path, lists: bool) -> Result<()> {
    let looked_at = path.to_owned();
    let look = tokio::task::spawn_blocking(move || {
        look(&looked_at)?;
        if lists { looked_at.read_dir()?.next().transpose().map(|_| ()) } else { Ok(()) }
    });
    let outcome = match tokio::time::timeout(FIRST_LOOK_MAX, look).await {
        Ok(Ok(outcome)) => outcome.map_err(Error::from),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Io, e.to_string())),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "no answer")),
    };
    outcome.map_err(|e| e.context(format!("the new mount at {} cannot be looked into", path.display())))
}

/// Asks the daemon behind a mount for the attributes of its root, whatever the kernel has of them.
/// Blocks for as long as the mount hangs.
pub(super) fn look(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: zeroed is a valid statx; path and buffer outlive the call.
    let failed = unsafe {
        let mut answer: libc::statx = std::mem::zeroed();
        let flags = libc::AT_STATX_FORCE_SYNC | libc::AT_SYMLINK_NOFOLLOW;
        libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut answer) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Commit;

    #[test]
    fn the_status_says_what_is_left() {
        let progress = Progress::new();
        let one = Unsaved { files: 1, bytes: 3 << 20, ..Unsaved::default() };
        let line = |stopping| status_line(&progress, &one, stopping);
        let idle = |stopping| status_line(&progress, &Unsaved::default(), stopping);
        assert_eq!(idle(false), "nothing to save; 0 files (0 B) saved since the start");
        assert_eq!(line(false), "saving: 1 file, 3.0 MiB left");
        assert_eq!(line(true), "saving before unmounting: 1 file, 3.0 MiB left");
        assert_eq!(status_line(&progress, &one.at_rate(1 << 20), false), "saving: 1 file, 3.0 MiB left, 3s");
        progress.pause(PauseReason::Offline, "no route");
        assert_eq!(line(false), "paused: offline; saving: 1 file, 3.0 MiB left");
        progress.pause(PauseReason::LoginNeeded, "refused");
        assert!(line(false).starts_with("paused: login needed"), "what a person has to do comes first");
        progress.resume(PauseReason::LoginNeeded);
        progress.resume(PauseReason::Offline);
        progress.begin("a").committed(3 << 20, Commit::Uploaded);
        progress.begin("b").failed(&Error::new(ErrorKind::Io, "x"));
        assert_eq!(idle(false), "nothing to save; 1 file (3.0 MiB) saved since the start, 1 failed");
        assert_eq!(idle(true), "unmounting");
    }

    #[test]
    fn an_open_file_that_nobody_writes_to_is_not_waited_for() {
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        let mut activity = Activity::new(start);
        let writing = Unsaved { files: 1, bytes: 100, ..Unsaved::default() };
        let mut is_unsaved = |unsaved: &Unsaved, bytes, at| activity.is_unsaved(unsaved, bytes, false, at);
        assert!(!is_unsaved(&Unsaved::default(), 0, start));
        assert!(is_unsaved(&writing, 100, later(1)));
        assert!(is_unsaved(&writing, 100, later(60)));
        assert!(!is_unsaved(&writing, 100, later(61)));
        assert!(is_unsaved(&writing, 101, later(62)), "it is written to again");
        let committing = Unsaved { committing: 1, ..writing };
        assert!(is_unsaved(&committing, 101, later(900)), "a commit is always waited for");
        assert!(!is_unsaved(&Unsaved::default(), 101, later(901)));
    }

    #[test]
    fn what_is_parked_does_not_keep_the_machine_awake_for_ever() {
        let start = Instant::now();
        let later = |s| start + Duration::from_secs(s);
        let mut activity = Activity::new(start);
        let parked = Unsaved { files: 1, committing: 1, bytes: 100, ..Unsaved::default() };
        assert!(activity.is_unsaved(&parked, 100, true, start));
        assert!(activity.is_unsaved(&parked, 100, true, later(599)), "it may go on soon");
        assert!(!activity.is_unsaved(&parked, 100, true, later(600)));
        assert!(activity.is_unsaved(&parked, 100, false, later(601)), "it goes on");
    }

    #[test]
    fn a_look_finds_what_is_there() {
        look(Path::new("/")).unwrap();
        assert_eq!(look(Path::new("/no/such/folder")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
