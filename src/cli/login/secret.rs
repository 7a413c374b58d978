//! Secrets that a person or a script gives: from the terminal without echo, from stdin, from private files.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;

use crate::account::read_private;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Permissions of group and others.
const SHARED_MODE: u32 = 0o077;

/// How stdin's terminal was: it is so again when this is dropped, also where whoever reads from it goes on.
struct Terminal(Option<libc::termios>);

impl Terminal {
    fn remember() -> Self {
        let mut modes = std::mem::MaybeUninit::uninit();
        // SAFETY: the call fills in the modes where it gives 0, and keeps nothing.
        let is_terminal = unsafe { libc::tcgetattr(libc::STDIN_FILENO, modes.as_mut_ptr()) } == 0;
        // SAFETY: they were filled in.
        Self(is_terminal.then(|| unsafe { modes.assume_init() }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            // SAFETY: the call reads the modes and keeps nothing.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, modes) };
        }
    }
}

/// One line: without echo where stdin is a terminal.
pub(super) async fn ask(what: &'static str) -> Result<Secret<String>> {
    let _as_it_was = Terminal::remember();
    let read = move || {
        let named = |e: std::io::Error| Error::from(e).context(what);
        if std::io::stdin().is_terminal() {
            return rpassword::prompt_password(format!("{what}: ")).map_err(named);
        }
        line().map_err(named)
    };
    not_empty(&blocking(read).await?, what)
}

/// One line that may be seen.
pub(super) async fn ask_plainly(what: &'static str) -> Result<Secret<String>> {
    not_empty(&blocking(move || line().map_err(|e| Error::from(e).context(what))).await?, what)
}

/// From this variable where it is set, else asked for.
pub(super) async fn ask_unless_set(variable: &str, what: &'static str) -> Result<Secret<String>> {
    match std::env::var(variable) {
        Ok(value) if !value.trim().is_empty() => Ok(Secret::new(value.trim().to_owned())),
        _ => ask(what).await,
    }
}

/// The text of a file that only its owner can read.
pub(super) fn in_file(path: &Path, option: &str) -> Result<Secret<String>> {
    let named = |e: Error| e.context(format!("{option} {}", path.display()));
    let text = read_private(path, SHARED_MODE).map_err(named)?;
    let text = String::from_utf8(text).map_err(|_| {
        named(Error::new(ErrorKind::Invalid, "it is not text; keys are expected in PEM form"))
    })?;
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
        let detail = format!("{what}: nothing was given; type it, or send it through stdin");
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(Secret::new(text.to_owned()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // A thread of its own, because a runtime does not end before its blocking tasks have, and nobody may ever type
    // anything.
    let (to, read) = tokio::sync::oneshot::channel();
    let read_one = move || drop(to.send(work()));
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read_one)?;
    read.await.map_err(|_| Error::new(ErrorKind::Io, "reading stopped"))?
}
