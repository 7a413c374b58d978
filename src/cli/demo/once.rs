//! `pdsfs demo --once`: the demo as a self-test without interaction.
//!
//! `cp` copies a tree through the mount, then one big file is written beside it. In the middle of the big
//! file the writer pauses with the file open until the *server* has reported parts of it: this proves that
//! parts are uploaded during the write. Then the listing of the server is compared with the manifest, the
//! drive is unmounted, and every file is read back through a fresh mount.
//!
//! However the run ends, its teardown unmounts, stops the server and removes all files of the run. Blocking
//! work, including all access to our own mount, runs on blocking threads: the runtime's workers serve that mount.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use url::Url;

use crate::cli::format::{count, not_saved, partly_saved};
use crate::config::{Credential, MountConfig, RemoveMode};
use crate::daemon::signals::Signals;
use crate::daemon::{RunningMount, mount_in_process};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Secret};
use crate::pds::drive::Drive;
use crate::status::Progress;
use crate::units::exact_duration;

use super::cancel::CancelFlag;
use super::dirs::{self, MountDir};
use super::live::SERVER_EXITED;
use super::report::{self, BigFile, Measurements};
use super::server_process::DriveLimits;
use super::server_process::ServerProcess;
use super::setup::start_server;
use super::source::{self, Manifest};
use super::{probe, verify};

/// Number of concurrent `cp` processes.
const COPIERS: usize = 4;
/// Bound on the whole run.
const RUN_TIME_MAX: Duration = Duration::from_secs(300);
/// How long to wait until the server has a part of the file that is still open.
const FIRST_PART_TIME_MAX: Duration = Duration::from_secs(30);
/// Bound on the time from the first lost connection to the exit of the server.
const EXIT_TIME_MAX: Duration = Duration::from_secs(1);
const FIRST_PART_POLL: Duration = Duration::from_millis(20);
/// Bound on the removal of the run's files from the drive.
const REMOVE_TIME_MAX: Duration = Duration::from_secs(30);
/// Size of one `write`; equals `st_blksize` of the mount.
const WRITE_BYTES: usize = 1 << 20;

/// Runs the test, tears everything down and prints the result.
pub(super) async fn run(
    data_dir: Option<&Path>,
    mountpoint: Option<&Path>,
    seed: Option<u64>,
) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let seed = seed.map_or_else(random_seed, Ok)?;
    let scratch = tempfile::Builder::new().prefix("pdsfs-demo-").tempdir()?;
    let data_dir = data_dir.map_or_else(|| scratch.path().join("data"), Path::to_owned);
    let dir = mountpoint.map_or_else(MountDir::temporary, MountDir::prepare)?;
    report::print_line(&format!("making a tree of files from seed {seed} (--seed {seed} repeats this run)"));
    let (mut server, config) = start_server(&data_dir, dir.path(), DriveLimits::default()).await?;
    let source = scratch.path().join("source");
    let mut run = Run { config, source, cancel: CancelFlag::default(), mounted: None, on_drive: None };
    let mut outcome = tokio::select! {
        outcome = tokio::time::timeout(RUN_TIME_MAX, run.all(seed)) => outcome.unwrap_or_else(|_| {
            let detail = format!("the demo did not finish within {}", exact_duration(RUN_TIME_MAX));
            Err(Error::new(ErrorKind::Timeout, detail))
        }),
        signal = signals.next() => Err(Error::new(ErrorKind::Cancelled, format!("interrupted by {signal}"))),
        error = server.unexpected_exit() => Err(error),
    };
    let server_exited = server_exit(&mut server, &outcome).await;
    let stop_server = server_exited.is_none();
    if let Some(error) = server_exited {
        run.abandon_drive();
        outcome = Err(error);
    }
    let began = outcome.is_err().then(Instant::now);
    let [unmounted, emptied] = run.tear_down(signals.second_request(began)).await;
    let stopped = if stop_server { server.stop().await } else { Ok(()) };
    drop(dir);
    let removed = blocking(move || Ok(scratch.close()?)).await;
    let steps = [unmounted, emptied, stopped, removed].map(Result::err);
    let mut errors = outcome.as_ref().err().cloned().into_iter().chain(steps.into_iter().flatten());
    if let Some(first) = errors.next() {
        return Err(report::with_later(first, errors));
    }
    let (measurements, differences) = outcome?;
    report::print_table(&measurements);
    report::print_differences(&differences);
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The error of a server that has exited, if a failure comes from that.
///
/// A process that ends closes its connections before its exit can be observed, so a failure of the run may
/// precede the exit that caused it.
async fn server_exit<T>(server: &mut ServerProcess, outcome: &Result<T>) -> Option<Error> {
    let failure = outcome.as_ref().err()?;
    if failure.kind() == ErrorKind::Cancelled {
        return None;
    }
    tokio::time::timeout(EXIT_TIME_MAX, server.unexpected_exit()).await.ok()
}

