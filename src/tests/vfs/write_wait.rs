//! How far writers may be ahead of the drive.

use super::*;
use crate::content::commit_target::TargetResolver as _;
use crate::content::open_file::ReadSource;
use crate::content::streaming::{Appended, Wait};

/// Writes parts until the lead is full. Returns the number of bytes.
fn fill_the_lead(rig: &Rig, fh: Fh) -> u64 {
    let (mut offset, part) = (0, [7; 64]);
    loop {
        let appended = rig.vfs.try_write(fh, WriteAt::Offset(offset), &part).unwrap();
        offset += 64;
        if appended.wait.is_some() {
            assert_eq!(appended, Appended { bytes: 64, wait: Some(Wait::Drive) });
            return offset;
        }
        assert!(offset < 64 << 10, "the lead has no end");
    }
}

/// The bytes of the last write are accepted before its reply, also if the upload fails meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn write_that_fills_the_lead_waits_for_room() {
    let rig = Rig::new().await;
    rig.fault("put_part", FaultAction::Stall);
    let (_, fh) = rig.create(ROOT, "f").await;
    let (offset, part) = (fill_the_lead(&rig, fh), [7; 64]);
    let refused = Appended { bytes: 0, wait: Some(Wait::Drive) };
    assert_eq!(rig.vfs.try_write(fh, WriteAt::Offset(offset), &part).unwrap(), refused);
    let (vfs, waiting) = (rig.vfs.clone(), rig.vfs.wait_for_room(fh));
    assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    rig.server.faults().clear();
    vfs.wait_for_room(fh).await.unwrap();
    assert_eq!(vfs.try_write(fh, WriteAt::Offset(offset), &part).unwrap().bytes, 64);
    rig.vfs.release(fh).await.unwrap();
    assert_eq!(rig.remote_entries(&FileId::root()).await[0].size, offset + 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_share_one_lead() {
    let rig = Rig::new().await;
    rig.fault("put_part", FaultAction::Stall);
    let (_, first) = rig.create(ROOT, "first").await;
    let (_, second) = rig.create(ROOT, "second").await;
    assert_eq!(fill_the_lead(&rig, first), 4 * 64);
    assert_eq!(fill_the_lead(&rig, second), 2 * 64);
    rig.server.faults().clear();
    for fh in [second, first] {
        rig.vfs.wait_for_room(fh).await.unwrap();
        rig.vfs.release(fh).await.unwrap();
    }
    let mut sizes: Vec<_> =
        rig.remote_entries(&FileId::root()).await.into_iter().map(|meta| meta.size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2 * 64, 4 * 64]);
}

/// A READ may wait for a commit, which only uploads.
#[tokio::test(flavor = "multi_thread")]
async fn upload_is_movement_for_the_deadline_of_a_read() {
    const LIMIT: Duration = Duration::from_secs(4);
    let rig = Rig::new().await;
    rig.fault("put_part", FaultAction::Delay { ms: 400 });
    let (_, fh) = rig.create(ROOT, "f").await;
    let saved = async {
        // Four parts of 64 bytes at a time.
        rig.vfs.write(fh, WriteAt::End, vec![7; 64 * 64].into()).await.unwrap();
        rig.vfs.release(fh).await.unwrap();
    };
    tokio::select! {
        () = rig.vfs.drive_idle(LIMIT) => panic!("bytes were moving"),
        () = saved => {}
    }
    let since = Instant::now();
    rig.vfs.drive_idle(LIMIT).await;
    assert!(since.elapsed() >= LIMIT);
}

/// The bytes were sent and are not on this machine, and the commit does not end.
#[tokio::test(flavor = "multi_thread")]
async fn wait_of_a_read_for_a_commit_is_bounded() {
    let mut rig = Rig::new().await;
    let mut config = (*rig.config).clone();
    config.options.cache_size = Some(0);
    config.options.commit_timeout = Duration::from_secs(1);
    rig.vfs = mount(&Arc::new(config));
    let (ino, fh) = rig.create(ROOT, "f").await;
    rig.vfs.write(fh, WriteAt::Offset(0), vec![7; 3 * 64].into()).await.unwrap();
    let file = rig.vfs.open_file_of(ino).unwrap();
    let (in_flight, _) = file.upload().unwrap();
    loop {
        let changed = in_flight.changed();
        if matches!(file.read(64, 8).unwrap(), ReadSource::Unavailable) {
            break;
        }
        changed.await;
    }
    let commit = file.begin_commit(|_| true, || rig.vfs.resolve(ino)).unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), rig.vfs.read(fh, 64, 8)).await;
    assert_eq!(read.expect("the wait has no bound").unwrap_err().kind(), ErrorKind::Timeout);
    drop(commit);
}
