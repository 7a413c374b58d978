//! The transfers of a mount as a table.

use unicode_width::UnicodeWidthStr as _;

use crate::cli::columns::{cut, padded};
use crate::cli::format;
use crate::control::types::TransferStatus;
use crate::messages::status as messages;
use crate::units::Elapsed;

/// Least width of the path column.
const PATH_COLUMNS_MIN: usize = 16;
/// Between two columns, and before the first.
const GAP: &str = "  ";
/// The path among the columns.
const PATH: usize = 1;

/// Each column is as wide as its longest cell. Paths are cut so that a row fits into `columns`, if there is a
/// terminal.
pub(super) fn rows(files: &[TransferStatus], columns: Option<usize>) -> Vec<String> {
    let has_error = files.iter().any(|file| file.error.is_some() || file.retries > 0);
    let error = if has_error { messages::head_error() } else { String::new() };
    let [state, file, progress, rate, eta] = head();
    let head = [state, file, progress, rate, eta, error];
    let cells = files
        .iter()
        .map(cells)
        .map(|cells| [cells.state, cells.path, cells.progress, cells.rate, cells.eta, cells.error]);
    let mut rows: Vec<_> = std::iter::once(head).chain(cells).collect();
    let width = |rows: &[[String; 6]], column: usize| rows.iter().map(|row| row[column].width()).max();
    let widths = |rows: &[[String; 6]]| std::array::from_fn(|column| width(rows, column).unwrap_or(0));
    if let Some(columns) = columns {
        let all: [usize; 6] = widths(&rows);
        let others = all.iter().sum::<usize>() - all[PATH] + 6 * GAP.len();
        let path = columns.saturating_sub(others).max(PATH_COLUMNS_MIN);
        for row in &mut rows {
            row[PATH] = cut(&row[PATH], path);
        }
    }
    let widths: [usize; 6] = widths(&rows);
    let line = |row: &[String; 6]| {
        row.iter().zip(widths).fold(String::new(), |line, (cell, width)| line + GAP + &padded(cell, width))
    };
    rows.iter().map(line).collect()
}

/// The heads of the columns without that of errors.
pub(super) fn head() -> [String; 5] {
    [
        messages::head_state(),
        messages::head_file(),
        messages::head_progress(),
        messages::head_rate(),
        messages::head_eta(),
    ]
}

/// The columns of one file.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Cells {
    pub(super) state: String,
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
        path: format::printable(&file.path),
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
    fn rows_fit_into_the_terminal() {
        let name = "/Sommerurlaub/am Meer/2026/Kamera von Anna/DSC_0001 bearbeitet und zugeschnitten.jpeg";
        let path = |columns| rows(&[transfer(name, TransferStage::Writing)], columns)[1].clone();
        assert!(path(None).contains(name));
        for columns in [80, 120] {
            let row = path(Some(columns));
            assert!(row.width() <= columns && row.contains("zugeschnitten.jpeg"), "{row}");
        }
        assert!(path(Some(120)).trim_end().len() > path(Some(80)).len());
        assert!(path(Some(1)).contains("/Som...tten.jpeg"), "{}", path(Some(1)));
    }

    #[test]
    fn columns_use_terminal_width() {
        let files =
            [transfer("/\u{6587}\u{4ef6}", TransferStage::Writing), transfer("/abcd", TransferStage::Failed)];
        let lines = rows(&files, None);
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
        assert!(rows(&[file], None)[1].ends_with("  retrying (5th time): the drive answers 500"));
    }

    #[test]
    fn open_file_without_a_size_has_no_percentage() {
        let file = TransferStatus { size_known: false, ..transfer("/e", TransferStage::Writing) };
        let cells = cells(&file);
        assert_eq!((&*cells.progress, &*cells.eta), ("32 MiB sent, 64 MiB waiting", ""));
    }
}
