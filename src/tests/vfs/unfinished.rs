//! Unfinished content of several writers, and their deaths.

use super::killed_closer::Zombie;
use super::*;
use crate::content::open_file::{DiskOutcome, OpenFile, WriteOutcome, Writer};
use crate::error::Error;
use crate::vfs::{FallocateMode, SetAttr, StopDrains};

pub(super) const OVERWRITE: i32 = libc::O_WRONLY | libc::O_TRUNC;
const READ_EMPTIED: i32 = libc::O_RDONLY | libc::O_TRUNC;
pub(super) const OLD: &[u8] = &[1; 500];

/// A drive with a complete file `f`, and a process that a signal has ended.
pub(super) struct Scene {
    pub(super) rig: Rig,
    pub(super) ino: Ino,
    pub(super) dead: Zombie,
}

impl Scene {
    pub(super) async fn new() -> Self {
        let rig = Rig::new().await;
        let ino = rig.write(ROOT, "f", OLD).await;
        Self { rig, ino, dead: Zombie::new() }
    }

    /// The same drive with other options, in a new mount.
    pub(super) async fn remounted(configure: impl FnOnce(&mut MountOptions)) -> Self {
        let mut scene = Self::new().await;
        let mut config = MountConfig::clone(&scene.rig.config);
        configure(&mut config.options);
        scene.rig.vfs = mount(&Arc::new(config));
        scene.ino = scene.rig.lookup(ROOT, "f").await.unwrap();
        scene
    }

    pub(super) async fn open(&self, flags: i32, caller: Caller) -> Fh {
        self.rig.vfs.open(self.ino, flags, caller).await.unwrap().fh
    }

    /// Begins an overwrite by the process that is dead. Three parts are sent.
    pub(super) async fn overwrite_half(&self) -> Fh {
        let killed = self.open(OVERWRITE, self.dead.caller()).await;
        self.write(killed, 0, &[2; 200]).await;
        killed
    }

    pub(super) async fn write(&self, fh: Fh, offset: u64, bytes: &'static [u8]) {
        self.rig.vfs.write(fh, WriteAt::Offset(offset), bytes.into()).await.unwrap();
    }

    pub(super) async fn close(&self, fh: Fh, caller: Caller) {
        self.rig.vfs.flush(fh, caller).await.unwrap();
        let _ = self.rig.vfs.release(fh).await;
    }

    pub(super) async fn kill(&self, fh: Fh) {
        self.close(fh, self.dead.caller()).await;
    }

    pub(super) async fn size_on_drive(&self, name: &str) -> u64 {
        let entries = self.rig.remote_entries(&FileId::root()).await;
        entries.iter().find(|entry| entry.name == name).unwrap().size
    }

    /// The content under a name, read through the mount.
    pub(super) async fn read(&self, name: &str) -> Vec<u8> {
        let ino = self.rig.lookup(ROOT, name).await.unwrap();
        let fh = self.rig.vfs.open(ino, libc::O_RDONLY, caller()).await.unwrap().fh;
        let bytes = self.rig.vfs.read(fh, 0, 4096).await.unwrap();
        self.rig.vfs.release(fh).await.unwrap();
        bytes.to_vec()
    }

    pub(super) fn file(&self) -> Arc<OpenFile> {
        self.rig.vfs.open_file_of(self.ino).unwrap()
    }

    /// Begins a write on the local disk. The content must be staged.
    pub(super) fn begin_disk_write(&self, writer: Writer) -> WriteOutcome {
        self.file().write(WriteAt::Offset(20), b"yy", writer, &|| None).unwrap()
    }
}