fn random_seed() -> Result<u64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|e| Error::with_source(ErrorKind::Io, "no random bytes", e))?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// The state of a run that teardown needs.
struct Run {
    config: MountConfig,
    /// The local tree that is copied.
    source: PathBuf,
    cancel: CancelFlag,
    mounted: Option<RunningMount>,
    /// The folder of this run, once it is on the drive.
    on_drive: Option<(Drive, FileId)>,
}

impl Run {
    async fn all(&mut self, seed: u64) -> Result<(Measurements, Vec<String>)> {
        let manifest = Arc::new(self.make_source(seed).await?);
        let drive = Drive::new(&self.config)?;
        let name = format!("demo-{}", dirs::random_hex(6)?);
        let progress = self.mount().await?;
        let target = self.config.mountpoint.join(&name);
        let mkdir_failed = |e: std::io::Error| Error::from(e).context(format!("mkdir {}", target.display()));
        tokio::fs::create_dir(&target).await.map_err(mkdir_failed)?;
        let folder = verify::child(&drive, &self.config.root_id, &name).await?;
        let folder = folder.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("mkdir {name}: not in the drive's listing"))
        })?;
        self.on_drive = Some((drive.clone(), folder.file_id.clone()));
        self.copy_and_verify(&drive, &folder.file_id, &target, &manifest, &progress).await
    }

    /// Stops the threads, unmounts, and deletes the files of the run from the drive: with `--data` the drive
    /// outlives the run. The results of both.
    async fn tear_down(&mut self, signal: impl Future<Output = &'static str>) -> [Result<()>; 2] {
        self.cancel.set();
        let given_up = async { Error::new(ErrorKind::Cancelled, format!("interrupted by {}", signal.await)) };
        [self.unmount(given_up).await, self.empty_drive().await]
    }

    async fn empty_drive(&mut self) -> Result<()> {
        let Some((drive, folder)) = self.on_drive.take() else { return Ok(()) };
        let removal = drive.remove(&folder, RemoveMode::Delete);
        let removed = tokio::time::timeout(REMOVE_TIME_MAX, removal).await.unwrap_or_else(|_| {
            let limit = exact_duration(REMOVE_TIME_MAX);
            Err(Error::new(ErrorKind::Timeout, format!("no answer within {limit}")))
        });
        removed.map_err(|e| e.context("removing the files of the demo from its drive"))
    }

    async fn copy_and_verify(
        &mut self,
        drive: &Drive,
        folder: &FileId,
        target: &Path,
        manifest: &Arc<Manifest>,
        progress: &Progress,
    ) -> Result<(Measurements, Vec<String>)> {
        let mut measurements =
            Measurements { small_files: manifest.files.len() - 1, ..Measurements::default() };
        measurements.small_bytes = manifest.small_bytes();
        report::print_line(&format!(
            "copying {} files with {COPIERS} concurrent cp",
            measurements.small_files
        ));
        let began = Instant::now();
        copy_dirs(&self.source, target).await?;
        measurements.small_time = began.elapsed();
        report::print_line("writing one big file, and looking for its first parts at the server");
        let mut differences = Vec::new();
        let token = self.token()?;
        let probe = OpenFileProbe { endpoint: &self.config.endpoint, token, drive, folder };
        measurements.big = self.write_big(&probe, target, &mut differences).await?;
        report::print_line("comparing names, sizes and hashes with the listing of the server");
        let began = Instant::now();
        let found = verify::list_tree(drive, folder).await?;
        measurements.compare_time = began.elapsed();
        differences.extend(verify::differences(manifest, &found));
        measurements.totals = progress.totals();
        self.unmount(std::future::pending()).await?;
        report::print_line("reading every file back through a fresh mount");
        self.mount().await?;
        let began = Instant::now();
        let (source, target, cancel) = (self.source.clone(), target.to_owned(), self.cancel.clone());
        let manifest = Arc::clone(manifest);
        differences
            .extend(blocking(move || verify::compare_bytes(&source, &target, &manifest, &cancel)).await?);
        measurements.read_time = began.elapsed();
        self.unmount(std::future::pending()).await?;
        Ok((measurements, differences))
    }

    async fn make_source(&self, seed: u64) -> Result<Manifest> {
        let (source, cancel) = (self.source.clone(), self.cancel.clone());
        blocking(move || {
            dirs::create_private(&source)?;
            source::make(&source, seed, source::BIG_BYTES, &cancel)
        })
        .await
    }

    async fn mount(&mut self) -> Result<Arc<Progress>> {
        let progress = Progress::new();
        self.mounted = Some(mount_in_process(self.config.clone(), Arc::clone(&progress)).await?);
        Ok(progress)
    }

    fn token(&self) -> Result<&Secret<String>> {
        match &self.config.credential {
            Credential::Token(token) => Ok(token),
            _ => Err(Error::new(ErrorKind::Invalid, "internal error: the demo mounts with a token")),
        }
    }

    /// Unmounts if mounted. Names the files that were not committed, and fails if there are some.
    async fn unmount(&mut self, given_up: impl Future<Output = Error>) -> Result<()> {
        let Some(mounted) = self.mounted.take() else { return Ok(()) };
        let stopped = mounted.stop(given_up).await;
        for file in &stopped.files.partly_saved {
            report::print_line(&partly_saved(&file.path, file.bytes));
        }
        for file in &stopped.files.unsaved {
            report::print_line(&not_saved(&file.path, &file.error.to_string()));
        }
        match (stopped.failure, stopped.files.unsaved.len() as u64) {
            (Some(error), _) => Err(error),
            (None, 0) => Ok(()),
            (None, files) => Err(Error::new(ErrorKind::Io, format!("{} not saved", count(files, "file")))),
        }
    }

    /// The server has exited: nothing can be saved or removed any more.
    fn abandon_drive(&mut self) {
        self.on_drive = None;
        if let Some(mounted) = &self.mounted {
            mounted.abandon_drive(SERVER_EXITED);
        }
    }

    /// Writes the big file. In the middle it checks what the server and other clients see of it.
    async fn write_big(
        &self,
        probe: &OpenFileProbe<'_>,
        target: &Path,
        differences: &mut Vec<String>,
    ) -> Result<BigFile> {
        let (from, to) = (self.source.join(source::BIG_NAME), target.join(source::BIG_NAME));
        let (half, half_written) = oneshot::channel();
        let (resume, resumed) = std::sync::mpsc::channel();
        let path = to.clone();
        let cancel = self.cancel.clone();
        let writer = blocking(move || write_in_halves(&from, &to, half, &resumed, &cancel));
        let middle = async move {
            // Without a message the writer has failed; its error is returned below.
            let Ok(bytes_written_early) = half_written.await else {
                return Ok::<_, Error>(BigFile::default());
            };
            let parts = probe.first_parts().await?;
            if probe.is_listed().await? {
                differences.push(format!("{}: visible to other clients before its commit", source::BIG_NAME));
            }
            let size = tokio::fs::metadata(&path).await?.len();
            if size != bytes_written_early {
                differences.push(format!(
                    "{}: stat shows {size} bytes, {bytes_written_early} are written",
                    source::BIG_NAME
                ));
            }
            let _ = resume.send(());
            Ok(BigFile {
                bytes: source::BIG_BYTES,
                bytes_written_early,
                parts_early: parts.len(),
                bytes_early: parts.iter().map(|part| part.part_size).sum(),
                ..BigFile::default()
            })
        };
        // A failure in the middle drops `resume`, which ends the writer.
        let (time, big) = tokio::join!(writer, middle);
        let big = big?;
        Ok(BigFile { time: time?, ..big })
    }
}

