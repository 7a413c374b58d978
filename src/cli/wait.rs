//! `pdsfs wait`: returns when everything is on the drive.
//!
//! An open file counts while it has unsaved changes; `--closed` leaves open files out. An open file without
//! unsaved changes, such as an idle log, never counts. The command does not cause commits.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::mounts::UsersArgs;
use super::output::{EXIT_TIMEOUT, print_message};
use super::{format, mounts};
use crate::control::client::{AnswerBudget, DaemonClient};
use crate::control::types::{EventKind, LogEntry, Status, TransferStage, TransferStatus};
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::messages::status as messages;
use crate::status::Figures;
use crate::units::duration_within;

/// Interval between two status requests.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Files named after a timeout.
const NAMES_MAX: usize = 10;
/// Longest timeout, in seconds: a year.
const TIMEOUT_MAX_S: u64 = 366 * 86_400;

#[derive(Debug, Args)]
#[command(
    after_help = "An open file with unsaved changes counts as not on the drive, even while its program is \
        idle; --closed leaves open files out. Exit codes: 0 everything is on the drive, 1 a file was not \
        saved or a mount does not answer (stderr has names and reasons), 3 timed out."
)]
pub(super) struct WaitArgs {
    /// Give up after this time
    #[arg(long, value_name = "DURATION", value_parser = duration_within(0, TIMEOUT_MAX_S))]
    timeout: Option<Duration>,
    /// Do not wait for files that programs have open for writing
    #[arg(long)]
    closed: bool,
    #[command(flatten)]
    users: UsersArgs,
    /// Only this mount, by mountpoint or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

/// A mount that the command waits for.
#[derive(Debug)]
struct WatchedMount {
    daemon: DaemonClient,
    initial: Status,
    now: Status,
}

impl WatchedMount {
    fn new(daemon: DaemonClient, initial: Status) -> Self {
        Self { daemon, now: initial.clone(), initial }
    }

    /// Files that have failed since `initial` and were not saved since.
    fn failures(&self) -> impl Iterator<Item = &LogEntry> {
        let is_old = |entry: &LogEntry| {
            let is_same = |old: &LogEntry| (old.at_ms, &old.path) == (entry.at_ms, &entry.path);
            self.initial.failures.iter().any(is_same)
        };
        self.now.failures.iter().filter(move |entry| !is_old(entry))
    }

    fn files_left(&self, closed: bool) -> u64 {
        let pending = &self.now.pending;
        if closed { pending.files.saturating_sub(pending.files_open) } else { pending.files }
    }

    fn attributes_left(&self) -> u64 {
        self.now.pending.attributes
    }

    /// Failed files; they are listed while a program has them open.
    fn failed_open(&self) -> impl Iterator<Item = &TransferStatus> {
        self.now.transfers.iter().filter(|file| file.state == TransferStage::Failed)
    }

    /// Failed files that the list leaves out, if there are more than before.
    fn unlisted(&self) -> u64 {
        let (before, now) = (self.initial.pending.files_failed, self.now.pending.files_failed);
        let listed = self.now.failures.iter().filter(|entry| entry.what == EventKind::Failed).count() as u64;
        now.saturating_sub(before.max(listed))
    }

    /// Bytes sent since `initial`.
    fn bytes_done(&self) -> u64 {
        self.now.totals.bytes_sent.saturating_sub(self.initial.totals.bytes_sent)
    }

    /// The figures of the unsaved files, if there are any.
    fn figures(&self) -> Option<Figures> {
        let figures = || self.now.pending.figures(self.now.totals.rate_bytes_s);
        (self.now.pending.files > 0).then(figures)
    }

