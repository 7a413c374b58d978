//! The display of the demo: one line for each running upload, and one for each finished file.
//!
//! On a terminal the lines of running uploads stay at the bottom and are redrawn. Other outputs get only the
//! lines of finished files. Names come from programs, so control characters are escaped. Write errors are
//! ignored: `pdsfs demo | head` must still unmount.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::broadcast;

use crate::cli::columns::{self, cut, padded};
use crate::cli::format::{not_saved, printable};
use crate::logging;
use crate::messages::Language;
use crate::status::{CommitMethod, ProgressEvent, TransferState, TransferView};
use crate::units::{Elapsed, Size};

/// Number of uploads with a line of their own. The others are counted in one line.
const LINES_MAX: usize = 10;
/// Name, bar and figures. They fit into 80 columns.
const BAR: &str = "{prefix} {bar:8.cyan/dim} {wide_msg}";
/// Least width of the name, and what the bar and the longest figures take.
const NAME_COLUMNS_MIN: usize = 18;
const FIGURES_COLUMNS: usize = 62;

#[derive(Debug)]
pub(super) enum Screen {
    Terminal(Box<ProgressLines>),
    /// A file or a pipe.
    Plain,
}

/// The redrawn lines at the bottom of a terminal.
#[derive(Debug)]
pub(super) struct ProgressLines {
    lines: MultiProgress,
    /// By the id of the upload.
    bars: BTreeMap<u64, ProgressBar>,
    /// The count of uploads without a line.
    rest: ProgressBar,
}

impl Screen {
    /// The screen on standard output.
    pub(super) fn new() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::Plain;
        }
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(10));
        let rest = ProgressBar::no_length().with_style(style("{wide_msg}"));
        Self::Terminal(Box::new(ProgressLines { lines, bars: BTreeMap::new(), rest }))
    }

    /// The log of this process, if it would displace the redrawn lines.
    pub(super) fn log(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        let is_mixed = matches!(self, Self::Terminal(_)) && std::io::stderr().is_terminal();
        is_mixed.then(logging::divert)
    }

    /// Prints a permanent line.
    pub(super) fn print(&self, line: &str) {
        match self {
            Self::Terminal(progress) => {
                let _ = progress.lines.println(line);
            }
            Self::Plain => {
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
        }
    }

    /// Redraws the lines of the running uploads. Does nothing on plain output.
    pub(super) fn refresh(&mut self, views: &[TransferView]) {
        if let Self::Terminal(progress) = self {
            progress.refresh(views);
        }
    }

    /// Removes the lines of the running uploads.
    pub(super) fn clear(&mut self) {
        self.refresh(&[]);
        if let Self::Terminal(progress) = self {
            let _ = progress.lines.clear();
        }
    }
}