/// Polls a future once, which must not finish.
pub(super) async fn begin<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) {
    tokio::select! {
        biased;
        _ = future => panic!("ended at once"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn abandoned_open_keeps_the_old_content() {
    for flags in [OVERWRITE, READ_EMPTIED] {
        let scene = Scene::new().await;
        let fh = scene.open(flags, caller()).await;
        scene.rig.vfs.abandon_open(fh).await.unwrap();
        assert_eq!(scene.read("f").await, OLD, "{flags:#x}");
    }
}

#[tokio::test]
async fn close_commits_the_truncation_of_a_reader() {
    let scene = Scene::new().await;
    let fh = scene.open(READ_EMPTIED, caller()).await;
    assert_eq!((scene.file().size(), scene.size_on_drive("f").await), (0, 500));
    scene.rig.vfs.flush(fh, caller()).await.unwrap();
    assert_eq!(scene.size_on_drive("f").await, 0);
    scene.rig.vfs.release(fh).await.unwrap();
}

#[tokio::test]
async fn truncation_of_an_empty_file_has_a_writer() {
    let scene = Scene::new().await;
    let killed = scene.open(OVERWRITE, scene.dead.caller()).await;
    let second = scene.open(OVERWRITE, caller()).await;
    scene.kill(killed).await;
    scene.write(second, 0, b"complete").await;
    scene.close(second, caller()).await;
    assert_eq!(scene.read("f").await, b"complete");
}

#[tokio::test]
async fn close_commits_nothing_of_a_later_truncation() {
    let scene = Scene::new().await;
    let appender = scene.open(libc::O_WRONLY, caller()).await;
    scene.write(appender, 500, b"appended").await;
    let overwriter = scene.open(OVERWRITE, scene.dead.caller()).await;
    scene.write(overwriter, 0, b"half").await;
    scene.close(appender, caller()).await;
    assert_eq!(scene.size_on_drive("f").await, 500);
    scene.kill(overwriter).await;
    assert_eq!(scene.read("f").await, OLD);
}

/// The only thread that looks into `/proc` is taken, so the close waits for its look.
#[test]
fn truncation_while_a_close_looks_stays_unsaved() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let scene = Scene::new().await;
        let appender = scene.open(libc::O_WRONLY, caller()).await;
        scene.write(appender, 500, b"appended").await;
        let (look, looked) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || looked.recv());
        let mut flush = std::pin::pin!(scene.rig.vfs.flush(appender, caller()));
        begin(flush.as_mut()).await;
        let overwriter = scene.open(OVERWRITE, scene.dead.caller()).await;
        drop(look);
        busy.await.unwrap().unwrap_err();
        flush.await.unwrap();
        assert_eq!(scene.size_on_drive("f").await, 500);
        scene.kill(overwriter).await;
    });
}

#[tokio::test]
async fn truncation_by_path_survives_a_killed_idler() {
    let scene = Scene::new().await;
    let idle = scene.open(libc::O_WRONLY, scene.dead.caller()).await;
    let to_nothing = SetAttr { size: Some(0), ..SetAttr::default() };
    scene.rig.vfs.setattr(scene.ino, None, to_nothing, caller()).await.unwrap();
    assert_eq!(scene.size_on_drive("f").await, 0);
    scene.kill(idle).await;
    assert_eq!(scene.size_on_drive("f").await, 0);
}

#[tokio::test]
async fn truncation_by_path_completes_no_overwrite() {
    let truncations = [(100, OLD.to_vec()), (200, OLD.to_vec()), (300, OLD.to_vec()), (0, Vec::new())];
    for (size, left) in truncations {
        let scene = Scene::new().await;
        let killed = scene.overwrite_half().await;
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let entry = scene.rig.vfs.setattr(scene.ino, None, set, caller()).await.unwrap();
        assert_eq!(entry.attr.size, size);
        scene.kill(killed).await;
        assert_eq!(scene.read("f").await, left, "truncated to {size}");
    }
}

#[tokio::test]
async fn fsync_of_others_keeps_a_late_truncation_unsaved() {
    let scene = Scene::new().await;
    let editor = scene.open(libc::O_WRONLY, caller()).await;
    scene.write(editor, 3, b"edit").await;
    let change = scene.begin_disk_write(Writer::Process(u32::MAX));
    let mut fsync = std::pin::pin!(scene.rig.vfs.fsync(editor, caller()));
    begin(fsync.as_mut()).await;
    drop(change);
    let overwriter = scene.open(OVERWRITE, scene.dead.caller()).await;
    let outcome = fsync.await.map_err(|error| error.kind());
    assert_eq!((outcome, scene.size_on_drive("f").await), (Err(ErrorKind::Busy), 500));
    scene.kill(overwriter).await;
}

