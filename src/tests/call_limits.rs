//! The bound on concurrent API calls, and the order in which calls wait for it.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Credential, MountConfig};
use crate::ids::{DriveId, FileId, Ino, Secret};
use crate::pds::drive::Drive;
use crate::posix::Tags;
use crate::server::{FaultAction, FaultRule, Server, ServerConfig};
use crate::status::Progress;
use crate::vfs::{Caller, Fh, Vfs, WriteAt};

/// Default of the setting `concurrent_calls`.
const CALLS_MAX: u64 = 64;
const CALL_MAX: Duration = Duration::from_secs(600);
/// Longest wait for an event that must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    server: Server,
    drive: Drive,
    vfs: Arc<Vfs>,
    _data: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = ServerConfig::new(data.path(), Secret::new("token".to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, config).await.unwrap();
        let endpoint = format!("http://{}", server.addr()).parse().unwrap();
        let credential = Credential::Token(Secret::new("token".into()));
        let mut config = MountConfig::new(endpoint, DriveId::new("1").unwrap(), credential);
        // Calls hang until the test ends that, and entries stay fresh.
        (config.options.call_timeout, config.options.metadata_ttl) = (CALL_MAX, CALL_MAX);
        let (drive, config) = (Drive::new(&config).unwrap(), Arc::new(config));
        let vfs = Vfs::new(config.clone(), Drive::new(&config).unwrap(), Progress::new());
        Self { server, drive, vfs, _data: data }
    }

    async fn create(&self, name: &str) -> Fh {
        let (flags, caller) =
            (libc::O_WRONLY | libc::O_CREAT, Caller { uid: 0, gid: 0, tid: std::process::id() });
        let (_, opened) = self.vfs.create(Ino::ROOT, OsStr::new(name), (flags, 0o644), caller).await.unwrap();
        opened.fh
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_of_2000_files_bounds_connections() {
    const FILES: usize = 2000;
    let rig = Rig::new().await;
    for n in 0..FILES {
        let fh = rig.create(&format!("f{n}")).await;
        rig.vfs.write(fh, WriteAt::Offset(0), format!("content {n}").into_bytes().into()).await.unwrap();
    }
    assert!(rig.vfs.drain().await.unsaved.is_empty());
    let stats = rig.server.stats();
    assert_eq!(stats.statuses["file/complete 200"], FILES as u64);
    // Parts have connections of their own, at most 32, and closed connections are counted for a moment.
    assert!(stats.connections_peak <= 4 * CALLS_MAX, "{} connections at a time", stats.connections_peak);
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_overtakes_queued_listings() {
    const FOLDERS: usize = 200;
    let rig = Rig::new().await;
    let mut folders = Vec::new();
    for n in 0..FOLDERS {
        folders.push(rig.drive.create_folder(&FileId::root(), &format!("d{n}"), &Tags::new()).await.unwrap());
    }
    let fh = rig.create("f").await;
    rig.vfs.write(fh, WriteAt::Offset(0), b"content".as_slice().into()).await.unwrap();
    let mut listings = tokio::task::JoinSet::new();
    rig.server.faults().add(FaultRule::new("file/list", FaultAction::Stall));
    for n in 0..FOLDERS {
        let vfs = rig.vfs.clone();
        let dir = vfs.lookup(Ino::ROOT, OsStr::new(&format!("d{n}"))).await.unwrap().unwrap().attr.ino;
        listings.spawn(async move {
            let dh = vfs.opendir(dir, Caller { uid: 0, gid: 0, tid: 0 }).await.unwrap();
            vfs.readdir(dh, 2, true).await.unwrap()
        });
    }
    let share = u32::try_from(CALLS_MAX * 3 / 8).unwrap();
    tokio::time::timeout(PATIENCE, rig.server.faults().wait_for_hits(share)).await.unwrap();
    // All calls that listings may make are stuck, and the others are queued before the commit.
    tokio::time::timeout(PATIENCE, rig.vfs.release(fh)).await.unwrap().unwrap();
    assert_eq!(rig.server.stats().statuses["file/complete 200"], 1);
    assert_eq!(rig.server.faults().hits(), [share]);
    rig.server.faults().clear();
    let ended = tokio::time::timeout(PATIENCE, listings.join_all()).await.unwrap();
    assert!(ended.iter().all(Vec::is_empty));
}
