//! The transfers of a mount as a table.

use unicode_width::UnicodeWidthStr as _;

use crate::cli::format;
use crate::control::types::TransferStatus;
use crate::units::Elapsed;

/// Width of the path column; a longer path loses its beginning.
const PATH_COLUMNS: usize = 48;

/// Each column is as wide as its longest cell, so that a path fits into 80 columns.
pub(super) fn rows(files: &[TransferStatus]) -> Vec<String> {
    let error = if files.iter().any(|file| file.error.is_some() || file.retries > 0) { "ERROR" } else { "" };
    let head = ["STATE", "FILE", "PROGRESS", "RATE", "ETA", error].map(str::to_owned);
    let cells = files.iter().map(cells).map(|cells| {
        [cells.state.to_owned(), cells.path, cells.progress, cells.rate, cells.eta, cells.error]
    });
    let rows: Vec<_> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        row.iter().zip(widths).fold(String::new(), |line, (cell, width)| {
            line + "  " + cell + &" ".repeat(width.saturating_sub(cell.width()))
        })
    };
    rows.iter().map(line).collect()
}

/// The columns of one file.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Cells {
    pub(super) state: &'static str,
    pub(super) path: String,
    pub(super) progress: String,
    pub(super) rate: String,
    pub(super) eta: String,
    pub(super) error: String,
}

pub(super) fn cells(file: &TransferStatus) -> Cells {
    let figures = file.figures();
    Cells {
        state: format::state_name(file.state),
        path: path(&file.path),
        progress: figures.progress(),
        rate: format::rate(figures.rate_bytes_s),
        eta: figures.eta().map(|eta| Elapsed(eta).to_string()).unwrap_or_default(),
        error: match (file.error.as_deref(), file.retry()) {
            (Some(error), _) => why(error, file),
            (None, Some(retry)) => format::printable(&retry.to_string()),
            (None, None) => String::new(),
        },
    }
}

fn why(error: &str, file: &TransferStatus) -> String {
    format::printable(&format::reason(error, file.cause.as_ref()))
}

fn path(path: &str) -> String {
    tail(format::printable(path), PATH_COLUMNS)
}

/// Keeps the end of a path, which distinguishes files. A character may take two terminal columns.
pub(super) fn tail(path: String, columns: usize) -> String {
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
    use crate::control::types::{EventKind, LogEntry, PendingTotals, Status, TransferStage};

    fn transfer(path: &str, state: TransferStage) -> TransferStatus {
        TransferStatus {
            path: path.into(),
            state,
            bytes: 96 << 20,
            bytes_acked: 24 << 20,
            bytes_sent: 32 << 20,
            bytes_waiting: 64 << 20,
            size_known: true,
            parts_in_flight: 8,
            rate_bytes_s: 16 << 20,
            eta_ms: Some(4000),
            age_ms: 2000,
            error: (state == TransferStage::Failed).then(|| "the drive is full".to_owned()),
            cause: None,
            retries: 0,
            retry_reason: None,
        }
    }

    pub(in crate::cli) fn busy() -> Status {
        let failure = LogEntry {
            seq: 1,
            at_ms: 0,
            what: EventKind::Failed,
            path: Some("/lost".into()),
            bytes: None,
            elapsed_ms: None,
            text: "the drive is full".into(),
            cause: None,
            detail: None,
        };
        Status {
            drive_id: "1".into(),
            mountpoint: "/mnt".into(),
            pending: PendingTotals {
                files: 1,
                bytes: 72 << 20,
                bytes_sent: 32 << 20,
                bytes_waiting: 64 << 20,
                size_known: true,
                ..PendingTotals::default()
            },
            transfers: vec![
                transfer("/movie.mp4", TransferStage::Committing),
                transfer("/f", TransferStage::Failed),
            ],
            failures: vec![failure],
            ..Status::default()
        }
    }

    #[test]
    fn long_path_keeps_its_end() {
        let shown = path(&format!("/{}/end", "x".repeat(100)));
        assert_eq!((shown.chars().count(), shown.ends_with("/end")), (PATH_COLUMNS, true));
        assert_eq!(path("/a\n"), "/a\\n");
        // Each of these takes two columns.
        let wide = path(&"\u{6587}".repeat(100));
        assert_eq!((wide.width(), wide.chars().count()), (PATH_COLUMNS - 1, 3 + 22));
        assert_eq!(tail("\u{6587}\u{6587}".into(), 4), "\u{6587}\u{6587}");
    }

    #[test]
    fn columns_use_terminal_width() {
        let lines = rows(&[
            transfer("/\u{6587}\u{4ef6}", TransferStage::Writing),
            transfer("/abcd", TransferStage::Failed),
        ]);
        let before = |row: &str, word: &str| row.split(word).next().unwrap().width();
        assert_eq!(before(&lines[1], " 33 %"), before(&lines[2], " 33 %"));
        assert_eq!(before(&lines[0], "ERROR"), before(&lines[2], "the drive is full"));
    }

    #[test]
    fn repeated_request_is_shown() {
        let file = TransferStatus {
            retries: 5,
            retry_reason: Some("the drive answers 500".into()),
            ..transfer("/e", TransferStage::Writing)
        };
        assert!(rows(&[file])[1].ends_with("  retrying (5th time): the drive answers 500"));
    }

    #[test]
    fn open_file_without_a_size_has_no_percentage() {
        let file = TransferStatus { size_known: false, ..transfer("/e", TransferStage::Writing) };
        let cells = cells(&file);
        assert_eq!((&*cells.progress, &*cells.eta), ("32 MiB sent, 64 MiB waiting", ""));
    }
}
