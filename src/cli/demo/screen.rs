//! What the demo shows: a line for each upload going on, and one for each file that is done.
//!
//! At a terminal the lines of running uploads stay at the bottom and are redrawn; elsewhere only
//! endings are written, one plain line each. Names come from programs: control characters are
//! replaced before a terminal sees them. Failing to write is ignored: `pdsfs demo | head` must still
//! unmount.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::shown::{count, duration, printable};
use crate::status::{Commit, Event, Size, TransferState, TransferView};

/// Uploads that have a line of their own; the others share one.
const LINES_MAX: usize = 10;
/// A name, a bar, and the figures, which fit into a terminal of 80 columns.
const BAR: &str = "{prefix:<18!} {bar:8.cyan/dim} {wide_msg}";

/// The output of the demo.
#[derive(Debug)]
pub(super) enum Screen {
    /// A terminal: lines that change.
    Live(Box<Live>),
    /// A file or a pipe: lines that stay.
    Plain,
}

/// The changing lines.
#[derive(Debug)]
pub(super) struct Live {
    lines: MultiProgress,
    bars: BTreeMap<u64, ProgressBar>,
    /// Says how many more uploads there are than lines.
    rest: ProgressBar,
}

impl Screen {
    /// For this process's standard output.
    pub(super) fn new() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::Plain;
        }
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(10));
        let rest = ProgressBar::no_length().with_style(style("{wide_msg}"));
        Self::Live(Box::new(Live { lines, bars: BTreeMap::new(), rest }))
    }

    /// Writes a line that stays.
    pub(super) fn say(&self, line: &str) {
        match self {
            Self::Live(live) => {
                let _ = live.lines.println(line);
            }
            Self::Plain => {
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
        }
    }

    /// Redraws the lines of what is going on. Does nothing on plain output.
    pub(super) fn refresh(&mut self, views: &[TransferView]) {
        if let Self::Live(live) = self {
            live.refresh(views);
        }
    }

    /// Takes the changing lines away.
    pub(super) fn clear(&mut self) {
        self.refresh(&[]);
        if let Self::Live(live) = self {
            let _ = live.lines.clear();
        }
    }
}

impl Live {
    fn refresh(&mut self, views: &[TransferView]) {
        let shown = &views[..views.len().min(LINES_MAX)];
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
            bar.set_length(view.bytes_written.max(1));
            bar.set_position(view.bytes_acked.min(view.bytes_written));
            bar.set_prefix(printable(&view.name));
            bar.set_message(figures(view));
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

/// The figures of a running upload.
fn figures(view: &TransferView) -> String {
    let mut text = format!("{} of {}", Size(view.bytes_acked), Size(view.bytes_written));
    if view.rate_bytes_s > 0 {
        let _ = write!(text, "  {}/s", Size(view.rate_bytes_s));
    }
    if view.parts_in_flight > 0 {
        let _ = write!(text, "  {}", count(view.parts_in_flight.into(), "part"));
    }
    match (view.state, view.eta) {
        (TransferState::Committing, None) => text.push_str("  committing"),
        (TransferState::Committing, Some(eta)) => {
            let _ = write!(text, "  committing, {} left", duration(eta));
        }
        (TransferState::Writing, Some(eta)) => {
            let _ = write!(text, "  {} left", duration(eta));
        }
        (TransferState::Writing, None) => {}
    }
    text
}

/// The line of an upload that has ended.
pub(super) fn ending(event: &Event) -> String {
    match event {
        Event::Committed { name, bytes, elapsed_ms, how } => {
            let how = match how {
                Commit::Uploaded => "",
                Commit::Instant => "  (the drive had these bytes: nothing was sent)",
                Commit::Unchanged => "  (unchanged: nothing was sent)",
            };
            let elapsed = duration(Duration::from_millis(*elapsed_ms));
            format!("on the drive  {}  {}  {elapsed}{how}", printable(name), BinaryBytes(*bytes))
        }
        Event::AttributesRefused { name, error } => {
            format!("NO ATTRIBUTES {}  {}", printable(name), printable(&error.to_string()))
        }
        Event::Failed { name, error } => {
            format!("NOT SAVED     {}  {}", printable(name), printable(&error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn view(id: u64) -> TransferView {
        TransferView {
            id,
            name: "movie.mp4".into(),
            state: TransferState::Writing,
            bytes_written: 96 << 20,
            bytes_acked: 32 << 20,
            bytes_left: 64 << 20,
            parts_in_flight: 8,
            rate_bytes_s: 16 << 20,
            eta: Some(Duration::from_secs(4)),
            age: Duration::from_secs(2),
        }
    }

    #[test]
    fn a_running_upload_shows_bytes_rate_parts_and_eta() {
        let text = figures(&view(0));
        assert_eq!(text, "32 MiB of 96 MiB  16 MiB/s  8 parts  4.0 s left");
        assert!(18 + 1 + 8 + 1 + text.len() <= 80);
        let waiting = TransferView {
            state: TransferState::Committing,
            parts_in_flight: 1,
            rate_bytes_s: 0,
            eta: None,
            ..view(0)
        };
        assert_eq!(figures(&waiting), "32 MiB of 96 MiB  1 part  committing");
    }

    #[test]
    fn an_ending_says_how_and_why() {
        let done = |how| ending(&Event::Committed { name: "a".into(), bytes: 2048, elapsed_ms: 1500, how });
        assert_eq!(done(Commit::Uploaded), "on the drive  a  2.00 KiB  1.5 s");
        assert!(done(Commit::Instant).contains("nothing was sent"));
        let error = Error::new(ErrorKind::QuotaExceeded, "the drive is full");
        let failed = ending(&Event::Failed { name: "a".into(), error });
        assert_eq!(failed, "NOT SAVED     a  the drive is full");
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        let text = ending(&Event::Committed {
            name: "a\u{1b}[2J\r\nb".into(),
            bytes: 0,
            elapsed_ms: 0,
            how: Commit::Uploaded,
        });
        assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    }

    #[test]
    fn durations_are_short() {
        let text = |s| duration(Duration::from_secs(s));
        assert_eq!([text(0), text(75), text(125), text(7325)], ["0.0 s", "75 s", "2 min 05 s", "2 h 02 min"]);
    }

    #[test]
    fn lines_come_and_go_with_the_uploads() {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut live =
            Live { lines, bars: BTreeMap::new(), rest: ProgressBar::no_length().with_style(style("{msg}")) };
        let many: Vec<_> = (0..LINES_MAX as u64 + 3).map(view).collect();
        live.refresh(&many);
        assert_eq!((live.bars.len(), live.rest.message().as_str()), (LINES_MAX, "and 3 more"));
        live.refresh(&many[5..7]);
        assert_eq!(live.bars.keys().copied().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(live.bars[&5].position(), 32 << 20);
        live.refresh(&[]);
        assert!(live.bars.is_empty());
    }
}
