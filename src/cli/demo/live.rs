//! The interactive demo: mounts the drive and shows its uploads until a signal or an unmount.

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::MissedTickBehavior;

use super::dirs::{self, MountDir};
use super::screen::{self, Screen};
use super::setup::start_server;
use crate::cli::format::count;
use crate::daemon::mount_in_process;
use crate::daemon::signals::Signals;
use crate::error::Result;
use crate::status::{Progress, ProgressEvent};

/// The default mountpoint, in the current directory.
const MOUNTPOINT: &str = "pdsfs-demo";
/// Interval between two redraws of the running uploads.
const REFRESH: Duration = Duration::from_millis(150);

/// Runs the demo. It ends at a signal, at an unmount, or when the server exits.
pub(super) async fn run(data_dir: Option<&Path>, mountpoint: Option<&Path>) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let data_dir = data_dir.map_or_else(dirs::default_data_dir, |dir| Ok(dir.to_owned()))?;
    let dir = MountDir::prepare(mountpoint.unwrap_or(Path::new(MOUNTPOINT)))?;
    let progress = Progress::new();
    let mut view = LiveView { screen: Screen::new(), events: progress.subscribe(), progress };
    let (mut server, config) = start_server(&data_dir, dir.path()).await?;
    let mut mounted = match mount_in_process(config, Arc::clone(&view.progress)).await {
        Ok(mounted) => mounted,
        Err(e) => {
            server.stop().await?;
            return Err(e);
        }
    };
    for line in introduction(dir.path(), &data_dir) {
        view.screen.print(&line);
    }
    let why = tokio::select! {
        never = view.watch() => match never {},
        signal = signals.next() => signal.into(),
        () = mounted.wait() => format!("{} was unmounted", dir.path().display()),
        error = server.unexpected_exit() => error.to_string(),
    };
    view.screen.print(&format!("stopping: {why}"));
    view.screen.print("committing open files, then unmounting");
    let unsaved = tokio::select! {
        never = view.watch() => match never {},
        unsaved = mounted.stop() => unsaved,
    };
    view.finish();
    let stopped = server.stop().await;
    drop(dir);
    let unsaved = unsaved?;
    for (name, error) in &unsaved {
        view.screen.print(&format!("NOT SAVED     {name}  {error}"));
    }
    let commits = view.progress.totals().files_committed();
    view.screen.print(&format!("unmounted; {} committed", count(commits, "upload")));
    stopped?;
    Ok(if unsaved.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// The screen with the sources of what it shows.
struct LiveView {
    screen: Screen,
    events: Receiver<ProgressEvent>,
    progress: Arc<Progress>,
}

impl LiveView {
    /// Updates the screen for as long as the future is polled.
    async fn watch(&mut self) -> Infallible {
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => self.screen.print(&screen::outcome_line(&event)),
                    Err(RecvError::Lagged(missed)) => self.print_missed(missed),
                    // Cannot happen: `self.progress` holds the sender.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                _ = tick.tick() => self.screen.refresh(&self.progress.snapshot()),
            }
        }
    }

    /// Clears the progress lines and prints the outcomes that are still queued.
    fn finish(&mut self) {
        self.screen.clear();
        loop {
            match self.events.try_recv() {
                Ok(event) => self.screen.print(&screen::outcome_line(&event)),
                Err(TryRecvError::Lagged(missed)) => self.print_missed(missed),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn print_missed(&self, missed: u64) {
        self.screen.print(&format!("({missed} more uploads ended)"));
    }
}
