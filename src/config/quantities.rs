//! Sizes and durations as people write them, with bounds that say what they are.

use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Reads `8388608`, `8M`, `8MiB` (both 1024-based) or `8MB` (1000-based), in any case.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write bytes, or a number with KiB, MiB, GiB or TiB");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

/// Reads `90`, `90s` (both seconds), `500ms`, `10m`, `2h` or `1d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write a number with ms, s, m, h or d");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor_ms).map(Duration::from_millis).ok_or_else(|| format!("{text} is too long"))
}

/// A size from `least` to `most`.
pub fn bytes_within(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| match bytes(text)? {
        value if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not within {} and {}", show_bytes(least), show_bytes(most))),
    }
}

/// A duration from `least` to `most`, in seconds.
pub fn duration_within(least_s: u64, most_s: u64) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let (least, most) = (Duration::from_secs(least_s), Duration::from_secs(most_s));
    move |text| match duration(text)? {
        value if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not within {} and {}", show_duration(least), show_duration(most))),
    }
}

/// In the largest unit that divides it.
pub fn show_bytes(value: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    match units.iter().find(|(size, _)| value >= *size && value.is_multiple_of(*size)) {
        Some((size, name)) => format!("{} {name}", value / size),
        None => format!("{value} bytes"),
    }
}

/// In the largest unit that divides it.
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(size, _)| ms >= *size && ms.is_multiple_of(*size)) {
        Some((size, name)) => format!("{}{name}", ms / size),
        None if ms == 0 => "0s".to_owned(),
        None => format!("{ms}ms"),
    }
}

/// Digits, then a unit, with or without a space between.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
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
            ("17B", 17),
        ];
        for (text, value) in table {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "M", "-1", "1.5M", "8X", "8MiBs", "18446744073709551616", "16777216T", "1 2"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let table =
            [("90", 90_000), ("15s", 15_000), ("10m", 600_000), ("2h", 7_200_000), ("500ms", 500), ("0", 0)];
        for (text, ms) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "10 weeks", "1.5s", "-1s", "99999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bound_names_itself() {
        let within = bytes_within(1 << 20, 1 << 30);
        assert_eq!(within("1M"), Ok(1 << 20));
        assert_eq!(within("1G"), Ok(1 << 30));
        assert_eq!(within("10"), Err("10 is not within 1 MiB and 1 GiB".to_owned()));
        assert!(within("1025M").is_err());
        let within = duration_within(1, 86_400);
        assert_eq!(within("0s"), Err("0s is not within 1s and 1d".to_owned()));
        assert!(within("999ms").is_err() && within("1d").is_ok() && within("86401").is_err());
    }

    #[test]
    fn values_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(show_bytes(8 << 20), "8 MiB");
        assert_eq!(show_bytes(1000), "1000 bytes");
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(600)), "10m");
        assert_eq!(show_duration(Duration::ZERO), "0s");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
    }
}
