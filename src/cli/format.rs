//! Text for people: sizes, times, and lines about mounts and files. Names are escaped, so that control
//! characters in them do not reach the terminal.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthStr as _;

pub(super) use crate::escape::escaped as printable;

use super::columns::{cut, padded};

use crate::control::types::{EventKind, LogEntry, PauseCause, Status, TransferStage};
use crate::messages::status as messages;
use crate::messages::{Cause, Language};
pub(super) use crate::units::count;
use crate::units::{Elapsed, Size};

pub(super) fn millis(ms: u64) -> String {
    Elapsed(Duration::from_millis(ms)).to_string()
}

/// Least width of a path that is cut.
const PATH_COLUMNS_MIN: usize = 16;

/// A rate; empty for 0.
pub(super) fn rate(bytes_s: u64) -> String {
    if bytes_s == 0 { String::new() } else { format!("{}/s", Size(bytes_s)) }
}

/// Local time, with the date unless it is today.
pub(super) fn local_time(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let Some(at) = at else { return "?".to_owned() };
    let (zone, now) = (TimeZone::system(), Timestamp::now());
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone));
    let is_today = at.date() == now.date();
    at.strftime(if is_today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
}

/// The name of a state, as tables show it.
pub(super) fn state_name(state: TransferStage) -> String {
    match state {
        TransferStage::Writing => messages::writing(),
        TransferStage::Staged => messages::staged(),
        TransferStage::Committing => messages::committing(),
        TransferStage::Failed => messages::failed(),
        TransferStage::Saved => messages::saved(),
        TransferStage::Local => messages::local(),
        TransferStage::Unknown => messages::unknown_state(),
    }
}

/// One event on one line, without its time. Its path is cut so that the line fits into `columns`.
pub(super) fn event(entry: &LogEntry, columns: Option<usize>) -> String {
    let path = printable(entry.path.as_deref().unwrap_or_default());
    let line = event_of(entry, &path);
    match columns.map(|columns| line.width().saturating_sub(columns)) {
        None | Some(0) => line,
        Some(excess) => {
            event_of(entry, &cut(&path, path.width().saturating_sub(excess).max(PATH_COLUMNS_MIN)))
        }
    }
}

fn event_of(entry: &LogEntry, path: &str) -> String {
    let text = printable(&entry.text);
    match entry.what {
        EventKind::Committed => {
            let how = match entry.text.as_str() {
                "instant" => messages::sent_nothing_instant(),
                "unchanged" => messages::sent_nothing_unchanged(),
                _ => String::new(),
            };
            let (size, took) = (Size(entry.bytes.unwrap_or(0)), millis(entry.elapsed_ms.unwrap_or(0)));
            format!("{}  {path}  {size}  {took}  {how}", label(&messages::on_the_drive()))
                .trim_end()
                .to_owned()
        }
        EventKind::Failed => not_saved(path, &reason(&entry.text, entry.cause.as_ref())),
        EventKind::AttributesRefused => {
            let why = printable(&reason(&entry.text, entry.cause.as_ref()));
            format!("{} {path}  {why}", label(&messages::attributes_refused()))
        }
        EventKind::Unknown => format!("{}  {path}  {text}", label("")),
        EventKind::Warning => {
            let text = match entry.text.as_str() {
                "logged in again" => messages::logged_in_again(),
                "back online" => messages::back_online(),
                text => printable(&reason(text, entry.cause.as_ref())),
            };
            format!("{}  {text}", label(&messages::warning()))
        }
        EventKind::Missed => format!("{}  {text}", label("")),
    }
}

/// The first word of an event, as wide as those of other events.
fn label(text: &str) -> String {
    padded(text, messages::on_the_drive().width())
}

/// One line about a mount.
pub(super) fn headline(status: &Status) -> String {
    let name = status.name.as_ref().map(|name| format!("{}: ", printable(name))).unwrap_or_default();
    let read_only = if status.read_only { ", read-only" } else { "" };
    let (drive, mountpoint) = (printable(&status.drive_id), printable(&status.mountpoint));
    format!("{name}drive {drive} at {mountpoint}{read_only}  {}", summary(status))
}

/// The unsaved changes of a mount.
fn summary(status: &Status) -> String {
    let pending = &status.pending;
    if pending.files == 0 && pending.files_failed_open > 0 {
        return messages::not_saved_and_open(&messages::count_files(pending.files_failed_open));
    }
    if pending.files == 0 && pending.attributes == 0 {
        return match (pending.files_failed, pending.attributes_refused) {
            (0, 0) => messages::everything_saved(),
            (0, refused) => messages::saved_except_attributes(&messages::count_files(refused)),
            (failed, _) => messages::nothing_left(&messages::count_files(failed)),
        };
    }
    if pending.files == 0 {
        return messages::attributes_waiting(&messages::count_attribute_changes(pending.attributes));
    }
    let figures = pending.figures(status.totals.rate_bytes_s);
    let mut text = format!("{}: {figures}", count(pending.files, "file"));
    if pending.files_open > 0 {
        let _ = write!(text, " ({} still open)", pending.files_open);
    }
    if pending.oldest_ms > 0 {
        let _ = write!(text, ", unsaved for {}", millis(pending.oldest_ms));
    }
    text
}

