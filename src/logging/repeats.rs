//! Suppresses repeated log lines: the first few are written, the rest are counted, and the count is logged.
//!
//! Two lines are repeats if they have the same call site, operation and errno; names in them may differ. So a
//! full drive cannot fill the disk with one line for each of a thousand files.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{Level, callsite::Identifier};

use super::line::{LineStyle, write_line};
use crate::error::{Error, Result};

/// Lines of one key that are written within a window.
const LINES_MAX: u32 = 20;
/// How long repeats are counted before their count is logged and a new window starts.
const WINDOW: Duration = Duration::from_secs(10);
/// Keys that are tracked. Lines with other keys are always written.
const KEYS_MAX: usize = 512;
/// How often the thread that logs the counts checks whether the filter still exists.
const LIFE_CHECK: Duration = Duration::from_secs(60);

/// Lines with equal keys are repeats.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct RepeatKey {
    pub(super) callsite: Identifier,
    pub(super) op: String,
    pub(super) errno: i64,
}

#[derive(Debug)]
struct RepeatState {
    began: Instant,
    written: u32,
    suppressed: u64,
    level: Level,
    last: String,
}

/// A count to be logged.
#[derive(PartialEq, Eq, Debug)]
struct RepeatCount {
    level: Level,
    text: String,
}

#[derive(Debug, Default)]
pub(super) struct RepeatFilter {
    /// A leaf lock.
    states: Mutex<HashMap<RepeatKey, RepeatState>>,
    /// Notified when the first line of a key is suppressed.
    has_suppressed: Condvar,
}

impl RepeatFilter {
    /// Starts a filter with a thread that writes the counts to `out`.
    pub(super) fn start<W: Write>(
        style: LineStyle,
        out: impl Fn() -> W + Send + 'static,
    ) -> Result<Arc<Self>> {
        let repeats = Arc::new(Self::default());
        let filter = Arc::downgrade(&repeats);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_counts(&filter, style, out))
            .map_err(Error::from)?;
        Ok(repeats)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RepeatKey, RepeatState>> {
        self.states.lock()
    }

    /// Whether to write a line; otherwise it is counted.
    pub(super) fn admit(&self, key: RepeatKey, level: Level, message: &str, now: Instant) -> bool {
        let mut states = self.lock();
        if states.len() >= KEYS_MAX && !states.contains_key(&key) {
            states.retain(|_, state| {
                state.suppressed > 0 || now.saturating_duration_since(state.began) < WINDOW
            });
            if states.len() >= KEYS_MAX {
                return true;
            }
        }
        let fresh = || RepeatState { began: now, written: 0, suppressed: 0, level, last: String::new() };
        let state = states.entry(key).or_insert_with(fresh);
        if state.suppressed == 0 && now.saturating_duration_since(state.began) >= WINDOW {
            *state = fresh();
        }
        if state.written < LINES_MAX {
            state.written += 1;
            return true;
        }
        state.suppressed += 1;
        message.clone_into(&mut state.last);
        if state.suppressed == 1 {
            self.has_suppressed.notify_one();
        }
        false
    }

    /// The counts whose window is over. Each is returned once.
    fn due(&self, now: Instant) -> Vec<RepeatCount> {
        let mut counts = Vec::new();
        for state in
            self.lock().values_mut().filter(|state| state.suppressed > 0 && state.began + WINDOW <= now)
        {
            let text = format!("repeated {} times, last: {}", state.suppressed, state.last);
            counts.push(RepeatCount { level: state.level, text });
            *state = RepeatState {
                began: now,
                written: 0,
                suppressed: 0,
                level: state.level,
                last: String::new(),
            };
        }
        counts
    }

    /// Waits until a window may be over, or a first line is suppressed.
    fn wait(&self) {
        let mut states = self.lock();
        let next =
            states.values().filter(|state| state.suppressed > 0).map(|state| state.began + WINDOW).min();
        let limit = next.map_or(LIFE_CHECK, |next| next.saturating_duration_since(Instant::now()));
        self.has_suppressed.wait_for(&mut states, limit);
    }
}

