//! The log on stderr.
//!
//! In a file, and in a terminal with a chosen filter, a line begins with the time and the level. In the journal,
//! which records the time itself, a line begins with its syslog priority (`<4>`), so `journalctl -p warning`
//! works. A person at a terminal gets plain sentences. Repeated lines are counted (see `repeats`). File names cannot break a line: control characters are escaped. Secrets do
//! not appear: their types print `***`.

mod formatter;
mod line;
mod lossy_writer;
mod repeats;

use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use tokio::sync::broadcast;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::error::{Error, ErrorKind, Result};
use formatter::LineFormatter;
use line::LineStyle;
use lossy_writer::{LineWriter, LossyWriter};
use repeats::RepeatFilter;

/// The default filter.
const FILTER: &str = "warn,pdsfs=info";
/// The default filter for a person at a terminal.
const PERSON_FILTER: &str = "warn,pdsfs=info,pdsfs::pds=warn";

/// Warnings that a slow subscriber may be behind before it loses the oldest.
const WARNINGS_MAX: usize = 256;

/// The warnings of this process. It is global, as the log is.
static WARNINGS: LazyLock<broadcast::Sender<Arc<str>>> =
    LazyLock::new(|| broadcast::Sender::new(WARNINGS_MAX));

/// Starts the log. `chosen` is the filter of the user in the syntax of `RUST_LOG`, such as `warn,pdsfs=info`.
pub fn start(chosen: Option<&str>) -> Result<()> {
    let style = style(chosen.is_some());
    let filter = chosen.unwrap_or(if style == LineStyle::Person { PERSON_FILTER } else { FILTER });
    let parsed = EnvFilter::try_new(filter).map_err(|e| {
        let message = format!("invalid log filter {filter:?} (a valid one is warn,pdsfs=info)");
        Error::with_source(ErrorKind::Invalid, message, e)
    })?;
    let lossy_writer = LossyWriter::stderr(style, line::DIVERTED.clone());
    let lines = layer(style, move || LineWriter(lossy_writer.clone()))
        .map_err(|e| e.context("cannot start the log"))?;
    tracing_subscriber::registry()
        .with(parsed)
        .with(lines)
        .try_init()
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot start the log", e))
}

/// Switches to journal lines, after stderr was redirected to the journal.
pub fn switch_to_journal() {
    line::GOES_TO_JOURNAL.store(true, Ordering::Relaxed);
}

/// Diverts the lines from stderr to the receiver, until it is dropped. For a screen that is redrawn: a line
/// from elsewhere would displace it.
#[cfg(feature = "server")]
pub fn divert() -> broadcast::Receiver<Arc<str>> {
    line::DIVERTED.subscribe()
}

/// Warnings and errors from now on, except those about saving a file, which `status` reports.
pub fn warnings() -> broadcast::Receiver<Arc<str>> {
    WARNINGS.subscribe()
}

fn layer<S, W, O>(style: LineStyle, out: O) -> Result<impl Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + 'static,
    O: Fn() -> W + Clone + Send + Sync + 'static,
{
    let repeats = RepeatFilter::start(style, out.clone())?;
    let lines = LineFormatter::new(style, repeats, WARNINGS.clone());
    Ok(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(out).event_format(lines))
}

/// The style for stderr of this process. A person who chooses a filter gets all details.
fn style(has_filter: bool) -> LineStyle {
    let stderr = std::io::stderr();
    if stderr.is_terminal() {
        return if has_filter { LineStyle::Terminal } else { LineStyle::Person };
    }
    let file = stderr.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let stream = file.and_then(|file| file.metadata()).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let announced = std::env::var("JOURNAL_STREAM").ok();
    if is_journal(announced.as_deref(), stream) { LineStyle::Journal } else { LineStyle::Plain }
}

