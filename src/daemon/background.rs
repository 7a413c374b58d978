//! Mounting in the background: the command returns when the drive is mounted, and another process serves it.
//!
//! The serving process is the same program with [`DETACHED`] among its arguments, because a runtime does not
//! survive a fork. It prints one line to stdout when the mount answers. Until then it shares the stderr of
//! the command, so the user sees why a mount failed.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use rustix::stdio::{dup2_stderr, dup2_stdout};

use crate::config::secret_variables::{self, TOKEN_VARIABLE};
use crate::error::{Error, Result};
use crate::logging;

/// The flag of the serving process.
pub const DETACHED: &str = "--detached";
/// Printed by the serving process when the drive is mounted.
const READY: &str = "ready";
/// The socket of journald for the output of services.
const JOURNAL: &str = "/run/systemd/journal/stdout";
/// Identifier, unit, priority (6 is info), 1 for priorities at the start of lines, and no forwarding (syslog,
/// kmsg, console).
const JOURNAL_HEADER: &[u8] = b"pdsfs\n\n6\n1\n0\n0\n0\n";

/// Starts the program with these arguments, which contain [`DETACHED`]. Returns when the drive is mounted, or
/// with the exit code of the failed process.
pub fn start(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let named = |e: std::io::Error| Error::from(e).context("cannot mount in the background");
    let program = std::env::current_exe().map_err(named)?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(secret_variables::get(TOKEN_VARIABLE).map(|token| (TOKEN_VARIABLE, token)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(named)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(named)?;
    }
    if line.trim_end() == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait().map_err(named)?.code().and_then(|code| u8::try_from(code).ok());
    // The process printed why. Exit code 0 without a mount is a failure too.
    Ok(code.filter(|code| *code != 0).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Leaves the terminal. Must follow the mount: autofs identifies the mounting program by its process group,
/// and only that group can access the automount point.
fn leave_terminal() -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context("cannot leave the terminal");
    rustix::process::setsid().map_err(|e| named(e.into()))?;
    std::env::set_current_dir("/").map_err(named)
}

/// Leaves the terminal, lets the command return, and sends all further output to the journal, or to
/// `/dev/null` without one. Fails if the command is gone.
pub(super) fn detach() -> Result<()> {
    leave_terminal()?;
    let named = |e: std::io::Error| Error::from(e).context("cannot mount in the background");
    let journal = journal();
    let has_journal = journal.is_ok();
    let log = journal.or_else(|_| dev_null()).map_err(named)?;
    report_ready().map_err(|e| Error::from(e).context("the command that started the mount is gone"))?;
    if let Err(e) = dup2_stdout(&log).and_then(|()| dup2_stderr(&log)) {
        let e = std::io::Error::from(e);
        tracing::warn!("cannot send messages to the journal; they stay on stdout and stderr: {e}");
        return Ok(());
    }
    if has_journal {
        logging::switch_to_journal();
    }
    Ok(())
}

fn report_ready() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()
}

fn dev_null() -> std::io::Result<OwnedFd> {
    OpenOptions::new().write(true).open("/dev/null").map(OwnedFd::from)
}

fn journal() -> std::io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    stream.shutdown(std::net::Shutdown::Read)?;
    stream.write_all(JOURNAL_HEADER)?;
    Ok(OwnedFd::from(stream))
}
