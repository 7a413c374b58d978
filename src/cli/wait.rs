//! `pdsfs wait`: returns when everything is on the drive.
//!
//! A file that a program has open counts for as long as something of it is unsaved: half a file on the drive is
//! no file. Nothing is committed for the asking. With `--closed` such files are not waited for. A file that is
//! open with everything saved (a log that nobody has written to since) is not waited for in any case.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::signals::Signals;
use super::{EXIT_TIMEOUT, reach, say, shown};
use crate::config::quantities::duration_within;
use crate::control::client::Daemon;
use crate::control::types::{Happening, LogEntry, Stage, Status, Transfer};
use crate::error::{Error, ErrorKind, Result};

/// How often the mounts are asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often they are asked for the names of files that have failed.
const LOOKS_FOR_NAMES: u32 = 5;
/// Files that are named when the time is up.
const NAMES_MAX: usize = 10;
/// The longest that can be waited, in seconds: a year.
const TIMEOUT_MAX_S: u64 = 366 * 86_400;

/// Arguments of `pdsfs wait`.
#[derive(Debug, Args)]
#[command(
    after_help = "A file that a program still writes counts as not on the drive, also while the program \
    is idle; --closed leaves it out. Exit codes: 0 everything is on the drive, 1 a file failed meanwhile, or a \
    mount does not say how it stands (names and reasons are on stderr), 3 the time was up."
)]
pub struct WaitArgs {
    /// Give up after this time
    #[arg(long, value_name = "DURATION", value_parser = duration_within(0, TIMEOUT_MAX_S))]
    timeout: Option<Duration>,
    /// Do not wait for files that programs have open and may write on
    #[arg(long)]
    closed: bool,
    /// Only this mount, by its folder or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

/// One mount that is waited for.
#[derive(Debug)]
struct Waited {
    daemon: Daemon,
    began: Status,
    now: Status,
    /// By their number in the log.
    failures: BTreeMap<u64, LogEntry>,
}

impl Waited {
    fn new(daemon: Daemon, began: Status) -> Self {
        Self { daemon, now: began.clone(), began, failures: BTreeMap::new() }
    }

    fn update(&mut self, now: Status) {
        let new = now.failures.iter().filter(|entry| entry.seq > self.began.last_seq);
        self.failures.extend(new.map(|entry| (entry.seq, entry.clone())));
        self.now = now;
    }

    /// Files that are waited for.
    fn files_left(&self, closed: bool) -> u64 {
        let pending = &self.now.pending;
        if closed { pending.files.saturating_sub(pending.files_open) } else { pending.files }
    }

    /// Objects whose attributes are waited for.
    fn attributes_left(&self) -> u64 {
        self.now.pending.attributes
    }

    /// Files that could not be saved, and are shown for as long as a program has them open.
    fn failed_open(&self) -> impl Iterator<Item = &Transfer> {
        self.now.transfers.iter().filter(|file| file.state == Stage::Failed)
    }

    fn failed(&self) -> u64 {
        self.now.totals.files_failed.saturating_sub(self.began.totals.files_failed)
    }

    /// Bytes that have gone since it began.
    fn bytes_done(&self) -> u64 {
        self.now.totals.bytes_acked.saturating_sub(self.began.totals.bytes_acked)
    }

