//! The local disk of a mount: the directory of its files, and the threads that wait for it.
//!
//! A disk may be slow, or hang completely. So no task of the runtime and no lock waits for it: all work runs on
//! a bounded number of blocking threads, and its caller waits asynchronously, with a deadline. Work that has
//! begun cannot be cancelled. If its caller gives up, it runs on, and what it owns lives until its end.

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{StatVfs, statvfs};
use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_duration;

/// Threads that work on the disk. If it hangs, this many threads hang, and further work waits for them.
const THREADS_MAX: usize = 16;
/// Threads for work that nothing waits for. Each may hold the memory of one part while the disk hangs.
const BACKGROUND_THREADS_MAX: usize = 2;

/// Descriptors for everything that is not a local file: connections, the control socket, FUSE.
const OTHER_DESCRIPTORS: u64 = 512;
/// Descriptors of a local file: its own, and one for a write without the page cache.
const DESCRIPTORS_PER_FILE: u64 = 2;
/// Local files in any case.
const FILES_MIN: usize = 16;

/// Free bytes for this user on the disk of a directory; `None` if that is not known.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    disk(dir).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Size of the disk of a directory in bytes; `None` if that is not known.
pub fn disk_bytes(dir: &Path) -> Option<u64> {
    disk(dir).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn disk(dir: &Path) -> Option<StatVfs> {
    statvfs(dir).ok()
}

/// Most open files of a local disk.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    pub total: usize,
    pub per_user: usize,
}

impl FileLimits {
    /// What the limit of descriptors of this process allows. If several users share the mount, one of them gets half.
    pub fn of_process(is_shared: bool) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files = descriptors.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS_PER_FILE;
        let total = usize::try_from(files).unwrap_or(usize::MAX).max(FILES_MIN);
        Self { total, per_user: if is_shared { total / 2 } else { total } }
    }
}

/// The number of open files, in total and by user.
#[derive(Debug, Default)]
struct FileCounts {
    total: usize,
    by_user: HashMap<u32, usize>,
}

impl FileCounts {
    fn of(&self, user: Option<u32>) -> usize {
        user.and_then(|user| self.by_user.get(&user)).copied().unwrap_or(0)
    }

    fn add(&mut self, user: Option<u32>) {
        if let Some(user) = user {
            *self.by_user.entry(user).or_default() += 1;
        }
    }

    fn remove(&mut self, user: Option<u32>) {
        if let Some(user) = user
            && let Some(count) = self.by_user.get_mut(&user)
        {
            *count -= 1;
            if *count == 0 {
                self.by_user.remove(&user);
            }
        }
    }

    fn refusal(&self, limits: FileLimits, user: Option<u32>) -> Error {
        let detail = format!(
            "{} local files are open, {} of them of this user; the limit of open files (RLIMIT_NOFILE) allows {} of \
             all users and {} of one: close files, or raise the limit",
            self.total,
            self.of(user),
            limits.total,
            limits.per_user
        );
        Error::new(ErrorKind::TooManyFiles, detail)
    }
}

/// Counts one open file until it is dropped.
#[derive(Debug)]
struct CountedFile {
    /// A leaf lock.
    counts: Arc<Mutex<FileCounts>>,
    /// The user for whom it counts. Locked before `counts`.
    user: Mutex<Option<u32>>,
}

impl CountedFile {
    fn new(counts: &Arc<Mutex<FileCounts>>, limits: FileLimits, user: Option<u32>) -> Result<Self> {
        let mut open = counts.lock();
        if open.total >= limits.total || open.of(user) >= limits.per_user {
            return Err(open.refusal(limits, user));
        }
        open.total += 1;
        open.add(user);
        Ok(Self { counts: counts.clone(), user: Mutex::new(user) })
    }

    fn move_to(&self, user: Option<u32>, limits: FileLimits) -> Result<()> {
        let mut now = self.user.lock();
        let mut open = self.counts.lock();
        if *now != user {
            if open.of(user) >= limits.per_user {
                return Err(open.refusal(limits, user));
            }
            open.remove(std::mem::replace(&mut *now, user));
            open.add(user);
        }
        Ok(())
    }
}

impl Drop for CountedFile {
    fn drop(&mut self) {
        let mut open = self.counts.lock();
        open.total -= 1;
        open.remove(*self.user.get_mut());
    }
}

