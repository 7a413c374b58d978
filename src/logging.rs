//! The log: one line for each thing that happened, where whoever looks after the machine reads it.
//!
//! At a terminal or in a file each line begins with the time. Below systemd, which keeps time and priority by
//! itself, a line begins with its syslog priority (`<4>`) instead; `journalctl -p warning` then finds what it
//! should. Lines that repeat are counted (see `repeats`), a line is one line whatever a file is called, and
//! secrets cannot come here: their types do not print.

mod lines;
mod outlet;
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
use lines::{Lines, Style};
use outlet::{Outlet, To};
use repeats::Repeats;

/// Warnings that a slow reader may be behind before it loses the oldest.
const WARNINGS_MAX: usize = 256;

/// What this process has warned of. The log belongs to the process, so this does too.
static WARNINGS: LazyLock<broadcast::Sender<Arc<str>>> =
    LazyLock::new(|| broadcast::Sender::new(WARNINGS_MAX));

/// Logs to stderr from now on, as `filter` says (`warn,pdsfs=info`).
pub fn start(filter: &str) -> Result<()> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("log filter {filter:?}: {e}")))?;
    let style = style();
    let outlet = Outlet::stderr(style);
    let lines = layer(style, move || To(outlet.clone())).map_err(|e| e.context("cannot log"))?;
    tracing_subscriber::registry()
        .with(parsed)
        .with(lines)
        .try_init()
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot log: {e}")))
}

/// From now on the lines of this process go to the journal.
pub fn goes_to_journal() {
    lines::GOES_TO_JOURNAL.store(true, Ordering::Relaxed);
}

/// Warnings and errors from now on, those apart that are about saving a file: those are events of their own.
pub fn warnings() -> broadcast::Receiver<Arc<str>> {
    WARNINGS.subscribe()
}

fn layer<S, W, O>(style: Style, out: O) -> Result<impl Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + 'static,
    O: Fn() -> W + Clone + Send + Sync + 'static,
{
    let repeats = Repeats::start(style, out.clone())?;
    let lines = Lines::new(style, repeats, WARNINGS.clone());
    Ok(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(out).event_format(lines))
}

/// How lines look on this process's stderr.
fn style() -> Style {
    let stderr = std::io::stderr();
    if stderr.is_terminal() {
        return Style::Terminal;
    }
    let file = stderr.as_fd().try_clone_to_owned().map(std::fs::File::from);
    let place = file.and_then(|file| file.metadata()).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let announced = std::env::var("JOURNAL_STREAM").ok();
    if is_journal(announced.as_deref(), place) { Style::Journal } else { Style::Plain }
}

/// Whether `JOURNAL_STREAM` names the very stream that is written to. Its being set is not enough: it is
/// inherited by programs whose output goes elsewhere.
fn is_journal(announced: Option<&str>, place: Option<(u64, u64)>) -> bool {
    let announced = announced.and_then(|text| text.split_once(':'));
    let announced = announced.and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    announced.is_some() && announced == place
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Takes what is written.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(style: Style, say: impl FnOnce()) -> Vec<String> {
        let paper = Paper::default();
        let out = paper.clone();
        let layer = layer(style, move || out.clone()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn below_systemd_a_line_begins_with_its_priority() {
        let lines = written(Style::Journal, || {
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
    fn elsewhere_a_line_begins_with_the_time_and_the_level() {
        let lines = written(Style::Plain, || tracing::warn!(op = "write", "full"));
        assert!(lines[0].starts_with("20") && lines[0].contains(" WARN "), "{lines:?}");
        assert!(lines[0].ends_with("full op=\"write\""), "{lines:?}");
    }

    #[test]
    fn a_name_cannot_make_a_line_of_its_own() {
        for style in [Style::Journal, Style::Plain, Style::Terminal] {
            let lines = written(style, || {
                let span = tracing::debug_span!("fuse", name = "c\n\u{202e}");
                span.in_scope(|| tracing::warn!(name = "d\n\u{9b}", "/a\n<0>b\x1b[2J\u{202e}: full"));
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            // A terminal is told the colours of what stands before the text.
            let text =
                if style == Style::Terminal { lines[0].split("\x1b[0m ").last().unwrap() } else { &lines[0] };
            assert!(text.contains("full") && !text.contains(crate::printable::is_active), "{lines:?}");
        }
    }

    #[test]
    fn what_repeats_is_counted() {
        let lines = written(Style::Journal, || {
            for n in 0..1000 {
                tracing::warn!(op = "read", errno = 5, "file {n}");
            }
            tracing::warn!(op = "write", errno = 5, "another");
        });
        // Several of each kind are written before they are held back.
        let reads = lines.iter().filter(|line| line.contains("read")).count();
        assert!((1..100).contains(&reads), "{reads} lines");
        assert!(lines.iter().any(|line| line.contains("another")));
    }

    #[test]
    fn a_request_is_a_span_of_its_lines() {
        let lines = written(Style::Journal, || {
            let span = tracing::debug_span!("fuse", op = "write", ino = 7, pid = 9);
            span.in_scope(|| tracing::warn!("slow"));
        });
        assert_eq!(lines, ["<4>fuse{op=\"write\" ino=7 pid=9}: slow"]);
    }

    #[test]
    fn secrets_do_not_come_into_the_log() {
        let token = crate::ids::Secret::new("tok-123".to_owned());
        let lines = written(Style::Plain, || tracing::error!(?token, "refused: {token:?}"));
        assert!(!lines[0].contains("tok-123") && lines[0].contains("***"), "{lines:?}");
    }

    #[test]
    fn warnings_are_told_and_failures_of_saving_are_not_told_twice() {
        let mut heard = warnings();
        written(Style::Plain, || {
            tracing::warn!(target: "pdsfs::x", "slow {}", 1);
            tracing::error!(target: "pdsfs::x", op = "commit", "lost");
            tracing::warn!(target: "hyper", "foreign");
            tracing::info!(target: "pdsfs::x", "fine");
        });
        // Other tests warn too.
        let all: Vec<_> = std::iter::from_fn(|| heard.try_recv().ok()).collect();
        assert!(all.iter().any(|line| &**line == "slow 1"), "{all:?}");
        assert!(!all.iter().any(|line| ["lost", "foreign", "fine"].contains(&&**line)), "{all:?}");
    }

    #[test]
    fn only_the_stream_that_systemd_means_is_the_journal() {
        assert!(is_journal(Some("8:42"), Some((8, 42))));
        for (announced, place) in [
            (Some("8:42"), Some((8, 43))),
            (Some("8:42"), None),
            (Some("x"), Some((8, 42))),
            (None, Some((8, 42))),
            (None, None),
        ] {
            assert!(!is_journal(announced, place), "{announced:?}");
        }
    }
}
