//! The last events of a mount.
//!
//! A bounded ring. A reader holds only a sequence number, so an idle reader costs nothing; a slow reader gets
//! an entry with the number of events that it missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::types::{EventKind, LogEntry};
use crate::error::Error;
use crate::logging;
use crate::messages::Cause;
use crate::status::{Progress, ProgressEvent};

/// Entries in the ring.
const ENTRIES_MAX: usize = 1000;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The last events of a mount.
#[derive(Debug)]
pub struct EventLog {
    /// A leaf lock.
    rings: Mutex<Rings>,
    /// Sequence number of the newest entry.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rings {
    entries: VecDeque<LogEntry>,
    seq: u64,
}

/// An event without sequence number and time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub what: EventKind,
    pub path: Option<String>,
    pub bytes: Option<u64>,
    pub elapsed_ms: Option<u64>,
    /// The commit method, the error or the warning.
    pub text: String,
    pub cause: Option<Cause>,
    pub detail: Option<String>,
}

impl Event {
    pub fn warning(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            what: EventKind::Warning,
            path: None,
            bytes: None,
            elapsed_ms: None,
            text,
            cause: None,
            detail: None,
        }
    }

    fn error(what: EventKind, path: &str, error: &Error) -> Self {
        Self {
            what,
            path: Some(path.to_owned()),
            cause: error.cause().cloned(),
            detail: error.detail().map(str::to_owned),
            ..Self::warning(error.to_string())
        }
    }

    fn missed(text: String) -> Self {
        Self { what: EventKind::Missed, ..Self::warning(text) }
    }
}

impl From<&ProgressEvent> for Event {
    fn from(event: &ProgressEvent) -> Self {
        match event {
            ProgressEvent::Committed { name, bytes, elapsed_ms, how } => Self {
                what: EventKind::Committed,
                path: Some(name.to_string()),
                bytes: Some(*bytes),
                elapsed_ms: Some(*elapsed_ms),
                ..Self::warning(how.to_string())
            },
            ProgressEvent::Failed { name, error } => Self::error(EventKind::Failed, name, error),
            ProgressEvent::AttributesRefused { name, error } => {
                Self::error(EventKind::AttributesRefused, name, error)
            }
        }
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self { rings: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock()
    }

    /// Adds an event that happened now.
    pub fn add(&self, event: Event) {
        let mut rings = self.lock();
        rings.seq += 1;
        let Event { what, path, bytes, elapsed_ms, mut text, cause, mut detail } = event;
        truncate(&mut text);
        detail.as_mut().map(truncate);
        let entry = LogEntry {
            seq: rings.seq,
            at_ms: unix_ms(SystemTime::now()),
            what,
            path,
            bytes,
            elapsed_ms,
            text,
            cause,
            detail,
        };
        push(&mut rings.entries, entry, ENTRIES_MAX);
        self.newest.send_replace(rings.seq);
    }

    /// Sequence number of the newest entry; 0 without entries.
    pub fn last_seq(&self) -> u64 {
        self.lock().seq
    }

    /// At most `count` entries after the number `since`, oldest first. If entries are gone, an entry with
    /// their number comes first.
    pub fn after(&self, since: u64, count: usize) -> Vec<LogEntry> {
        let rings = self.lock();
        let begin = rings.entries.partition_point(|entry| entry.seq <= since);
        let missed =
            rings.entries.front().map_or(0, |first| first.seq.saturating_sub(since.saturating_add(1)));
        let missed = (missed > 0 && since > 0).then(|| LogEntry {
            seq: since + missed,
            at_ms: unix_ms(SystemTime::now()),
            what: EventKind::Missed,
            path: None,
            bytes: None,
            elapsed_ms: None,
            text: format!("{missed} older events are gone"),
            cause: None,
            detail: None,
        });
        missed.into_iter().chain(rings.entries.range(begin..).take(count).cloned()).collect()
    }

    /// Changes with every entry.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Records the ends of transfers and the warnings of the daemon, until `progress` is dropped. Must be
    /// called on a runtime.
    pub fn watch(self: &Arc<Self>, progress: &Progress) -> JoinHandle<()> {
        self.watch_with(progress, logging::warnings())
    }

    fn watch_with(self: &Arc<Self>, progress: &Progress, mut warnings: Receiver<Arc<str>>) -> JoinHandle<()> {
        let (event_log, mut events) = (self.clone(), progress.subscribe());
        tokio::spawn(async move {
            let mut warnings_ended = false;
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Ok(event) => event_log.add(Event::from(&event)),
                        Err(RecvError::Lagged(count)) => {
                            let text = format!("{count} finished or failed transfers were not recorded");
                            event_log.add(Event::missed(text));
                        }
                        Err(RecvError::Closed) => return,
                    },
                    text = warnings.recv(), if !warnings_ended => match text {
                        Ok(text) => event_log.add(Event::warning(&*text)),
                        Err(RecvError::Lagged(count)) => {
                            let text = format!("{count} warnings were not recorded (they are in the log)");
                            event_log.add(Event::missed(text));
                        }
                        Err(RecvError::Closed) => warnings_ended = true,
                    },
                }
            }
        })
    }
}

