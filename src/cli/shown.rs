//! How sizes, times and names look to people. Names come from programs: what a terminal would obey is escaped.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(super) use crate::printable::escaped as printable;

use crate::control::types::{Happening, LogEntry, Stage, Status};

/// A duration to three digits or so.
pub(super) fn duration(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..100 => format!("{s} s"),
        100..6000 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// The same for milliseconds.
pub(super) fn ms(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// A size.
pub(super) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// A rate; nothing where there is none.
pub(super) fn rate(bytes_s: u64) -> String {
    if bytes_s == 0 { String::new() } else { format!("{}/s", BinaryBytes(bytes_s)) }
}

/// A moment in the time of this place: the time for today, else the date too.
pub(super) fn moment(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let Some(at) = at else { return "?".to_owned() };
    let (zone, now) = (TimeZone::system(), Timestamp::now());
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone));
    let is_today = at.date() == now.date();
    at.strftime(if is_today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
}

/// The word for a state.
pub(super) fn state(state: Stage) -> &'static str {
    if state == Stage::Failed { "FAILED" } else { state.name() }
}

/// One event in one line, without its time.
pub(super) fn event(entry: &LogEntry) -> String {
    let (path, text) = (printable(entry.path.as_deref().unwrap_or_default()), printable(&entry.text));
    match entry.what {
        Happening::Committed => {
            let how = match entry.text.as_str() {
                "instant" => "  (the drive had these bytes: nothing was sent)",
                "unchanged" => "  (unchanged: nothing was sent)",
                _ => "",
            };
            let (size, took) = (bytes(entry.bytes.unwrap_or(0)), ms(entry.elapsed_ms.unwrap_or(0)));
            format!("on the drive  {path}  {size}  {took}{how}")
        }
        Happening::Failed => format!("NOT SAVED     {path}  {text}"),
        Happening::AttributesRefused => format!("NO ATTRIBUTES {path}  {text}"),
        Happening::Unknown => format!("              {path}  {text}"),
        Happening::Warning => format!("warning       {text}"),
        Happening::Missed => format!("              {text}"),
    }
}

/// One line about a whole mount.
pub(super) fn headline(status: &Status) -> String {
    let name = status.name.as_ref().map(|name| format!("{}: ", printable(name))).unwrap_or_default();
    let read_only = if status.read_only { ", read-only" } else { "" };
    let (drive, place) = (printable(&status.drive_id), printable(&status.mountpoint));
    format!("{name}drive {drive} at {place}{read_only}  {}", standing(status))
}

/// What is still to do on a mount.
fn standing(status: &Status) -> String {
    let pending = &status.pending;
    if pending.files == 0 && pending.files_failed_open > 0 {
        return format!("{} could not be saved and still open", count(pending.files_failed_open, "file"));
    }
    if pending.files == 0 && pending.attributes == 0 {
        return match (status.totals.files_failed, pending.attributes_refused) {
            (0, 0) => "everything is on the drive".to_owned(),
            (0, refused) => {
                format!("everything is on the drive but the attributes of {}", count(refused, "file"))
            }
            (failed, _) => format!("nothing is left to send; {} could not be saved", count(failed, "file")),
        };
    }
    if pending.files == 0 {
        return format!("{} still to be told", count(pending.attributes, "attribute change"));
    }
    let mut text = format!("{}, {} to go", count(pending.files, "file"), bytes(pending.bytes));
    if pending.files_open > 0 {
        let _ = write!(text, " ({} still open)", pending.files_open);
    }
    if pending.oldest_ms > 0 {
        let _ = write!(text, ", for {}", ms(pending.oldest_ms));
    }
    if status.totals.rate_bytes_s > 0 {
        let _ = write!(text, "  {}", rate(status.totals.rate_bytes_s));
    }
    text
}

/// Why nothing is sent, where that is so.
pub(super) fn paused(status: &Status) -> Option<String> {
    let paused = status.paused.as_ref()?;
    let reason = paused.reason.name();
    Some(format!("paused: {reason} since {}: {}", moment(paused.since_ms), printable(&paused.detail)))
}

/// A number with its noun.
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::types::{PauseReason, Paused, Pending};

    #[test]
    fn a_headline_says_what_is_left_and_for_how_long() {
        let mut status = Status { drive_id: "1".into(), mountpoint: "/mnt/\x1b".into(), ..Status::default() };
        assert_eq!(headline(&status), "drive 1 at /mnt/\\u{1b}  everything is on the drive");
        status.pending =
            Pending { files: 2, files_open: 1, bytes: 3 << 20, oldest_ms: 12_000, ..Pending::default() };
        status.totals.rate_bytes_s = 1 << 20;
        let text = headline(&status);
        assert!(text.ends_with("2 files, 3.00 MiB to go (1 still open), for 12 s  1.00 MiB/s"), "{text}");
        status.pending = Pending { attributes: 1, ..Pending::default() };
        assert!(headline(&status).ends_with("1 attribute change still to be told"));
        status.pending = Pending { attributes_refused: 2, ..Pending::default() };
        assert!(headline(&status).ends_with("everything is on the drive but the attributes of 2 files"));
    }

    #[test]
    fn a_pause_says_why() {
        let mut status = Status::default();
        assert_eq!(paused(&status), None);
        let reason = PauseReason::LoginNeeded;
        status.paused = Some(Paused { reason, detail: "the token was refused".into(), since_ms: 0 });
        let text = paused(&status).unwrap();
        assert!(text.starts_with("paused: login needed since 19"), "{text}");
        assert!(text.ends_with(": the token was refused"), "{text}");
    }
}