#[tokio::test]
async fn given_up_new_file_shows_the_replaced_one() {
    let scene = Scene::new().await;
    let (name, flags) = (OsStr::new("tmp"), (libc::O_WRONLY | libc::O_CREAT, 0o644));
    let (_, killed) = scene.rig.vfs.create(ROOT, name, flags, scene.dead.caller()).await.unwrap();
    scene.write(killed.fh, 0, b"half").await;
    scene.rig.rename((ROOT, "tmp"), (ROOT, "f")).await.unwrap();
    let ino = scene.rig.lookup(ROOT, "f").await.unwrap();
    let reader = scene.rig.vfs.open(ino, libc::O_RDONLY, caller()).await.unwrap().fh;
    scene.kill(killed.fh).await;
    let error = scene.rig.vfs.read(reader, 0, 10).await.unwrap_err();
    assert_eq!((scene.read("f").await, error.kind()), (OLD.to_vec(), ErrorKind::Cancelled));
    scene.rig.vfs.release(reader).await.unwrap();
    assert_eq!(scene.rig.remote_names(&FileId::root()).await, ["f"]);
}

#[tokio::test]
async fn given_up_replacement_shows_both_files() {
    let scene = Scene::new().await;
    let dir_ino = scene.rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap().attr.ino;
    for parent in [ROOT, dir_ino] {
        let tmp = scene.rig.write(parent, "tmp", &[3; 300]).await;
        let killed = scene.rig.vfs.open(tmp, OVERWRITE, scene.dead.caller()).await.unwrap().fh;
        scene.write(killed, 0, b"half").await;
        scene.rig.rename((parent, "tmp"), (ROOT, "f")).await.unwrap();
        scene.kill(killed).await;
        assert_eq!(scene.read("f").await, OLD);
        let again = scene.rig.lookup(parent, "tmp").await.expect("the name of the own object is lost");
        assert_eq!(scene.rig.vfs.getattr(again).await.unwrap().attr.size, 300);
    }
}

#[tokio::test]
async fn local_file_replaces_no_unfinished_overwrite() {
    let scene = Scene::new().await;
    scene.rig.write(ROOT, "._new", b"local").await;
    let killed = scene.overwrite_half().await;
    assert_eq!(scene.rig.rename((ROOT, "._new"), (ROOT, "f")).await, Err(ErrorKind::Busy));
    assert_eq!(scene.size_on_drive("f").await, 500);
    scene.kill(killed).await;
    assert_eq!(scene.read("f").await, OLD);
    scene.rig.rename((ROOT, "._new"), (ROOT, "f")).await.unwrap();
    assert_eq!(scene.size_on_drive("f").await, 5);
}

#[tokio::test]
async fn trash_takes_no_unfinished_overwrite() {
    let scene = Scene::new().await;
    let mkdir = async |parent, name: &str| {
        scene.rig.vfs.mkdir(parent, OsStr::new(name), 0o700, caller()).await.unwrap().attr.ino
    };
    let dir = mkdir(ROOT, "d").await;
    let files = mkdir(mkdir(ROOT, ".Trash-0").await, "files").await;
    scene.rig.rename((ROOT, "f"), (dir, "f")).await.unwrap();
    let killed = scene.overwrite_half().await;
    for from in [(dir, "f"), (ROOT, "d")] {
        assert_eq!(scene.rig.rename(from, (files, from.1)).await, Err(ErrorKind::Busy));
    }
    scene.kill(killed).await;
    // The process that overwrites the file may move it.
    let own = scene.open(OVERWRITE, caller()).await;
    scene.write(own, 0, b"own").await;
    scene.rig.rename((dir, "f"), (files, "f")).await.unwrap();
    scene.close(own, caller()).await;
    let folder = &scene.rig.remote_entries(&FileId::root()).await[0].file_id;
    assert_eq!(scene.rig.remote_names(folder).await, [""; 0]);
}

#[tokio::test]
async fn rename_of_a_replacement_keeps_the_replaced_file() {
    let scene = Scene::new().await;
    let (name, flags) = (OsStr::new("tmp"), (libc::O_WRONLY | libc::O_CREAT, 0o644));
    let (_, killed) = scene.rig.vfs.create(ROOT, name, flags, scene.dead.caller()).await.unwrap();
    scene.write(killed.fh, 0, b"half").await;
    scene.rig.rename((ROOT, "tmp"), (ROOT, "f")).await.unwrap();
    assert_eq!(scene.rig.rename((ROOT, "f"), (ROOT, "g")).await, Err(ErrorKind::Busy));
    assert_eq!(scene.size_on_drive("f").await, 500);
    scene.kill(killed.fh).await;
    assert_eq!(scene.read("f").await, OLD);
}

