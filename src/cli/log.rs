//! `pdsfs log`: recent events of the mounts, and with `-f` new ones.

use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc;
use unicode_width::UnicodeWidthStr as _;

use super::mounts::UsersArgs;
use super::output::{print_line, print_message};
use super::{columns, format, mounts};
use crate::control::client::DaemonClient;
use crate::control::types::{LogEntry, Status};
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped_json;
use crate::messages::status as messages;

/// Capacity of the queue between a mount and the terminal.
const QUEUE_LEN: usize = 64;

#[derive(Debug, Args)]
#[command(
    after_help = "A mount keeps its last 1,000 events. Its log messages (see --log) go to the systemd \
        journal or to its stderr."
)]
pub(super) struct LogArgs {
    /// Print new events until the mount ends
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Begin with the last N events
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000)]
    lines: u64,
    #[command(flatten)]
    users: UsersArgs,
    /// Only this mount, by mountpoint or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

/// A mountpoint with an event, or with the error that ended the stream.
type MountEvent = (String, Result<LogEntry>);

pub(super) async fn run(args: LogArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let users = args.users.of(args.mount.as_deref());
    let (mounts, mut code) = tokio::select! {
        mounts = mounts::mounts(args.mount.as_deref(), users) => mounts?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    if mounts.is_empty() {
        print_message(messages::no_mounts());
    }
    let names_mounts = mounts.len() > 1;
    if args.follow {
        let (event_tx, mut events) = mpsc::channel(QUEUE_LEN);
        for (daemon, status) in mounts {
            tokio::spawn(send_events(daemon, status, args.lines, true, event_tx.clone()));
        }
        drop(event_tx);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some((mountpoint, Ok(entry))) => print(&args, names_mounts, &mountpoint, &entry)?,
                    // The other mounts continue.
                    Some((mountpoint, Err(error))) => {
                        print_message(format_args!("pdsfs: {}: {error}", format::printable(&mountpoint)));
                        code = ExitCode::FAILURE;
                    }
                    None => return Ok(code),
                },
                _ = signals.next() => return Ok(ExitCode::SUCCESS),
            }
        }
    }
    let mut all = tokio::select! {
        all = collect_events(mounts, args.lines) => all?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    all.sort_by_key(|(_, entry)| entry.at_ms);
    for (mountpoint, entry) in &all {
        print(&args, names_mounts, mountpoint, entry)?;
    }
    Ok(code)
}

/// The stored events of all mounts.
async fn collect_events(mounts: Vec<(DaemonClient, Status)>, lines: u64) -> Result<Vec<(String, LogEntry)>> {
    let mut all = Vec::new();
    for (daemon, status) in mounts {
        let (event_tx, mut events) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(send_events(daemon, status, lines, false, event_tx));
        while let Some((mountpoint, entry)) = events.recv().await {
            all.push((mountpoint, entry?));
        }
    }
    Ok(all)
}

/// Sends the events of one mount to `to`.
async fn send_events(
    daemon: DaemonClient,
    status: Status,
    lines: u64,
    follows: bool,
    to: mpsc::Sender<MountEvent>,
) {
    let mountpoint = status.mountpoint;
    let since = status.last_seq.saturating_sub(lines);
    let mut events = match daemon.events(since, follows).await {
        Ok(events) => events,
        Err(error) => return drop(to.send((mountpoint, Err(error))).await),
    };
    loop {
        let sent = match events.next().await {
            Ok(Some(entry)) => to.send((mountpoint.clone(), Ok(entry))).await,
            // A mount that ends may cut off its last line.
            Ok(None) => return,
            Err(error) if follows && error.kind() == ErrorKind::Io => return,
            Err(error) => return drop(to.send((mountpoint, Err(error))).await),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn print(args: &LogArgs, names_mounts: bool, mountpoint: &str, entry: &LogEntry) -> Result<()> {
    if args.json {
        let mut value = serde_json::to_value(entry).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
        value["mountpoint"] = mountpoint.into();
        return print_line(escaped_json(&value.to_string()));
    }
    let prefix = if names_mounts { format!("{}  ", format::printable(mountpoint)) } else { String::new() };
    let prefix = format!("{}  {prefix}", format::local_time(entry.at_ms));
    let columns = columns::of_stdout().map(|columns| columns.saturating_sub(prefix.width()));
    print_line(format_args!("{prefix}{}", format::event(entry, columns)))
}