    /// The files that the command waits for, as lines for people.
    fn pending_lines(&self, closed: bool) -> Vec<String> {
        let is_pending = |state| match state {
            TransferStage::Committing | TransferStage::Unknown => true,
            TransferStage::Writing | TransferStage::Staged => !closed,
            TransferStage::Failed | TransferStage::Saved | TransferStage::Local => false,
        };
        let files = self.now.transfers.iter().filter(|file| is_pending(file.state));
        files
            .map(|file| format!("{}{}: {}", self.now.mountpoint, file.path, format::state_name(file.state)))
            .map(|line| format::printable(&line))
            .collect()
    }
}

pub(super) async fn run(args: WaitArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let deadline = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let users = args.users.of(args.mount.as_deref());
    let found = tokio::select! {
        found = mounts::answering_and_silent(args.mount.as_deref(), users) => found,
        () = until(deadline) => {
            print_message("pdsfs: timed out, and not all mounts have answered (see pdsfs status)");
            return Ok(ExitCode::from(EXIT_TIMEOUT));
        }
        signal = signals.next() => return Err(interrupted(signal)),
    };
    let (found, silent) = found?;
    if !silent.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, silent.join("; ")));
    }
    if found.is_empty() {
        print_message(messages::no_mounts());
    }
    let mut watched: Vec<_> =
        found.into_iter().map(|(daemon, status)| WatchedMount::new(daemon, status)).collect();
    let bar = bar();
    if bar.is_hidden() && !is_done(&watched, args.closed) {
        print_message(messages::waiting_for(&remaining(&watched, args.closed)));
    }
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let outcome = loop {
        show(&bar, &watched, args.closed);
        if is_done(&watched, args.closed) {
            break Ok(report_failures(&watched));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break Ok(report_timeout(&watched, args.closed));
        }
        tokio::select! {
            _ = ticks.tick() => {}
            signal = signals.next() => break Err(interrupted(signal)),
        }
        // A busy daemon may answer late; that delays neither the deadline nor a signal.
        let polled = tokio::select! {
            polled = poll(&mut watched) => polled,
            () = until(deadline) => Ok(()),
            signal = signals.next() => Err(interrupted(signal)),
        };
        if let Err(error) = polled {
            break Err(error);
        }
    };
    let is_interactive = !bar.is_hidden();
    bar.finish_and_clear();
    if is_interactive
        && !args.closed
        && !watched.is_empty()
        && outcome.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS)
    {
        print_message(messages::everything_saved());
    }
    outcome
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn interrupted(signal: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("interrupted by {signal}; the mounts are not affected"))
}

/// Requests the status of all mounts at once. The next round repeats a request that failed.
async fn poll(watched: &mut [WatchedMount]) -> Result<()> {
    let budget = AnswerBudget::for_one_round();
    let requests: Vec<_> = watched
        .iter()
        .map(|mount| {
            let (daemon, budget) = (mount.daemon.clone(), budget.clone());
            tokio::spawn(async move { daemon.status(&budget).await })
        })
        .collect();
    for (mount, request) in watched.iter_mut().zip(requests) {
        match request.await.map_err(|e| Error::from_source(ErrorKind::Io, e))? {
            Ok(now) => mount.now = now,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mountpoint = format::printable(&mount.now.mountpoint);
                let ended = format!(
                    "the mount at {mountpoint} has ended; its exit code shows whether everything was saved"
                );
                return Err(error.context(ended));
            }
            Err(error) => {
                let mountpoint = format::printable(&mount.now.mountpoint);
                tracing::warn!("cannot get the status of {mountpoint}, trying again: {error}");
            }
        }
    }
    Ok(())
}

fn is_done(watched: &[WatchedMount], closed: bool) -> bool {
    watched.iter().all(|mount| mount.files_left(closed) == 0 && mount.attributes_left() == 0)
}

/// The files, bytes and attribute changes to wait for, in words.
fn remaining(watched: &[WatchedMount], closed: bool) -> String {
    let files = watched.iter().map(|mount| mount.files_left(closed)).sum();
    let contents = format!("{}: {}", format::count(files, "file"), figures(watched));
    let attributes = match watched.iter().map(WatchedMount::attributes_left).sum() {
        0 => return contents,
        changes => format::count(changes, "attribute change"),
    };
    if files == 0 { attributes } else { format!("{contents}, and {attributes}") }
}

/// The figures of all mounts together.
fn figures(watched: &[WatchedMount]) -> Figures {
    let rate = watched.iter().map(|mount| mount.now.totals.rate_bytes_s).sum();
    Figures::sum(watched.iter().filter_map(WatchedMount::figures), rate)
}

