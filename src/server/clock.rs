//! The server's clock, its time formats, and random ids.
//!
//! The clock can be advanced, so that tests reach the expiry of URLs, tokens and uploads without waiting. It
//! never goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::ids::{FileId, RevisionId, UploadId};

/// The clock of a server. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    pub(super) fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> i64 {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(real.as_millis()).unwrap_or(i64::MAX) + self.ahead_ms.load(Ordering::Relaxed)
    }
}

/// `2019-08-20T06:51:27.292Z`.
pub(super) fn rfc3339(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
}

/// `Mon, 23 Nov 2026 17:56:33 GMT`.
pub(super) fn http_date(ms: i64) -> Option<String> {
    Some(Timestamp::from_millisecond(ms).ok()?.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// Milliseconds since 1970 of a time in RFC 3339.
pub(super) fn timestamp_ms(text: &str) -> Option<i64> {
    Some(text.parse::<Timestamp>().ok()?.as_millisecond())
}

/// Whether a client's text is a time in RFC 3339.
pub(super) fn is_timestamp(text: &str) -> bool {
    text.len() <= 40 && text.parse::<Timestamp>().is_ok()
}

/// Milliseconds since 1970 of `2019-01-14T00:00:00`, in UTC. A fraction and a `Z` are accepted.
pub(super) fn parse_utc_ms(text: &str) -> Option<i64> {
    let time: jiff::civil::DateTime = text.trim_end_matches('Z').parse().ok()?;
    let is_whole = text.contains('T');
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond()).filter(|_| is_whole)
}

/// `20260908_115650`: the suffix that `auto_rename` appends.
pub(super) fn auto_rename_stamp(ms: i64) -> String {
    Timestamp::from_millisecond(ms)
        .map_or_else(|_| "00000000_000000".into(), |at| at.strftime("%Y%m%d_%H%M%S").to_string())
}

/// `bytes` random bytes in lower-case hex.
pub(super) fn random_hex(bytes: usize) -> std::io::Result<String> {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(hex(&raw))
}

/// Encodes lower-case hex.
pub(super) fn hex(raw: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    raw.iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Decodes hex of either case.
pub(super) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// 40 lower-case hex digits; the first eight are the time in seconds.
fn timed_id(now_ms: i64) -> std::io::Result<String> {
    let seconds = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
    Ok(format!("{seconds:08x}{}", random_hex(16)?))
}

fn checked<T>(id: Result<T, crate::ids::InvalidValue>) -> std::io::Result<T> {
    id.map_err(std::io::Error::other)
}

/// A new file id.
pub(super) fn file_id(now_ms: i64) -> std::io::Result<FileId> {
    checked(FileId::new(&timed_id(now_ms)?))
}

/// A new revision id.
pub(super) fn revision_id(now_ms: i64) -> std::io::Result<RevisionId> {
    checked(RevisionId::new(&timed_id(now_ms)?))
}

/// A new upload id: 32 upper-case hex digits.
pub(super) fn upload_id() -> std::io::Result<UploadId> {
    checked(UploadId::new(&random_hex(16)?.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_form_of_the_service() {
        let file = file_id(1_700_000_000_123).unwrap();
        assert_eq!(file.as_str().len(), 40);
        assert!(file.as_str().starts_with("6553f100"));
        assert!(file.as_str().bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)));
        let upload = upload_id().unwrap();
        assert_eq!(upload.as_str().len(), 32);
        assert!(upload.as_str().bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c)));
    }

    #[test]
    fn times_are_formatted_with_milliseconds() {
        assert_eq!(rfc3339(1_566_283_887_292), "2019-08-20T06:51:27.292Z");
        assert_eq!(rfc3339(1_566_283_887_000), "2019-08-20T06:51:27.000Z");
        assert_eq!(auto_rename_stamp(1_566_283_887_292), "20190820_065127");
        assert!(is_timestamp("2026-01-02T03:04:05Z") && !is_timestamp("yesterday"));
    }

    #[test]
    fn hex_round_trips() {
        assert_eq!(decode_hex(&hex(&[0, 1, 0xfe, 255])).unwrap(), [0, 1, 0xfe, 255]);
        assert!(decode_hex("abc").is_none() && decode_hex("zz").is_none());
    }
}
