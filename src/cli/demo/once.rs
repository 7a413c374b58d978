//! `pdsfs demo --once`: the demo without a human, for machines that judge.
//!
//! A tree is copied through the mount by `cp`, a big file is written beside it. In the middle of the
//! big file the writer stops and keeps the file open until the *server* says which parts it has: so
//! that parts arrive early is seen, not guessed from times. Then the server's own listing is compared
//! with what was written, the mount is taken away, and everything is read back through a fresh one.
//!
//! Whatever happens, what was started is stopped and what was made is removed. Work that blocks
//! (file access through our own mount among it) runs on threads of its own, never on the runtime's
//! workers, which serve that mount.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use url::Url;

use crate::cli::mount::{Mounted, mount_in_process};
use crate::cli::signals::Signals;
use crate::config::{Credential, MountConfig, RemoveMode};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Secret};
use crate::pds::drive::Drive;
use crate::status::{Progress, Totals};

use super::place::{self, MountFolder};
use super::source::{self, Manifest};
use super::{DemoArgs, probe, report, start, verify};

/// Programs that copy at the same time.
const COPIERS: usize = 4;
/// The whole run; far above what it takes.
const RUN_MAX: Duration = Duration::from_secs(300);
/// How long the first parts may take to show at the server, with the file still open.
const EARLY_MAX: Duration = Duration::from_secs(30);
/// Time between two questions to the server about that.
const EARLY_POLL: Duration = Duration::from_millis(20);
/// How long the drive may take to remove the files of the run.
const REMOVE_MAX: Duration = Duration::from_secs(30);
/// Bytes written at a time; what `st_blksize` asks for.
const WRITE_BYTES: usize = 1 << 20;

/// Tells threads that block to give up.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on [`Self::check`] fails.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails when it is time to give up.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "given up"));
        }
        Ok(())
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Small and medium files.
    pub(super) small_files: usize,
    /// Their bytes.
    pub(super) small_bytes: u64,
    /// Time to copy them.
    pub(super) small_time: Duration,
    /// The big file.
    pub(super) big: BigFile,
    /// Time for the server's listing of everything.
    pub(super) compare_time: Duration,
    /// Time to read everything back.
    pub(super) read_time: Duration,
    /// The mount's own count.
    pub(super) totals: Totals,
}

/// What was seen of the big file.
#[derive(Debug, Default)]
pub(super) struct BigFile {
    /// Its size.
    pub(super) bytes: u64,
    /// From open to the end of close, with the pause in the middle.
    pub(super) time: Duration,
    /// Written when the server was asked.
    pub(super) bytes_written_early: u64,
    /// Parts that the server had then.
    pub(super) parts_early: usize,
    /// Bytes in them.
    pub(super) bytes_early: u64,
}

/// Runs, takes everything down again, and prints the verdict.
pub(super) async fn run(args: &DemoArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let seed = args.seed.map_or_else(random_seed, Ok)?;
    let scratch = tempfile::Builder::new().prefix("pdsfs-demo-").tempdir()?;
    let data_dir = args.data.clone().unwrap_or_else(|| scratch.path().join("data"));
    let folder = args.folder.as_deref().map_or_else(MountFolder::temporary, MountFolder::prepare)?;
    report::line(&format!("copying a tree of files made from seed {seed} (--seed {seed} repeats it)"));
    let (mut backend, config) = start(&data_dir, folder.path()).await?;
    let source = scratch.path().join("source");
    let mut run = Run { config, source, cancel: Cancel::default(), mounted: None, on_drive: None };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(RUN_MAX, run.all(seed)) => outcome.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, format!("not done within {} s", RUN_MAX.as_secs())))
        }),
        signal = signals.next() => Err(Error::new(ErrorKind::Cancelled, signal)),
        error = backend.died() => Err(error),
    };
    let taken_down = run.take_down().await;
    let stopped = backend.stop().await;
    drop(folder);
    let removed = tokio::task::spawn_blocking(move || scratch.close()).await;
    let (figures, differences) = outcome?;
    taken_down?;
    stopped?;
    removed.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))??;
    report::table(&figures);
    report::verdict(&differences);
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn random_seed() -> Result<u64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(ErrorKind::Io, format!("no random bytes: {e}")))?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// One run, and what has to be taken down after it.
struct Run {
    config: MountConfig,
    source: PathBuf,
    cancel: Cancel,
    mounted: Option<Mounted>,
    /// The folder of this run, once it is on the drive.
    on_drive: Option<(Drive, FileId)>,
}

impl Run {
    async fn all(&mut self, seed: u64) -> Result<(Figures, Vec<String>)> {
        let manifest = Arc::new(self.make_source(seed).await?);
        let drive = Drive::new(&self.config)?;
        let name = format!("demo-{}", place::random_hex(6)?);
        let progress = self.mount().await?;
        let target = self.config.mountpoint.join(&name);
        tokio::fs::create_dir(&target).await.map_err(|e| Error::from(e).context("making a folder"))?;
        let folder = verify::child(&drive, &self.config.root_id, &name).await?;
        let folder =
            folder.ok_or_else(|| Error::new(ErrorKind::NotFound, "mkdir made no folder on the drive"))?;
        self.on_drive = Some((drive.clone(), folder.file_id.clone()));
        self.copy_and_check(&drive, &folder.file_id, &target, &manifest, &progress).await
    }

