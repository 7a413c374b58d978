//! The output of `demo --once`: its steps, the measurements and the differences.

use std::io::Write;
use std::time::Duration;

use crate::error::Error;
use crate::status::ProgressTotals;
use crate::units::{Elapsed, Size};

/// Longest list of differences that is printed; the rest are counted.
const DIFFERENCES_MAX: usize = 20;

/// The measurements of one run.
#[derive(Debug, Default)]
pub(super) struct Measurements {
    /// All files but the big one.
    pub(super) small_files: usize,
    pub(super) small_bytes: u64,
    /// Time to copy them.
    pub(super) small_time: Duration,
    pub(super) big: BigFile,
    /// Time to list the drive and compare the listing.
    pub(super) compare_time: Duration,
    /// Time to read every file back and compare it.
    pub(super) read_time: Duration,
    /// The counters of the first mount.
    pub(super) totals: ProgressTotals,
}

/// The measurements of the big file.
#[derive(Debug, Default)]
pub(super) struct BigFile {
    pub(super) bytes: u64,
    /// From open to the return of close, with the pause in the middle.
    pub(super) time: Duration,
    /// Written by the program when the server was asked.
    pub(super) bytes_written_early: u64,
    /// Parts that the server had stored by then.
    pub(super) parts_early: usize,
    pub(super) bytes_early: u64,
}

/// The error of the first step that failed, with the texts of `later` ones that say something else.
pub(super) fn with_later(first: Error, later: impl IntoIterator<Item = Error>) -> Error {
    let mut texts = vec![first.to_string()];
    for text in later.into_iter().map(|later| later.to_string()) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { first } else { Error::new(first.kind(), texts.join("; then: ")) }
}

pub(super) fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

pub(super) fn print_table(measurements: &Measurements) {
    print_line("");
    for (label, value) in rows(measurements) {
        print_line(&format!("  {label:<34} {value}"));
    }
    print_line("");
}

/// Prints the differences, or that there are none.
pub(super) fn print_differences(differences: &[String]) {
    for difference in differences.iter().take(DIFFERENCES_MAX) {
        print_line(&format!("DIFFERS  {difference}"));
    }
    if differences.len() > DIFFERENCES_MAX {
        print_line(&format!("DIFFERS  and {} more", differences.len() - DIFFERENCES_MAX));
    }
    if differences.is_empty() {
        print_line("verified: every file is on the drive and came back as it was written");
    }
}

fn rows(measurements: &Measurements) -> Vec<(&'static str, String)> {
    let Measurements { small_files, small_bytes, small_time, big, compare_time, read_time, totals } =
        measurements;
    let all_bytes = small_bytes + big.bytes;
    let timed_rate = |time: &Duration, rate: String| format!("{}, {rate}", Elapsed(*time));
    vec![
        ("files copied by cp", format!("{small_files} files, {}", Size(*small_bytes))),
        (
            "  in",
            timed_rate(small_time, format!("{:.0} files/s", files_per_second(*small_files, *small_time))),
        ),
        ("big file", Size(big.bytes).to_string()),
        ("  in (open to end of close)", timed_rate(&big.time, Size::per_second(big.bytes, big.time))),
        (
            "  at the server while still open",
            format!(
                "{} parts, {} of {}",
                big.parts_early,
                Size(big.bytes_early),
                Size(big.bytes_written_early)
            ),
        ),
        (
            "uploaded / instant / unchanged",
            format!(
                "{} / {} / {} files",
                totals.files_uploaded, totals.files_instant, totals.files_unchanged
            ),
        ),
        ("listed and compared by SHA-1 in", Elapsed(*compare_time).to_string()),
        ("read back and compared in", timed_rate(read_time, Size::per_second(all_bytes, *read_time))),
    ]
}

/// A time of less than a microsecond counts as one.
fn files_per_second(files: usize, time: Duration) -> f64 {
    files as f64 / time.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn error_of_the_first_failed_step_comes_first() {
        let mount = || Error::new(ErrorKind::Denied, "cannot mount /mnt/x");
        assert_eq!(with_later(mount(), None).to_string(), "cannot mount /mnt/x");
        let server = Error::new(ErrorKind::Unreachable, "the server did not stop");
        let both = with_later(mount(), Some(server));
        assert_eq!(both.kind(), ErrorKind::Denied);
        assert_eq!(both.to_string(), "cannot mount /mnt/x; then: the server did not stop");
        let repeated = [mount(), Error::new(ErrorKind::Io, "no space"), mount()];
        assert_eq!(with_later(mount(), repeated).to_string(), "cannot mount /mnt/x; then: no space");
    }

    #[test]
    fn table_shows_all_measurements() {
        let measurements = Measurements {
            small_files: 1000,
            small_bytes: 40_000_000,
            small_time: Duration::from_secs(4),
            big: BigFile {
                bytes: 300_000_000,
                time: Duration::from_secs(2),
                bytes_written_early: 150_000_000,
                parts_early: 9,
                bytes_early: 75_497_472,
            },
            read_time: Duration::from_secs(1),
            ..Measurements::default()
        };
        let text = format!("{:?}", rows(&measurements));
        for part in
            ["1000 files, 38 MiB", "250 files/s", "143 MiB/s", "9 parts, 72 MiB of 143 MiB", "324 MiB/s"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn zero_times_give_no_nan() {
        assert!(!rows(&Measurements::default()).iter().any(|(_, value)| value.contains("NaN")));
    }
}
