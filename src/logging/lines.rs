//! The form of a line.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::repeats::{Key, Repeats};

/// What begins the names of this program's parts.
const OURS: &str = "pdsfs";
/// Operations whose failure is that of saving a file.
const SAVING: [&str; 5] = ["commit", "write", "flush", "fsync", "release"];

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

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Lines {
    style: Style,
    timed: Format<Full, SystemTime>,
    bare: Format<Full, ()>,
    repeats: Arc<Repeats>,
    warnings: broadcast::Sender<Arc<str>>,
}

impl Lines {
    pub(super) fn new(style: Style, repeats: Arc<Repeats>, warnings: broadcast::Sender<Arc<str>>) -> Self {
        let bare = Format::default().without_time().with_level(false).with_target(false).with_ansi(false);
        Self { style, timed: Format::default(), bare, repeats, warnings }
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
        if self.style == Style::Terminal {
            return self.timed.format_event(ctx, to, event);
        }
        let mut line = String::new();
        if self.style == Style::Journal {
            self.bare.format_event(ctx, Writer::new(&mut line), event)?;
        } else {
            self.timed.format_event(ctx, Writer::new(&mut line), event)?;
        }
        write_line(&mut to, self.style, *metadata.level(), line.trim_end())
    }
}

/// Writes one line that is one line, whatever is in it.
pub(super) fn write_line(to: &mut dyn fmt::Write, style: Style, level: Level, text: &str) -> fmt::Result {
    if style == Style::Journal {
        write!(to, "<{}>", priority(level))?;
    }
    for c in text.chars() {
        if c.is_control() {
            write!(to, "{}", c.escape_default())?;
        } else {
            to.write_char(c)?;
        }
    }
    to.write_char('\n')
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
