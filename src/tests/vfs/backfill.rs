//! A stream over a base revision, because staged files are disabled.

use super::*;
use crate::vfs::SetAttr;

/// The memory is used up, so the bytes of the base are spilled.
#[tokio::test(flavor = "multi_thread")]
async fn regression_spill_keeps_a_truncated_base() {
    let mut rig = Rig::new().await;
    let ino = rig.write(ROOT, "f", &[7; 200]).await;
    rig.vfs.forget(ino, 1);
    let mut config = (*rig.config).clone();
    config.options.cache_size = Some(0);
    config.options.part_size = PartSize::new(256).unwrap();
    config.options.buffer_size = 256;
    rig.vfs = mount(&Arc::new(config));
    let (_, other) = rig.create(ROOT, "other").await;
    rig.vfs.write(other, WriteAt::Offset(0), b"takes the only buffer"[..].into()).await.unwrap();
    let ino = rig.lookup(ROOT, "f").await.unwrap();
    let fh = rig.vfs.open(ino, libc::O_RDWR, caller()).await.unwrap().fh;
    rig.vfs.write(fh, WriteAt::Offset(0), b"new"[..].into()).await.unwrap();
    rig.fault("get_object", FaultAction::Stall);
    let vfs = rig.vfs.clone();
    let committed = tokio::spawn(async move { vfs.fsync(fh, caller()).await });
    rig.server.faults().wait_for_hits(1).await;
    let size = SetAttr { size: Some(100), ..SetAttr::default() };
    rig.vfs.setattr(ino, Some(fh), size, caller()).await.unwrap();
    rig.server.faults().clear();
    committed.await.unwrap().unwrap();
    let saved = rig.remote_entries(&FileId::root()).await;
    assert_eq!(saved.iter().find(|meta| meta.name == "f").unwrap().size, 100);
    let read = rig.vfs.read(fh, 0, 300).await.unwrap();
    assert_eq!((&read[..3], &read[3..]), (&b"new"[..], &[7; 97][..]));
}
