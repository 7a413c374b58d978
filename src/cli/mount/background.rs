//! Mounting in the background: the command returns when the drive is mounted, and a process of its own
//! serves it.
//!
//! That process is the same program once more, with [`DETACHED`] among its arguments, because a runtime
//! does not survive a fork. It says one line on its stdout when the mount answers; until then its
//! stderr is that of the command, so that whoever mounts reads why it failed.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use crate::error::{Error, Result};
use crate::logging;

/// The flag of the process that serves.
pub(super) const DETACHED: &str = "--detached";
/// What it says when the drive is mounted.
const READY: &str = "ready";
/// Where journald takes the output of services.
const JOURNAL: &str = "/run/systemd/journal/stdout";
/// Name, unit, priority (info), whether lines have their own, and three places not to copy them to.
const JOURNAL_HEADER: &[u8] = b"pdsfs\n\n6\n1\n0\n0\n0\n";

/// Starts the program with these arguments, [`DETACHED`] among them, and returns when the drive is mounted, or with the code
/// of its failure.
pub(in crate::cli) fn start(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let named = |e: std::io::Error| Error::from(e).context("cannot go to the background");
    let program = std::env::current_exe().map_err(named)?;
    let mut child = Command::new(program)
        .args(arguments)
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
    // It has said why. A code of 0 without a mount would be a lie.
    Ok(code.filter(|code| *code != 0).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Leaves the terminal. Not before it is mounted: the process group is how an automount point (autofs) knows the program
/// that mounts over it, which alone may look there meanwhile.
fn leave_terminal() -> Result<()> {
    // SAFETY: the call has no arguments and changes nothing but the session.
    if unsafe { libc::setsid() } == -1 {
        return Err(Error::from(std::io::Error::last_os_error()).context("setsid"));
    }
    std::env::set_current_dir("/").map_err(|e| Error::from(e).context("chdir /"))
}

/// Leaves the terminal, tells the command that it can return, and says everything else to the journal, or to nobody
/// where there is none. An error says that nobody waits any more.
pub(super) fn ready() -> Result<()> {
    leave_terminal()?;
    let named = |e: std::io::Error| Error::from(e).context("cannot go to the background");
    let journal = journal();
    let has_journal = journal.is_ok();
    let log = journal.or_else(|_| nobody()).map_err(named)?;
    super::super::announce(READY).map_err(|e| e.context("whoever mounted does not wait for it any more"))?;
    for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open; the standard ones are owned by nobody in the program.
        if unsafe { libc::dup2(log.as_raw_fd(), standard) } == -1 {
            tracing::warn!("the messages stay here: {}", std::io::Error::last_os_error());
            return Ok(());
        }
    }
    if has_journal {
        logging::goes_to_journal();
    }
    Ok(())
}

fn nobody() -> std::io::Result<OwnedFd> {
    OpenOptions::new().write(true).open("/dev/null").map(OwnedFd::from)
}

fn journal() -> std::io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    stream.shutdown(std::net::Shutdown::Read)?;
    stream.write_all(JOURNAL_HEADER)?;
    Ok(OwnedFd::from(stream))
}
