//! Formats events of `tracing` as log lines, and forwards warnings.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::line::{DIVERTED, LineStyle, write_line};
use super::repeats::{RepeatFilter, RepeatKey};

/// The target prefix of this crate.
const OWN_TARGET: &str = "pdsfs";
/// Operations with events of their own. Their failures are not forwarded as warnings.
const EVENT_OPS: [&str; 7] = ["commit", "write", "flush", "fsync", "release", "attributes", "pause"];

#[derive(Debug)]
pub(super) struct LineFormatter {
    style: LineStyle,
    text: Format<Full, ()>,
    repeats: Arc<RepeatFilter>,
    warnings: broadcast::Sender<Arc<str>>,
}

impl LineFormatter {
    pub(super) fn new(
        style: LineStyle,
        repeats: Arc<RepeatFilter>,
        warnings: broadcast::Sender<Arc<str>>,
    ) -> Self {
        // `write_line` writes time and level.
        let text = Format::default().without_time().with_level(false).with_ansi(false);
        Self { style, text: text.with_target(style != LineStyle::Journal), repeats, warnings }
    }
}

impl<S, N> FormatEvent<S, N> for LineFormatter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let style = self.style.current();
        let is_own = metadata.target().starts_with(OWN_TARGET);
        let has_event = EVENT_OPS.contains(&fields.op.as_str());
        // The display that takes the lines shows the events itself.
        let is_shown_elsewhere = has_event && DIVERTED.receiver_count() > 0;
        if style == LineStyle::Person && (!is_own || is_shown_elsewhere) {
            return Ok(());
        }
        // Debug lines are never suppressed.
        if *metadata.level() <= Level::INFO {
            let key = RepeatKey { callsite: metadata.callsite(), op: fields.op.clone(), errno: fields.errno };
            if !self.repeats.admit(key, *metadata.level(), &fields.message, Instant::now()) {
                return Ok(());
            }
            if *metadata.level() <= Level::WARN && is_own && !has_event {
                // Sending fails only without subscribers.
                let _ = self.warnings.send(fields.text().into());
            }
        }
        if style == LineStyle::Person {
            return write_line(&mut to, style, *metadata.level(), &fields.text());
        }
        let mut line = String::new();
        self.text.format_event(ctx, Writer::new(&mut line), event)?;
        write_line(&mut to, style, *metadata.level(), line.trim_end())
    }
}

/// The fields that identify repeats, and the text that is forwarded.
#[derive(Debug, Default)]
struct EventFields {
    message: String,
    op: String,
    errno: i64,
    error: String,
}

impl EventFields {
    fn text(&self) -> String {
        match (self.message.as_str(), self.error.as_str()) {
            (message, "") => message.to_owned(),
            ("", error) => error.to_owned(),
            (message, error) => format!("{message}: {error}"),
        }
    }
}

impl Visit for EventFields {
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
