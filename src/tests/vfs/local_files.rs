//! The users for whom local files count.

use super::*;

const USER: u32 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn staged_tee_counts_for_its_writer() {
    let rig = Rig::new().await;
    let writer = Caller { uid: USER, ..caller() };
    let flags = libc::O_RDWR | libc::O_CREAT;
    let (entry, opened) = rig.vfs.create(ROOT, OsStr::new("f"), (flags, 0o644), writer).await.unwrap();
    rig.vfs.write(opened.fh, WriteAt::Offset(0), vec![7; 70_000].into()).await.unwrap();
    assert_eq!(rig.vfs.local_files_of(USER), 0);
    rig.vfs.write(opened.fh, WriteAt::Offset(0), (&b"changed"[..]).into()).await.unwrap();
    assert_eq!(rig.vfs.local_files_of(USER), 1, "of a tee");
    rig.vfs.release(opened.fh).await.unwrap();
    assert_eq!(rig.vfs.local_files_of(USER), 0, "as a cached file");
    let opened = rig.vfs.open(entry.attr.ino, libc::O_RDWR, writer).await.unwrap();
    rig.vfs.write(opened.fh, WriteAt::Offset(3), (&b"again"[..]).into()).await.unwrap();
    assert_eq!(rig.vfs.local_files_of(USER), 1, "of a cached file");
    rig.vfs.release(opened.fh).await.unwrap();
}
