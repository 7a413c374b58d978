//! Objects that a rename over a file leaves over, where the drive removes them and where it does not.

use sha1::Digest;
use tokio::task::JoinHandle;

use super::*;
use crate::config::RemoveMode;
use crate::ids::Sha1Hash;
use crate::vfs::SetAttr;

fn sha1(bytes: &[u8]) -> Sha1Hash {
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

fn conflict() -> FaultAction {
    FaultAction::Status {
        status: 409,
        code: "StateConflict".into(),
        message: "another operation is in progress".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    }
}

impl Rig {
    /// The only object of a name on the drive.
    async fn only(&self, name: &str) -> FileMeta {
        let mut named = self.remote_entries(&FileId::root()).await;
        named.retain(|meta| meta.name == name);
        assert_eq!(named.len(), 1, "{name}");
        named.remove(0)
    }

    /// Another client truncates a file to one byte.
    async fn truncate_elsewhere(&self, dir: Option<&str>, name: &str) {
        let other = self.second_mount();
        let dir = match dir {
            Some(dir) => other.lookup(ROOT, OsStr::new(dir)).await.unwrap().unwrap().attr.ino,
            None => ROOT,
        };
        let seen = other.lookup(dir, OsStr::new(name)).await.unwrap().unwrap();
        let change = SetAttr { size: Some(1), ..SetAttr::default() };
        other.setattr(seen.attr.ino, None, change, caller()).await.unwrap();
        assert_eq!(other.drain().await.unsaved.len(), 0);
    }

    /// Calls of `trash` and of `delete`.
    fn removals(&self) -> (u64, u64) {
        (self.calls("recyclebin/trash"), self.calls("file/delete"))
    }

    /// A rig whose drive removes nothing, with `s` as a leftover of a rename over `t`.
    async fn with_leftover() -> Self {
        let rig = Self::with(Duration::ZERO, |config| config.quirks.deletion_forbidden = true).await;
        rig.write(ROOT, "s", b"new").await;
        rig.write(ROOT, "t", b"old").await;
        assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
        assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "t"]);
        rig
    }
}

