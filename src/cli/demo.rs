//! `pdsfs demo`: a drive, a mount and a progress display with one command.
//!
//! The drive is the embedded server, started as a process of its own. Everything is taken down in
//! the reverse order of its making, whatever ended the demo: open files are settled, the mount goes,
//! then the server, then the folder if the demo made it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::MissedTickBehavior;

use crate::cli::mount::mount_in_process;
use crate::cli::signals::Signals;
use crate::config::{Credential, MountConfig};
use crate::error::Result;
use crate::ids::{DriveId, Secret};
use crate::status::{Event, Progress};

mod backend;
mod once;
mod place;
mod probe;
mod report;
mod screen;
mod source;
mod verify;

use backend::Backend;
use place::MountFolder;
use screen::Screen;

/// Where the demo mounts if it is not told.
const FOLDER: &str = "pdsfs-demo";
/// The drive that the embedded server offers.
const DRIVE_ID: &str = "1";
/// Time between two looks at the running uploads.
const REFRESH: Duration = Duration::from_millis(150);

/// The drive is on this machine: if it does not answer for so long, it is gone.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `pdsfs demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Where the demo's drive keeps its files between runs [default: pdsfs/demo in the user's data
    /// folder; with --once a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Copy a tree of files to the drive, check every one of them, print figures and end
    #[arg(long)]
    once: bool,
    /// With --once: the number that all contents follow from, to repeat a run [default: random]
    #[arg(long, requires = "once", hide_short_help = true)]
    seed: Option<u64>,
    /// An empty folder to mount on [default: ./pdsfs-demo; with --once a temporary one]
    folder: Option<PathBuf>,
}

/// Runs the demo until it is told to stop, or with `--once` until it has checked everything.
pub async fn run(args: DemoArgs) -> Result<ExitCode> {
    if args.once { once::run(&args).await } else { live(&args).await }
}

async fn live(args: &DemoArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let data_dir = args.data.clone().map_or_else(place::default_data_dir, Ok)?;
    let folder = MountFolder::prepare(args.folder.as_deref().unwrap_or(Path::new(FOLDER)))?;
    let progress = Progress::new();
    let mut shown = Shown { screen: Screen::new(), events: progress.subscribe(), progress };
    let (mut backend, config) = start(&data_dir, folder.path()).await?;
    let mut mounted = match mount_in_process(config, Arc::clone(&shown.progress)).await {
        Ok(mounted) => mounted,
        Err(e) => {
            backend.stop().await?;
            return Err(e);
        }
    };
    for line in introduction(folder.path(), &data_dir) {
        shown.screen.say(&line);
    }
    let why = tokio::select! {
        never = shown.watch() => match never {},
        signal = signals.next() => signal.into(),
        () = mounted.wait() => "the folder was unmounted".into(),
        error = backend.died() => error.to_string(),
    };
    shown.screen.say(&format!("{why}: settling open files and unmounting"));
    let unsaved = tokio::select! {
        never = shown.watch() => match never {},
        unsaved = mounted.stop() => unsaved,
    };
    shown.rest();
    let stopped = backend.stop().await;
    drop(folder);
    let unsaved = unsaved?;
    for (name, error) in &unsaved {
        shown.screen.say(&format!("NOT SAVED     {name}  {error}"));
    }
    let files = shown.progress.totals().files_committed();
    shown.screen.say(&format!("{files} files were put on the drive; nothing is mounted now"));
    stopped?;
    Ok(if unsaved.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts the server and says how to mount its drive.
async fn start(data_dir: &Path, mountpoint: &Path) -> Result<(Backend, MountConfig)> {
    place::private_dir(data_dir)?;
    let spill_dir = data_dir.join("spill");
    place::private_dir(&spill_dir)?;
    let token = place::token(data_dir)?;
    let backend = Backend::start(data_dir, &token).await?;
    let config = mount_config(&backend, token, mountpoint, spill_dir)?;
    Ok((backend, config))
}

fn mount_config(
    backend: &Backend,
    token: Secret<String>,
    mountpoint: &Path,
    spill_dir: PathBuf,
) -> Result<MountConfig> {
    // SAFETY: both calls only read the process's own ids and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let credential = Credential::Token(token);
    Ok(MountConfig {
        mountpoint: mountpoint.to_owned(),
        uid,
        gid,
        commit_timeout: COMMIT_TIMEOUT,
        spill_dir,
        ..MountConfig::new(backend.url().clone(), DriveId::new(DRIVE_ID)?, credential)
    })
}

fn introduction(folder: &Path, data_dir: &Path) -> [String; 5] {
    [
        format!("The demo drive is mounted at {}", folder.display()),
        format!("  copy something:   cp -r ~/Pictures {}/", folder.display()),
        "  or drag files there with a file manager, or save there from any program".into(),
        format!("Its files stay in {} until the next run.", data_dir.display()),
        "Uploads show below; Ctrl-C unmounts and ends the demo.".into(),
    ]
}

/// The display and what feeds it.
struct Shown {
    screen: Screen,
    events: Receiver<Event>,
    progress: Arc<Progress>,
}

impl Shown {
    /// Shows what goes on for as long as it is polled.
    async fn watch(&mut self) -> Infallible {
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => self.screen.say(&screen::ending(&event)),
                    Err(RecvError::Lagged(missed)) => self.lagged(missed),
                    // Not while `progress` is held here; waiting is right in any case.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                _ = tick.tick() => self.screen.refresh(&self.progress.snapshot()),
            }
        }
    }

    /// Shows the endings that nobody has looked at yet, and nothing that moves any more.
    fn rest(&mut self) {
        self.screen.clear();
        loop {
            match self.events.try_recv() {
                Ok(event) => self.screen.say(&screen::ending(&event)),
                Err(TryRecvError::Lagged(missed)) => self.lagged(missed),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn lagged(&self, missed: u64) {
        self.screen.say(&format!("({missed} more files ended)"));
    }
}
