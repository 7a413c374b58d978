//! The embedded server as a process of its own.
//!
//! A real process and a real socket, so that the demo shows what a remote drive shows. It must
//! never outlive the demo, however the demo ends: the kernel kills it when its parent dies. That
//! signal follows the parent *thread* that forked, so the fork happens on a thread that stays until
//! the server is no longer wanted. It gets a process group of its own, because a Ctrl-C at the
//! terminal goes to the whole group and the server is needed until the open files are settled.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// How long the server may take until it listens (it opens its catalog first).
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to close its catalog before it is killed.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Longest line that is read while waiting for the address, in bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Lines of the server's log that an error quotes.
const LOG_LINES_MAX: usize = 5;

/// A running server.
#[derive(Debug)]
pub(super) struct Backend {
    child: Child,
    url: Url,
    log: PathBuf,
    /// Dropped with the rest: lets the thread go that forked the server.
    _keeper: mpsc::Sender<()>,
}

impl Backend {
    /// Starts the server on a free port of the loopback interface.
    ///
    /// The token goes by environment: arguments can be read by every user of the machine.
    pub(super) async fn start(data_dir: &Path, token: &Secret<String>) -> Result<Self> {
        let log = data_dir.join("server.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data_dir);
        command.env("PDSFS_TOKEN", token.expose());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(&log).map_err(|e| Error::from(e).context(log.display()))?);
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let (mut child, keeper) = spawn_on_own_thread(command).await?;
        let stdout = child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Io, "no pipe to the server"))?;
        let url = match timeout(START_MAX, listening_url(stdout)).await {
            Ok(Some(url)) => url,
            Ok(None) => return Err(explain("the server did not start", &log)),
            Err(_) => return Err(explain("the server did not listen in time", &log)),
        };
        Ok(Self { child, url, log, _keeper: keeper })
    }

    /// Where it listens.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Waits until the server ends by itself, which it should not. May be dropped and called again.
    pub(super) async fn died(&mut self) -> Error {
        let status = self.child.wait().await;
        let what = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        explain(&format!("the server ended early ({what})"), &self.log)
    }

    /// Asks the server to stop, and sees to it that it has.
    pub(super) async fn stop(mut self) -> Result<()> {
        let Some(pid) = self.child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) else {
            return Err(explain("the server had ended before it was stopped", &self.log));
        };
        // SAFETY: `kill` touches no memory, and the pid is a child of ours that was not waited for.
        let asked = unsafe { libc::kill(pid, libc::SIGTERM) } == 0;
        match timeout(STOP_MAX, self.child.wait()).await {
            Ok(Ok(status)) if asked && status.success() => Ok(()),
            Ok(Ok(status)) => Err(explain(&format!("the server stopped badly ({status})"), &self.log)),
            Ok(Err(e)) => Err(Error::from(e).context("waiting for the server")),
            Err(_) => {
                self.child.kill().await?;
                Err(explain("the server did not stop and was killed", &self.log))
            }
        }
    }
}

/// The kernel kills the process when the thread that forked it ends.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: both calls only talk to the kernel and are async-signal-safe.
        let (armed, now_parent) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0, libc::getppid()) };
        if !armed {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died before the signal was armed.
        if u32::try_from(now_parent) != Ok(parent) {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    // SAFETY: the closure neither allocates nor takes locks: it makes two system calls, and its
    // errors are plain numbers.
    unsafe { command.pre_exec(before_exec) };
}

/// Forks on a thread that lives until the returned sender is dropped.
async fn spawn_on_own_thread(mut command: Command) -> Result<(Child, mpsc::Sender<()>)> {
    let (keeper, wanted) = mpsc::channel::<()>();
    let (started, child) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("server-keeper".into()).spawn(move || {
        let _runtime = runtime.enter();
        if started.send(command.spawn()).is_ok() {
            // Nothing is ever sent: this returns when the sender is dropped.
            let _ = wanted.recv();
        }
    })?;
    let child = child.await.map_err(|_| Error::new(ErrorKind::Io, "the server's thread ended"))?;
    Ok((child.map_err(|e| Error::from(e).context("starting the server"))?, keeper))
}

/// The address from the line `listening on URL`; `None` if the output ends without it.
///
/// Whatever the server prints after that is read and dropped, so that it can never block on it.
async fn listening_url(stdout: ChildStdout) -> Option<Url> {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_line(&mut line).await.ok()?;
        if read == 0 {
            return None;
        }
        if let Some(url) = parse_listening(&line) {
            tokio::spawn(async move { tokio::io::copy(&mut lines, &mut tokio::io::sink()).await });
            return Some(url);
        }
    }
}

fn parse_listening(line: &str) -> Option<Url> {
    let (_, address) = line.trim().split_once("listening on ")?;
    let address = address.split_whitespace().next()?;
    let url = Url::parse(address).or_else(|_| Url::parse(&format!("http://{address}"))).ok()?;
    url.host_str()?;
    Some(url)
}

/// An error that quotes the end of the server's log.
fn explain(what: &str, log: &Path) -> Error {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n  ");
    let shown = if tail.is_empty() { String::new() } else { format!(":\n  {tail}") };
    Error::new(ErrorKind::Unreachable, format!("{what}{shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_with_and_without_a_scheme() {
        for line in [
            "listening on http://127.0.0.1:4711\n",
            "listening on 127.0.0.1:4711",
            "x: listening on http://127.0.0.1:4711/ (token from environment)",
        ] {
            let url = parse_listening(line).unwrap();
            assert_eq!((url.host_str(), url.port()), (Some("127.0.0.1"), Some(4711)), "{line}");
        }
        assert!(parse_listening("opening the catalog").is_none());
    }

    #[test]
    fn an_error_quotes_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        std::fs::write(&log, "one\n\ntwo\nthree\nfour\nfive\nsix\n").unwrap();
        let text = explain("it ended", &log).to_string();
        assert!(text.contains("six") && text.contains("two") && !text.contains("one"), "{text}");
        assert_eq!(explain("it ended", Path::new("/nonexistent/x")).to_string(), "it ended");
    }

    #[tokio::test]
    async fn a_child_dies_with_its_keeper_thread_and_not_with_the_forking_task() {
        let mut command = Command::new("sleep");
        command.arg("600").kill_on_drop(true);
        die_with_parent(&mut command);
        let (mut child, keeper) = spawn_on_own_thread(command).await.unwrap();
        tokio::task::yield_now().await;
        assert!(child.try_wait().unwrap().is_none(), "it lives while it is wanted");
        drop(keeper);
        let status = timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