/// Truncates to [`TEXT_BYTES_MAX`], between characters.
fn truncate(text: &mut String) {
    let fits = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(fits.unwrap_or(0));
}

fn push(ring: &mut VecDeque<LogEntry>, entry: LogEntry, max: usize) {
    if ring.len() >= max {
        ring.pop_front();
    }
    ring.push_back(entry);
}

/// Milliseconds since 1970.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ino;

    fn warning(n: usize) -> Event {
        Event::warning(format!("w{n}"))
    }

    #[test]
    fn reader_continues_after_its_number() {
        let event_log = EventLog::default();
        assert_eq!(event_log.after(0, 10), []);
        (1..=5).for_each(|n| event_log.add(warning(n)));
        let texts = |entries: Vec<LogEntry>| entries.into_iter().map(|e| e.text).collect::<Vec<_>>();
        assert_eq!(texts(event_log.after(0, 2)), ["w1", "w2"]);
        assert_eq!(texts(event_log.after(2, 9)), ["w3", "w4", "w5"]);
        assert_eq!(event_log.after(5, 9), []);
        assert_eq!(event_log.after(99, 9), []);
    }

    #[test]
    fn ring_is_bounded_and_counts_missed_events() {
        let event_log = EventLog::default();
        event_log.add(warning(0));
        (0..ENTRIES_MAX + 9).for_each(|n| event_log.add(warning(n)));
        assert_eq!(event_log.lock().entries.len(), ENTRIES_MAX);
        let seen = event_log.after(4, 1);
        assert_eq!((seen[0].what, seen[0].seq), (EventKind::Missed, 10));
        assert!(seen[0].text.starts_with("6 older events"), "{}", seen[0].text);
        assert_eq!(seen[1].seq, 11);
        assert_eq!(event_log.after(0, 1)[0].seq, 11, "a new reader has missed nothing");
    }

    #[test]
    fn largest_number_yields_no_entries() {
        let event_log = EventLog::default();
        (0..ENTRIES_MAX + 9).for_each(|n| event_log.add(warning(n)));
        assert_eq!(event_log.after(u64::MAX, 9), []);
    }

    #[tokio::test]
    async fn missed_warnings_are_counted() {
        let (event_log, progress) = (Arc::new(EventLog::default()), Progress::new());
        let warned = tokio::sync::broadcast::Sender::new(4);
        let heard = warned.subscribe();
        (0..9).for_each(|n| drop(warned.send(format!("w{n}").into())));
        let mut newest = event_log.subscribe();
        let watching = event_log.watch_with(&progress, heard);
        newest.wait_for(|seq| *seq == 5).await.unwrap();
        let seen = event_log.after(0, 9);
        assert_eq!((seen[0].what, &seen[0].text[..10]), (EventKind::Missed, "5 warnings"), "{seen:?}");
        assert_eq!((seen[1].text.as_str(), seen[4].text.as_str()), ("w5", "w8"));
        // Without a source of warnings, transfers are still recorded.
        drop(warned);
        progress.begin(Ino(1), "/a").committed(1, crate::status::CommitMethod::Uploaded);
        newest.wait_for(|seq| *seq == 6).await.unwrap();
        drop(progress);
        watching.await.unwrap();
    }

    #[test]
    fn long_text_is_truncated_between_characters() {
        let event_log = EventLog::default();
        event_log.add(Event::warning("\u{e9}".repeat(TEXT_BYTES_MAX)));
        assert!(event_log.after(0, 1)[0].text.len() <= TEXT_BYTES_MAX);
    }

    #[tokio::test]
    async fn transfer_ends_are_recorded_in_order() {
        let (event_log, progress) = (Arc::new(EventLog::default()), Progress::new());
        let mut newest = event_log.subscribe();
        let watching = event_log.watch(&progress);
        let transfer = progress.begin(Ino(1), "/a");
        transfer.wrote(5);
        transfer.committed(5, crate::status::CommitMethod::Uploaded);
        let full = crate::error::Error::new(crate::error::ErrorKind::QuotaExceeded, "the drive is full");
        progress.begin(Ino(1), "/b").failed(&full);
        newest.wait_for(|seq| *seq == 2).await.unwrap();
        let seen = event_log.after(0, 9);
        assert_eq!((seen[0].path.as_deref(), seen[0].text.as_str()), (Some("/a"), "uploaded"));
        assert_eq!((seen[1].path.as_deref(), seen[1].text.as_str()), (Some("/b"), "the drive is full"));
        drop((progress, transfer));
        watching.await.unwrap();
    }
}
