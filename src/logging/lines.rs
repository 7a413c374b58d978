//! The form of a line.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::repeats::{Key, Repeats};
use crate::printable::write_escaped;

/// What begins the names of this program's parts.
const OURS: &str = "pdsfs";
/// Operations whose failure is that of saving a file.
const SAVING: [&str; 6] = ["commit", "write", "flush", "fsync", "release", "attributes"];

/// What a terminal is told to show less bright, and as usual.
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Whether the lines go to the journal by now, whoever read them first.
pub(super) static GOES_TO_JOURNAL: AtomicBool = AtomicBool::new(false);

/// Who reads the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    /// A person, in colour.
    Terminal,
    /// A file.
    Plain,
    /// The journal of systemd.
    Journal,
}

impl Style {
    /// That of who reads them now.
    pub(super) fn now(self) -> Self {
        if GOES_TO_JOURNAL.load(Ordering::Relaxed) { Self::Journal } else { self }
    }
}

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Lines {
    style: Style,
    text: Format<Full, ()>,
    repeats: Arc<Repeats>,
    warnings: broadcast::Sender<Arc<str>>,
}

impl Lines {
    pub(super) fn new(style: Style, repeats: Arc<Repeats>, warnings: broadcast::Sender<Arc<str>>) -> Self {
        // The head of a line is written here, what comes from elsewhere is in the text.
        let text = Format::default().without_time().with_level(false).with_ansi(false);
        Self { style, text: text.with_target(style != Style::Journal), repeats, warnings }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        // Whoever looks for a mistake wants every line.
        if *metadata.level() <= Level::INFO {
            let mut subject = Subject::default();
            event.record(&mut subject);
            let key = Key { callsite: metadata.callsite(), op: subject.op.clone(), errno: subject.errno };
            if !self.repeats.admit(key, *metadata.level(), &subject.message, Instant::now()) {
                return Ok(());
            }
            let is_saving = SAVING.contains(&subject.op.as_str());
            if *metadata.level() <= Level::WARN && metadata.target().starts_with(OURS) && !is_saving {
                // Nobody listening is no failure.
                let _ = self.warnings.send(subject.text().into());
            }
        }
        let mut line = String::new();
        self.text.format_event(ctx, Writer::new(&mut line), event)?;
        write_line(&mut to, self.style.now(), *metadata.level(), line.trim_end())
    }
}

/// Writes one line that is one line, whatever is in it.
pub(super) fn write_line(to: &mut dyn fmt::Write, style: Style, level: Level, text: &str) -> fmt::Result {
    match style {
        Style::Journal => write!(to, "<{}>", priority(level))?,
        Style::Plain => write!(to, "{} {level:>5} ", timestamp())?,
        Style::Terminal => write!(to, "{DIM}{}{RESET} {}{level:>5}{RESET} ", timestamp(), color(level))?,
    }
    write_escaped(to, text)?;
    to.write_char('\n')
}

fn timestamp() -> String {
    jiff::Timestamp::try_from(SystemTime::now()).map_or_else(|_| String::new(), |now| format!("{now:.6}"))
}

/// What a terminal is told to show a level in its colour.
fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// The priority of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// What a line is about.
#[derive(Debug, Default)]
struct Subject {
    message: String,
    op: String,
    errno: i64,
    error: String,
}

impl Subject {
    fn text(&self) -> String {
        match (self.message.as_str(), self.error.as_str()) {
            (message, "") => message.to_owned(),
            ("", error) => error.to_owned(),
            (message, error) => format!("{message}: {error}"),
        }
    }
}

impl Visit for Subject {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "errno" {
            self.errno = value;
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "op" {
            value.clone_into(&mut self.op);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let into = match field.name() {
            "message" => &mut self.message,
            "error" => &mut self.error,
            _ => return,
        };
        into.clear();
        // Writing to a string cannot fail.
        let _ = write!(into, "{value:?}");
    }
}