/// What was saved since the mount began; `None` if that is nothing.
pub(super) fn session_line(status: &Status) -> Option<String> {
    let totals = &status.totals;
    let files = totals.files_uploaded + totals.files_instant + totals.files_unchanged;
    let saved =
        || format!("saved since the mount: {}, {}", count(files, "file"), Size(totals.bytes_committed));
    (files > 0).then(saved)
}

/// The reason of a pause, if the mount is paused.
pub(super) fn pause_line(status: &Status) -> Option<String> {
    let paused = status.paused.as_ref()?;
    let why = match paused.reason {
        PauseCause::LoginNeeded => messages::login_needed(),
        PauseCause::Offline => messages::offline(),
        PauseCause::Unknown => messages::unknown_reason(),
    };
    let detail = printable(&reason(&paused.detail, paused.cause.as_ref()));
    Some(messages::paused(&why, &local_time(paused.since_ms), &detail))
}

/// The reason of a failure in the language of this process, from its English text and its cause.
pub(super) fn reason(english: &str, cause: Option<&Cause>) -> String {
    match (Language::current(), cause) {
        (language @ Language::Chinese, Some(cause)) => cause.text(language),
        _ => english.to_owned(),
    }
}

/// The line about a file that is not on the drive.
pub(super) fn not_saved(path: &str, error: &str) -> String {
    messages::not_saved(&printable(path), &printable(error))
}

/// The line about a file that was committed while a program had it open.
pub(super) fn partly_saved(path: &str, bytes: u64) -> String {
    messages::partly_saved(&printable(path), &Size(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::types::{Paused, PendingTotals};
    use crate::messages::Remedy;
    use crate::messages::in_chinese;

    #[test]
    fn headline_shows_pending_files_and_age() {
        let mut status = Status { drive_id: "1".into(), mountpoint: "/mnt/\x1b".into(), ..Status::default() };
        assert_eq!(headline(&status), "drive 1 at /mnt/\\u{1b}  everything is on the drive");
        status.pending = PendingTotals {
            files: 2,
            files_open: 1,
            bytes_sent: 1 << 20,
            bytes_waiting: 2 << 20,
            oldest_ms: 12_000,
            ..PendingTotals::default()
        };
        status.totals.rate_bytes_s = 1 << 20;
        let text = headline(&status);
        let end = "2 files: 1.0 MiB sent, 2.0 MiB waiting, 1.0 MiB/s (1 still open), unsaved for 12 s";
        assert!(text.ends_with(end), "{text}");
        status.pending.size_known = true;
        assert!(headline(&status).contains("2 files: 33 % of 3.0 MiB, 1.0 MiB/s, 2.0 s left ("));
        status.pending = PendingTotals { attributes: 1, ..PendingTotals::default() };
        assert!(headline(&status).ends_with("1 attribute change not on the drive yet"));
        status.pending = PendingTotals { attributes_refused: 2, ..PendingTotals::default() };
        assert!(headline(&status).ends_with("everything is on the drive except attributes of 2 files"));
    }

    #[test]
    fn lines_have_the_language_of_the_process() {
        let mut status = Status::default();
        let cause = Some(Cause::LoginEnded { remedy: Remedy::Login("work".into()) });
        let reason = PauseCause::LoginNeeded;
        status.paused = Some(Paused { reason, detail: "your login has ended".into(), since_ms: 0, cause });
        let cause = Some(Cause::DriveFull { room: None });
        let (what, path, text) = (EventKind::Failed, Some("/文件".into()), "the drive is full".into());
        let failed = LogEntry { what, path, text, cause, ..LogEntry::default() };
        let done = LogEntry { what: EventKind::Committed, text: "instant".into(), ..failed.clone() };
        in_chinese(|| {
            let paused = pause_line(&status).unwrap();
            assert!(paused.ends_with("需要登录：登录已失效：请运行 pdsfs login work"), "{paused}");
            assert_eq!(
                event(&failed, None),
                "未保存 /文件：云盘已满：请删除文件，并用 pdsfs trash empty 清空回收站"
            );
            assert_eq!(event(&done, None), "已上传  /文件  0 B  0.0 s  （云盘已有相同内容，无需上传）");
        });
        assert_eq!(
            event(&done, None),
            "on the drive  /文件  0 B  0.0 s  (same content on the drive: nothing sent)"
        );
        assert_eq!(event(&failed, None), "NOT SAVED /文件: the drive is full");
    }

    #[test]
    fn event_fits_into_the_terminal() {
        let path = Some("/a directory with a long name/Sommerurlaub am Meer 0001.mov".into());
        let done = LogEntry { what: EventKind::Committed, path, ..LogEntry::default() };
        let line = event(&done, Some(60));
        assert_eq!(line, "on the drive  /a directo...laub am Meer 0001.mov  0 B  0.0 s");
        assert!(event(&done, Some(1)).contains(".mov  0 B"), "{line}");
    }

    #[test]
    fn pause_line_names_the_reason() {
        let mut status = Status::default();
        assert_eq!(pause_line(&status), None);
        let reason = PauseCause::LoginNeeded;
        status.paused =
            Some(Paused { reason, detail: "the token was refused".into(), since_ms: 0, cause: None });
        let text = pause_line(&status).unwrap();
        assert!(text.starts_with("paused: login needed since 19"), "{text}");
        assert!(text.ends_with(": the token was refused"), "{text}");
    }
}