/// The directory of staged files, cached files and spilled parts.
#[derive(Debug)]
pub struct LocalDisk {
    dir: PathBuf,
    limits: FileLimits,
    open_files: Arc<Mutex<FileCounts>>,
    /// The longest wait for one piece of work.
    wait_max: Duration,
    threads: Arc<Semaphore>,
    background_threads: Arc<Semaphore>,
    /// Closes files. The thread starts with the first one; `None` if it cannot start.
    closer: OnceLock<Option<Sender<Closing>>>,
}

/// An open file, and a value that is dropped after it is closed.
type FileAndHeld = (File, Box<dyn Any + Send + Sync>);

#[derive(Debug)]
enum Closing {
    File(FileAndHeld),
    /// Answered when all files before it are closed.
    Barrier(Sender<()>),
}

impl LocalDisk {
    pub fn new(dir: &Path, wait_max: Duration, limits: FileLimits) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            limits,
            open_files: Arc::default(),
            wait_max,
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
            background_threads: Arc::new(Semaphore::new(BACKGROUND_THREADS_MAX)),
            closer: OnceLock::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `work`, which may block for the disk. `Timeout` after the longest wait.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.in_time(run_on(self.threads.clone(), work)).await?
    }

    /// Runs `work` that no request waits for, without a deadline. It takes no thread of [`Self::run`].
    pub async fn run_in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        run_on(self.background_threads.clone(), work).await
    }

    /// Waits for something that the disk does. `Timeout` after the longest wait.
    pub async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.within(self.wait_max, work).await
    }

    /// The same with another limit.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(limit, work).await.map_err(|_| {
            let (dir, limit) = (self.dir.display(), exact_duration(limit));
            Error::new(ErrorKind::Timeout, format!("the local disk of {dir} did not answer for {limit}"))
        })
    }

    /// Creates a file without a name for a user: a crash leaves nothing behind. `held` is dropped after the file is
    /// closed. `TooManyFiles` at the limit. Blocks.
    pub fn create(
        self: &Arc<Self>,
        user: Option<u32>,
        held: impl Any + Send + Sync,
    ) -> Result<Arc<LocalFile>> {
        let counted = Arc::new(CountedFile::new(&self.open_files, self.limits, user)?);
        let file = tempfile::tempfile_in(&self.dir)?;
        let file = ManuallyDrop::new((file, Box::new((held, counted.clone())) as Box<_>));
        Ok(Arc::new(LocalFile { file, counted, disk: self.clone() }))
    }

    /// Whether the limit of one user refuses another file.
    pub fn is_user_at_limit(&self, user: Option<u32>) -> bool {
        self.open_files.lock().of(user) >= self.limits.per_user
    }

    fn closer(&self) -> Option<&Sender<Closing>> {
        self.closer.get_or_init(start_closer).as_ref()
    }

    /// Waits until all files that were dropped before are closed, so that their space is free. Blocks.
    pub fn wait_closed(&self) {
        if let Some(Some(closer)) = self.closer.get() {
            let (closed, all_closed) = channel();
            if closer.send(Closing::Barrier(closed)).is_ok() {
                // An error means that the closer has ended.
                let _ = all_closed.recv();
            }
        }
    }
}

/// Runs `work` on a blocking thread once there is a permit.
async fn run_on<T: Send + 'static>(
    threads: Arc<Semaphore>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    const ABORTED: &str = "work on the local disk was aborted";
    // The semaphore is never closed.
    let permit = threads.acquire_owned().await.map_err(|e| Error::with_source(ErrorKind::Io, ABORTED, e))?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    done.await.map_err(|e| Error::with_source(ErrorKind::Io, ABORTED, e))?
}

/// Closing the last descriptor of a large file without a name frees its blocks, which takes time.
fn start_closer() -> Option<Sender<Closing>> {
    let (closer, files): (_, Receiver<Closing>) = channel();
    let close_all = move || {
        for closing in files {
            match closing {
                Closing::File(file) => drop(file),
                Closing::Barrier(closed) => drop(closed),
            }
        }
    };
    std::thread::Builder::new().name("closer".to_owned()).spawn(close_all).ok().map(|_| closer)
}

/// A file of the disk without a name. Dropping it does not block: a thread of its own closes it.
#[derive(Debug)]
pub struct LocalFile {
    file: ManuallyDrop<FileAndHeld>,
    counted: Arc<CountedFile>,
    disk: Arc<LocalDisk>,
}