/// Runs until the filter is dropped.
fn write_counts<W: Write>(filter: &Weak<RepeatFilter>, style: LineStyle, out: impl Fn() -> W) {
    while let Some(repeats) = filter.upgrade() {
        for count in repeats.due(Instant::now()) {
            let mut line = String::new();
            // There is no other place to report an error.
            let _ = write_line(&mut line, style.current(), count.level, &count.text);
            let _ = out().write_all(line.as_bytes());
        }
        repeats.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Callsite as _;
    use tracing::callsite::DefaultCallsite;
    use tracing::metadata::Kind as CallsiteKind;

    static CALLSITE: DefaultCallsite = {
        static META: tracing::Metadata<'static> = tracing::metadata! {
            name: "x",
            target: "x",
            level: Level::WARN,
            fields: &[],
            callsite: &CALLSITE,
            kind: CallsiteKind::EVENT,
        };
        DefaultCallsite::new(&META)
    };

    fn key(op: &str, errno: i64) -> RepeatKey {
        RepeatKey { callsite: CALLSITE.metadata().callsite(), op: op.to_owned(), errno }
    }

    fn admit_times(repeats: &RepeatFilter, key: &RepeatKey, times: u32, now: Instant) -> u32 {
        (0..times).filter(|n| repeats.admit(key.clone(), Level::WARN, &format!("m{n}"), now)).count() as u32
    }

    #[test]
    fn first_lines_are_written_and_the_rest_counted() {
        let (repeats, start) = (RepeatFilter::default(), Instant::now());
        assert_eq!(admit_times(&repeats, &key("read", 5), 100, start), LINES_MAX);
        assert_eq!(admit_times(&repeats, &key("write", 5), 3, start), 3, "another operation");
        assert_eq!(admit_times(&repeats, &key("read", 28), 3, start), 3, "another errno");
        assert_eq!(repeats.due(start), vec![]);
        let text = "repeated 80 times, last: m99".to_owned();
        assert_eq!(repeats.due(start + WINDOW), vec![RepeatCount { level: Level::WARN, text }]);
        assert_eq!(repeats.due(start + WINDOW), vec![]);
        assert_eq!(admit_times(&repeats, &key("read", 5), 1, start + WINDOW), 1, "a new window");
    }

    #[test]
    fn slow_repeats_are_always_written() {
        let (repeats, start) = (RepeatFilter::default(), Instant::now());
        for n in 0..100 {
            assert_eq!(admit_times(&repeats, &key("read", 5), 1, start + WINDOW * n / 10), 1);
        }
    }

    #[test]
    fn number_of_keys_is_bounded() {
        let (repeats, start) = (RepeatFilter::default(), Instant::now());
        for errno in (0_i64..).take(2 * KEYS_MAX) {
            assert_eq!(admit_times(&repeats, &key("read", errno), 1, start), 1);
        }
        assert_eq!(repeats.lock().len(), KEYS_MAX);
        admit_times(&repeats, &key("late", 1), 1, start + WINDOW);
        assert_eq!(repeats.lock().len(), 1, "old keys were kept");
    }

    #[test]
    fn count_is_logged_without_further_lines() {
        #[derive(Clone)]
        struct Line(std::sync::mpsc::Sender<String>);
        impl Write for Line {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.send(String::from_utf8_lossy(bytes).into_owned()).unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (sender, lines) = std::sync::mpsc::channel();
        let repeats = RepeatFilter::start(LineStyle::Journal, move || Line(sender.clone())).unwrap();
        // A window that is nearly over, so that the test does not wait for one.
        let began = Instant::now().checked_sub(WINDOW).unwrap() + Duration::from_millis(200);
        assert_eq!(admit_times(&repeats, &key("read", 5), LINES_MAX + 7, began), LINES_MAX);
        let line = lines.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(line, format!("<4>repeated 7 times, last: m{}\n", LINES_MAX + 6));
    }
}