#[tokio::test]
async fn rename_over_a_replacement_keeps_both_files() {
    let scene = Scene::new().await;
    let tmp = scene.rig.write(ROOT, "tmp", &[3; 300]).await;
    let killed = scene.rig.vfs.open(tmp, OVERWRITE, scene.dead.caller()).await.unwrap().fh;
    scene.write(killed, 0, b"half").await;
    scene.rig.rename((ROOT, "tmp"), (ROOT, "f")).await.unwrap();
    let (_, new) = scene.rig.create(ROOT, "new").await;
    scene.write(new, 0, b"new").await;
    assert_eq!(scene.rig.rename((ROOT, "new"), (ROOT, "f")).await, Err(ErrorKind::Busy));
    scene.kill(killed).await;
    assert_eq!((scene.size_on_drive("f").await, scene.size_on_drive("tmp").await), (500, 300));
    scene.close(new, caller()).await;
}

#[tokio::test]
async fn write_into_sent_bytes_publishes_no_overwrite() {
    // Without a copy of the stream, and without space for one of three parts.
    for cache_size in [0, 100] {
        let scene = Scene::remounted(|options| options.cache_size = Some(cache_size)).await;
        let killed = scene.overwrite_half().await;
        let other = scene.open(libc::O_WRONLY, caller()).await;
        let written = scene.rig.vfs.write(other, WriteAt::Offset(10), b"x".as_slice().into()).await;
        let set = SetAttr { size: Some(50), ..SetAttr::default() };
        let truncated = scene.rig.vfs.setattr(scene.ino, None, set, caller()).await;
        let errors = (written.map_err(|error| error.kind()), truncated.map_err(|error| error.kind()));
        assert_eq!(errors, (Err(ErrorKind::Busy), Err(ErrorKind::Busy)));
        assert_eq!(scene.size_on_drive("f").await, 500);
        scene.kill(killed).await;
        scene.close(other, caller()).await;
        assert_eq!(scene.read("f").await, OLD);
    }
}

#[tokio::test]
async fn truncation_to_the_same_size_sets_the_times() {
    let scene = Scene::new().await;
    let empty = scene.rig.write(ROOT, "empty", b"").await;
    let past = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let saved = scene.rig.calls("complete");
    let mtime = async |ino| scene.rig.vfs.getattr(ino).await.unwrap().attr.mtime;
    let age = async |ino| {
        let set = SetAttr { mtime: Some(past), ..SetAttr::default() };
        scene.rig.vfs.setattr(ino, None, set, caller()).await.unwrap();
    };
    for flags in [OVERWRITE, READ_EMPTIED] {
        age(empty).await;
        let fh = scene.rig.vfs.open(empty, flags, caller()).await.unwrap().fh;
        assert!(mtime(empty).await > past, "O_TRUNC with {flags:#x}");
        scene.close(fh, caller()).await;
        assert!(mtime(empty).await > past);
    }
    let same = SetAttr { size: Some(500), ..SetAttr::default() };
    let fh = scene.open(libc::O_WRONLY, caller()).await;
    age(scene.ino).await;
    scene.rig.vfs.setattr(scene.ino, None, same, caller()).await.unwrap();
    assert_eq!(mtime(scene.ino).await, past, "truncate(2) changes no times if the size stays");
    scene.rig.vfs.setattr(scene.ino, Some(fh), same, caller()).await.unwrap();
    assert!(mtime(scene.ino).await > past, "ftruncate");
    scene.close(fh, caller()).await;
    assert_eq!(scene.rig.calls("complete"), saved, "nothing was uploaded");
}

#[tokio::test]
async fn write_that_outlives_its_handle_fails() {
    let scene = Scene::new().await;
    let fh = scene.open(libc::O_WRONLY, caller()).await;
    scene.write(fh, 3, b"edit").await;
    let change = scene.begin_disk_write(Writer::Process(u32::MAX));
    let mut write = std::pin::pin!(scene.rig.vfs.write(fh, WriteAt::Offset(0), b"late".as_slice().into()));
    begin(write.as_mut()).await;
    let mut release = std::pin::pin!(scene.rig.vfs.release(fh));
    begin(release.as_mut()).await;
    drop(change);
    assert_eq!(write.await.map_err(|error| error.kind()), Err(ErrorKind::BadHandle));
    release.await.unwrap();
    assert_eq!(scene.read("f").await[..7], *b"\x01\x01\x01edit");
}

