//! Reads secrets: from the terminal without echo, from stdin, or from private files.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;

use crate::auth::read_private;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::config::secret_variables;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Longest input line, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Permission bits that a private file must not have.
const SHARED_MODE: u32 = 0o077;

/// Restores the terminal modes of stdin on drop, even if the thread that reads without echo still runs.
struct TerminalGuard(Option<Termios>);

impl TerminalGuard {
    fn new() -> Self {
        Self(tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            tcsetattr(std::io::stdin(), OptionalActions::Now, modes).ok();
        }
    }
}

/// Reads one line, without echo if stdin is a terminal.
pub(super) async fn prompt_hidden(what: &'static str) -> Result<Secret<String>> {
    let _terminal = TerminalGuard::new();
    let read = move || {
        let named = |e: std::io::Error| Error::from(e).context(format!("cannot read the {what}"));
        if std::io::stdin().is_terminal() {
            return rpassword::prompt_password(format!("{what}: ")).map_err(named);
        }
        line().map_err(named)
    };
    not_empty(&blocking(read).await?, what)
}

/// Reads one line with echo.
pub(super) async fn prompt_visible(what: &'static str) -> Result<Secret<String>> {
    let named = move |e: std::io::Error| Error::from(e).context(format!("cannot read the {what}"));
    not_empty(&blocking(move || line().map_err(named)).await?, what)
}

/// The value of an environment variable, or of a prompt if it is empty or not set.
pub(super) async fn from_env_or_prompt(variable: &str, what: &'static str) -> Result<Secret<String>> {
    match secret_variables::get(variable).and_then(|value| value.into_string().ok()) {
        Some(value) if !value.trim().is_empty() => Ok(Secret::new(value.trim().to_owned())),
        _ => prompt_hidden(what).await,
    }
}

/// The text of a file that only its owner can read.
pub(in crate::cli) fn read_private_text(path: &Path, option: &str) -> Result<Secret<String>> {
    let named = |e: Error| e.context(format!("{option} {}", path.display()));
    let text = read_private(path, SHARED_MODE).map_err(named)?;
    let text = String::from_utf8(text)
        .map_err(|_| named(Error::new(ErrorKind::Invalid, "not a text file; a key must be in PEM format")))?;
    Ok(Secret::new(text.trim().to_owned()))
}

fn line() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut text)?;
    Ok(text)
}

fn not_empty(text: &str, what: &str) -> Result<Secret<String>> {
    let text = text.trim();
    if text.is_empty() {
        let detail = format!("no {what}: type it, or pass it on stdin");
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(Secret::new(text.to_owned()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // Not spawn_blocking: a runtime does not end before its blocking tasks, and this read may never return.
    let (result_tx, result) = tokio::sync::oneshot::channel();
    let read_one = move || drop(result_tx.send(work()));
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read_one)?;
    result.await.map_err(|_| Error::new(ErrorKind::Io, "cannot read stdin"))?
}
