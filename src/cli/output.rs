//! Output of the commands: messages for people on stderr, results on stdout. Control characters are escaped,
//! so a name from the network cannot control the terminal.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use unicode_width::UnicodeWidthStr as _;

use crate::error::{Error, Result};
use crate::escape::escaped_lines;
use crate::messages::Language;

/// Exit code for wrong arguments, and for a mount that cannot succeed until a person changes something. clap
/// uses the same code.
pub(super) const EXIT_USAGE: u8 = 2;
/// Exit code after a timeout.
pub(super) const EXIT_TIMEOUT: u8 = 3;

/// Whether the reader of stdout has closed it.
static STDOUT_IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints to stderr. A failure to print is ignored: there is no other place to report it.
pub(super) fn print_message(line: impl Display) {
    writeln!(std::io::stderr().lock(), "{}", escaped_lines(&line.to_string())).ok();
}

/// Prints why a command failed.
pub(super) fn print_error(error: &Error) {
    print_message(format_args!("pdsfs: {}", error.text(Language::current())));
}

/// Prints to stdout and flushes: programs may wait for the line.
pub(super) fn print_line(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let line = escaped_lines(&line.to_string());
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| {
        STDOUT_IS_CLOSED.fetch_or(e.kind() == std::io::ErrorKind::BrokenPipe, Ordering::Relaxed);
        Error::from(e).context("cannot write to stdout")
    })
}

/// Prints rows with aligned columns to stdout. Cells from the network are escaped by the caller.
pub(super) fn print_table<const N: usize>(rows: &[[String; N]]) -> Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter().try_for_each(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| {
            let spaces = width - cell.width();
            format!("{cell}{:spaces$}", "")
        });
        print_line(cells.collect::<Vec<_>>().join("  ").trim_end())
    })
}

/// Turns the outcome of a command into success if the reader of stdout (`| head`) had read enough and closed
/// it.
pub(super) fn ignore_closed_stdout(outcome: Result<ExitCode>) -> Result<ExitCode> {
    if STDOUT_IS_CLOSED.load(Ordering::Relaxed) { Ok(ExitCode::SUCCESS) } else { outcome }
}