/// A running rename of `s` over `t`, once faults were applied `hits` times.
async fn begin_rename(rig: &Rig, hits: u32) -> JoinHandle<Result<(), ErrorKind>> {
    let vfs = rig.vfs.clone();
    let renamed = tokio::spawn(async move {
        let (from, to) = ((ROOT, OsStr::new("s")), (ROOT, OsStr::new("t")));
        vfs.rename(from, to, RenameMode::Replace, caller()).await.map_err(|error| error.kind())
    });
    rig.server.faults().wait_for_hits(hits).await;
    renamed
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_over_succeeds_without_removal() {
    for instant_upload in [true, false] {
        let rig = Rig::with(Duration::ZERO, |config| {
            config.quirks.deletion_forbidden = true;
            config.quirks.instant_upload = instant_upload;
        })
        .await;
        rig.write(ROOT, "t1", b"ONE").await;
        rig.write(ROOT, "t2", b"TWO").await;
        assert_eq!(rig.rename((ROOT, "t1"), (ROOT, "t2")).await, Ok(()), "instant {instant_upload}");
        assert_eq!(rig.only("t2").await.sha1, Some(sha1(b"ONE")));
        assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "t2"]);
        assert_eq!(rig.lookup(ROOT, "t1").await, None);
        // As a program that saves again.
        rig.write(ROOT, "t1", b"THREE").await;
        assert!(names(&rig.read_dir(ROOT).await).contains(&"t1"), "instant {instant_upload}");
        assert_eq!(rig.only("t1").await.sha1, Some(sha1(b"THREE")));
        assert_eq!(rig.rename((ROOT, "t1"), (ROOT, "t2")).await, Ok(()), "instant {instant_upload}");
        assert_eq!(rig.only("t2").await.sha1, Some(sha1(b"THREE")));
        // To the name of the leftover.
        assert_eq!(rig.rename((ROOT, "t2"), (ROOT, "t1")).await, Ok(()), "instant {instant_upload}");
        assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "t1"]);
        assert_eq!(rig.only("t1").await.sha1, Some(sha1(b"THREE")));
        assert_eq!(rig.remote_names(&FileId::root()).await, ["t1", "t2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_over_leaves_nothing_in_the_bin() {
    let rig = Rig::new().await;
    for _ in 0..2 {
        rig.write(ROOT, "config.lock", b"new").await;
        assert_eq!(rig.rename((ROOT, "config.lock"), (ROOT, "config")).await, Ok(()));
        rig.write(ROOT, "config.lock", b"newer").await;
        assert_eq!(rig.rename((ROOT, "config.lock"), (ROOT, "config")).await, Ok(()));
    }
    assert_eq!(rig.remote_names(&FileId::root()).await, ["config"]);
    assert_eq!((rig.calls("recyclebin/trash"), rig.calls("file/delete")), (0, 3));
    // Of a file that this mount did not create, the recycle bin keeps the revisions.
    let other = rig.second_mount();
    let (from, to) = ((ROOT, OsStr::new("config")), (ROOT, OsStr::new("kept")));
    rig.write(ROOT, "kept", b"old").await;
    other.lookup(ROOT, from.1).await.unwrap().unwrap();
    other.rename(from, to, RenameMode::Replace, caller()).await.unwrap();
    assert_eq!((rig.calls("recyclebin/trash"), rig.calls("file/delete")), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_removal_is_repeated() {
    let rig = Rig::with(Duration::ZERO, |_| {}).await;
    rig.write(ROOT, "s", b"new").await;
    rig.write(ROOT, "t", b"old").await;
    rig.fault("file/delete", conflict());
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    assert_eq!(rig.remote_names(&FileId::root()).await, ["s", "t"]);
    assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "t"]);
    assert_eq!(rig.vfs.drain().await.unsaved.len(), 0);
    assert_eq!(rig.remote_names(&FileId::root()).await, ["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reused_leftover_is_not_removed() {
    let rig = Rig::new().await;
    for name in ["s", "u"] {
        rig.write(ROOT, name, b"new").await;
    }
    rig.write(ROOT, "t", b"old").await;
    rig.fault("file/delete", conflict());
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    rig.write(ROOT, "s", b"newer").await;
    assert_eq!(rig.rename((ROOT, "u"), (ROOT, "t")).await, Ok(()));
    assert_eq!(rig.rename((ROOT, "t"), (ROOT, "u")).await, Ok(()));
    assert_eq!(rig.vfs.drain().await.unsaved.len(), 0);
    assert_eq!(rig.only("s").await.sha1, Some(sha1(b"newer")));
    assert_eq!(rig.only("u").await.sha1, Some(sha1(b"new")));
    assert_eq!(rig.remote_names(&FileId::root()).await, ["s", "u"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_changed_leftover_is_not_removed() {
    let rig = Rig::new().await;
    rig.write(ROOT, "s", b"new").await;
    rig.write(ROOT, "t", b"old").await;
    rig.fault("file/delete", conflict());
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    let other = rig.second_mount();
    other.lookup(ROOT, OsStr::new("s")).await.unwrap().unwrap();
    let (from, to) = ((ROOT, OsStr::new("s")), (ROOT, OsStr::new("kept")));
    other.rename(from, to, RenameMode::Replace, caller()).await.unwrap();
    assert_eq!(rig.vfs.drain().await.unsaved.len(), 0);
    assert_eq!(rig.remote_names(&FileId::root()).await, ["kept", "t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_changed_source_goes_to_the_bin() {
    let rig = Rig::new().await;
    rig.write(ROOT, "s", b"new").await;
    rig.truncate_elsewhere(None, "s").await;
    assert_eq!(rig.only("s").await.size, 1);
    rig.write(ROOT, "t", b"old").await;
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    assert_eq!(rig.removals(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_older_revisions_go_to_the_bin() {
    let rig = Rig::new().await;
    let ino = rig.write(ROOT, "s", b"first").await;
    rig.truncate_elsewhere(None, "s").await;
    let opened = rig.vfs.open(ino, libc::O_WRONLY | libc::O_TRUNC, caller()).await.unwrap();
    rig.vfs.write(opened.fh, WriteAt::Offset(0), (&b"third"[..]).into()).await.unwrap();
    rig.vfs.release(opened.fh).await.unwrap();
    rig.write(ROOT, "t", b"old").await;
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    assert_eq!(rig.removals(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_source_of_changed_target_is_kept() {
    let rig = Rig::new().await;
    rig.write(ROOT, "t", b"old").await;
    rig.write(ROOT, "s", b"new").await;
    rig.server.faults().add(FaultRule::times("file/get", 2, FaultAction::Stall));
    let renamed = begin_rename(&rig, 2).await;
    rig.truncate_elsewhere(None, "t").await;
    rig.server.faults().clear();
    assert_eq!(renamed.await.unwrap(), Ok(()));
    assert_eq!(rig.removals(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_rmdir_spares_changed_leftover() {
    let rig = Rig::new().await;
    let dir = rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap().attr.ino;
    rig.fault("file/delete", conflict());
    for name in ["s", "t"] {
        rig.write(dir, name, b"content").await;
    }
    assert_eq!(rig.rename((dir, "s"), (dir, "t")).await, Ok(()));
    assert_eq!(rig.rename((dir, "t"), (ROOT, "t")).await, Ok(()));
    rig.truncate_elsewhere(Some("d"), "s").await;
    let removed = rig.vfs.rmdir(ROOT, OsStr::new("d")).await;
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotEmpty);
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_gateway_answers_are_not_final() {
    for status in [404, 418] {
        let rig = Rig::new().await;
        rig.write(ROOT, "s", b"new").await;
        rig.write(ROOT, "t", b"old").await;
        rig.fault("file/delete", FaultAction::status(status, ""));
        assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
        assert_eq!(rig.vfs.drain().await.unsaved.len(), 0);
        assert_eq!(rig.remote_names(&FileId::root()).await, ["t"], "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_running_removal_spares_new_file() {
    let rig = Rig::new().await;
    rig.write(ROOT, "s", b"new").await;
    rig.write(ROOT, "t", b"old").await;
    rig.fault("file/delete", FaultAction::Stall);
    let renamed = begin_rename(&rig, 1).await;
    rig.write(ROOT, "s", b"newer").await;
    rig.server.faults().clear();
    assert_eq!(renamed.await.unwrap(), Ok(()));
    assert_eq!(rig.only("s").await.sha1, Some(sha1(b"newer")));
    assert_eq!(rig.remote_names(&FileId::root()).await, ["s", "t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_repeated_removal_spares_new_file() {
    let rig = Rig::new().await;
    for name in ["s", "u"] {
        rig.write(ROOT, name, b"new").await;
    }
    rig.write(ROOT, "t", b"old").await;
    rig.fault("file/delete", conflict());
    for name in ["s", "u"] {
        assert_eq!(rig.rename((ROOT, name), (ROOT, "t")).await, Ok(()));
    }
    let stall = FaultRule::times("recyclebin/trash", 1, FaultAction::Stall);
    rig.server.faults().set(crate::server::FaultPlan { rules: vec![stall] });
    let vfs = rig.vfs.clone();
    let drained = tokio::spawn(async move { vfs.drain().await });
    rig.server.faults().wait_for_hits(1).await;
    rig.write(ROOT, "s", b"newer").await;
    assert_eq!(rig.rename((ROOT, "t"), (ROOT, "u")).await, Ok(()));
    rig.server.faults().clear();
    assert_eq!(drained.await.unwrap().unsaved.len(), 0);
    assert_eq!(rig.only("s").await.sha1, Some(sha1(b"newer")));
    assert_eq!(rig.only("u").await.sha1, Some(sha1(b"new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_failed_reuse_keeps_leftover_hidden() {
    let rig = Rig::with_leftover().await;
    rig.server.faults().add(FaultRule::times("file/create", 1, refused()));
    assert_eq!(rig.rename((ROOT, "t"), (ROOT, "s")).await, Err(ErrorKind::Denied));
    assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "t"]);
    assert_eq!(rig.rename((ROOT, "t"), (ROOT, "s")).await, Ok(()));
    assert_eq!(rig.only("s").await.sha1, Some(sha1(b"new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_rename_spares_changed_leftover() {
    let rig = Rig::with_leftover().await;
    rig.truncate_elsewhere(None, "s").await;
    let (from, to) = ((ROOT, OsStr::new("t")), (ROOT, OsStr::new("s")));
    let renamed = rig.vfs.rename(from, to, RenameMode::NoReplace, caller()).await;
    assert_eq!(renamed.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(rig.only("s").await.size, 1);
    assert!(names(&rig.read_dir(ROOT).await).contains(&"s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_name_of_leftover_is_free() {
    for case in ["mkdir", "directory", "unsaved file"] {
        let rig = Rig::with_leftover().await;
        match case {
            "mkdir" => _ = rig.vfs.mkdir(ROOT, OsStr::new("s"), 0o755, caller()).await.unwrap(),
            "directory" => {
                rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap();
                assert_eq!(rig.rename((ROOT, "d"), (ROOT, "s")).await, Ok(()));
            }
            _ => {
                let ino = rig.write(ROOT, "u", b"content").await;
                let opened = rig.vfs.open(ino, libc::O_WRONLY, caller()).await.unwrap();
                rig.vfs.write(opened.fh, WriteAt::Offset(0), (&b"C"[..]).into()).await.unwrap();
                assert_eq!(rig.rename((ROOT, "u"), (ROOT, "s")).await, Ok(()));
                rig.vfs.release(opened.fh).await.unwrap();
            }
        }
        assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "s", "t"], "{case}");
        assert_eq!(rig.remote_names(&FileId::root()).await, ["s", "s (2)", "t"], "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_attributes_are_given_up() {
    const ROUNDS_MAX: usize = 10;
    let rig = Rig::new().await;
    let ino = rig.write(ROOT, "f", b"x").await;
    rig.fault("file/put_usertags", conflict());
    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    rig.vfs.setattr(ino, None, change, caller()).await.unwrap();
    let mut rounds = 1;
    while !rig.vfs.drain().await.unsaved.is_empty() {
        rounds += 1;
        assert!(rounds <= ROUNDS_MAX, "a refusal is repeated without end");
    }
    assert!(rounds > 2, "another operation on the file is in progress only for a moment");
    assert_eq!(rig.vfs.refused_attr_count(), 1);
}

/// A commit wakes its caller before it looks for renames. The caller may have renamed the file by then.
#[tokio::test(flavor = "multi_thread")]
async fn regression_end_of_commit_keeps_the_new_object() {
    let rig = Rig::new().await;
    rig.write(ROOT, "f", b"old").await;
    let source = rig.write(ROOT, "f.tmp", b"new").await;
    let committed = rig.only("f.tmp").await;
    rig.vfs.open(source, libc::O_RDONLY, caller()).await.unwrap();
    let file = rig.vfs.open_file_of(source).unwrap();
    rig.fault("file/delete", FaultAction::Stall);
    let end_commit = async {
        while rig.server.faults().hits()[0] == 0 {
            tokio::task::yield_now().await;
        }
        rig.vfs.end_commit_of(&file, committed).await;
        rig.server.faults().clear();
    };
    let (renamed, ()) = tokio::join!(rig.rename((ROOT, "f.tmp"), (ROOT, "f")), end_commit);
    assert_eq!(renamed, Ok(()));
    let object = rig.vfs.getxattr(source, OsStr::new("user.pdsfs.file_id")).unwrap();
    assert_eq!(String::from_utf8(object).unwrap(), rig.only("f").await.file_id.to_string());
}

/// The drive renames the object, then a rename over another file gives the file a new one, then the answer arrives.
#[tokio::test(flavor = "multi_thread")]
async fn regression_late_rename_keeps_the_new_object() {
    let rig = Rig::with(METADATA_TTL, |config| config.quirks.deletion_forbidden = true).await;
    rig.write(ROOT, "f", b"old").await;
    let source = rig.write(ROOT, "f.tmp", b"new").await;
    let committed = FileMeta { name: "former".to_owned(), ..rig.only("f.tmp").await };
    rig.vfs.open(source, libc::O_RDONLY, caller()).await.unwrap();
    let file = rig.vfs.open_file_of(source).unwrap();
    rig.fault("file/update", FaultAction::Stall);
    let rename = async {
        while rig.server.faults().hits()[0] == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.rename((ROOT, "f.tmp"), (ROOT, "f")).await, Ok(()));
        rig.server.faults().clear();
    };
    tokio::join!(rig.vfs.end_commit_of(&file, committed), rename);
    let object = rig.vfs.getxattr(source, OsStr::new("user.pdsfs.file_id")).unwrap();
    assert_eq!(String::from_utf8(object).unwrap(), rig.only("f").await.file_id.to_string());
    assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn occupied_name_fails_with_the_true_error() {
    for (endpoint, action, kind) in [
        ("file/update", conflict(), ErrorKind::Busy),
        ("file/update", refused(), ErrorKind::Denied),
        ("file/get", conflict(), ErrorKind::Busy),
    ] {
        let rig = Rig::with_leftover().await;
        rig.fault(endpoint, action);
        let made = rig.vfs.mkdir(ROOT, OsStr::new("s"), 0o755, caller()).await;
        assert_eq!(made.unwrap_err().kind(), kind, "{endpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_removal_keeps_to_the_recycle_bin() {
    let mut rig = Rig::new().await;
    let mut config = (*rig.config).clone();
    config.options.remove = RemoveMode::Delete;
    rig.config = Arc::new(config);
    rig.vfs = mount(&rig.config);
    rig.write(ROOT, "t", b"old").await;
    rig.write(ROOT, "s", b"new").await;
    rig.fault("recyclebin/trash", conflict());
    rig.server.faults().add(FaultRule::times("file/get", 2, FaultAction::Stall));
    let vfs = rig.vfs.clone();
    let renamed = tokio::spawn(async move {
        let (from, to) = ((ROOT, OsStr::new("s")), (ROOT, OsStr::new("t")));
        vfs.rename(from, to, RenameMode::Replace, caller()).await.map_err(|error| error.kind())
    });
    while rig.server.faults().hits()[1] == 0 {
        tokio::task::yield_now().await;
    }
    rig.truncate_elsewhere(None, "t").await;
    let conflicts = FaultRule::new("recyclebin/trash", conflict());
    rig.server.faults().set(crate::server::FaultPlan { rules: vec![conflicts] });
    assert_eq!(renamed.await.unwrap(), Ok(()));
    rig.server.faults().clear();
    assert_eq!(rig.vfs.drain().await.unsaved.len(), 0);
    assert_eq!(rig.remote_names(&FileId::root()).await, ["t"]);
    assert_eq!(rig.calls("file/delete"), 0);
}
