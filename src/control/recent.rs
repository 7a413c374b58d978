//! The last things that happened to a mount, for whoever asks.
//!
//! A ring of so many entries; whoever reads more slowly than things happen is told how many were missed. A
//! reader holds a number and nothing else, so one that has gone to sleep costs nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::types::{Happening, LogEntry};
use crate::logging;
use crate::status::{Event, Progress};

/// Entries that are remembered.
const ENTRIES_MAX: usize = 1000;
/// Failures that are remembered; they must not be pushed out by files that went well.
const FAILURES_MAX: usize = 50;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The last things that happened.
#[derive(Debug)]
pub struct Recent {
    /// A leaf lock.
    rings: Mutex<Rings>,
    /// The number of the newest entry.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rings {
    entries: VecDeque<LogEntry>,
    failures: VecDeque<LogEntry>,
    seq: u64,
}

/// What happened, without number and time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Happened {
    /// What.
    pub what: Happening,
    /// To which file.
    pub path: Option<String>,
    /// Its size.
    pub bytes: Option<u64>,
    /// How long it took.
    pub elapsed_ms: Option<u64>,
    /// How, or why not.
    pub text: String,
}

impl Happened {
    /// Something that somebody should know.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { what: Happening::Warning, path: None, bytes: None, elapsed_ms: None, text: text.into() }
    }

    /// So much happened that not all of it was noted.
    fn missed(text: String) -> Self {
        Self { what: Happening::Missed, ..Self::warning(text) }
    }
}

impl From<&Event> for Happened {
    fn from(event: &Event) -> Self {
        match event {
            Event::Committed { name, bytes, elapsed_ms, how } => Self {
                what: Happening::Committed,
                path: Some(name.to_string()),
                bytes: Some(*bytes),
                elapsed_ms: Some(*elapsed_ms),
                text: how.to_string(),
            },
            Event::Failed { name, error } => Self {
                what: Happening::Failed,
                path: Some(name.to_string()),
                ..Self::warning(error.to_string())
            },
            Event::AttributesRefused { name, error } => Self {
                what: Happening::AttributesRefused,
                path: Some(name.to_string()),
                ..Self::warning(error.to_string())
            },
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self { rings: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened now.
    pub fn add(&self, happened: Happened) {
        let mut rings = self.lock();
        rings.seq += 1;
        let Happened { what, path, bytes, elapsed_ms, mut text } = happened;
        let fits = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(fits.unwrap_or(0));
        let entry = LogEntry {
            seq: rings.seq,
            at_ms: unix_ms(SystemTime::now()),
            what,
            path,
            bytes,
            elapsed_ms,
            text,
        };
        if matches!(what, Happening::Failed | Happening::AttributesRefused) {
            push(&mut rings.failures, entry.clone(), FAILURES_MAX);
        }
        push(&mut rings.entries, entry, ENTRIES_MAX);
        self.newest.send_replace(rings.seq);
    }

    /// The number of the newest entry.
    pub fn last_seq(&self) -> u64 {
        self.lock().seq
    }

    /// The last failures, oldest first.
    pub fn failures(&self) -> Vec<LogEntry> {
        self.lock().failures.iter().cloned().collect()
    }

    /// At most `count` entries after number `since`, oldest first; before them, that some were missed.
    pub fn after(&self, since: u64, count: usize) -> Vec<LogEntry> {
        let rings = self.lock();
        let begin = rings.entries.partition_point(|entry| entry.seq <= since);
        let missed =
            rings.entries.front().map_or(0, |first| first.seq.saturating_sub(since.saturating_add(1)));
        let missed = (missed > 0 && since > 0).then(|| LogEntry {
            seq: since + missed,
            at_ms: unix_ms(SystemTime::now()),
            what: Happening::Missed,
            path: None,
            bytes: None,
            elapsed_ms: None,
            text: format!("{missed} events are not remembered any more"),
        });
        missed.into_iter().chain(rings.entries.range(begin..).take(count).cloned()).collect()
    }

    /// Changes with every entry.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Notes the endings of transfers from now on, for as long as the mount lives. Must be called on a
    /// runtime.
    pub fn watch(self: &Arc<Self>, progress: &Progress) -> JoinHandle<()> {
        self.watch_with(progress, logging::warnings())
    }

    fn watch_with(self: &Arc<Self>, progress: &Progress, mut warnings: Receiver<Arc<str>>) -> JoinHandle<()> {
        let (recent, mut events) = (self.clone(), progress.subscribe());
        tokio::spawn(async move {
            let mut warnings_ended = false;
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Ok(event) => recent.add(Happened::from(&event)),
                        Err(RecvError::Lagged(count)) => {
                            recent.add(Happened::missed(format!("{count} endings of transfers were not noted")));
                        }
                        Err(RecvError::Closed) => return,
                    },
                    text = warnings.recv(), if !warnings_ended => match text {
                        Ok(text) => recent.add(Happened::warning(&*text)),
                        Err(RecvError::Lagged(count)) => {
                            let what = format!("{count} warnings were not noted; they are in the log of the program");
                            recent.add(Happened::missed(what));
                        }
                        Err(RecvError::Closed) => warnings_ended = true,
                    },
                }
            }
        })
    }
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