/// Observes the big file as another client while it is open.
struct OpenFileProbe<'a> {
    endpoint: &'a Url,
    token: &'a Secret<String>,
    drive: &'a Drive,
    folder: &'a FileId,
}

impl OpenFileProbe<'_> {
    /// Waits until the server has parts of the file.
    async fn first_parts(&self) -> Result<Vec<probe::PartStatus>> {
        let began = Instant::now();
        while began.elapsed() < FIRST_PART_TIME_MAX {
            let uploads = probe::open_uploads(self.endpoint, self.token).await?;
            let big = uploads.into_iter().find(|upload| upload.name.as_deref() == Some(source::BIG_NAME));
            if let Some(upload) = big.filter(|upload| !upload.parts.is_empty()) {
                return Ok(upload.parts);
            }
            // The server has no event for this.
            tokio::time::sleep(FIRST_PART_POLL).await;
        }
        let limit = exact_duration(FIRST_PART_TIME_MAX);
        let detail = format!("the server received no part of the open big file within {limit}");
        Err(Error::new(ErrorKind::Timeout, detail))
    }

    /// Whether other clients see the file.
    async fn is_listed(&self) -> Result<bool> {
        Ok(verify::child(self.drive, self.folder, source::BIG_NAME).await?.is_some())
    }
}

