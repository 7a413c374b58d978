//! The `Vfs` without a kernel, with the embedded server. A second client makes the remote changes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Credential, MountConfig, MountOptions};
use crate::content::open_file::WriteAt;
use crate::error::ErrorKind;
use crate::ids::{DriveId, FileId, Ino, PartSize, Secret};
use crate::pds::drive::{Drive, FileMeta};
use crate::pds::types::CheckNameMode;
use crate::posix::Tags;

use crate::server::{FaultAction, FaultRule, Server, ServerConfig};
use crate::status::Progress;
use crate::vfs::{Caller, DirEntry, Fh, RenameMode, Vfs};

mod attr_bounds;
mod backfill;
mod commit_rights;
mod disk_changes;
mod killed_closer;
mod local_files;
mod recycle_bin;
mod round_trips;
mod subfolders;
mod superseded;
mod unfinished;
mod write_wait;

const ROOT: Ino = Ino::ROOT;
const METADATA_TTL: Duration = Duration::from_secs(15);

struct Rig {
    server: Server,
    vfs: Arc<Vfs>,
    /// Another client of the drive.
    drive: Drive,
    config: Arc<MountConfig>,
    _data: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        Self::with(METADATA_TTL, |_| {}).await
    }

    async fn with(metadata_ttl: Duration, configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(data.path(), Secret::new("token".to_owned()));
        configure(&mut config);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, config).await.unwrap();
        let endpoint = format!("http://{}", server.addr()).parse().unwrap();
        let credential = Credential::Token(Secret::new("token".into()));
        let mut config = MountConfig::new(endpoint, DriveId::new("1").unwrap(), credential);
        config.options = MountOptions {
            part_size: PartSize::new(64).unwrap(),
            parts_in_flight: 4,
            metadata_ttl,
            commit_timeout: Duration::from_secs(30),
            ..MountOptions::default()
        };
        let config = Arc::new(config);
        let drive = Drive::new(&config).unwrap();
        let vfs = mount(&config);
        Self { server, vfs, drive, config, _data: data }
    }

    fn second_mount(&self) -> Arc<Vfs> {
        mount(&self.config)
    }

    fn calls(&self, endpoint: &str) -> u64 {
        self.server.stats().count(endpoint)
    }

    fn fault(&self, endpoint: &str, action: FaultAction) {
        self.server.faults().add(FaultRule::new(endpoint, action));
    }

    /// Creates a folder as another client.
    async fn remote_folder(&self, parent: &FileId, name: &str) -> FileId {
        self.drive.create_folder(parent, name, &Tags::new()).await.unwrap().file_id
    }

    /// The entries of a folder, as another client sees them.
    async fn remote_entries(&self, folder: &FileId) -> Vec<FileMeta> {
        let (mut all, mut marker) = (Vec::new(), String::new());
        loop {
            let page = self.drive.list_page(folder, &marker).await.unwrap();
            all.extend(page.items);
            match page.next_marker {
                Some(next) => marker = next,
                None => return all,
            }
        }
    }

    async fn remote_names(&self, folder: &FileId) -> Vec<String> {
        self.remote_entries(folder).await.into_iter().map(|meta| meta.name).collect()
    }

    async fn lookup(&self, parent: Ino, name: &str) -> Option<Ino> {
        Some(self.vfs.lookup(parent, OsStr::new(name)).await.unwrap()?.attr.ino)
    }

    async fn create(&self, parent: Ino, name: &str) -> (Ino, Fh) {
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let (entry, opened) =
            self.vfs.create(parent, OsStr::new(name), (flags, 0o644), caller()).await.unwrap();
        (entry.attr.ino, opened.fh)
    }

    async fn write(&self, parent: Ino, name: &str, content: &'static [u8]) -> Ino {
        let (ino, fh) = self.create(parent, name).await;
        self.vfs.write(fh, WriteAt::Offset(0), content.into()).await.unwrap();
        self.vfs.release(fh).await.unwrap();
        ino
    }

    async fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<(), ErrorKind> {
        let (from, to) = ((from.0, OsStr::new(from.1)), (to.0, OsStr::new(to.1)));
        self.vfs.rename(from, to, RenameMode::Replace, caller()).await.map_err(|error| error.kind())
    }

    async fn read_dir(&self, ino: Ino) -> Vec<DirEntry> {
        let dh = self.vfs.opendir(ino, caller()).await.unwrap();
        let all = self.read_dir_from(dh, 0).await;
        self.vfs.releasedir(dh);
        all
    }

    async fn read_dir_from(&self, dh: Fh, mut cookie: u64) -> Vec<DirEntry> {
        let mut all = Vec::new();
        loop {
            let some = self.vfs.readdir(dh, cookie, true).await.unwrap();
            let Some(last) = some.last() else { return all };
            cookie = last.cookie;
            all.extend(some);
        }
    }
}

