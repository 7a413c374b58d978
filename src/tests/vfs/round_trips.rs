//! How many calls an operation costs.

use super::*;

impl Rig {
    /// Requests that the server has answered.
    fn all_calls(&self) -> u64 {
        self.server.stats().requests.values().sum()
    }

    async fn read_all(&self, ino: Ino) -> Vec<u8> {
        let opened = self.vfs.open(ino, libc::O_RDONLY, caller()).await.unwrap();
        let bytes = self.vfs.read(opened.fh, 0, 1 << 20).await.unwrap();
        self.vfs.release(opened.fh).await.unwrap();
        bytes.to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mkdir_costs_one_call() {
    let rig = Rig::new().await;
    rig.read_dir(ROOT).await;
    let before = rig.all_calls();
    let made = rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o700, caller()).await.unwrap();
    assert_eq!(rig.all_calls() - before, 1);
    let other = rig.second_mount().lookup(ROOT, OsStr::new("d")).await.unwrap().unwrap();
    assert_eq!((made.attr.perm, made.attr.kind), (other.attr.perm, other.attr.kind));
    let difference = other.attr.mtime.duration_since(made.attr.mtime).unwrap_or_else(|e| e.duration());
    assert!(difference < Duration::from_secs(10), "{difference:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mkdir_waits_for_no_listing() {
    let rig = Rig::with(METADATA_TTL, |config| config.quirks.list_page_max = 1).await;
    for name in ["a", "b", "c"] {
        rig.remote_folder(&FileId::root(), name).await;
    }
    rig.server.faults().add(FaultRule::new("file/list", FaultAction::Stall).after(1));
    for (name, outcome) in [("new", Ok(())), ("c", Err(ErrorKind::Exists))] {
        let mkdir = rig.vfs.mkdir(ROOT, OsStr::new(name), 0o755, caller());
        let made = tokio::time::timeout(Duration::from_secs(5), mkdir).await.expect("it waits for a listing");
        assert_eq!(made.map(|_| ()).map_err(|error| error.kind()), outcome, "{name}");
    }
    rig.server.faults().clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn move_costs_one_call() {
    let rig = Rig::new().await;
    let to = rig.vfs.mkdir(ROOT, OsStr::new("to"), 0o755, caller()).await.unwrap().attr.ino;
    let ino = rig.write(ROOT, "f", b"content").await;
    rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap();
    let before = rig.all_calls();
    assert_eq!(rig.rename((ROOT, "f"), (to, "f")).await, Ok(()));
    assert_eq!(rig.all_calls() - before, 1);
    assert_eq!(rig.rename((ROOT, "d"), (to, "d")).await, Ok(()));
    // The service moves folders in a task.
    assert_eq!((rig.calls("file/move"), rig.all_calls() - before - rig.calls("async_task/get")), (2, 2));
    assert_eq!(rig.read_all(ino).await, b"content");
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_over_costs_four_calls() {
    let rig = Rig::new().await;
    rig.write(ROOT, "t", b"old").await;
    let ino = rig.write(ROOT, "s", b"new").await;
    let before = rig.all_calls();
    assert_eq!(rig.rename((ROOT, "s"), (ROOT, "t")).await, Ok(()));
    // `create` and `get` of the target, and `get` and `delete` of the source. Both `get` at once.
    assert_eq!(rig.all_calls() - before, 4);
    assert_eq!(rig.read_all(ino).await, b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn instant_upload_costs_one_call() {
    let rig = Rig::new().await;
    rig.write(ROOT, "a", b"the same").await;
    let before = rig.all_calls();
    let ino = rig.write(ROOT, "b", b"the same").await;
    assert_eq!(rig.all_calls() - before, 1);
    let of_listing = rig.remote_entries(&FileId::root()).await;
    assert_eq!(of_listing[0].sha1, of_listing[1].sha1);
    assert_eq!(rig.read_all(ino).await, b"the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn read_of_a_listed_file_costs_one_get() {
    let rig = Rig::new().await;
    rig.write(ROOT, "f", b"content").await;
    let vfs = rig.second_mount();
    let ino = vfs.lookup(ROOT, OsStr::new("f")).await.unwrap().unwrap().attr.ino;
    let before = rig.all_calls();
    let opened = vfs.open(ino, libc::O_RDONLY, caller()).await.unwrap();
    assert_eq!(vfs.read(opened.fh, 0, 100).await.unwrap(), b"content"[..]);
    assert_eq!((rig.calls("get_object"), rig.all_calls() - before), (1, 1));
    vfs.release(opened.fh).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_listed_url_is_requested_again() {
    let rig = Rig::new().await;
    rig.write(ROOT, "f", b"content").await;
    for refused in [FaultAction::Expire, refused()] {
        let vfs = rig.second_mount();
        let ino = vfs.lookup(ROOT, OsStr::new("f")).await.unwrap().unwrap().attr.ino;
        rig.server
            .faults()
            .set(crate::server::FaultPlan { rules: vec![FaultRule::times("get_object", 1, refused)] });
        let opened = vfs.open(ino, libc::O_RDONLY, caller()).await.unwrap();
        let before = rig.calls("file/get_download_url");
        assert_eq!(vfs.read(opened.fh, 0, 100).await.unwrap(), b"content"[..]);
        assert_eq!(rig.calls("file/get_download_url") - before, 1);
        vfs.release(opened.fh).await.unwrap();
    }
}
