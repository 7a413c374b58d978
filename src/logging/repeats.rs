//! Lines that say the same again and again: a few are written, the rest are counted, and the count is a line.
//!
//! The same is what comes from one place in the source, about one operation and errno; the names in it may
//! differ. A drive that is full must not fill the disk with what a thousand files have to say about it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tracing::{Level, callsite::Identifier};

use super::lines::{Style, write_line};
use crate::error::{Error, Result};

/// Lines of one kind that are written within a window.
const LINES_MAX: u32 = 20;
/// How long lines of one kind are counted before the count is written and it begins anew.
const WINDOW: Duration = Duration::from_secs(10);
/// Kinds that are counted apart. Those beyond it are written as they come.
const KINDS_MAX: usize = 512;
/// How often the thread that writes counts looks whether anybody still logs.
const LIFE_CHECK: Duration = Duration::from_secs(60);

/// What makes lines the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// Where in the source they come from.
    pub(super) callsite: Identifier,
    /// Of which operation they are.
    pub(super) op: String,
    /// How it failed.
    pub(super) errno: i64,
}

#[derive(Debug)]
struct Kind {
    began: Instant,
    written: u32,
    held: u64,
    level: Level,
    last: String,
}

/// A count that is due.
#[derive(PartialEq, Eq, Debug)]
struct Count {
    level: Level,
    text: String,
}

/// Counts what repeats.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// A leaf lock.
    kinds: Mutex<HashMap<Key, Kind>>,
    /// Told when a line is held that may be the first.
    held: Condvar,
}

impl Repeats {
    /// Counts, and writes the counts to `out` when they are due.
    pub(super) fn start<W: Write>(style: Style, out: impl Fn() -> W + Send + 'static) -> Result<Arc<Self>> {
        let repeats = Arc::new(Self::default());
        let counted = Arc::downgrade(&repeats);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_counts(&counted, style, out))
            .map_err(Error::from)?;
        Ok(repeats)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a line is written.
    pub(super) fn admit(&self, key: Key, level: Level, message: &str, now: Instant) -> bool {
        let mut kinds = self.lock();
        if kinds.len() >= KINDS_MAX && !kinds.contains_key(&key) {
            kinds.retain(|_, kind| kind.held > 0 || now.saturating_duration_since(kind.began) < WINDOW);
            if kinds.len() >= KINDS_MAX {
                return true;
            }
        }
        let fresh = || Kind { began: now, written: 0, held: 0, level, last: String::new() };
        let kind = kinds.entry(key).or_insert_with(fresh);
        if kind.held == 0 && now.saturating_duration_since(kind.began) >= WINDOW {
            *kind = fresh();
        }
        if kind.written < LINES_MAX {
            kind.written += 1;
            return true;
        }
        kind.held += 1;
        message.clone_into(&mut kind.last);
        if kind.held == 1 {
            self.held.notify_one();
        }
        false
    }

    /// The counts that are due by now; each is given once.
    fn due(&self, now: Instant) -> Vec<Count> {
        let mut counts = Vec::new();
        for kind in self.lock().values_mut().filter(|kind| kind.held > 0 && kind.began + WINDOW <= now) {
            let text = format!("repeated {} times, last: {}", kind.held, kind.last);
            counts.push(Count { level: kind.level, text });
            *kind = Kind { began: now, written: 0, held: 0, level: kind.level, last: String::new() };
        }
        counts
    }

    /// Waits until a count may be due, or a first line is held.
    fn wait(&self) {
        let kinds = self.lock();
        let next = kinds.values().filter(|kind| kind.held > 0).map(|kind| kind.began + WINDOW).min();
        let limit = next.map_or(LIFE_CHECK, |next| next.saturating_duration_since(Instant::now()));
        drop(self.held.wait_timeout(kinds, limit));
    }
}

/// Runs for as long as somebody logs.
fn write_counts<W: Write>(counted: &Weak<Repeats>, style: Style, out: impl Fn() -> W) {
    while let Some(repeats) = counted.upgrade() {
        for count in repeats.due(Instant::now()) {
            let mut line = String::new();
            // Neither can be told to anybody.
            let _ = write_line(&mut line, style.now(), count.level, &count.text);
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
    use tracing::metadata::Kind as What;

    static CALLSITE: DefaultCallsite = {
        static META: tracing::Metadata<'static> = tracing::metadata! {
            name: "x",
            target: "x",
            level: Level::WARN,
            fields: &[],
            callsite: &CALLSITE,
            kind: What::EVENT,
        };
        DefaultCallsite::new(&META)
    };

    fn key(op: &str, errno: i64) -> Key {
        Key { callsite: CALLSITE.metadata().callsite(), op: op.to_owned(), errno }
    }

    fn say(repeats: &Repeats, key: &Key, times: u32, now: Instant) -> u32 {
        (0..times).filter(|n| repeats.admit(key.clone(), Level::WARN, &format!("m{n}"), now)).count() as u32
    }

    #[test]
    fn a_few_are_written_and_the_rest_counted() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(say(&repeats, &key("read", 5), 100, start), LINES_MAX);
        assert_eq!(say(&repeats, &key("write", 5), 3, start), 3, "another operation");
        assert_eq!(say(&repeats, &key("read", 28), 3, start), 3, "another errno");
        assert_eq!(repeats.due(start), vec![]);
        let text = "repeated 80 times, last: m99".to_owned();
        assert_eq!(repeats.due(start + WINDOW), vec![Count { level: Level::WARN, text }]);
        assert_eq!(repeats.due(start + WINDOW), vec![]);
        assert_eq!(say(&repeats, &key("read", 5), 1, start + WINDOW), 1, "a new window");
    }

    #[test]
    fn what_comes_slowly_is_written_for_ever() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        for n in 0..100 {
            assert_eq!(say(&repeats, &key("read", 5), 1, start + WINDOW * n / 10), 1);
        }
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        for errno in (0_i64..).take(2 * KINDS_MAX) {
            assert_eq!(say(&repeats, &key("read", errno), 1, start), 1);
        }
        assert_eq!(repeats.lock().len(), KINDS_MAX);
        say(&repeats, &key("late", 1), 1, start + WINDOW);
        assert_eq!(repeats.lock().len(), 1, "old kinds were kept");
    }

    #[test]
    fn a_count_is_written_though_nothing_is_logged_any_more() {
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
        let (told, heard) = std::sync::mpsc::channel();
        let repeats = Repeats::start(Style::Journal, move || Line(told.clone())).unwrap();
        // Windows that are nearly over, so that the test need not wait for one.
        let begun = Instant::now().checked_sub(WINDOW).unwrap() + Duration::from_millis(200);
        assert_eq!(say(&repeats, &key("read", 5), LINES_MAX + 7, begun), LINES_MAX);
        let line = heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(line, format!("<4>repeated 7 times, last: m{}\n", LINES_MAX + 6));
    }
}