fn report_failures(watched: &[WatchedMount]) -> ExitCode {
    for mount in watched {
        for entry in mount.failures() {
            let path = format!("{}{}", mount.now.mountpoint, entry.path.as_deref().unwrap_or_default());
            print_message(format::not_saved(&path, &format::reason(&entry.text, entry.cause.as_ref())));
        }
    }
    for mount in watched {
        for file in mount.failed_open() {
            let path = format::printable(&format!("{}{}", mount.now.mountpoint, file.path));
            let error = file.error.as_deref().unwrap_or_default();
            let why = format::printable(&format::reason(error, file.cause.as_ref()));
            print_message(messages::not_saved_still_open(&path, &why));
        }
    }
    let unlisted = watched.iter().map(WatchedMount::unlisted).sum::<u64>();
    if unlisted > 0 {
        print_message(format_args!("pdsfs: {} not saved", format::count(unlisted, "more file")));
    }
    let failed = watched.iter().any(|mount| {
        mount.unlisted() > 0 || mount.now.pending.files_failed_open > 0 || mount.failures().next().is_some()
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report_timeout(watched: &[WatchedMount], closed: bool) -> ExitCode {
    report_failures(watched);
    print_message(messages::wait_timed_out(&remaining(watched, closed)));
    for line in watched.iter().flat_map(|mount| mount.pending_lines(closed)).take(NAMES_MAX) {
        print_message(format_args!("  {line}"));
    }
    ExitCode::from(EXIT_TIMEOUT)
}

fn bar() -> ProgressBar {
    // Draws to stderr, and only if that is a terminal.
    let style = ProgressStyle::with_template("{bar:30.cyan/dim} {wide_msg}");
    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, watched: &[WatchedMount], closed: bool) {
    let done = watched.iter().map(WatchedMount::bytes_done).sum::<u64>();
    bar.set_length((done + figures(watched).waiting).max(1));
    bar.set_position(done);
    let paused =
        watched.iter().find_map(|mount| format::pause_line(&mount.now)).map(|text| format!("  {text}"));
    let mut files = watched.iter().flat_map(|mount| &mount.now.transfers);
    let retry = files.find_map(TransferStatus::retry).map(|retry| format!("  {retry}"));
    let why = paused.or(retry).unwrap_or_default();
    bar.set_message(format!("{}{}", remaining(watched, closed), format::printable(&why)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::table::tests::busy;
    use crate::control::types::PendingTotals;

    fn watched(status: Status) -> WatchedMount {
        WatchedMount::new(DaemonClient::at("/nowhere".into()), status)
    }

    #[test]
    fn open_files_count_without_closed_flag() {
        let pending = PendingTotals { files: 3, files_open: 2, attributes: 1, ..PendingTotals::default() };
        let mount = watched(Status { pending, ..Status::default() });
        assert_eq!((mount.files_left(false), mount.files_left(true)), (3, 1));
    }

    #[test]
    fn attribute_changes_are_counted_apart() {
        let words = |pending| remaining(&[watched(Status { pending, ..Status::default() })], false);
        let attributes = PendingTotals { attributes: 1, ..PendingTotals::default() };
        assert_eq!(words(attributes.clone()), "1 attribute change");
        let both =
            PendingTotals { files: 3, bytes_waiting: 5 << 20, attributes: 2, ..PendingTotals::default() };
        assert_eq!(words(both), "3 files: 0 B sent, 5.0 MiB waiting, and 2 attribute changes");
        let closed = PendingTotals { files: 1, size_known: true, bytes_sent: 7, ..PendingTotals::default() };
        assert_eq!(words(closed), "1 file: 100 % of 7 B");
        assert!(!is_done(&[watched(Status { pending: attributes, ..Status::default() })], true));
    }

    #[test]
    fn earlier_and_repaired_failures_do_not_count() {
        let mut mount = watched(busy());
        assert_eq!(mount.failures().count(), 0, "an old failure was counted");
        mount.now.failures[0].at_ms = 5;
        assert_eq!(mount.failures().count(), 1, "the file has failed again");
        mount.now.failures.clear();
        assert_eq!((mount.failures().count(), mount.unlisted()), (0, 0), "the file was saved");
        mount.now.pending.files_failed = 60;
        mount.now.failures = vec![busy().failures[0].clone(); 50];
        assert_eq!(mount.unlisted(), 10);
    }

    #[test]
    fn timeout_names_pending_files() {
        let mut status = busy();
        status.transfers[1].state = TransferStage::Writing;
        let mount = watched(status);
        assert_eq!(mount.pending_lines(true), ["/mnt/movie.mp4: committing"]);
        assert_eq!(mount.pending_lines(false).len(), 2);
    }
}