/// Copies every top directory with its own `cp`, [`COPIERS`] at a time.
///
/// A `cp` runs in `target`: one that outlives the mount cannot write into the directory below it.
async fn copy_dirs(source: &Path, target: &Path) -> Result<()> {
    let source = std::path::absolute(source)?;
    let permits = Arc::new(Semaphore::new(COPIERS));
    let mut copies = JoinSet::new();
    for n in 0..source::TOP_DIRS {
        let mut command = Command::new("cp");
        command.arg("-r").arg("--").arg(source.join(source::top_dir(n))).arg(".").current_dir(target);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let permits = Arc::clone(&permits);
        copies.spawn(async move {
            let _permit = permits.acquire_owned().await;
            command.output().await
        });
    }
    while let Some(copied) = copies.join_next().await {
        let output = copied.map_err(|e| Error::from_source(ErrorKind::Io, e))??;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = stderr.lines().take(5).collect();
            let detail = format!("cp failed ({}): {}", output.status, lines.join("; "));
            return Err(Error::new(ErrorKind::Io, detail));
        }
    }
    Ok(())
}

/// Copies a file. In the middle it sends the number of bytes written to `half` and waits for `resumed` with
/// the file open. Returns the time from open to the return of close.
fn write_in_halves(
    from: &Path,
    to: &Path,
    half: oneshot::Sender<u64>,
    resumed: &std::sync::mpsc::Receiver<()>,
    cancel: &CancelFlag,
) -> Result<Duration> {
    let write_failed = |e: std::io::Error| Error::from(e).context("writing the big file");
    let mut from = File::open(from).map_err(write_failed)?;
    let middle = from.metadata().map_err(write_failed)?.len() / 2;
    let began = Instant::now();
    let mut to = File::create(to).map_err(write_failed)?;
    let mut chunk = vec![0; WRITE_BYTES];
    let mut written = 0;
    let mut half = Some(half);
    loop {
        cancel.check()?;
        let read = from.read(&mut chunk).map_err(write_failed)?;
        if read == 0 {
            break;
        }
        to.write_all(&chunk[..read]).map_err(write_failed)?;
        written += read as u64;
        if written >= middle
            && let Some(half) = half.take()
        {
            let _ = half.send(written);
            resumed.recv().map_err(|_| Error::new(ErrorKind::Cancelled, "cancelled in the middle"))?;
        }
    }
    close(to).map_err(write_failed)?;
    Ok(began.elapsed())
}

/// Closes a file and returns the error of `close`, which a drop ignores. rustix has no such call.
fn close(file: File) -> std::io::Result<()> {
    // SAFETY: `into_raw_fd` gave up the ownership of the descriptor.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome
        .map_err(|e| Error::with_source(ErrorKind::Io, "internal error: a thread of the demo panicked", e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writer_pauses_in_the_middle() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![7; 5 * WRITE_BYTES + 3]).unwrap();
        let (half, half_written) = oneshot::channel();
        let (resume, resumed) = std::sync::mpsc::channel();
        let target = to.clone();
        let writer = tokio::spawn(blocking(move || {
            write_in_halves(&from, &to, half, &resumed, &CancelFlag::default())
        }));
        let written = half_written.await.unwrap();
        assert_eq!(written, 3 * WRITE_BYTES as u64);
        assert_eq!(std::fs::metadata(&target).unwrap().len(), written);
        resume.send(()).unwrap();
        writer.await.unwrap().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), vec![7; 5 * WRITE_BYTES + 3]);
    }

    #[tokio::test]
    async fn writer_ends_when_the_check_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![7; 4 * WRITE_BYTES]).unwrap();
        let (half, half_written) = oneshot::channel();
        let (resume, resumed) = std::sync::mpsc::channel::<()>();
        let writer = tokio::spawn(blocking(move || {
            write_in_halves(&from, &to, half, &resumed, &CancelFlag::default())
        }));
        half_written.await.unwrap();
        drop(resume);
        assert_eq!(writer.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn stderr_of_cp_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let error = copy_dirs(&dir.path().join("nowhere"), dir.path()).await.unwrap_err();
        assert!(error.to_string().starts_with("cp failed"), "{error}");
    }

    #[tokio::test]
    async fn copied_directories_are_complete() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let manifest = source::make(&source, 5, 10, &CancelFlag::default()).unwrap();
        copy_dirs(&source, &target).await.unwrap();
        std::fs::copy(source.join(source::BIG_NAME), target.join(source::BIG_NAME)).unwrap();
        let differences = verify::compare_bytes(&source, &target, &manifest, &CancelFlag::default()).unwrap();
        assert_eq!(differences, Vec::<String>::new());
    }
}
