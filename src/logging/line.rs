//! The form of one log line.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use tokio::sync::broadcast;
use tracing::Level;

use crate::escape::write_escaped;
use crate::messages;

/// Terminal codes for dim and for default text.
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Set when stderr is redirected to the journal. It overrides the style that was detected at the start.
pub(super) static GOES_TO_JOURNAL: AtomicBool = AtomicBool::new(false);

/// Lines that a receiver of diverted lines may be behind before it loses the oldest.
const DIVERTED_LINES_MAX: usize = 1024;

/// Takes the lines instead of stderr while it has receivers. It is global, as the log is.
pub(super) static DIVERTED: LazyLock<broadcast::Sender<Arc<str>>> =
    LazyLock::new(|| broadcast::Sender::new(DIVERTED_LINES_MAX));

/// The destination of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineStyle {
    /// A terminal, with sentences alone.
    Person,
    /// A terminal with all details, in colour.
    Terminal,
    /// A file or a pipe.
    Plain,
    /// The journal of systemd.
    Journal,
}

impl LineStyle {
    /// The style after a redirection to the journal, if there was one.
    pub(super) fn current(self) -> Self {
        if GOES_TO_JOURNAL.load(Ordering::Relaxed) { Self::Journal } else { self }
    }
}

/// Writes exactly one line: control characters in `text` are escaped.
pub(super) fn write_line(to: &mut dyn fmt::Write, style: LineStyle, level: Level, text: &str) -> fmt::Result {
    match style {
        LineStyle::Journal => write!(to, "<{}>", priority(level))?,
        LineStyle::Person => match level {
            Level::ERROR => write!(to, "{} ", messages::log::error())?,
            Level::WARN => write!(to, "{} ", messages::log::warning())?,
            _ => {}
        },
        LineStyle::Plain => write!(to, "{} {level:>5} ", timestamp())?,
        LineStyle::Terminal => {
            write!(to, "{DIM}{}{RESET} {}{level:>5}{RESET} ", timestamp(), color(level))?;
        }
    }
    write_escaped(to, text)?;
    to.write_char('\n')
}

fn timestamp() -> String {
    jiff::Timestamp::try_from(SystemTime::now()).map_or_else(|_| String::new(), |now| format!("{now:.6}"))
}

/// The terminal code for the colour of a level.
fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// The syslog priority.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
