//! `pdsfs status`: what is on the drive, what is not yet, and what went wrong.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use unicode_width::UnicodeWidthStr as _;

use super::signals::Signals;
use super::{announce, reach, say, shown};
use crate::config::quantities::duration;
use crate::control::types::{Stage, Status, Transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::printable::escaped_json;

mod dashboard;

/// Failures that are shown of a mount.
const FAILURES_SHOWN: usize = 5;
/// Longest path in the table; a longer one loses its beginning.
const PATH_COLUMNS: usize = 48;

/// Arguments of `pdsfs status`.
#[derive(Debug, Args)]
#[command(after_help = "States of a file: writing (a program has it open, it is sent meanwhile), staged (a \
    program has it open and writes here and there, it is sent when it is closed), committing (it is closed, \
    the rest is on its way), FAILED. A file that is not listed is on the drive.")]
pub struct StatusArgs {
    /// One array with everything that is known of each mount
    #[arg(long)]
    json: bool,
    /// Show it again and again: full screen at a terminal (q ends it), else as further lines
    #[arg(long, short)]
    watch: bool,
    /// Time between two looks with --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Only this mount, by its folder or name
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

fn interval(text: &str) -> std::result::Result<Duration, String> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
    match duration(text)? {
        value if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not within 100ms and 1h")),
    }
}

