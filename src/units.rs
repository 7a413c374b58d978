//! Sizes and durations as text: how settings are read, and how sizes and durations are shown.
//!
//! There are two forms. A *setting* is exact and reads back as the same value: `8MiB`, `10m`. A *measured*
//! value has about three digits: `8.0 MiB`, `4.0 s`. The crates `bytesize` and `humantime` do not
//! fit: they read `8M` as 8,000,000 and refuse `90` as a duration.

use std::fmt;
use std::time::Duration;

const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;
pub const PIB: u64 = 1 << 50;

const UNITS_OF_SIZE: [(u64, &str); 5] =
    [(PIB, "PiB"), (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
/// In milliseconds.
const UNITS_OF_TIME: [(u128, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];

/// Reads `8388608`, `8M`, `8MiB` (both 1024-based) or `8MB` (1000-based), in any case.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let invalid =
        || format!("{text:?} is not a size; write bytes, or a number with KiB, MiB, GiB, TiB or PiB");
    let (number, unit) = split(text).ok_or_else(invalid)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        "p" | "pib" => PIB,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => return Err(invalid()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

/// Reads `90` or `90s` (seconds), `500ms`, `10m`, `2h` or `1d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration; write a number with ms, s, m, h or d");
    let (number, unit) = split(text).ok_or_else(invalid)?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(invalid()),
    };
    number.checked_mul(factor_ms).map(Duration::from_millis).ok_or_else(|| format!("{text} is too long"))
}

/// A parser of sizes from `min` to `max`.
pub fn size_within(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| match parse_size(text)? {
        value if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not between {} and {}", exact_size(min), exact_size(max))),
    }
}

/// A parser of durations from `min_s` to `max_s` seconds.
pub fn duration_within(min_s: u64, max_s: u64) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let (min, max) = (Duration::from_secs(min_s), Duration::from_secs(max_s));
    move |text| match parse_duration(text)? {
        value if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not between {} and {}", exact_duration(min), exact_duration(max))),
    }
}

/// A size as a setting: in the largest unit that divides it.
pub fn exact_size(bytes: u64) -> String {
    match UNITS_OF_SIZE.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// A duration as a setting: in the largest unit that divides it; below a millisecond it is `0s`.
pub fn exact_duration(value: Duration) -> String {
    let ms = value.as_millis();
    match UNITS_OF_TIME.iter().find(|(unit, _)| ms.is_multiple_of(*unit)) {
        _ if ms == 0 => "0s".to_owned(),
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// A measured number of bytes, such as `8.0 MiB`.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl Size {
    /// A rate. A time of less than a microsecond counts as one.
    #[cfg(any(test, feature = "server"))] // For the demo.
    pub fn per_second(bytes: u64, time: Duration) -> String {
        let us = time.as_micros().max(1);
        let rate = u128::from(bytes) * 1_000_000 / us;
        format!("{}/s", Self(u64::try_from(rate).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < KIB {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64;
        let mut unit = "B";
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            // Below this, rounding gives no fourth digit.
            if value < 999.5 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        let digits = usize::from(value < 9.95);
        write!(f, "{value:.digits$} {unit}")
    }
}

/// A measured time, such as `4.0 s` or `2 min 05 s`.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed(pub Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        match s {
            0..10 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            10..100 => write!(f, "{s} s"),
            100..6000 => write!(f, "{} min {:02} s", s / 60, s % 60),
            _ => write!(f, "{} h {:02} min", s / 3600, s % 3600 / 60),
        }
    }
}

/// Digits, then a unit, with or without a space between.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A number with its noun, such as `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("8M", 8 << 20),
            ("8MiB", 8 << 20),
            ("8 mib", 8 << 20),
            ("8MB", 8_000_000),
            ("64k", 64 << 10),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("1PiB", 1 << 50),
            ("17B", 17),
        ];
        for (text, value) in table {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
        for text in ["", "M", "-1", "1.5M", "8X", "8MiBs", "18446744073709551616", "16777216T", "1 2"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_parsed() {
        let table =
            [("90", 90_000), ("15s", 15_000), ("10m", 600_000), ("2h", 7_200_000), ("500ms", 500), ("0", 0)];
        for (text, ms) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "10 weeks", "1.5s", "-1s", "99999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn error_names_the_bounds() {
        let within = size_within(1 << 20, 1 << 30);
        assert_eq!(within("1M"), Ok(1 << 20));
        assert_eq!(within("1G"), Ok(1 << 30));
        assert_eq!(within("10"), Err("10 is not between 1MiB and 1GiB".to_owned()));
        assert!(within("1025M").is_err());
        let within = duration_within(1, 86_400);
        assert_eq!(within("0s"), Err("0s is not between 1s and 1d".to_owned()));
        assert!(within("999ms").is_err() && within("1d").is_ok() && within("86401").is_err());
    }

    #[test]
    fn exact_values_parse_to_themselves() {
        for (bytes, text) in [(0, "0B"), (8 << 20, "8MiB"), (1000, "1000B"), (1 << 50, "1PiB")] {
            assert_eq!(exact_size(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for (ms, text) in [(0, "0s"), (90_000, "90s"), (600_000, "10m"), (86_400_000, "1d"), (1500, "1500ms")]
        {
            assert_eq!(exact_duration(Duration::from_millis(ms)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn measured_sizes_have_three_digits() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_188, "9.9 KiB"),
            (10_190, "10 KiB"),
            (1_023_480, "999 KiB"),
            (1_023_488, "1.0 MiB"),
            (1_234_567_890, "1.1 GiB"),
            (5_000_000_000_000_000, "4547 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(Size::per_second(64 * MIB, Duration::from_secs(4)), "16 MiB/s");
        assert_eq!(Size::per_second(0, Duration::ZERO), "0 B/s");
    }

    #[test]
    fn measured_times_have_three_digits() {
        let table =
            [(0.0, "0.0 s"), (4.0, "4.0 s"), (12.9, "12 s"), (125.0, "2 min 05 s"), (7325.0, "2 h 02 min")];
        for (s, text) in table {
            assert_eq!(Elapsed(Duration::from_secs_f64(s)).to_string(), text);
        }
    }
}