impl ProgressLines {
    fn refresh(&mut self, views: &[TransferView]) {
        let shown = &views[..views.len().min(LINES_MAX)];
        let columns = columns::of_stdout().unwrap_or(80);
        let names = columns.saturating_sub(FIGURES_COLUMNS).max(NAME_COLUMNS_MIN);
        self.bars.retain(|id, bar| {
            let keep = shown.iter().any(|view| view.id == *id);
            if !keep {
                bar.finish_and_clear();
                self.lines.remove(bar);
            }
            keep
        });
        for view in shown {
            let bar = self
                .bars
                .entry(view.id)
                .or_insert_with(|| self.lines.add(ProgressBar::new(0).with_style(style(BAR))));
            bar.set_length(view.figures.size().max(1));
            bar.set_position(view.figures.sent);
            bar.set_prefix(padded(&cut(&printable(&view.name), names), names));
            bar.set_message(message(view));
        }
        self.lines.remove(&self.rest);
        let hidden = views.len() - shown.len();
        if hidden > 0 {
            self.rest = self.lines.add(ProgressBar::no_length().with_style(style("{wide_msg}")));
            self.rest.set_message(format!("and {hidden} more"));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The figures of a running upload. A complete file of which every byte was sent waits for its commit.
fn message(view: &TransferView) -> String {
    if view.state == TransferState::Committing && view.figures.waiting == 0 {
        return format!("{}, committing", view.figures.progress());
    }
    match &view.retry {
        Some(retry) => format!("{}, {}", view.figures.progress(), printable(&retry.to_string())),
        None => view.figures.to_string(),
    }
}

/// The line of a finished upload.
pub(super) fn outcome_line(event: &ProgressEvent) -> String {
    match event {
        ProgressEvent::Committed { name, bytes, elapsed_ms, how } => {
            let how = match how {
                CommitMethod::Uploaded => "",
                CommitMethod::Instant => "  (the drive had these bytes: nothing was sent)",
                CommitMethod::Unchanged => "  (unchanged: nothing was sent)",
            };
            let elapsed = Elapsed(Duration::from_millis(*elapsed_ms));
            format!("on the drive  {}  {}  {elapsed}{how}", printable(name), Size(*bytes))
        }
        ProgressEvent::AttributesRefused { name, error } => {
            format!("NO ATTRIBUTES {}  {}", printable(name), printable(&error.to_string()))
        }
        ProgressEvent::Failed { name, error } => not_saved(name, &error.text(Language::current())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::status::{Figures, Retry};

    fn view(id: u64) -> TransferView {
        TransferView {
            id,
            name: "movie.mp4".into(),
            state: TransferState::Writing,
            bytes_written: 96 << 20,
            bytes_acked: 24 << 20,
            figures: Figures::new(96 << 20, 32 << 20, false, 16 << 20),
            retry: None,
            parts_in_flight: 8,
            age: Duration::from_secs(2),
        }
    }

    #[test]
    fn running_upload_shows_its_figures() {
        let text = message(&view(0));
        assert_eq!(text, "32 MiB sent, 64 MiB waiting, 16 MiB/s");
        assert!(18 + 1 + 8 + 1 + text.len() <= 80);
        let closed = |sent| TransferView {
            state: TransferState::Committing,
            figures: Figures::new(96 << 20, sent, true, 16 << 20),
            ..view(0)
        };
        assert_eq!(message(&closed(32 << 20)), "33 % of 96 MiB, 16 MiB/s, 4.0 s left");
        let retry = Retry { times: 2, reason: "the drive answers 500".into() };
        let retrying = TransferView { retry: Some(retry), ..view(0) };
        let text = "32 MiB sent, 64 MiB waiting, retrying (2nd time): the drive answers 500";
        assert_eq!(message(&retrying), text);
        assert_eq!(message(&closed(96 << 20)), "100 % of 96 MiB, committing");
    }

    #[test]
    fn outcome_line_shows_method_and_error() {
        let done = |how| {
            outcome_line(&ProgressEvent::Committed { name: "a".into(), bytes: 2048, elapsed_ms: 1500, how })
        };
        assert_eq!(done(CommitMethod::Uploaded), "on the drive  a  2.0 KiB  1.5 s");
        assert!(done(CommitMethod::Instant).contains("nothing was sent"));
        let error = Error::new(ErrorKind::QuotaExceeded, "the drive is full");
        let failed = outcome_line(&ProgressEvent::Failed { name: "a".into(), error });
        assert_eq!(failed, "NOT SAVED a: the drive is full");
    }

    #[test]
    fn control_characters_in_names_are_escaped() {
        let text = outcome_line(&ProgressEvent::Committed {
            name: "a\u{1b}[2J\r\nb".into(),
            bytes: 0,
            elapsed_ms: 0,
            how: CommitMethod::Uploaded,
        });
        assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    }

    #[test]
    fn every_running_upload_has_one_line() {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let rest = ProgressBar::no_length().with_style(style("{msg}"));
        let mut progress = ProgressLines { lines, bars: BTreeMap::new(), rest };
        let many: Vec<_> = (0..LINES_MAX as u64 + 3).map(view).collect();
        progress.refresh(&many);
        assert_eq!((progress.bars.len(), progress.rest.message().as_str()), (LINES_MAX, "and 3 more"));
        progress.refresh(&many[5..7]);
        assert_eq!(progress.bars.keys().copied().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(progress.bars[&5].position(), 32 << 20);
        progress.refresh(&[]);
        assert!(progress.bars.is_empty());
    }
}
