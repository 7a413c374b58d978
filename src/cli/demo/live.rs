//! The interactive demo: mounts the drive and shows its uploads until a signal or an unmount.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::MissedTickBehavior;

use super::dirs::{self, MountDir};
use super::report::with_later;
use super::screen::{self, Screen};
use super::server_process::{DriveLimits, ServerProcess};
use super::setup::start_server;
use crate::cli::format::{count, not_saved, partly_saved};
use crate::daemon::signals::Signals;
use crate::daemon::{RunningMount, StopOutcome, mount_in_process};
use crate::error::{Error, ErrorKind, Result};
use crate::status::{Progress, ProgressEvent};
use crate::units::Size;

/// The default mountpoint, in the current directory.
const MOUNTPOINT: &str = "pdsfs-demo";
/// The error of all files that are not saved when the server has exited.
pub(super) const SERVER_EXITED: &str = "the server of the demo has exited";
/// When a stop without running uploads says what it waits for.
const WAIT_NOTICE: Duration = Duration::from_secs(1);
/// Interval between two redraws of the running uploads.
const REFRESH: Duration = Duration::from_millis(150);

/// Runs the demo. It ends at a signal, at an unmount, or when the server exits.
pub(super) async fn run(
    data_dir: Option<&Path>,
    mountpoint: Option<&Path>,
    limits: DriveLimits,
) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let data_dir = data_dir.map_or_else(dirs::default_data_dir, |dir| Ok(dir.to_owned()))?;
    let dir = MountDir::prepare(mountpoint.unwrap_or(Path::new(MOUNTPOINT)))?;
    let progress = Progress::new();
    let events = progress.subscribe();
    let screen = Screen::new();
    let log = screen.log();
    let mut view = LiveView { screen, events, log, progress, stop_began: None, not_saved: HashSet::new() };
    let started = start(&data_dir, dir.path(), limits, view.progress.clone()).await;
    let (mut server, mounted) = started.inspect_err(|_| view.end_log())?;
    for line in introduction(dir.path(), &data_dir).into_iter().chain(limits_line(limits)) {
        view.screen.print(&line);
    }
    let end = tokio::select! {
        never = view.watch() => match never {},
        signal = signals.next() => End::Signal(signal),
        () = mounted.wait() => End::Unmounted,
        error = server.unexpected_exit() => End::ServerExited(error),
    };
    let ended_at = Instant::now();
    view.screen.clear();
    view.screen.print(&format!("stopping: {}", end.reason(dir.path())));
    match &end {
        End::ServerExited(_) => mounted.abandon_drive(SERVER_EXITED),
        End::Signal(_) => {
            view.screen.print("committing open files, then unmounting; Ctrl-C again gives up");
        }
        End::Unmounted => view.screen.print("committing open files; Ctrl-C gives up"),
    }
    view.stop_began = Some(ended_at);
    let given_up = async {
        tokio::select! {
            signal = signals.second_request(Some(ended_at)) => {
                Error::new(ErrorKind::Cancelled, format!("interrupted by {signal}"))
            }
            never = view.watch() => match never {},
        }
    };
    let stopped = mounted.stop(given_up).await;
    view.finish(&stopped);
    let server_stopped = if let End::ServerExited(_) = end { Ok(()) } else { server.stop().await };
    drop(dir);
    let commits = view.progress.totals().files_committed();
    view.screen.print(&format!("unmounted; {} committed", count(commits, "upload")));
    server_stopped?;
    let is_clean = stopped.files.unsaved.is_empty() && stopped.failure.is_none();
    Ok(if is_clean && !matches!(end, End::ServerExited(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn start(
    data_dir: &Path,
    mountpoint: &Path,
    limits: DriveLimits,
    progress: Arc<Progress>,
) -> Result<(ServerProcess, RunningMount)> {
    let (server, config) = start_server(data_dir, mountpoint, limits).await?;
    match mount_in_process(config, progress).await {
        Ok(mounted) => Ok((server, mounted)),
        Err(error) => Err(with_later(error, server.stop().await.err())),
    }
}

/// Why the demo ends.
enum End {
    Signal(&'static str),
    Unmounted,
    ServerExited(Error),
}

impl End {
    fn reason(&self, mountpoint: &Path) -> String {
        match self {
            Self::Signal(signal) => (*signal).to_owned(),
            Self::Unmounted => format!("{} was unmounted", mountpoint.display()),
            Self::ServerExited(error) => error.to_string(),
        }
    }
}

fn introduction(mountpoint: &Path, data_dir: &Path) -> [String; 6] {
    let mountpoint = mountpoint.display();
    [
        format!("The demo drive is mounted at {mountpoint}"),
        format!("  copy files:         cp -r ~/Pictures {mountpoint}/"),
        "  or drag files there with a file manager, or save there from any program".into(),
        format!("  in a second shell:  pdsfs status --watch {mountpoint}"),
        format!("The files are kept in {} for the next run.", data_dir.display()),
        "Uploads appear below. Nothing is being uploaded yet. Ctrl-C unmounts and ends the demo.".into(),
    ]
}

/// What the drive and its line are limited to.
fn limits_line(limits: DriveLimits) -> Option<String> {
    let quota = limits.quota.map(|bytes| format!("the drive has {}", Size(bytes)));
    let line = limits.bytes_per_s.map(|bytes| format!("the line takes {}/s", Size(bytes)));
    let limits: Vec<_> = quota.into_iter().chain(line).collect();
    (!limits.is_empty()).then(|| format!("For this demo {}.", limits.join(", and ")))
}

/// The screen with the sources of what it shows.
struct LiveView {
    screen: Screen,
    events: Receiver<ProgressEvent>,
    /// Lines of the log that must not displace the screen.
    log: Option<Receiver<Arc<str>>>,
    progress: Arc<Progress>,
    /// Taken when the display has said that only programs delay the stop.
    stop_began: Option<Instant>,
    /// Paths that were shown as not saved, and were not committed since.
    not_saved: HashSet<String>,
}

impl LiveView {
    /// Updates the screen for as long as the future is polled.
    async fn watch(&mut self) -> Infallible {
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => self.show(&event),
                    Err(RecvError::Lagged(missed)) => self.print_missed(missed),
                    // Cannot happen: `self.progress` holds the sender.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                line = next_line(&mut self.log) => self.screen.print(&line),
                _ = tick.tick() => self.refresh(),
            }
        }
    }

    fn refresh(&mut self) {
        let running = self.progress.snapshot();
        self.screen.refresh(&running);
        if running.is_empty() && self.stop_began.take_if(|began| began.elapsed() > WAIT_NOTICE).is_some() {
            self.screen.print("waiting for programs that still use the mount");
        }
    }

    /// Clears the progress lines. Prints the outcomes that are still queued, and each file of the stop that was
    /// not shown yet.
    fn finish(&mut self, stopped: &StopOutcome) {
        self.screen.clear();
        loop {
            match self.events.try_recv() {
                Ok(event) => self.show(&event),
                Err(TryRecvError::Lagged(missed)) => self.print_missed(missed),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.end_log();
        for file in &stopped.files.partly_saved {
            self.screen.print(&partly_saved(&file.path, file.bytes));
        }
        for file in stopped.files.unsaved.iter().filter(|file| !self.not_saved.contains(&file.path)) {
            self.screen.print(&not_saved(&file.path, &file.error.to_string()));
        }
        if let Some(error) = &stopped.failure {
            self.screen.print(&format!("the stop was cut short: {error}"));
        }
    }

    /// Prints the lines of the log that are still queued. Later ones go to stderr again.
    fn end_log(&mut self) {
        while let Some(Ok(line)) = self.log.as_mut().map(Receiver::try_recv) {
            self.screen.print(&line);
        }
        self.log = None;
    }

    fn show(&mut self, event: &ProgressEvent) {
        let is_new = match event {
            ProgressEvent::Failed { name, .. } => self.not_saved.insert(name.to_string()),
            ProgressEvent::Committed { name, .. } => {
                self.not_saved.remove(&**name);
                true
            }
            ProgressEvent::AttributesRefused { .. } => true,
        };
        if is_new {
            self.screen.print(&screen::outcome_line(event));
        }
    }

    fn print_missed(&self, missed: u64) {
        self.screen.print(&format!("({missed} more uploads ended)"));
    }
}

/// The next line of the log. Pending without a log.
async fn next_line(log: &mut Option<Receiver<Arc<str>>>) -> Arc<str> {
    match log {
        Some(log) => match log.recv().await {
            Ok(line) => line,
            Err(RecvError::Lagged(missed)) => format!("({missed} more lines of the log)").into(),
            // Cannot happen: the sender is global.
            Err(RecvError::Closed) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