    /// What keeps it, for people.
    fn kept_by(&self, closed: bool) -> Vec<String> {
        let is_waited_for = |state| match state {
            Stage::Committing | Stage::Unknown => true,
            Stage::Writing | Stage::Staged => !closed,
            Stage::Failed | Stage::Saved | Stage::Local => false,
        };
        let files = self.now.transfers.iter().filter(|file| is_waited_for(file.state));
        files
            .map(|file| format!("{}{}: {}", self.now.mountpoint, file.path, shown::state(file.state)))
            .map(|line| shown::printable(&line))
            .collect()
    }
}

/// Waits.
pub async fn run(args: WaitArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let deadline = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let found = tokio::select! {
        found = reach::mounts_and_unknown(args.mount.as_deref()) => found,
        () = until(deadline) => {
            say("gave up before it was known what is mounted: a program behind a mount does not answer");
            return Ok(ExitCode::from(EXIT_TIMEOUT));
        }
        signal = signals.next() => return Err(given_up(signal)),
    };
    let (found, unknown) = found?;
    if !unknown.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, unknown.join("; ")));
    }
    if found.is_empty() {
        say("no drive is mounted by you");
    }
    let mut waited: Vec<_> = found.into_iter().map(|(daemon, status)| Waited::new(daemon, status)).collect();
    let bar = bar();
    if bar.is_hidden() && !is_done(&waited, args.closed) {
        say(format_args!("waiting for {}", left(&waited, args.closed)));
    }
    let mut looks_for_names = LOOKS_FOR_NAMES;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let outcome = loop {
        show(&bar, &waited, args.closed);
        // What has failed is counted a moment before it is named.
        if is_done(&waited, args.closed) && (unnamed(&waited) == 0 || looks_for_names == 0) {
            break Ok(verdict(&waited));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break Ok(late(&waited, args.closed));
        }
        tokio::select! {
            _ = ticks.tick() => {}
            signal = signals.next() => break Err(given_up(signal)),
        }
        looks_for_names -= u32::from(is_done(&waited, args.closed));
        // A look takes its time where a daemon is busy: neither the deadline nor a signal waits for it.
        let looked = tokio::select! {
            looked = look(&mut waited) => looked,
            () = until(deadline) => Ok(()),
            signal = signals.next() => Err(given_up(signal)),
        };
        if let Err(error) = looked {
            break Err(error);
        }
    };
    bar.finish_and_clear();
    outcome
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn given_up(signal: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("given up at {signal}; the mounts go on"))
}

/// Asks all at once. Who only does not answer this time is asked again.
async fn look(waited: &mut [Waited]) -> Result<()> {
    let asked: Vec<_> = waited
        .iter()
        .map(|mount| {
            let daemon = mount.daemon.clone();
            tokio::spawn(async move { daemon.status().await })
        })
        .collect();
    for (mount, answer) in waited.iter_mut().zip(asked) {
        match answer.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))? {
            Ok(now) => mount.update(now),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let place = shown::printable(&mount.now.mountpoint);
                let ended = format!("the mount at {place} has ended; its own exit code says how");
                return Err(error.context(ended));
            }
            Err(error) => tracing::warn!("asked again soon: {error}"),
        }
    }
    Ok(())
}

fn is_done(waited: &[Waited], closed: bool) -> bool {
    waited.iter().all(|mount| mount.files_left(closed) == 0 && mount.attributes_left() == 0)
}

/// What is left, in words.
fn left(waited: &[Waited], closed: bool) -> String {
    let files = waited.iter().map(|mount| mount.files_left(closed)).sum();
    let to_go = waited.iter().map(|mount| mount.now.pending.bytes).sum();
    let contents = format!("{}, {} to go", shown::count(files, "file"), shown::bytes(to_go));
    let attributes = match waited.iter().map(Waited::attributes_left).sum() {
        0 => return contents,
        changes => shown::count(changes, "attribute change"),
    };
    if files == 0 { attributes } else { format!("{contents}, and {attributes}") }
}

/// Failures that are counted and have no name here.
fn unnamed(waited: &[Waited]) -> u64 {
    let named = |mount: &Waited| {
        mount.failures.values().filter(|entry| entry.what == Happening::Failed).count() as u64
    };
    waited.iter().map(|mount| mount.failed().saturating_sub(named(mount))).sum()
}