    /// Takes down what is still up. The drive of a run with `--data` outlives it, so the files go
    /// from there for good, also after a failure.
    async fn take_down(&mut self) -> Result<()> {
        self.cancel.set();
        let unmounted = self.unmount().await;
        if let Some((drive, folder)) = self.on_drive.take() {
            let removal = drive.remove(&folder, RemoveMode::Delete);
            let removed = tokio::time::timeout(REMOVE_MAX, removal).await;
            removed
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer")))
                .map_err(|e| e.context("removing the files from the drive"))?;
        }
        unmounted
    }

    async fn copy_and_check(
        &mut self,
        drive: &Drive,
        folder: &FileId,
        target: &Path,
        manifest: &Arc<Manifest>,
        progress: &Progress,
    ) -> Result<(Figures, Vec<String>)> {
        let mut figures = Figures { small_files: manifest.files.len() - 1, ..Figures::default() };
        figures.small_bytes = manifest.small_bytes();
        report::line(&format!("{COPIERS} cp at once: {} files", figures.small_files));
        let began = Instant::now();
        copy_folders(&self.source, target).await?;
        figures.small_time = began.elapsed();
        report::line("one big file, with a pause in the middle to ask the server");
        let mut differences = Vec::new();
        let token = self.token()?;
        let ask = Ask { endpoint: &self.config.endpoint, token, drive, folder };
        figures.big = self.write_big(&ask, target, &mut differences).await?;
        report::line("comparing with the server's own listing");
        let began = Instant::now();
        let found = verify::listed_by_server(drive, folder).await?;
        figures.compare_time = began.elapsed();
        differences.extend(verify::differences(manifest, &found));
        figures.totals = progress.totals();
        self.unmount().await?;
        report::line("reading everything back through a fresh mount");
        self.mount().await?;
        let began = Instant::now();
        let (source, target, cancel) = (self.source.clone(), target.to_owned(), self.cancel.clone());
        let manifest = Arc::clone(manifest);
        differences.extend(blocking(move || verify::read_back(&source, &target, &manifest, &cancel)).await?);
        figures.read_time = began.elapsed();
        self.unmount().await?;
        Ok((figures, differences))
    }

    async fn make_source(&self, seed: u64) -> Result<Manifest> {
        let (source, cancel) = (self.source.clone(), self.cancel.clone());
        blocking(move || {
            place::private_dir(&source)?;
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
            _ => Err(Error::new(ErrorKind::Invalid, "the demo gives its token directly")),
        }
    }

    /// Takes the mount away, if there is one.
    async fn unmount(&mut self) -> Result<()> {
        let Some(mounted) = self.mounted.take() else { return Ok(()) };
        match mounted.stop().await?.into_iter().next() {
            Some((name, error)) => Err(error.context(format!("{name} was not on the drive at unmount"))),
            None => Ok(()),
        }
    }

    /// Writes the big file and asks in the middle of it.
    async fn write_big(&self, ask: &Ask<'_>, target: &Path, wrong: &mut Vec<String>) -> Result<BigFile> {
        let (from, to) = (self.source.join(source::BIG_NAME), target.join(source::BIG_NAME));
        let (half, at_half) = oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let shown = to.clone();
        let cancel = self.cancel.clone();
        let writer = blocking(move || write_in_halves(&from, &to, half, &may_go_on, &cancel));
        let middle = async move {
            // The writer has failed if it ends without a word; its own error says more.
            let Ok(bytes_written_early) = at_half.await else { return Ok::<_, Error>(BigFile::default()) };
            let arrived = ask.arrived().await?;
            if ask.is_listed().await? {
                wrong.push(format!("{}: others see it before it is complete", source::BIG_NAME));
            }
            let size = tokio::fs::metadata(&shown).await?.len();
            if size != bytes_written_early {
                wrong.push(format!(
                    "{}: shown here with {size} bytes while {bytes_written_early} are written",
                    source::BIG_NAME
                ));
            }
            let _ = go_on.send(());
            Ok(BigFile {
                bytes: source::BIG_BYTES,
                bytes_written_early,
                parts_early: arrived.len(),
                bytes_early: arrived.iter().map(|part| part.part_size).sum(),
                ..BigFile::default()
            })
        };
        // A failure in the middle drops `go_on`, which ends the writer.
        let (time, big) = tokio::join!(writer, middle);
        let big = big?;
        Ok(BigFile { time: time?, ..big })
    }
}

/// Whom to ask about the big file while it is open.
struct Ask<'a> {
    endpoint: &'a Url,
    token: &'a Secret<String>,
    drive: &'a Drive,
    folder: &'a FileId,
}

