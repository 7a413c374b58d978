//! The programs that may commit unfinished content, and the requests that lose none.

use super::unfinished::{OLD, OVERWRITE, Scene, begin};
use super::*;
use crate::content::open_file::{DiskOutcome, WriteOutcome, Writer};
use crate::vfs::SetAttr;

/// More than a local-only file has in memory.
static LARGE: [u8; 20_000] = [7; 20_000];

/// A caller without a process in `/proc`.
fn unknown() -> Caller {
    Caller { tid: u32::MAX, ..caller() }
}

async fn truncate_path(scene: &Scene, size: u64, caller: Caller) -> Result<(), ErrorKind> {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    scene.rig.vfs.setattr(scene.ino, None, set, caller).await.map(drop).map_err(|error| error.kind())
}

async fn rename(scene: &Scene, from: (Ino, &str), to: (Ino, &str), caller: Caller) -> Result<(), ErrorKind> {
    let (from, to) = ((from.0, OsStr::new(from.1)), (to.0, OsStr::new(to.1)));
    scene.rig.vfs.rename(from, to, RenameMode::Replace, caller).await.map_err(|error| error.kind())
}

#[tokio::test]
async fn close_on_a_hung_disk_keeps_content_without_commit() {
    for is_local in [true, false] {
        let limit = |options: &mut MountOptions| options.commit_timeout = Duration::from_millis(300);
        let mut scene = Scene::remounted(limit).await;
        let name = if is_local { "._local" } else { "removed" };
        let (ino, fh) = scene.rig.create(ROOT, name).await;
        scene.ino = ino;
        scene.write(fh, 0, &LARGE).await;
        // Back into sent parts: the content moves to a staged file.
        scene.write(fh, 1, &[7]).await;
        let reader = scene.open(libc::O_RDONLY, caller()).await;
        if !is_local {
            scene.rig.vfs.unlink(ROOT, OsStr::new(name)).await.unwrap();
        }
        let hung = scene.begin_disk_write(Writer::Process(u32::MAX));
        scene.rig.vfs.release(fh).await.unwrap();
        drop(hung);
        let read = scene.rig.vfs.read(reader, 0, 30_000).await;
        assert_eq!(read.map(|bytes| bytes.len()).map_err(|error| error.kind()), Ok(20_000), "{name}");
        scene.rig.vfs.release(reader).await.unwrap();
    }
}

#[tokio::test]
async fn truncation_by_path_commits_an_own_overwrite() {
    for cache_size in [0, 100] {
        let scene = Scene::remounted(|options| options.cache_size = Some(cache_size)).await;
        let own = scene.open(OVERWRITE, caller()).await;
        scene.write(own, 0, &[2; 200]).await;
        assert_eq!(truncate_path(&scene, 50, caller()).await, Ok(()));
        scene.close(own, caller()).await;
        assert_eq!(scene.read("f").await, [2; 50]);
    }
}

/// The program has closed the file: what it wrote is complete.
#[tokio::test]
async fn truncation_by_path_commits_a_released_overwrite() {
    let scene = Scene::remounted(|options| options.cache_size = Some(100)).await;
    let complete = scene.open(OVERWRITE, scene.dead.caller()).await;
    scene.write(complete, 0, &[2; 200]).await;
    let hung = scene.begin_disk_write(Writer::Process(u32::MAX));
    let mut release = std::pin::pin!(scene.rig.vfs.release(complete));
    begin(release.as_mut()).await;
    let mut truncation = std::pin::pin!(truncate_path(&scene, 50, caller()));
    begin(truncation.as_mut()).await;
    drop(hung);
    assert_eq!(truncation.await, Ok(()));
    release.await.unwrap();
    assert_eq!(scene.read("f").await, [2; 50]);
}

#[tokio::test]
async fn unknown_process_renames_its_own_replacement() {
    let scene = Scene::new().await;
    let (name, flags) = (OsStr::new("tmp"), (libc::O_WRONLY | libc::O_CREAT, 0o644));
    let (_, own) = scene.rig.vfs.create(ROOT, name, flags, unknown()).await.unwrap();
    scene.write(own.fh, 0, b"own").await;
    for (from, to) in [("tmp", "f"), ("f", "g")] {
        assert_eq!(rename(&scene, (ROOT, from), (ROOT, to), unknown()).await, Ok(()), "{to}");
    }
    scene.close(own.fh, unknown()).await;
    assert_eq!(scene.read("g").await, b"own");
}

#[tokio::test]
async fn unknown_process_syncs_through_any_descriptor() {
    let scene = Scene::new().await;
    let own = scene.open(OVERWRITE, unknown()).await;
    scene.write(own, 0, b"own").await;
    let reader = scene.open(libc::O_RDONLY, unknown()).await;
    scene.rig.vfs.fsync(reader, unknown()).await.unwrap();
    assert_eq!(scene.size_on_drive("f").await, 3);
    scene.close(own, unknown()).await;
}

#[tokio::test]
async fn unknown_process_publishes_no_overwrite_of_others() {
    let scene = Scene::new().await;
    let killed = scene.overwrite_half().await;
    let other = scene.open(libc::O_WRONLY, unknown()).await;
    let synced = scene.rig.vfs.fsync(other, unknown()).await;
    assert_eq!(synced.map_err(|error| error.kind()), Err(ErrorKind::Busy));
    scene.kill(killed).await;
    scene.close(other, unknown()).await;
    assert_eq!(scene.read("f").await, OLD);
}

/// A request that looked for its handle before the close.
#[tokio::test]
async fn change_of_a_closed_file_fails() {
    let scene = Scene::new().await;
    let (fh, file) = (scene.open(libc::O_WRONLY, caller()).await, scene.file());
    scene.rig.vfs.release(fh).await.unwrap();
    let writer = Writer::Process(u32::MAX);
    let changes = [
        file.write(WriteAt::Offset(20), b"yy", writer, &|| None),
        file.set_size(0, writer),
        file.punch(0, 10, writer),
    ];
    for change in changes {
        assert_eq!(change.map(drop).map_err(|error| error.kind()), Err(ErrorKind::BadHandle));
    }
}

#[tokio::test]
async fn closed_file_is_not_staged_late() {
    let configure = |options: &mut MountOptions| {
        (options.commit_timeout, options.metadata_ttl) = (Duration::from_millis(300), Duration::ZERO);
    };
    let scene = Scene::remounted(configure).await;
    let fh = scene.open(libc::O_WRONLY, caller()).await;
    let WriteOutcome::Disk(staging) = scene.begin_disk_write(Writer::Process(u32::MAX)) else {
        panic!("not on the disk")
    };
    scene.rig.vfs.release(fh).await.unwrap();
    assert_eq!(staging.run(b"yy".as_slice().into()).await.unwrap(), DiskOutcome::Again);
    let id = scene.rig.remote_entries(&FileId::root()).await[0].file_id.clone();
    scene.rig.drive.rename(&id, "g", CheckNameMode::Refuse).await.unwrap();
    // An unsaved file would keep its name.
    assert_eq!(scene.rig.lookup(ROOT, "f").await, None);
}
