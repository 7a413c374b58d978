//! The embedded server as a child process with a real socket, as a remote drive has.
//!
//! The server must not outlive the demo: the kernel kills it when its parent dies (`PR_SET_PDEATHSIG`). That
//! signal follows the parent *thread*, so a thread that lives as long as the server forks it. The server has
//! its own process group: a Ctrl-C at the terminal goes to the whole group of the demo, which then needs the
//! server to commit the open files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::server::{FaultAction, FaultPlan, FaultRule};
use crate::units::exact_duration;

/// How long the server may take to listen. It opens its catalog first.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the server may take to stop before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);
const LINE_BYTES_MAX: u64 = 4096;
/// Number of log lines in an error message.
const LOG_LINES_MAX: usize = 5;

/// What the drive and the line to it can take; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct DriveLimits {
    /// Capacity of the drive in bytes.
    pub(super) quota: Option<u64>,
    /// Rate of all transfers together.
    pub(super) bytes_per_s: Option<u64>,
}

impl DriveLimits {
    /// Arguments of the server. The rate is in a file below `data_dir`.
    fn arguments(self, data_dir: &Path) -> Result<Vec<OsString>> {
        let mut out = Vec::new();
        if let Some(bytes) = self.quota {
            out.extend(["--quota".into(), bytes.to_string().into()]);
        }
        if let Some(bytes_per_s) = self.bytes_per_s {
            let rule = |endpoint| FaultRule::new(endpoint, FaultAction::SharedThrottle { bytes_per_s });
            let plan = FaultPlan { rules: vec![rule("put_part"), rule("get_object")] };
            let plan = serde_json::to_vec(&plan).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
            let file = data_dir.join("line.json");
            std::fs::write(&file, plan).map_err(|e| Error::from(e).context(file.display()))?;
            out.extend(["--faults".into(), file.into_os_string()]);
        }
        Ok(out)
    }
}

#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    url: Url,
    log: PathBuf,
    /// Its drop ends the thread that forked the server.
    _keeper: mpsc::Sender<()>,
}

impl ServerProcess {
    /// Starts the server on a free loopback port.
    ///
    /// The token is passed in the environment: other users can read arguments.
    pub(super) async fn start(data_dir: &Path, token: &Secret<String>, limits: DriveLimits) -> Result<Self> {
        let log = data_dir.join("server.log");
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data_dir)
            .args(limits.arguments(data_dir)?);
        command.env("PDSFS_TOKEN", token.expose());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(&log).map_err(|e| Error::from(e).context(log.display()))?);
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let (mut child, keeper) = spawn_on_own_thread(command).await?;
        let stdout = child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Io, "no pipe to the server"))?;
        let url = match timeout(START_TIME_MAX, listening_url(stdout)).await {
            Ok(Some(url)) => url,
            Ok(None) => return Err(with_log_tail("the server of the demo did not start", &log)),
            Err(_) => {
                let limit = exact_duration(START_TIME_MAX);
                return Err(with_log_tail(
                    &format!("the server of the demo did not start within {limit}"),
                    &log,
                ));
            }
        };
        Ok(Self { child, url, log, _keeper: keeper })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Waits until the server exits without a stop. Cancel-safe.
    pub(super) async fn unexpected_exit(&mut self) -> Error {
        let status = self.child.wait().await;
        let what = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        with_log_tail(&format!("the server of the demo has exited ({what})"), &self.log)
    }

    /// Stops the server with SIGTERM, and with SIGKILL after [`STOP_TIME_MAX`].
    pub(super) async fn stop(mut self) -> Result<()> {
        // Without an id the child was waited for.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let Some(pid) = pid else {
            return Err(with_log_tail("the server of the demo had exited before it was stopped", &self.log));
        };
        let signalled = kill_process(pid, Signal::TERM).is_ok();
        match timeout(STOP_TIME_MAX, self.child.wait()).await {
            Ok(Ok(status)) if signalled && status.success() => Ok(()),
            Ok(Ok(status)) => Err(with_log_tail(
                &format!("the server of the demo failed while stopping ({status})"),
                &self.log,
            )),
            Ok(Err(e)) => Err(Error::from(e).context("waiting for the server of the demo")),
            Err(_) => {
                self.child.kill().await?;
                let limit = exact_duration(STOP_TIME_MAX);
                let what = format!("the server of the demo did not stop within {limit} and was killed");
                Err(with_log_tail(&what, &self.log))
            }
        }
    }
}

/// Lets the kernel kill the child when the thread that forked it ends.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before that.
        let parent_now = getppid().map_or(0, |pid| pid.as_raw_pid().unsigned_abs());
        if parent_now != parent {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls. It does not allocate and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Forks on a thread that lives until the returned sender is dropped.
async fn spawn_on_own_thread(mut command: Command) -> Result<(Child, mpsc::Sender<()>)> {
    let (keeper, dropped) = mpsc::channel::<()>();
    let (started, child) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("server-keeper".into()).spawn(move || {
        let _runtime = runtime.enter();
        if started.send(command.spawn()).is_ok() {
            // Returns when the sender is dropped; nothing is ever sent.
            let _ = dropped.recv();
        }
    })?;
    let child = child.await.map_err(|_| Error::new(ErrorKind::Io, "the server's thread ended"))?;
    Ok((child.map_err(|e| Error::from(e).context("starting the server"))?, keeper))
}

/// The URL in the line `listening on URL`; `None` if the output ends without it. Later output is read and
/// dropped, so a full pipe never blocks the server.
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
    let (_, rest) = line.trim().split_once("listening on ")?;
    let url = rest.split_whitespace().next()?;
    let url = Url::parse(url).or_else(|_| Url::parse(&format!("http://{url}"))).ok()?;
    url.host_str()?;
    Some(url)
}

/// An error with the last lines of the server's log.
fn with_log_tail(what: &str, log: &Path) -> Error {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n  ");
    let tail = if tail.is_empty() { String::new() } else { format!(", which ends with:\n  {tail}") };
    Error::new(ErrorKind::Unreachable, format!("{what}; its log is {}{tail}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_parsed_with_or_without_a_scheme() {
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
    fn error_contains_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        std::fs::write(&log, "one\n\ntwo\nthree\nfour\nfive\nsix\n").unwrap();
        let text = with_log_tail("it ended", &log).to_string();
        assert!(text.contains("six") && text.contains("two") && !text.contains("one"), "{text}");
        let without_log = with_log_tail("it ended", Path::new("/nonexistent/x"));
        assert_eq!(without_log.to_string(), "it ended; its log is /nonexistent/x");
    }

    #[tokio::test]
    async fn child_dies_with_the_thread_that_forked_it() {
        let mut command = Command::new("sleep");
        command.arg("600").kill_on_drop(true);
        die_with_parent(&mut command);
        let (mut child, keeper) = spawn_on_own_thread(command).await.unwrap();
        tokio::task::yield_now().await;
        assert!(child.try_wait().unwrap().is_none(), "it lives while the sender does");
        drop(keeper);
        let status = timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