fn verdict(waited: &[Waited]) -> ExitCode {
    for mount in waited {
        for entry in mount.failures.values() {
            let path = format!("{}{}", mount.now.mountpoint, entry.path.as_deref().unwrap_or_default());
            say(format_args!(
                "pdsfs: not saved: {}: {}",
                shown::printable(&path),
                shown::printable(&entry.text)
            ));
        }
    }
    for mount in waited {
        for file in mount.failed_open() {
            let path = shown::printable(&format!("{}{}", mount.now.mountpoint, file.path));
            let why = shown::printable(file.error.as_deref().unwrap_or_default());
            say(format_args!("pdsfs: not saved, and still open: {path}: {why}"));
        }
    }
    let unnamed = unnamed(waited);
    if unnamed > 0 {
        say(format_args!("pdsfs: and {} not saved", shown::count(unnamed, "more file")));
    }
    let failed = waited.iter().any(|mount| {
        mount.failed() > 0 || mount.now.pending.files_failed_open > 0 || !mount.failures.is_empty()
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn late(waited: &[Waited], closed: bool) -> ExitCode {
    verdict(waited);
    say(format_args!("pdsfs: the time is up; not on the drive yet: {}", left(waited, closed)));
    for line in waited.iter().flat_map(|mount| mount.kept_by(closed)).take(NAMES_MAX) {
        say(format_args!("  {line}"));
    }
    ExitCode::from(EXIT_TIMEOUT)
}

fn bar() -> ProgressBar {
    // On stderr, and only where that is a terminal.
    let style = ProgressStyle::with_template("{bar:30.cyan/dim} {wide_msg}");
    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, waited: &[Waited], closed: bool) {
    let sum = |of: &dyn Fn(&Waited) -> u64| waited.iter().map(of).sum::<u64>();
    let (done, to_go) = (sum(&Waited::bytes_done), sum(&|mount| mount.now.pending.bytes));
    bar.set_length((done + to_go).max(1));
    bar.set_position(done);
    let rate = sum(&|mount| mount.now.totals.rate_bytes_s);
    let eta = to_go.saturating_mul(1000).checked_div(rate).map(|ms| format!("  {} left", shown::ms(ms)));
    let paused = waited.iter().find_map(|mount| shown::paused(&mount.now)).map(|text| format!("  {text}"));
    bar.set_message(format!(
        "{}  {}{}{}",
        left(waited, closed),
        shown::rate(rate),
        eta.unwrap_or_default(),
        paused.unwrap_or_default()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::busy;
    use crate::control::types::Pending;

    fn waited(status: Status) -> Waited {
        Waited::new(Daemon::at("/nowhere".into()), status)
    }

    #[test]
    fn open_files_count_unless_they_are_left_out() {
        let pending = Pending { files: 3, files_open: 2, attributes: 1, ..Pending::default() };
        let mount = waited(Status { pending, ..Status::default() });
        assert_eq!((mount.files_left(false), mount.files_left(true)), (3, 1));
    }

    #[test]
    fn a_change_of_attributes_is_no_file() {
        let words = |pending| left(&[waited(Status { pending, ..Status::default() })], false);
        let attributes = Pending { attributes: 1, ..Pending::default() };
        assert_eq!(words(attributes.clone()), "1 attribute change");
        let both = Pending { files: 3, bytes: 5 << 20, attributes: 2, ..Pending::default() };
        assert_eq!(words(both), "3 files, 5.00 MiB to go, and 2 attribute changes");
        assert_eq!(words(Pending { files: 1, ..Pending::default() }), "1 file, 0 B to go");
        assert!(!is_done(&[waited(Status { pending: attributes, ..Status::default() })], true));
    }

    #[test]
    fn only_what_fails_meanwhile_is_a_failure() {
        let mut mount = waited(Status { last_seq: 1, ..busy() });
        mount.update(busy());
        assert!(mount.failures.is_empty(), "an old failure counts");
        let mut now = busy();
        now.failures[0].seq = 2;
        now.totals.files_failed = 1;
        mount.update(now.clone());
        now.failures.clear();
        mount.update(now);
        assert_eq!((mount.failures.len(), mount.failed()), (1, 1), "a failure is forgotten");
    }

    #[test]
    fn what_is_waited_for_is_named() {
        let mut status = busy();
        status.transfers[1].state = Stage::Writing;
        let mount = waited(status);
        assert_eq!(mount.kept_by(true), ["/mnt/movie.mp4: committing"]);
        assert_eq!(mount.kept_by(false).len(), 2);
    }
}