/// Closed after its result is known, and before the stop is given up.
#[tokio::test]
async fn given_up_second_drain_names_closed_files() {
    let rig = Rig::new().await;
    let drains = StopDrains::default();
    rig.vfs.drain_first(&drains).await;
    let (partly, partly_fh) = rig.create(ROOT, "partly").await;
    rig.vfs.write(partly_fh, WriteAt::Offset(0), b"so far"[..].into()).await.unwrap();
    let (stuck, stuck_fh) = rig.create(ROOT, "stuck").await;
    rig.server.faults().add(FaultRule::new("put_part", FaultAction::Stall).part(2));
    rig.vfs.write(stuck_fh, WriteAt::Offset(0), vec![1; 150].into()).await.unwrap();
    let mut drain = std::pin::pin!(rig.vfs.drain_again(&drains));
    let given_up = Error::new(ErrorKind::Cancelled, "given up");
    let is_known = async {
        while rig.vfs.given_up_report(&drains, &given_up).partly_saved.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        report = drain.as_mut() => panic!("{report:?}"),
        known = tokio::time::timeout(Duration::from_secs(20), is_known) => known.unwrap(),
    }
    rig.vfs.release(partly_fh).await.unwrap();
    let report = rig.vfs.given_up_report(&drains, &given_up);
    assert_eq!(report.unsaved.iter().map(|file| file.ino).collect::<Vec<_>>(), [Some(stuck)]);
    let partly_saved: Vec<_> = report.partly_saved.iter().map(|file| (file.ino, file.bytes)).collect();
    assert_eq!(partly_saved, [(partly, 6)]);
}

#[tokio::test]
async fn panic_of_a_drain_is_reported() {
    let (scene, drains) = (Scene::new().await, StopDrains::default());
    let drain = async { assert_eq!(1, 2, "on purpose") };
    scene.rig.vfs.supervise_drain(scene.ino, &drains.first, drain).await;
    let report = scene.rig.vfs.drain_again(&drains).await;
    assert_eq!(report.unsaved.iter().map(|file| file.ino).collect::<Vec<_>>(), [Some(scene.ino)]);
}

/// `None`: `ftruncate`.
async fn resize(scene: &Scene, fh: Fh, mode: Option<FallocateMode>) -> Result<(), ErrorKind> {
    let vfs = &scene.rig.vfs;
    let resized = if let Some(mode) = mode {
        vfs.allocate(scene.ino, fh, (0, 600), mode, caller()).await
    } else {
        let set = SetAttr { size: Some(10), ..SetAttr::default() };
        vfs.setattr(scene.ino, Some(fh), set, caller()).await.map(drop)
    };
    resized.map_err(|error| error.kind())
}

#[tokio::test]
async fn resize_that_outlives_its_handle_fails() {
    let (zeroes, grows) =
        (FallocateMode { zeroes: true, grows: false }, FallocateMode { zeroes: false, grows: true });
    for mode in [None, Some(zeroes), Some(grows)] {
        let scene = Scene::new().await;
        let fh = scene.open(libc::O_WRONLY, caller()).await;
        // The content of the drive moves to a staged file for another late change.
        let WriteOutcome::Disk(staging) = scene.begin_disk_write(Writer::Process(u32::MAX)) else {
            panic!("not on the disk")
        };
        let mut resize = std::pin::pin!(resize(&scene, fh, mode));
        begin(resize.as_mut()).await;
        scene.rig.vfs.release(fh).await.unwrap();
        assert_eq!(staging.run(b"yy".as_slice().into()).await.unwrap(), DiskOutcome::Again);
        assert_eq!(resize.await, Err(ErrorKind::BadHandle), "{mode:?}");
        assert_eq!(scene.read("f").await, OLD);
    }
}

#[tokio::test]
async fn copy_that_outlives_its_handle_fails() {
    let scene = Scene::new().await;
    let (vfs, empty) = (&scene.rig.vfs, scene.rig.write(ROOT, "empty", b"").await);
    let from = scene.open(libc::O_RDONLY, caller()).await;
    let to = vfs.open(empty, libc::O_WRONLY, caller()).await.unwrap().fh;
    let late = vfs.open_file_of(empty).unwrap().set_size(10, Writer::Process(u32::MAX)).unwrap();
    assert!(matches!(late, WriteOutcome::Disk(_)));
    let mut copy = std::pin::pin!(vfs.copy_range((from, 0), (to, 0), 500, caller()));
    begin(copy.as_mut()).await;
    vfs.release(to).await.unwrap();
    drop(late);
    assert_eq!(copy.await.map_err(|error| error.kind()), Err(ErrorKind::Unsupported));
    assert!(scene.read("empty").await.is_empty());
    vfs.release(from).await.unwrap();
}