/// Shows the mounts.
pub async fn run(args: StatusArgs) -> Result<ExitCode> {
    if !args.watch {
        return show(&args).await;
    }
    let mut signals = Signals::new()?;
    if !args.json && std::io::stdout().is_terminal() {
        return dashboard::run(args.mount.as_deref(), args.interval, &mut signals).await;
    }
    let mut ticks = tokio::time::interval(args.interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        // A mount that hangs does not keep a signal waiting.
        tokio::select! {
            shown = show(&args) => {
                shown?;
            }
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn show(args: &StatusArgs) -> Result<ExitCode> {
    let (mounts, code) = reach::mounts(args.mount.as_deref()).await?;
    let mounts: Vec<_> = mounts.into_iter().map(|(_, status)| status).collect();
    if args.json {
        let text = serde_json::to_string(&mounts);
        announce(escaped_json(&text.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?))?;
        return Ok(code);
    }
    if mounts.is_empty() {
        say("no drive is mounted by you");
    }
    mounts.iter().flat_map(lines).try_for_each(announce)?;
    Ok(code)
}

/// A mount as people read it.
fn lines(status: &Status) -> Vec<String> {
    let mut lines = vec![shown::headline(status)];
    lines.extend(shown::paused(status).map(|paused| format!("  {paused}")));
    if !status.transfers.is_empty() {
        lines.extend(table(&status.transfers));
    }
    if status.transfers_left_out > 0 {
        lines.push(format!("  and {}", shown::count(status.transfers_left_out, "more file")));
    }
    let failures = status.failures.iter().rev().take(FAILURES_SHOWN);
    let failures: Vec<_> = failures
        .map(|entry| {
            let path = shown::printable(entry.path.as_deref().unwrap_or_default());
            format!(
                "  not saved at {}: {path}: {}",
                shown::moment(entry.at_ms),
                shown::printable(&entry.text)
            )
        })
        .collect();
    lines.extend(failures.into_iter().rev());
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// No column is wider than what is in it, so that a terminal of 80 columns has room for a path.
fn table(files: &[Transfer]) -> Vec<String> {
    let error = if files.iter().any(|file| file.error.is_some()) { "ERROR" } else { "" };
    let head = ["STATE", "FILE", "PROGRESS", "RATE", "ETA", error].map(str::to_owned);
    let rows = files.iter().map(cells).map(|cells| {
        [cells.state.to_owned(), cells.path, cells.progress, cells.rate, cells.eta, cells.error]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        row.iter().zip(widths).fold(String::new(), |line, (cell, width)| {
            line + "  " + cell + &" ".repeat(width.saturating_sub(cell.width()))
        })
    };
    rows.iter().map(line).collect()
}

/// A file as the columns of a table.
#[derive(PartialEq, Eq, Debug)]
struct Cells {
    state: &'static str,
    path: String,
    progress: String,
    rate: String,
    eta: String,
    error: String,
}

fn cells(file: &Transfer) -> Cells {
    let percent = (u128::from(file.bytes_acked) * 100).checked_div(u128::from(file.bytes)).unwrap_or(0);
    let progress = match file.state {
        Stage::Staged => shown::bytes(file.bytes),
        _ => format!("{percent:>3} % of {}", shown::bytes(file.bytes)),
    };
    Cells {
        state: shown::state(file.state),
        path: path(&file.path),
        progress,
        rate: shown::rate(file.rate_bytes_s),
        eta: file.eta_ms.map(shown::ms).unwrap_or_default(),
        error: file.error.as_deref().map(shown::printable).unwrap_or_default(),
    }
}

fn path(path: &str) -> String {
    tail(shown::printable(path), PATH_COLUMNS)
}

/// The end of a path says more than its beginning. Columns are those of a terminal: a character may take two.
fn tail(path: String, columns: usize) -> String {
    if path.width() <= columns {
        return path;
    }
    let room = columns.saturating_sub(3);
    let mut begin = path.len();
    for (at, _) in path.char_indices().rev() {
        if path[at..].width() > room {
            break;
        }
        begin = at;
    }
    format!("...{}", &path[begin..])
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::control::types::{Happening, LogEntry, Pending};

    pub(in crate::cli) fn transfer(path: &str, state: Stage) -> Transfer {
        Transfer {
            path: path.into(),
            state,
            bytes: 96 << 20,
            bytes_acked: 32 << 20,
            parts_in_flight: 8,
            rate_bytes_s: 16 << 20,
            eta_ms: Some(4000),
            age_ms: 2000,
            error: (state == Stage::Failed).then(|| "the drive is full".to_owned()),
        }
    }

    pub(in crate::cli) fn busy() -> Status {
        let failure = LogEntry {
            seq: 1,
            at_ms: 0,
            what: Happening::Failed,
            path: Some("/lost".into()),
            bytes: None,
            elapsed_ms: None,
            text: "the drive is full".into(),
        };
        Status {
            drive_id: "1".into(),
            mountpoint: "/mnt".into(),
            pending: Pending { files: 1, bytes: 64 << 20, ..Pending::default() },
            transfers: vec![transfer("/movie.mp4", Stage::Committing), transfer("/f", Stage::Failed)],
            failures: vec![failure],
            ..Status::default()
        }
    }

    #[test]
    fn a_table_shows_state_progress_rate_and_time() {
        let lines = lines(&busy());
        assert_eq!(lines[0], "drive 1 at /mnt  1 file, 64.00 MiB to go");
        let words: Vec<_> = lines[2].split_whitespace().collect();
        let expected = "committing /movie.mp4 33 % of 96.00 MiB 16.00 MiB/s 4.0 s";
        assert_eq!(words.join(" "), expected);
        assert!(lines[3].contains("FAILED") && lines[3].ends_with("the drive is full"), "{}", lines[3]);
        assert!(lines[2].len() < 80, "{}", lines[2]);
        assert!(lines[4].contains("/lost: the drive is full"), "{}", lines[4]);
    }

    #[test]
    fn a_long_path_keeps_its_end() {
        let shown = path(&format!("/{}/end", "x".repeat(100)));
        assert_eq!((shown.chars().count(), shown.ends_with("/end")), (PATH_COLUMNS, true));
        assert_eq!(path("/a\n"), "/a\\n");
        // Each of these takes two columns.
        let wide = path(&"\u{6587}".repeat(100));
        assert_eq!((wide.width(), wide.chars().count()), (PATH_COLUMNS - 1, 3 + 22));
        assert_eq!(tail("\u{6587}\u{6587}".into(), 4), "\u{6587}\u{6587}");
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        let rows = table(&[transfer("/\u{6587}\u{4ef6}", Stage::Writing), transfer("/abcd", Stage::Failed)]);
        let before = |row: &str, word: &str| row.split(word).next().unwrap().width();
        assert_eq!(before(&rows[1], " 33 %"), before(&rows[2], " 33 %"));
        assert_eq!(before(&rows[0], "ERROR"), before(&rows[2], "the drive is full"));
    }

    #[test]
    fn an_empty_file_is_no_division_by_zero() {
        let file = Transfer { bytes: 0, bytes_acked: 0, ..transfer("/e", Stage::Writing) };
        assert!(cells(&file).progress.starts_with("  0 %"));
    }
}