impl LocalFile {
    /// Counts the file for this user from now on, or for none. `TooManyFiles` at the limit of the user.
    pub fn count_for(&self, user: Option<u32>) -> Result<()> {
        self.counted.move_to(user, self.disk.limits)
    }

    pub fn disk(&self) -> &Arc<LocalDisk> {
        &self.disk
    }

    /// Fills `out` with the bytes at `offset`, and with zeros from the end of the file on. Blocks.
    pub fn read_at_zero_filled(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            match self.file.0.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        out[done..].fill(0);
        Ok(())
    }
}

impl Deref for LocalFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file.0
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        // SAFETY: the field is not used again.
        let file = unsafe { ManuallyDrop::take(&mut self.file) };
        if let Some(closer) = self.disk.closer() {
            // An error returns the file, which is closed here.
            let _ = closer.send(Closing::File(file));
        }
    }
}

#[cfg(test)]
impl LocalDisk {
    pub fn files_of(&self, user: u32) -> usize {
        self.open_files.lock().of(Some(user))
    }

    /// A disk for tests.
    pub fn of(dir: &tempfile::TempDir) -> Arc<Self> {
        Self::new(dir.path(), Duration::from_secs(20), FileLimits::NONE)
    }
}

#[cfg(test)]
impl FileLimits {
    pub const NONE: Self = Self { total: usize::MAX, per_user: usize::MAX };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hung_work_takes_a_bounded_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let disk = LocalDisk::new(dir.path(), Duration::from_millis(300), FileLimits::NONE);
        let (released, hang) = channel::<()>();
        let hang = Arc::new(parking_lot::Mutex::new(hang));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..THREADS_MAX + 3 {
            let (disk, hang) = (disk.clone(), hang.clone());
            requests.spawn(async move { disk.run(move || Ok(hang.lock().recv().is_ok())).await });
        }
        for request in requests.join_all().await {
            assert_eq!(request.unwrap_err().kind(), ErrorKind::Timeout);
        }
        assert_eq!(disk.threads.available_permits(), 0);
        assert_eq!(disk.run_in_background(|| Ok(7)).await.unwrap(), 7);
        drop(released);
        let answered = async {
            loop {
                if let Ok(answer) = disk.run(|| Ok(8)).await {
                    return answer;
                }
            }
        };
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), answered).await.unwrap(), 8);
    }

    #[test]
    fn files_of_a_user_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let limits = FileLimits { total: 4, per_user: 2 };
        let disk = LocalDisk::new(dir.path(), Duration::from_secs(20), limits);
        let create = |user| disk.create(user, ()).map_err(|error| error.kind());
        let first = [create(Some(1)).unwrap(), create(Some(1)).unwrap()];
        assert_eq!(create(Some(1)).unwrap_err(), ErrorKind::TooManyFiles);
        let _second = [create(Some(2)).unwrap(), create(None).unwrap()];
        assert_eq!(create(Some(2)).unwrap_err(), ErrorKind::TooManyFiles);
        drop(first);
        disk.wait_closed();
        drop(create(Some(1)).unwrap());
    }

    #[test]
    fn file_counts_for_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let limits = FileLimits { total: 4, per_user: 1 };
        let disk = LocalDisk::new(dir.path(), Duration::from_secs(20), limits);
        let (file, other) = (disk.create(None, ()).unwrap(), disk.create(Some(2), ()).unwrap());
        file.count_for(Some(1)).unwrap();
        assert_eq!((disk.files_of(1), disk.files_of(2)), (1, 1));
        assert_eq!(file.count_for(Some(2)).unwrap_err().kind(), ErrorKind::TooManyFiles);
        other.count_for(None).unwrap();
        file.count_for(Some(2)).unwrap();
        assert_eq!((disk.files_of(1), disk.files_of(2)), (0, 1));
        drop(file);
        disk.wait_closed();
        assert_eq!(disk.files_of(2), 0);
    }

    #[test]
    fn dropped_file_is_closed_by_another_thread() {
        let dir = tempfile::tempdir().unwrap();
        let disk = LocalDisk::of(&dir);
        let file = disk.create(None, ()).unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let mut out = *b"xxxxx";
        file.read_at_zero_filled(&mut out, 1).unwrap();
        assert_eq!(out, *b"bc\0\0\0");
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&**file));
        let link = std::fs::read_link(&descriptor).unwrap();
        drop(file);
        disk.wait_closed();
        assert_ne!(std::fs::read_link(&descriptor).ok(), Some(link));
    }
}
