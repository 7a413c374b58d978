//! The recycle bin of the drive and the trash of the mounting user.

use super::*;

impl Rig {
    /// Makes the trash of the mounting user. Returns its directories `files` and `info`.
    async fn trash(&self) -> (Ino, Ino) {
        let trash = self.lookup(ROOT, &format!(".Trash-{}", self.config.uid)).await.unwrap();
        (self.lookup(trash, "files").await.unwrap(), self.lookup(trash, "info").await.unwrap())
    }
}

/// The entry of a restored object stays for a while. Deleting it must not delete the live object.
#[tokio::test(flavor = "multi_thread")]
async fn restored_object_is_not_deleted_for_good() {
    for forbidden in [false, true] {
        let rig = Rig::with(METADATA_TTL, |config| config.quirks.trashed_is_forbidden = forbidden).await;
        let (files, _) = rig.trash().await;
        for name in ["one", "two", "gone"] {
            rig.write(ROOT, name, b"content").await;
        }
        let remote = rig.remote_entries(&FileId::root()).await;
        for name in ["one", "two", "gone"] {
            rig.rename((ROOT, name), (files, name)).await.unwrap();
        }
        let id = |name: &str| remote.iter().find(|meta| meta.name == name).unwrap().file_id.clone();
        for name in ["one", "two"] {
            rig.drive.restore(&id(name)).await.unwrap();
        }
        let failed = rig.vfs.unlink(files, OsStr::new("one")).await.unwrap_err();
        assert!(failed.to_string().contains("it was restored"), "{failed}");
        assert!(
            rig.vfs.delete_recycled(&id("two")).await.unwrap_err().to_string().contains("it was restored")
        );
        rig.vfs.unlink(files, OsStr::new("gone")).await.unwrap();
        assert_eq!(rig.remote_names(&FileId::root()).await, ["one", "two"]);
        assert_eq!((rig.calls("file/delete"), rig.drive.recycle_bin().await.unwrap().len()), (1, 0));
        for name in ["one", "two", "gone"] {
            assert_eq!(rig.lookup(files, name).await, None, "{name}");
        }
    }
}

/// The trash of a folder is read between the move on the drive and its answer.
#[tokio::test(flavor = "multi_thread")]
async fn trash_has_one_entry_for_each_object() {
    let rig = Rig::with(Duration::ZERO, |config| config.quirks.async_polls = Some(1)).await;
    let (files, info) = rig.trash().await;
    rig.remote_folder(&FileId::root(), "dir").await;
    rig.lookup(ROOT, "dir").await.unwrap();
    rig.fault("async_task/get", FaultAction::Stall);
    let vfs = rig.vfs.clone();
    let moved = tokio::spawn(async move {
        let (from, to) = ((ROOT, OsStr::new("dir")), (files, OsStr::new("dir")));
        vfs.rename(from, to, RenameMode::Replace, caller()).await.map_err(|error| error.kind())
    });
    rig.server.faults().wait_for_hits(1).await;
    assert_eq!(rig.drive.recycle_bin().await.unwrap().len(), 1);
    assert_eq!(names(&rig.read_dir(files).await), [".", ".."]);
    rig.server.faults().clear();
    assert_eq!(moved.await.unwrap(), Ok(()));
    assert_eq!(names(&rig.read_dir(files).await), [".", "..", "dir"]);
    assert_eq!(names(&rig.read_dir(info).await), [".", ".."]);
}