/// Whether `JOURNAL_STREAM` (`announced`) has the device and inode of `stream`. A set variable is not enough:
/// programs with other outputs inherit it.
fn is_journal(announced: Option<&str>, stream: Option<(u64, u64)>) -> bool {
    let announced = announced.and_then(|text| text.split_once(':'));
    let announced = announced.and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    announced.is_some() && announced == stream
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(style: LineStyle, log: impl FnOnce()) -> Vec<String> {
        let buffer = Buffer::default();
        let out = buffer.clone();
        let layer = layer(style, move || out.clone()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn journal_line_begins_with_its_priority() {
        let lines = written(LineStyle::Journal, || {
            tracing::error!("a");
            tracing::warn!(ino = 7, "b");
            tracing::info!("c");
            tracing::debug!("d");
        });
        assert_eq!(lines[0], "<3>a");
        assert_eq!(lines[1], "<4>b ino=7");
        assert_eq!((&lines[2][..3], &lines[3][..3]), ("<6>", "<7>"));
    }

    #[test]
    fn plain_line_begins_with_time_and_level() {
        let lines = written(LineStyle::Plain, || tracing::warn!(op = "write", "full"));
        assert!(lines[0].starts_with("20") && lines[0].contains(" WARN "), "{lines:?}");
        assert!(lines[0].ends_with("full op=\"write\""), "{lines:?}");
    }

    #[test]
    fn person_reads_plain_sentences() {
        let lines = written(LineStyle::Person, || {
            tracing::error!(op = "read", errno = 5, "/a: the drive answers 500");
            let error = "no room";
            tracing::warn!(%error, "cannot keep a copy");
            tracing::debug_span!("fuse", ino = 7)
                .in_scope(|| tracing::info!("the drive can be reached again"));
            tracing::warn!(target: "hyper", "foreign");
        });
        let expected = [
            "error: /a: the drive answers 500",
            "warning: cannot keep a copy: no room",
            "the drive can be reached again",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn names_cannot_break_a_line() {
        for style in [LineStyle::Journal, LineStyle::Plain, LineStyle::Terminal, LineStyle::Person] {
            let lines = written(style, || {
                let span = tracing::debug_span!("fuse", name = "c\n\u{202e}");
                span.in_scope(|| tracing::warn!(name = "d\n\u{9b}", "/a\n<0>b\x1b[2J\u{202e}: full"));
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            // The colour codes are before the text.
            let text = if style == LineStyle::Terminal {
                lines[0].split("\x1b[0m ").last().unwrap()
            } else {
                &lines[0]
            };
            assert!(text.contains("full") && !text.contains(crate::escape::is_active), "{lines:?}");
        }
    }

    #[test]
    fn repeats_are_suppressed() {
        let lines = written(LineStyle::Journal, || {
            for n in 0..1000 {
                tracing::warn!(op = "read", errno = 5, "file {n}");
            }
            tracing::warn!(op = "write", errno = 5, "another");
        });
        // The first lines of each key are written.
        let reads = lines.iter().filter(|line| line.contains("read")).count();
        assert!((1..100).contains(&reads), "{reads} lines");
        assert!(lines.iter().any(|line| line.contains("another")));
    }

    #[test]
    fn request_span_is_part_of_its_lines() {
        let lines = written(LineStyle::Journal, || {
            let span = tracing::debug_span!("fuse", op = "write", ino = 7, pid = 9);
            span.in_scope(|| tracing::warn!("slow"));
        });
        assert_eq!(lines, ["<4>fuse{op=\"write\" ino=7 pid=9}: slow"]);
    }

    #[test]
    fn secrets_are_not_logged() {
        let token = crate::ids::Secret::new("tok-123".to_owned());
        let lines = written(LineStyle::Plain, || tracing::error!(?token, "refused: {token:?}"));
        assert!(!lines[0].contains("tok-123") && lines[0].contains("***"), "{lines:?}");
    }

    #[test]
    fn warnings_are_forwarded_except_save_failures() {
        let mut received = warnings();
        written(LineStyle::Plain, || {
            tracing::warn!(target: "pdsfs::x", "slow {}", 1);
            tracing::error!(target: "pdsfs::x", op = "commit", "lost");
            tracing::warn!(target: "hyper", "foreign");
            tracing::info!(target: "pdsfs::x", "fine");
        });
        // Other tests warn too.
        let all: Vec<_> = std::iter::from_fn(|| received.try_recv().ok()).collect();
        assert!(all.iter().any(|line| &**line == "slow 1"), "{all:?}");
        assert!(!all.iter().any(|line| ["lost", "foreign", "fine"].contains(&&**line)), "{all:?}");
    }

    #[test]
    fn journal_stream_must_match_stderr() {
        assert!(is_journal(Some("8:42"), Some((8, 42))));
        for (announced, stream) in [
            (Some("8:42"), Some((8, 43))),
            (Some("8:42"), None),
            (Some("x"), Some((8, 42))),
            (None, Some((8, 42))),
            (None, None),
        ] {
            assert!(!is_journal(announced, stream), "{announced:?}");
        }
    }
}
