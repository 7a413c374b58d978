//! `pdsfs status`: unsaved files, transfers and failures of the mounts.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::mounts::UsersArgs;
use super::output::{print_line, print_message};
use super::{columns, format, mounts};
use crate::control::types::Status;
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped_json;
use crate::messages::status as messages;
use crate::units::parse_duration;

mod dashboard;
pub(super) mod table;

/// Failures shown for each mount.
const FAILURES_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(after_help = "States of a file: writing (open; uploaded while it is written), staged (open; \
    written at random positions and uploaded after the close), committing (closed; the rest is being \
    uploaded), FAILED (not saved). A file that is not listed is on the drive.")]
pub(super) struct StatusArgs {
    /// Print one JSON array with all details of each mount
    #[arg(long)]
    json: bool,
    /// Repeat: full screen at a terminal (q quits), else further lines
    #[arg(long, short)]
    watch: bool,
    /// Forget the files that could not be saved; their content stays as it is
    #[arg(long, conflicts_with = "watch")]
    dismiss: bool,
    /// Update interval of --watch, 100ms to 1h
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    users: UsersArgs,
    /// Only this mount, by mountpoint or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

fn interval(text: &str) -> std::result::Result<Duration, String> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
    match parse_duration(text)? {
        value if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not between 100ms and 1h")),
    }
}

pub(super) async fn run(args: StatusArgs) -> Result<ExitCode> {
    if !args.watch {
        return show(&args).await;
    }
    let mut signals = Signals::new()?;
    if !args.json && std::io::stdout().is_terminal() {
        let wanted = args.mount.as_deref();
        return dashboard::run(wanted, args.users.of(wanted), args.interval, &mut signals).await;
    }
    let mut ticks = tokio::time::interval(args.interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        // A mount that hangs must not delay a signal.
        tokio::select! {
            shown = show(&args) => {
                shown?;
            }
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn show(args: &StatusArgs) -> Result<ExitCode> {
    let (mut mounts, code) =
        mounts::mounts(args.mount.as_deref(), args.users.of(args.mount.as_deref())).await?;
    if args.dismiss {
        for (daemon, status) in &mut mounts {
            daemon.dismiss_failures().await?;
            (status.failures, status.pending.files_failed) = (Vec::new(), 0);
        }
    }
    let mounts: Vec<_> = mounts.into_iter().map(|(_, status)| status).collect();
    if args.json {
        let text = serde_json::to_string(&mounts);
        print_line(escaped_json(&text.map_err(|e| Error::from_source(ErrorKind::Io, e))?))?;
        return Ok(code);
    }
    if mounts.is_empty() {
        print_message(messages::no_mounts());
    }
    let columns = columns::of_stdout();
    mounts.iter().flat_map(|status| lines(status, columns)).try_for_each(print_line)?;
    Ok(code)
}

/// The lines about one mount, for people.
pub(super) fn lines(status: &Status, columns: Option<usize>) -> Vec<String> {
    let mut lines = vec![format::headline(status)];
    lines.extend(format::pause_line(status).map(|paused| format!("  {paused}")));
    lines.extend(format::session_line(status).map(|saved| format!("  {saved}")));
    if !status.transfers.is_empty() {
        lines.extend(table::rows(&status.transfers, columns));
    }
    if status.transfers_left_out > 0 {
        lines.push(format!("  and {}", format::count(status.transfers_left_out, "more file")));
    }
    let failures = status.failures.iter().rev().take(FAILURES_SHOWN);
    let failures: Vec<_> = failures
        .map(|entry| {
            let path = format::printable(entry.path.as_deref().unwrap_or_default());
            let why = format::printable(&format::reason(&entry.text, entry.cause.as_ref()));
            format!("  {}", messages::not_saved_at(&format::local_time(entry.at_ms), &path, &why))
        })
        .collect();
    lines.extend(failures.into_iter().rev());
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::table::tests::busy;
    use super::*;

    #[test]
    fn table_shows_state_progress_rate_and_eta() {
        let lines = lines(&busy(), None);
        assert_eq!(lines[0], "drive 1 at /mnt  1 file: 33 % of 96 MiB");
        let words: Vec<_> = lines[2].split_whitespace().collect();
        let expected = "committing /movie.mp4 33 % of 96 MiB 16 MiB/s 4.0 s";
        assert_eq!(words.join(" "), expected);
        assert!(lines[3].contains("FAILED") && lines[3].ends_with("the drive is full"), "{}", lines[3]);
        assert!(lines[2].len() < 80, "{}", lines[2]);
        assert!(lines[4].contains("/lost: the drive is full"), "{}", lines[4]);
    }
}