impl Ask<'_> {
    /// The parts of the open file that the server has, as soon as it has any.
    async fn arrived(&self) -> Result<Vec<probe::ArrivedPart>> {
        let began = Instant::now();
        while began.elapsed() < EARLY_MAX {
            let uploads = probe::open_uploads(self.endpoint, self.token).await?;
            let ours = uploads.into_iter().find(|upload| upload.name.as_deref() == Some(source::BIG_NAME));
            if let Some(upload) = ours.filter(|upload| !upload.parts.is_empty()) {
                return Ok(upload.parts);
            }
            // The server offers no event to wait for.
            tokio::time::sleep(EARLY_POLL).await;
        }
        Err(Error::new(ErrorKind::Timeout, "no part of the big file arrived while it was open"))
    }

    /// Whether another client would see the file already.
    async fn is_listed(&self) -> Result<bool> {
        Ok(verify::child(self.drive, self.folder, source::BIG_NAME).await?.is_some())
    }
}

/// Copies every top folder with a `cp` of its own, a few at a time.
async fn copy_folders(source: &Path, target: &Path) -> Result<()> {
    let turns = Arc::new(Semaphore::new(COPIERS));
    let mut copies = JoinSet::new();
    for n in 0..source::TOPS {
        let mut command = Command::new("cp");
        command.arg("-r").arg("--").arg(source.join(source::top(n))).arg(target);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let turns = Arc::clone(&turns);
        copies.spawn(async move {
            let _turn = turns.acquire_owned().await;
            command.output().await
        });
    }
    while let Some(copied) = copies.join_next().await {
        let output = copied.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: Vec<&str> = said.lines().take(5).collect();
            let what = format!("cp failed ({}): {}", output.status, said.join("; "));
            return Err(Error::new(ErrorKind::Io, what));
        }
    }
    Ok(())
}

/// Copies a file; in the middle it says how much is written and waits, with the file open. The time
/// from open to the end of close.
fn write_in_halves(
    from: &Path,
    to: &Path,
    half: oneshot::Sender<u64>,
    go_on: &std::sync::mpsc::Receiver<()>,
    cancel: &Cancel,
) -> Result<Duration> {
    let named = |e: std::io::Error| Error::from(e).context("writing the big file");
    let mut from = File::open(from).map_err(named)?;
    let middle = from.metadata().map_err(named)?.len() / 2;
    let began = Instant::now();
    let mut to = File::create(to).map_err(named)?;
    let mut chunk = vec![0; WRITE_BYTES];
    let mut written = 0;
    let mut half = Some(half);
    loop {
        cancel.check()?;
        let read = from.read(&mut chunk).map_err(named)?;
        if read == 0 {
            break;
        }
        to.write_all(&chunk[..read]).map_err(named)?;
        written += read as u64;
        if written >= middle
            && let Some(half) = half.take()
        {
            let _ = half.send(written);
            go_on.recv().map_err(|_| Error::new(ErrorKind::Cancelled, "given up in the middle"))?;
        }
    }
    close(to).map_err(named)?;
    Ok(began.elapsed())
}

/// Closes a file and tells what close said, which dropping it does not.
fn close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor was just given up by its only owner.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Runs work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.map_err(|e| Error::new(ErrorKind::Io, format!("a thread of the demo died: {e}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_writer_waits_in_the_middle_and_then_finishes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![7; 5 * WRITE_BYTES + 3]).unwrap();
        let (half, at_half) = oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let target = to.clone();
        let writer =
            tokio::spawn(blocking(move || write_in_halves(&from, &to, half, &may_go_on, &Cancel::default())));
        let written = at_half.await.unwrap();
        assert_eq!(written, 3 * WRITE_BYTES as u64);
        assert_eq!(std::fs::metadata(&target).unwrap().len(), written);
        go_on.send(()).unwrap();
        writer.await.unwrap().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), vec![7; 5 * WRITE_BYTES + 3]);
    }

    #[tokio::test]
    async fn the_writer_ends_when_nobody_lets_it_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![7; 4 * WRITE_BYTES]).unwrap();
        let (half, at_half) = oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let writer =
            tokio::spawn(blocking(move || write_in_halves(&from, &to, half, &may_go_on, &Cancel::default())));
        at_half.await.unwrap();
        drop(go_on);
        assert_eq!(writer.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn what_cp_says_reaches_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let error = copy_folders(&dir.path().join("nowhere"), dir.path()).await.unwrap_err();
        assert!(error.to_string().starts_with("cp failed"), "{error}");
    }

    #[tokio::test]
    async fn folders_are_copied_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let manifest = source::make(&source, 5, 10, &Cancel::default()).unwrap();
        copy_folders(&source, &target).await.unwrap();
        std::fs::copy(source.join(source::BIG_NAME), target.join(source::BIG_NAME)).unwrap();
        let wrong = verify::read_back(&source, &target, &manifest, &Cancel::default()).unwrap();
        assert_eq!(wrong, Vec::<String>::new());
    }
}
