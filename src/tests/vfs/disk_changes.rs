//! Changes on the local disk while the content that they change is given up.

use std::pin::pin;

use super::unfinished::{OLD, OVERWRITE, Scene, begin};
use super::*;
use crate::content::open_file::{DiskOutcome, WriteOutcome, Writer};
use crate::error::Error;
use crate::vfs::{FallocateMode, SetAttr};

const BYTES: &[u8] = b"yy";

#[derive(Clone, Copy, Debug)]
enum Change {
    Write(u64),
    SetSize(u64),
    Punch(u64, u64),
}

impl Change {
    async fn make(self, scene: &Scene, fh: Fh) {
        let (vfs, ino) = (&scene.rig.vfs, scene.ino);
        match self {
            Self::Write(offset) => {
                let written = vfs.write(fh, WriteAt::Offset(offset), BYTES.into()).await;
                assert_eq!(written.unwrap(), BYTES.len());
            }
            Self::SetSize(size) => {
                let size = SetAttr { size: Some(size), ..SetAttr::default() };
                vfs.setattr(ino, Some(fh), size, caller()).await.unwrap();
            }
            Self::Punch(offset, len) => {
                let mode = FallocateMode { zeroes: true, grows: false };
                vfs.allocate(ino, fh, (offset, len), mode, caller()).await.unwrap();
            }
        }
    }

    fn apply(self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset) => content[offset as usize..][..BYTES.len()].copy_from_slice(BYTES),
            Self::SetSize(size) => content.truncate(size as usize),
            Self::Punch(offset, len) => content[offset as usize..][..len as usize].fill(0),
        }
    }
}

impl Scene {
    /// A mount whose only write buffer another file uses.
    async fn without_memory() -> Self {
        let mut scene = Self::new().await;
        let mut config = (*scene.rig.config).clone();
        config.options.part_size = PartSize::new(256).unwrap();
        config.options.buffer_size = 256;
        scene.rig.vfs = mount(&Arc::new(config));
        let (_, other) = scene.rig.create(ROOT, "other").await;
        scene.write(other, 0, b"takes the only buffer").await;
        scene.ino = scene.rig.lookup(ROOT, "f").await.unwrap();
        scene
    }

    fn give_up(&self) {
        let (file, killed) = (self.file(), Writer::Process(self.dead.caller().tid));
        let reason = |_| Error::new(ErrorKind::Cancelled, "given up");
        assert!(file.give_up_overwrite_of(killed, false, reason).is_some());
    }

    /// Makes a change that waits for the disk while the overwrite of a dead process is given up. Returns whether
    /// the old content was changed in the end. The caller's runtime has one thread for the disk.
    async fn change_during_a_give_up(self, overwrite: &[(u64, &'static [u8])], change: Change) -> bool {
        let killed = self.open(OVERWRITE, self.dead.caller()).await;
        let other = self.open(libc::O_WRONLY, caller()).await;
        for (offset, bytes) in overwrite {
            self.write(killed, *offset, bytes).await;
        }
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv());
        {
            let mut changed = pin!(change.make(&self, other));
            begin(changed.as_mut()).await;
            self.give_up();
            drop(release);
            changed.await;
        }
        busy.await.unwrap().unwrap_err();
        self.close(other, caller()).await;
        let mut changed = OLD.to_vec();
        change.apply(&mut changed);
        let is_changed = self.read("f").await == changed;
        self.kill(killed).await;
        is_changed
    }
}

fn with_one_disk_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(test);
}

#[test]
fn staged_change_during_a_give_up_is_repeated() {
    // Back into sent parts: the content moves to a staged file.
    const OVERWRITTEN: [(u64, &[u8]); 2] = [(0, &[2; 300]), (10, b"x")];
    with_one_disk_thread(async {
        let mut lost = Vec::new();
        for change in [Change::Write(20), Change::SetSize(100), Change::Punch(20, 200)] {
            if !Scene::new().await.change_during_a_give_up(&OVERWRITTEN, change).await {
                lost.push(change);
            }
        }
        assert!(lost.is_empty(), "{lost:?}");
    });
}

#[test]
fn spilled_change_during_a_give_up_is_repeated() {
    with_one_disk_thread(async {
        let mut lost = Vec::new();
        // An append, an overwrite of spilled bytes, and an append after zeros.
        for change in [4, 1, 100].map(Change::Write) {
            if !Scene::without_memory().await.change_during_a_give_up(&[(0, b"half")], change).await {
                lost.push(change);
            }
        }
        assert!(lost.is_empty(), "{lost:?}");
    });
}

#[tokio::test]
async fn spill_after_a_give_up_writes_nothing() {
    let scene = Scene::without_memory().await;
    let killed = scene.open(OVERWRITE, scene.dead.caller()).await;
    let (file, writer) = (scene.file(), Writer::Process(u32::MAX));
    for (offset, outcome) in [(0, DiskOutcome::Done(0)), (100, DiskOutcome::Again)] {
        let begun = file.write(WriteAt::Offset(offset), BYTES, writer, &|| None).unwrap();
        let WriteOutcome::Disk(change) = begun else { panic!("{offset} is not on the disk") };
        scene.give_up();
        assert_eq!(change.run(BYTES.into()).await.unwrap(), outcome);
        assert!(!file.is_changed_by(writer));
        scene.open(OVERWRITE, scene.dead.caller()).await;
    }
    scene.kill(killed).await;
}