fn mount(config: &Arc<MountConfig>) -> Arc<Vfs> {
    Vfs::new(config.clone(), Drive::new(config).unwrap(), Progress::new())
}

fn caller() -> Caller {
    Caller { uid: 0, gid: 0, tid: std::process::id() }
}

fn names(entries: &[DirEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.to_str().unwrap()).collect()
}

fn refused() -> FaultAction {
    FaultAction::Status {
        status: 403,
        code: "ForbiddenNoPermission.File".into(),
        message: "no".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_share_one_listing() {
    let rig = Rig::with(METADATA_TTL, |config| config.quirks.list_page_max = 10).await;
    let folder = rig.remote_folder(&FileId::root(), "d").await;
    for n in 0..200 {
        rig.remote_folder(&folder, &format!("e{n:03}")).await;
    }
    let d = rig.lookup(ROOT, "d").await.unwrap();
    let before = rig.calls("file/list");
    let mut lookups = tokio::task::JoinSet::new();
    for n in 0..220 {
        let vfs = rig.vfs.clone();
        lookups.spawn(async move { vfs.lookup(d, OsStr::new(&format!("e{n:03}"))).await.unwrap().is_some() });
    }
    let found = lookups.join_all().await.into_iter().filter(|found| *found).count();
    assert_eq!(found, 200);
    assert_eq!(rig.calls("file/list") - before, 20);
    // The listing is complete now: reading it and looking up missing names cost no calls.
    assert_eq!(rig.read_dir(d).await.len(), 202);
    assert_eq!(rig.lookup(d, "absent").await, None);
    assert_eq!(rig.calls("file/list") - before, 20);
    assert_eq!(rig.calls("file/get"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_page_is_served_before_last_arrives() {
    let rig = Rig::with(METADATA_TTL, |config| config.quirks.list_page_max = 5).await;
    for n in 0..20 {
        rig.remote_folder(&FileId::root(), &format!("e{n:02}")).await;
    }
    rig.server.faults().add(FaultRule::new("file/list", FaultAction::Stall).after(2));
    let dh = rig.vfs.opendir(ROOT, caller()).await.unwrap();
    let dots = rig.vfs.readdir(dh, 0, true).await.unwrap();
    assert_eq!(names(&dots), [".", ".."]);
    let first = rig.vfs.readdir(dh, 2, true).await.unwrap();
    // The last name of a page waits for the next page, which may begin with a duplicate of that name.
    assert_eq!(names(&first)[..4], ["e00", "e01", "e02", "e03"]);
    assert!(
        rig.lookup(ROOT, "e03").await.is_some(),
        "a listed name must not wait for the end of the listing"
    );
    assert!(first.iter().all(|entry| entry.entry.is_some()));
    rig.server.faults().clear();
    let rest = rig.read_dir_from(dh, first.last().unwrap().cookie).await;
    assert_eq!(first.len() + rest.len(), 20);
    rig.vfs.releasedir(dh);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_pages_do_not_end_a_listing() {
    let rig = Rig::with(METADATA_TTL, |config| {
        config.quirks.list_page_max = 3;
        config.quirks.list_empty_pages = true;
    })
    .await;
    for n in 0..10 {
        rig.remote_folder(&FileId::root(), &format!("e{n}")).await;
    }
    assert_eq!(rig.read_dir(ROOT).await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_stay_valid_while_entries_vanish() {
    let rig = Rig::new().await;
    for n in 0..10 {
        rig.remote_folder(&FileId::root(), &format!("e{n}")).await;
    }
    let dh = rig.vfs.opendir(ROOT, caller()).await.unwrap();
    let all = rig.read_dir_from(dh, 0).await;
    for n in [0, 1, 2, 7] {
        rig.vfs.rmdir(ROOT, OsStr::new(&format!("e{n}"))).await.unwrap();
    }
    rig.rename((ROOT, "e8"), (ROOT, "renamed")).await.unwrap();
    let rest = rig.read_dir_from(dh, all[6].cookie).await;
    assert_eq!(names(&rest), ["e5", "e6", "e9"], "the entries after e4, without the removed ones");
    // A read from the beginning shows the current entries.
    let again = rig.read_dir_from(dh, 0).await;
    assert_eq!(names(&again), [".", "..", "e3", "e4", "e5", "e6", "e9", "renamed"]);
    rig.vfs.releasedir(dh);
    assert_eq!(rig.vfs.readdir(dh, 0, false).await.unwrap_err().kind(), ErrorKind::BadHandle);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_names_are_listed_and_distinct() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let id = rig.remote_folder(&FileId::root(), &format!("x{n}")).await;
        rig.drive.rename(&id, "same", CheckNameMode::Ignore).await.unwrap();
        ids.push(id);
    }
    assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "same", "same (2)", "same (3)"]);
    rig.rename((ROOT, "same (2)"), (ROOT, "other")).await.unwrap();
    rig.vfs.rmdir(ROOT, OsStr::new("same (3)")).await.unwrap();
    let remote_entries = rig.remote_entries(&FileId::root()).await;
    let of = |name: &str| remote_entries.iter().find(|meta| meta.name == name).map(|meta| &meta.file_id);
    assert_eq!(remote_entries.len(), 2);
    // The order of the three depends on the clock of the server; they are different files.
    let left: BTreeSet<_> = [of("same").unwrap(), of("other").unwrap()].into();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|id| ids.contains(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_names_are_absent_and_refused() {
    let rig = Rig::new().await;
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    assert_eq!(rig.vfs.lookup(ROOT, bytes).await.unwrap(), None);
    assert_eq!(rig.vfs.mkdir(ROOT, bytes, 0o755, caller()).await.unwrap_err().kind(), ErrorKind::InvalidName);
    let long = "x".repeat(256);
    let error = rig.vfs.lookup(ROOT, OsStr::new(&long)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTooLong);
    assert_eq!(rig.calls("file/create"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn undeletable_file_is_still_saved() {
    let rig = Rig::new().await;
    rig.write(ROOT, "f", b"old").await;
    let ino = rig.lookup(ROOT, "f").await.unwrap();
    let opened = rig.vfs.open(ino, libc::O_WRONLY | libc::O_TRUNC, caller()).await.unwrap();
    rig.vfs.write(opened.fh, WriteAt::Offset(0), (&b"newer"[..]).into()).await.unwrap();
    rig.fault("recyclebin/trash", refused());
    let error = rig.vfs.unlink(ROOT, OsStr::new("f")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    rig.vfs.release(opened.fh).await.unwrap();
    let remote_entries = rig.remote_entries(&FileId::root()).await;
    assert_eq!(remote_entries.iter().map(|meta| (&*meta.name, meta.size)).collect::<Vec<_>>(), [("f", 5)]);
    rig.server.faults().clear();
    rig.vfs.unlink(ROOT, OsStr::new("f")).await.unwrap();
    assert_eq!(rig.lookup(ROOT, "f").await, None);
    assert!(rig.remote_entries(&FileId::root()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_failed_move_is_undone() {
    let rig = Rig::new().await;
    let folder = rig.remote_folder(&FileId::root(), "d").await;
    let d = rig.lookup(ROOT, "d").await.unwrap();
    rig.write(ROOT, "f", b"x").await;
    rig.fault("file/update", refused());
    assert_eq!(rig.rename((ROOT, "f"), (d, "g")).await, Err(ErrorKind::Denied));
    assert_eq!(rig.remote_names(&FileId::root()).await, ["d", "f"]);
    assert!(rig.remote_entries(&folder).await.is_empty());
    assert!(rig.lookup(ROOT, "f").await.is_some() && rig.lookup(d, "g").await.is_none());
    rig.server.faults().clear();
    rig.rename((ROOT, "f"), (d, "g")).await.unwrap();
    assert_eq!(rig.remote_names(&folder).await, ["g"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn move_ignores_old_name_in_new_directory() {
    let rig = Rig::new().await;
    rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap();
    let d = rig.lookup(ROOT, "d").await.unwrap();
    rig.write(ROOT, "f", b"one").await;
    rig.write(ROOT, "g", b"two").await;
    rig.write(d, "f", b"three").await;
    rig.rename((ROOT, "f"), (d, "g")).await.unwrap();
    assert_eq!(names(&rig.read_dir(d).await), [".", "..", "f", "g"]);
    assert_eq!(names(&rig.read_dir(ROOT).await), [".", "..", "d", "g"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_rename_over_file_keeps_both() {
    let rig = Rig::new().await;
    let target = rig.write(ROOT, "target", b"old").await;
    let source = rig.write(ROOT, "source", b"newer").await;
    rig.fault("file/create", refused());
    assert_eq!(rig.rename((ROOT, "source"), (ROOT, "target")).await, Err(ErrorKind::Denied));
    assert_eq!(rig.lookup(ROOT, "source").await, Some(source));
    assert_eq!(rig.lookup(ROOT, "target").await, Some(target));
    rig.server.faults().clear();
    rig.rename((ROOT, "source"), (ROOT, "target")).await.unwrap();
    assert_eq!(rig.lookup(ROOT, "target").await, Some(source));
    let remote_entries = rig.remote_entries(&FileId::root()).await;
    assert_eq!(
        remote_entries.iter().map(|meta| (&*meta.name, meta.size)).collect::<Vec<_>>(),
        [("target", 5)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_replaces_concurrent_remote_file() {
    let rig = Rig::new().await;
    rig.write(ROOT, "mine", b"mine").await;
    assert_eq!(rig.lookup(ROOT, "name").await, None);
    // Another mount of the drive creates a file of that name.
    let other = rig.second_mount();
    let (entry, opened) =
        other.create(ROOT, OsStr::new("name"), (libc::O_WRONLY, 0o644), caller()).await.unwrap();
    other.release(opened.fh).await.unwrap();
    assert_eq!(entry.attr.size, 0);
    let (from, to) = ((ROOT, OsStr::new("mine")), (ROOT, OsStr::new("name")));
    let refused = rig.vfs.rename(from, to, RenameMode::NoReplace, caller()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exists);
    rig.rename((ROOT, "mine"), (ROOT, "name")).await.unwrap();
    let remote_entries = rig.remote_entries(&FileId::root()).await;
    assert_eq!(remote_entries.iter().map(|meta| (&*meta.name, meta.size)).collect::<Vec<_>>(), [("name", 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_replaces_only_empty_directory() {
    let rig = Rig::new().await;
    let full = rig.remote_folder(&FileId::root(), "full").await;
    rig.remote_folder(&FileId::root(), "empty").await;
    let source = rig.remote_folder(&FileId::root(), "source").await;
    rig.lookup(ROOT, "source").await.unwrap();
    rig.remote_folder(&full, "inside").await;
    assert_eq!(rig.rename((ROOT, "source"), (ROOT, "full")).await, Err(ErrorKind::NotEmpty));
    rig.rename((ROOT, "source"), (ROOT, "empty")).await.unwrap();
    let remote_entries = rig.remote_entries(&FileId::root()).await;
    assert_eq!(remote_entries.iter().find(|meta| meta.name == "empty").unwrap().file_id, source);
    let (from, to) = ((ROOT, OsStr::new("full")), (ROOT, OsStr::new("empty")));
    let swap = rig.vfs.rename(from, to, RenameMode::Exchange, caller()).await.unwrap_err();
    assert_eq!(swap.kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_with_unsaved_file_is_not_empty() {
    let rig = Rig::new().await;
    rig.vfs.mkdir(ROOT, OsStr::new("d"), 0o755, caller()).await.unwrap();
    let d = rig.lookup(ROOT, "d").await.unwrap();
    let (_, fh) = rig.create(d, "f").await;
    let error = rig.vfs.rmdir(ROOT, OsStr::new("d")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotEmpty);
    rig.vfs.unlink(d, OsStr::new("f")).await.unwrap();
    rig.vfs.rmdir(ROOT, OsStr::new("d")).await.unwrap();
    rig.vfs.release(fh).await.unwrap();
    assert!(rig.remote_entries(&FileId::root()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn known_entries_are_served_offline() {
    let rig = Rig::with(Duration::ZERO, |_| {}).await;
    let folder = rig.remote_folder(&FileId::root(), "d").await;
    rig.remote_folder(&folder, "inside").await;
    let d = rig.lookup(ROOT, "d").await.unwrap();
    assert_eq!(rig.read_dir(d).await.len(), 3);
    rig.fault("file/*", FaultAction::Stall);
    let begun = Instant::now();
    assert_eq!(rig.lookup(ROOT, "d").await, Some(d));
    assert_eq!(rig.vfs.getattr(d).await.unwrap().attr.ino, d);
    assert_eq!(names(&rig.read_dir(d).await), [".", "..", "inside"]);
    assert!(rig.server.faults().hits()[0] > 0, "the drive got no call");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let root = Instant::now();
    rig.vfs.getattr(ROOT).await.unwrap();
    assert!(root.elapsed() < Duration::from_secs(5));
    rig.server.faults().clear();
    // When the drive is back, the listing is current again.
    rig.remote_folder(&FileId::root(), "new").await;
    let back = async {
        while rig.lookup(ROOT, "new").await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn statfs_does_not_wait_for_the_drive() {
    let rig = Rig::with(METADATA_TTL, |config| config.quota_bytes = Some(1 << 20)).await;
    rig.fault("drive/get", FaultAction::Stall);
    let begun = Instant::now();
    assert!(rig.vfs.statfs().await.blocks_free > 1 << 10, "no plausible value before the drive answers");
    for _ in 0..100 {
        rig.vfs.statfs().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    rig.server.faults().clear();
    let refreshed = async {
        while rig.vfs.statfs().await.blocks != (1 << 20) / 4096 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refreshed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_listing_is_retried_next_time() {
    let rig = Rig::with(METADATA_TTL, |config| config.quirks.list_page_max = 2).await;
    for n in 0..6 {
        rig.remote_folder(&FileId::root(), &format!("e{n}")).await;
    }
    rig.server.faults().add(FaultRule::new("file/list", refused()).after(2));
    let dh = rig.vfs.opendir(ROOT, caller()).await.unwrap();
    let mut cookie = 2;
    let error = loop {
        match rig.vfs.readdir(dh, cookie, true).await {
            Ok(some) => {
                cookie = some.last().expect("an incomplete listing must not end without an error").cookie;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(rig.vfs.lookup(ROOT, OsStr::new("e5")).await.unwrap_err().kind(), ErrorKind::Denied);
    rig.server.faults().clear();
    assert_eq!(rig.read_dir_from(dh, 0).await.len(), 8);
    rig.vfs.releasedir(dh);
}
