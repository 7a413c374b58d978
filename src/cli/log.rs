//! `pdsfs log`: what happened on a mount lately, and with `-f` what happens from now on.

use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc;

use super::signals::Signals;
use super::{announce, reach, say, shown};
use crate::control::client::Daemon;
use crate::control::types::{LogEntry, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::printable::escaped_json;

/// Events that may wait for the terminal.
const AHEAD: usize = 64;

/// Arguments of `pdsfs log`.
#[derive(Debug, Args)]
#[command(
    after_help = "A mount remembers its last 1,000 events. What it logs besides (see --log) goes to the \
    journal of systemd or to its stderr."
)]
pub struct LogArgs {
    /// Go on with what happens, until the mount ends
    #[arg(long, short)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Begin with so many of the last events
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000)]
    lines: u64,
    /// Only this mount, by its folder or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

/// An event, and where.
type Told = (String, Result<LogEntry>);

/// Prints events.
pub async fn run(args: LogArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (mounts, mut code) = tokio::select! {
        mounts = reach::mounts(args.mount.as_deref()) => mounts?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    if mounts.is_empty() {
        say("no drive is mounted by you");
    }
    let names_mounts = mounts.len() > 1;
    if args.follow {
        let (told, mut heard) = mpsc::channel(AHEAD);
        for (daemon, status) in mounts {
            tokio::spawn(tell(daemon, status, args.lines, true, told.clone()));
        }
        drop(told);
        loop {
            tokio::select! {
                told = heard.recv() => match told {
                    Some((place, Ok(entry))) => print(&args, names_mounts, &place, &entry)?,
                    // The others go on.
                    Some((place, Err(error))) => {
                        say(format_args!("pdsfs: {}: {error}", shown::printable(&place)));
                        code = ExitCode::FAILURE;
                    }
                    None => return Ok(code),
                },
                _ = signals.next() => return Ok(ExitCode::SUCCESS),
            }
        }
    }
    let mut all = tokio::select! {
        all = gather(mounts, args.lines) => all?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    all.sort_by_key(|(_, entry)| entry.at_ms);
    for (place, entry) in &all {
        print(&args, names_mounts, place, entry)?;
    }
    Ok(code)
}

/// What all mounts remember.
async fn gather(mounts: Vec<(Daemon, Status)>, lines: u64) -> Result<Vec<(String, LogEntry)>> {
    let mut all = Vec::new();
    for (daemon, status) in mounts {
        let (told, mut heard) = mpsc::channel(AHEAD);
        tokio::spawn(tell(daemon, status, lines, false, told));
        while let Some((place, entry)) = heard.recv().await {
            all.push((place, entry?));
        }
    }
    Ok(all)
}

/// Reads the events of one mount.
async fn tell(daemon: Daemon, status: Status, lines: u64, follows: bool, to: mpsc::Sender<Told>) {
    let place = status.mountpoint;
    let since = status.last_seq.saturating_sub(lines);
    let mut events = match daemon.events(since, follows).await {
        Ok(events) => events,
        Err(error) => return drop(to.send((place, Err(error))).await),
    };
    loop {
        let told = match events.next().await {
            Ok(Some(entry)) => to.send((place.clone(), Ok(entry))).await,
            // A mount that ends in the middle of a word has ended all the same.
            Ok(None) => return,
            Err(error) if follows && error.kind() == ErrorKind::Io => return,
            Err(error) => return drop(to.send((place, Err(error))).await),
        };
        if told.is_err() {
            return;
        }
    }
}

fn print(args: &LogArgs, names_mounts: bool, place: &str, entry: &LogEntry) -> Result<()> {
    if args.json {
        let mut value = serde_json::to_value(entry).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        value["mountpoint"] = place.into();
        return announce(escaped_json(&value.to_string()));
    }
    let place = if names_mounts { format!("{}  ", shown::printable(place)) } else { String::new() };
    announce(format_args!("{}  {place}{}", shown::moment(entry.at_ms), shown::event(entry)))
}
