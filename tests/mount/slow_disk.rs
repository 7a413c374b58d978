//! A small FUSE file system in memory, as the local disk of a mount. It can hang and slow down.
//!
//! It has one directory without subdirectories. The test process serves it on threads of its own. The page cache
//! is bypassed, so each read and write of the daemon is a request. Dropping a [`Hang`] or the [`SlowDisk`] lets
//! all requests continue, also after a failed test.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::rig::{unmount_lazily, wait_until};

const ROOT: u64 = 1;
/// The kernel asks for attributes each time, so that a hang is seen.
const TTL: Duration = Duration::ZERO;
const BLOCK_BYTES: u32 = 4096;
const BLOCKS: u64 = 1 << 24;
/// A hang ends by itself after this time: a test process that waits for a mount that waits for this process
/// could not even be killed.
const HANG_MAX: Duration = Duration::from_secs(60);

/// The requests that hang.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hanging {
    /// Reads, writes and allocations.
    Data,
    All,
}

/// A mounted disk.
pub struct SlowDisk {
    gate: Arc<Gate>,
    dir: tempfile::TempDir,
    /// Its drop would unmount by path.
    _session: std::mem::ManuallyDrop<BackgroundSession>,
}

/// Requests hang until this is dropped.
pub struct Hang(Arc<Gate>);

#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// The requests that hang, and the end of that.
    hanging: Option<(Hanging, Instant)>,
    /// Requests that hang now.
    waiting: usize,
    bytes_per_s: Option<u64>,
    /// When the last transfer at `bytes_per_s` ends.
    busy_until: Option<Instant>,
}

impl SlowDisk {
    pub fn new() -> Self {
        let (gate, dir) = (Arc::<Gate>::default(), tempfile::tempdir().unwrap());
        let disk = Disk { gate: gate.clone(), files: Arc::default() };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("slow-disk".to_owned())];
        let session = fuser::spawn_mount(disk, dir.path(), &config).unwrap();
        Self { gate, dir, _session: std::mem::ManuallyDrop::new(session) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path as an argument of the daemon.
    pub fn arg(&self) -> &str {
        self.path().to_str().unwrap()
    }

    /// From now on these requests hang.
    pub fn hang(&self, which: Hanging) -> Hang {
        self.gate.lock().hanging = Some((which, Instant::now() + HANG_MAX));
        Hang(self.gate.clone())
    }

    /// From now on all reads and writes together move this many bytes in a second.
    pub fn limit(&self, bytes_per_s: u64) {
        self.gate.lock().bytes_per_s = Some(bytes_per_s);
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.gate.open();
        unmount_lazily(self.path());
    }
}

impl Hang {
    /// Waits until `count` requests hang.
    pub fn wait_for(&self, count: usize) {
        wait_until("requests hang", || (self.0.lock().waiting >= count).then_some(()));
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap()
    }

    fn open(&self) {
        let mut state = self.lock();
        (state.hanging, state.bytes_per_s) = (None, None);
        self.changed.notify_all();
    }

    /// Runs `answer` when the gate lets a request pass: at once, or on a thread of its own. `bytes` is the
    /// length of a transfer.
    fn pass(self: &Arc<Self>, kind: Hanging, bytes: usize, answer: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        let pause = state.bytes_per_s.filter(|_| kind == Hanging::Data).map(|bytes_per_s| {
            let now = Instant::now();
            let took = Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
            let end = state.busy_until.map_or(now, |end| end.max(now)) + took;
            state.busy_until = Some(end);
            end - now
        });
        if !state.holds(kind) && pause.is_none() {
            drop(state);
            return answer();
        }
        let gate = self.clone();
        drop(state);
        std::thread::spawn(move || {
            std::thread::sleep(pause.unwrap_or_default());
            let mut state = gate.lock();
            state.waiting += 1;
            while state.holds(kind) {
                state = gate.changed.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
            }
            state.waiting -= 1;
            drop(state);
            answer();
        });
    }
}

impl GateState {
    fn holds(&self, kind: Hanging) -> bool {
        let holds = |hanging| hanging == Hanging::All || kind == Hanging::Data;
        self.hanging.is_some_and(|(hanging, end)| holds(hanging) && Instant::now() < end)
    }
}

#[derive(Default)]
struct Files {
    names: BTreeMap<OsString, u64>,
    bytes: HashMap<u64, Vec<u8>>,
    last: u64,
}

impl Files {
    fn attr(&self, ino: u64) -> FileAttr {
        let (kind, size) = match self.bytes.get(&ino) {
            Some(bytes) => (FileType::RegularFile, bytes.len() as u64),
            None => (FileType::Directory, 0),
        };
        let now = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

struct Disk {
    gate: Arc<Gate>,
    files: Arc<Mutex<Files>>,
}

impl Disk {
    /// Runs `answer` with the files when the gate lets the request pass.
    fn pass(&self, kind: Hanging, bytes: usize, answer: impl FnOnce(&mut Files) + Send + 'static) {
        let files = self.files.clone();
        self.gate.pass(kind, bytes, move || answer(&mut files.lock().unwrap()));
    }
}

/// The signatures are fuser's.
#[allow(clippy::too_many_arguments)]
impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.pass(Hanging::All, 0, move |files| match files.names.get(&name) {
            Some(ino) => reply.entry(&TTL, &files.attr(*ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.pass(Hanging::All, 0, move |files| reply.attr(&TTL, &files.attr(ino.0)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.pass(Hanging::All, 0, move |files| {
            if let (Some(size), Some(bytes)) = (size, files.bytes.get_mut(&ino.0)) {
                bytes.resize(size as usize, 0);
            }
            reply.attr(&TTL, &files.attr(ino.0));
        });
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let name = name.to_owned();
        self.pass(Hanging::All, 0, move |files| {
            files.last += 1;
            let ino = ROOT + files.last;
            files.names.insert(name, ino);
            files.bytes.insert(ino, Vec::new());
            reply.created(&TTL, &files.attr(ino), Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.pass(Hanging::All, 0, move |files| {
            files.names.remove(&name);
            reply.ok();
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        let mut files = self.files.lock().unwrap();
        if !files.names.values().any(|named| *named == ino.0) {
            files.bytes.remove(&ino.0);
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.pass(Hanging::All, 0, |_| reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pass(Hanging::Data, size as usize, move |files| {
            let bytes = &files.bytes[&ino.0];
            let start = bytes.len().min(offset as usize);
            reply.data(&bytes[start..bytes.len().min(start + size as usize)]);
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_owned();
        self.pass(Hanging::Data, data.len(), move |files| {
            let (bytes, end) = (files.bytes.get_mut(&ino.0).unwrap(), offset as usize + data.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(&data);
            reply.written(data.len() as u32);
        });
    }

    /// Punches holes.
    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.pass(Hanging::Data, 0, move |files| {
            let bytes = files.bytes.get_mut(&ino.0).unwrap();
            let (start, end) = (offset as usize, bytes.len().min((offset + length) as usize));
            bytes[start.min(end)..end].fill(0);
            reply.ok();
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.pass(Hanging::All, 0, |_| reply.ok());
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.pass(Hanging::All, 0, |_| reply.ok());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.pass(Hanging::Data, 0, |_| reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.pass(Hanging::All, 0, |_| {
            reply.statfs(BLOCKS, BLOCKS, BLOCKS, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.pass(Hanging::All, 0, move |files| {
            for (n, (name, ino)) in files.names.iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(*ino), n as u64 + 1, FileType::RegularFile, name) {
                    break;
                }
            }
            reply.ok();
        });
    }
}