    fn warning(n: usize) -> Happened {
        Happened::warning(format!("w{n}"))
    }

    fn failure(n: usize) -> Happened {
        Happened { what: Happening::Failed, path: Some(format!("/{n}")), ..warning(n) }
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let recent = Recent::default();
        assert_eq!(recent.after(0, 10), []);
        (1..=5).for_each(|n| recent.add(warning(n)));
        let texts = |entries: Vec<LogEntry>| entries.into_iter().map(|e| e.text).collect::<Vec<_>>();
        assert_eq!(texts(recent.after(0, 2)), ["w1", "w2"]);
        assert_eq!(texts(recent.after(2, 9)), ["w3", "w4", "w5"]);
        assert_eq!(recent.after(5, 9), []);
        assert_eq!(recent.after(99, 9), []);
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_was_missed() {
        let recent = Recent::default();
        recent.add(failure(0));
        (0..ENTRIES_MAX + 9).for_each(|n| recent.add(warning(n)));
        assert_eq!(recent.lock().entries.len(), ENTRIES_MAX);
        let seen = recent.after(4, 1);
        assert_eq!((seen[0].what, seen[0].seq), (Happening::Missed, 10));
        assert!(seen[0].text.starts_with("6 events"), "{}", seen[0].text);
        assert_eq!(seen[1].seq, 11);
        assert_eq!(recent.after(0, 1)[0].seq, 11, "who begins has missed nothing");
        assert_eq!(recent.failures().len(), 1, "a failure was pushed out by what went well");
        (0..FAILURES_MAX + 5).for_each(|n| recent.add(failure(n)));
        assert_eq!(recent.failures().len(), FAILURES_MAX);
    }

    #[test]
    fn no_number_is_too_large_to_be_asked_for() {
        let recent = Recent::default();
        (0..ENTRIES_MAX + 9).for_each(|n| recent.add(warning(n)));
        assert_eq!(recent.after(u64::MAX, 9), []);
    }

    #[tokio::test]
    async fn warnings_that_come_too_fast_are_counted() {
        let (recent, progress) = (Arc::new(Recent::default()), Progress::new());
        let warned = tokio::sync::broadcast::Sender::new(4);
        let heard = warned.subscribe();
        (0..9).for_each(|n| drop(warned.send(format!("w{n}").into())));
        let mut newest = recent.subscribe();
        let watching = recent.watch_with(&progress, heard);
        newest.wait_for(|seq| *seq == 5).await.unwrap();
        let seen = recent.after(0, 9);
        assert_eq!((seen[0].what, &seen[0].text[..10]), (Happening::Missed, "5 warnings"), "{seen:?}");
        assert_eq!((seen[1].text.as_str(), seen[4].text.as_str()), ("w5", "w8"));
        // Without anybody who warns, endings are noted all the same.
        drop(warned);
        progress.begin("/a").committed(1, crate::status::Commit::Uploaded);
        newest.wait_for(|seq| *seq == 6).await.unwrap();
        drop(progress);
        watching.await.unwrap();
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let recent = Recent::default();
        recent.add(Happened::warning("\u{e9}".repeat(TEXT_BYTES_MAX)));
        assert!(recent.after(0, 1)[0].text.len() <= TEXT_BYTES_MAX);
    }

    #[tokio::test]
    async fn endings_are_noted_in_order() {
        let (recent, progress) = (Arc::new(Recent::default()), Progress::new());
        let mut newest = recent.subscribe();
        let watching = recent.watch(&progress);
        let transfer = progress.begin("/a");
        transfer.wrote(5);
        transfer.committed(5, crate::status::Commit::Uploaded);
        let full = crate::error::Error::new(crate::error::ErrorKind::QuotaExceeded, "the drive is full");
        progress.begin("/b").failed(&full);
        newest.wait_for(|seq| *seq == 2).await.unwrap();
        let seen = recent.after(0, 9);
        assert_eq!((seen[0].path.as_deref(), seen[0].text.as_str()), (Some("/a"), "uploaded"));
        assert_eq!((seen[1].path.as_deref(), seen[1].text.as_str()), (Some("/b"), "the drive is full"));
        assert_eq!(recent.failures().len(), 1);
        drop((progress, transfer));
        watching.await.unwrap();
    }
}
