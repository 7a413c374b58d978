//! What `demo --once` prints: what it is doing, a table of figures, a verdict.

use std::io::Write;
use std::time::Duration;

use super::once::Figures;

/// Differences that are printed; the rest are counted.
const LINES_MAX: usize = 20;

/// Prints one line.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints the figures.
pub(super) fn table(figures: &Figures) {
    line("");
    for (what, figure) in rows(figures) {
        line(&format!("  {what:<34} {figure}"));
    }
    line("");
}

/// Prints what differs, or that nothing does.
pub(super) fn verdict(differences: &[String]) {
    for difference in differences.iter().take(LINES_MAX) {
        line(&format!("DIFFERS  {difference}"));
    }
    if differences.len() > LINES_MAX {
        line(&format!("DIFFERS  and {} more", differences.len() - LINES_MAX));
    }
    if differences.is_empty() {
        line("everything that was written is on the drive, and came back as it was written");
    }
}

fn rows(figures: &Figures) -> Vec<(&'static str, String)> {
    let big = &figures.big;
    let totals = &figures.totals;
    let all_bytes = figures.small_bytes + big.bytes;
    vec![
        ("files copied by cp", format!("{} files, {}", figures.small_files, mb(figures.small_bytes))),
        (
            "  in",
            format!(
                "{:.2} s, {:.0} files/s",
                figures.small_time.as_secs_f64(),
                per_second(figures.small_files as u64, figures.small_time)
            ),
        ),
        ("big file", mb(big.bytes)),
        (
            "  in (open to end of close)",
            format!("{:.2} s, {}", big.time.as_secs_f64(), rate(big.bytes, big.time)),
        ),
        (
            "  at the server while still open",
            format!(
                "{} parts, {} of {} written by then",
                big.parts_early,
                mb(big.bytes_early),
                mb(big.bytes_written_early)
            ),
        ),
        ("uploaded / instant / unchanged", {
            format!("{} / {} / {} files", totals.files_uploaded, totals.files_instant, totals.files_unchanged)
        }),
        ("listed and compared by SHA-1 in", format!("{:.2} s", figures.compare_time.as_secs_f64())),
        (
            "read back and compared in",
            format!("{:.2} s, {}", figures.read_time.as_secs_f64(), rate(all_bytes, figures.read_time)),
        ),
    ]
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", per_second(bytes, Duration::from_secs(1)) / 1e6)
}

fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.1} MB/s", per_second(bytes, time) / 1e6)
}

#[allow(clippy::cast_precision_loss)] // For people: 52 bits are plenty.
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::once::BigFile;

    #[test]
    fn the_table_has_the_figures_and_never_divides_by_zero() {
        let figures = Figures {
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
            ..Figures::default()
        };
        let text = format!("{:?}", rows(&figures));
        for part in
            ["1000 files, 40.0 MB", "250 files/s", "150.0 MB/s", "9 parts, 75.5 MB of 150.0 MB", "340.0 MB/s"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!rows(&Figures::default()).iter().any(|(_, figure)| figure.contains("NaN")));
    }
}
