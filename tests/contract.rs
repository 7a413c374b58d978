//! What the client expects of a drive, endpoint by endpoint.
//!
//! Runs against the embedded server, or against a real domain where `PDSFS_LIVE_ENDPOINT`,
//! `PDSFS_LIVE_TOKEN` and `PDSFS_LIVE_DRIVE_ID` are set: then every test makes a folder of its own
//! in the drive's root, touches nothing else, and moves it to the recycle bin at the end.

// A whole file of tests: helpers may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use pdsfs::ErrorKind;
use pdsfs::config::{Credential, MountConfig, RemoveMode};
use pdsfs::content::part::crc64;
use pdsfs::ids::{DriveId, FileId, PartNumber, Secret, Sha1Hash};
use pdsfs::pds::drive::{
    AttrChange, Created, Drive, Expected, FileMeta, NewFile, PutOutcome, RangeError, Upload,
};
use pdsfs::pds::frame::Frame;
use pdsfs::pds::types::{CheckNameMode, FileType, PartUrl};
use pdsfs::posix::{self, Tags};
use pdsfs::rolling_sha1::{RollingSha1, Sha1Ctx};
use pdsfs::server::{Server, ServerConfig};

/// Of addresses that are used at once.
const URL_LIFETIME: Duration = Duration::from_secs(600);
/// The store refuses smaller parts, other than the last one.
const PART: usize = 128 << 10;

struct Place {
    drive: Drive,
    folder: FileId,
    local: Option<(Server, tempfile::TempDir)>,
}

impl Place {
    async fn new() -> Self {
        let variable = |name: &str| std::env::var(format!("PDSFS_LIVE_{name}")).ok();
        let (endpoint, token, drive_id, local) = if let Some(endpoint) = variable("ENDPOINT") {
            let needed =
                |name: &str| variable(name).unwrap_or_else(|| panic!("PDSFS_LIVE_{name} is not set"));
            (endpoint, needed("TOKEN"), needed("DRIVE_ID"), None)
        } else {
            let data = tempfile::tempdir().unwrap();
            let config = ServerConfig::new(data.path().to_owned(), Secret::new("token".into()));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Server::start(listener, config).await.unwrap();
            (format!("http://{}", server.addr()), "token".into(), "1".into(), Some((server, data)))
        };
        let credential = Credential::Token(Secret::new(token));
        let config = MountConfig {
            commit_timeout: Duration::from_secs(60),
            ..MountConfig::new(endpoint.parse().unwrap(), DriveId::new(&drive_id).unwrap(), credential)
        };
        let drive = Drive::new(&config).unwrap();
        let stamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let folder = drive
            .create_folder(&FileId::root(), &format!("pdsfs-contract-{stamp}"), &Tags::new())
            .await
            .unwrap();
        Self { drive, folder: folder.file_id, local }
    }

    async fn done(self) {
        self.drive.remove(&self.folder, RemoveMode::Trash).await.unwrap();
        if let Some((server, _data)) = self.local {
            server.shutdown().await;
        }
    }

    async fn names(&self, folder: &FileId) -> Vec<String> {
        let (mut names, mut marker) = (Vec::new(), String::new());
        loop {
            let page = self.drive.list_page(folder, &marker).await.unwrap();
            names.extend(page.items.into_iter().map(|item| item.name));
            match page.next_marker {
                Some(next) => marker = next,
                None => return names,
            }
        }
    }

    async fn upload(&self, name: &str, overwrite: Option<&FileId>, bytes: &[u8]) -> FileMeta {
        let (upload, expected) = self.send(name, overwrite, bytes).await;
        self.drive.complete(&upload, &expected).await.unwrap()
    }

    /// Creates a session without a size, with the midstates of all parts, and sends them backwards.
    async fn send(&self, name: &str, overwrite: Option<&FileId>, bytes: &[u8]) -> (Upload, Expected) {
        let parts = split(bytes);
        let numbers: Vec<_> = parts.iter().map(|(number, ctx, _)| (*number, *ctx)).collect();
        let file = NewFile {
            parent: &self.folder,
            name,
            overwrite,
            mode: CheckNameMode::Refuse,
            content: None,
            mtime: None,
            tags: Tags::new(),
            parts: &numbers[..1],
        };
        let Created::Session(upload, mut urls) = self.drive.create_file(&file).await.unwrap() else {
            panic!("no session for {name}");
        };
        if numbers.len() > 1 {
            urls.extend(self.drive.part_urls(&upload, &numbers[1..]).await.unwrap());
        }
        let mut order: Vec<_> = parts.iter().zip(&urls).collect();
        if upload.parallel {
            order.reverse();
        }
        for ((_, _, frame), url) in order {
            put(&self.drive, url, frame).await;
        }
        (upload, expected(bytes))
    }
}

async fn put(drive: &Drive, url: &PartUrl, frame: &Frame) {
    let frames = [frame.clone()];
    let outcome = drive.put_part(url, &frames, &AtomicBool::new(false)).await.unwrap();
    assert_eq!(outcome, PutOutcome::Stored { crc64: crc64(&frames).unwrap() });
}

fn split(bytes: &[u8]) -> Vec<(PartNumber, Sha1Ctx, Frame)> {
    let mut rolling = RollingSha1::default();
    let mut parts = Vec::new();
    for (index, piece) in bytes.chunks(PART).enumerate() {
        let number = PartNumber::new(index as u32 + 1).unwrap();
        parts.push((number, rolling.ctx().unwrap(), Frame::Memory(piece.to_vec().into())));
        rolling.update(piece);
    }
    parts
}

fn expected(bytes: &[u8]) -> Expected {
    let crc = bytes.chunks(PART).fold(0, |crc, piece| {
        pdsfs::crc64::append(crc, crc64(&[Frame::Memory(piece.to_vec().into())]).unwrap(), piece.len() as u64)
    });
    Expected { size: bytes.len() as u64, sha1: sha1(bytes), crc64: Some(crc) }
}

fn sha1(bytes: &[u8]) -> Sha1Hash {
    use sha1::Digest;
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

/// Bytes that no other call gives.
fn fresh_bytes(len: usize) -> Vec<u8> {
    use sha1::Digest;
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let seed = format!("{:?} {}", SystemTime::now(), CALLS.fetch_add(1, Ordering::Relaxed));
    let blocks = (0u64..).flat_map(|i| sha1::Sha1::digest(format!("{seed} {i}")).to_vec());
    blocks.take(len).collect()
}

#[tokio::test]
async fn contract_folders() {
    let place = Place::new().await;
    let made = place.drive.create_folder(&place.folder, "sub", &Tags::new()).await.unwrap();
    assert_eq!((made.kind, made.name.as_str()), (FileType::Folder, "sub"));
    let again = place.drive.create_folder(&place.folder, "sub", &Tags::new()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert_eq!(place.names(&place.folder).await, ["sub"]);
    assert_eq!(place.drive.get(&made.file_id).await.unwrap().parent_id.as_ref(), Some(&place.folder));
    place.done().await;
}

#[tokio::test]
async fn contract_parallel_upload_without_a_size() {
    let place = Place::new().await;
    for len in [1, PART, PART + 1, 5 * PART - 7] {
        let bytes = fresh_bytes(len);
        let meta = place.upload(&format!("f{len}"), None, &bytes).await;
        assert_eq!((meta.size, meta.sha1), (len as u64, Some(sha1(&bytes))));
        let url = place.drive.download_url(&meta.file_id, None, URL_LIFETIME).await.unwrap();
        assert_eq!(place.drive.read_range(&url, 0..len as u64).await.unwrap(), bytes);
    }
    place.done().await;
}

#[tokio::test]
async fn contract_an_uploading_file_is_invisible() {
    let place = Place::new().await;
    let (upload, expected) = place.send("f", None, &fresh_bytes(2 * PART)).await;
    assert!(place.names(&place.folder).await.is_empty());
    assert_eq!(place.drive.get(&upload.file_id).await.unwrap_err().kind(), ErrorKind::NotFound);
    place.drive.complete(&upload, &expected).await.unwrap();
    assert_eq!(place.names(&place.folder).await, ["f"]);
    // The second time there is no session any more, but the file is there with our hash.
    place.drive.complete(&upload, &expected).await.unwrap();
    place.done().await;
}

#[tokio::test]
async fn contract_overwriting_keeps_the_id_and_the_old_content_until_complete() {
    let place = Place::new().await;
    let (old, new) = (fresh_bytes(PART + 5), fresh_bytes(3 * PART));
    let first = place.upload("f", None, &old).await;
    let (upload, expected) = place.send("f", Some(&first.file_id), &new).await;
    let url = place.drive.download_url(&first.file_id, None, URL_LIFETIME).await.unwrap();
    assert_eq!(place.drive.read_range(&url, 0..old.len() as u64).await.unwrap(), old);
    let second = place.drive.complete(&upload, &expected).await.unwrap();
    assert_eq!(second.file_id, first.file_id);
    assert_ne!(second.revision, first.revision);
    assert_eq!(place.names(&place.folder).await, ["f"]);
    place.done().await;
}

#[tokio::test]
async fn contract_a_taken_name_is_told() {
    let place = Place::new().await;
    let first = place.upload("f", None, &fresh_bytes(10)).await;
    let parts = [(PartNumber::FIRST, Sha1Ctx::START)];
    let file = NewFile {
        parent: &place.folder,
        name: "f",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content: None,
        mtime: None,
        tags: Tags::new(),
        parts: &parts,
    };
    match place.drive.create_file(&file).await.unwrap() {
        Created::Taken(id, FileType::File) => assert_eq!(id, first.file_id),
        other => panic!("{other:?}"),
    }
    place.done().await;
}

#[tokio::test]
async fn contract_instant_upload() {
    let place = Place::new().await;
    let bytes = fresh_bytes(2 * PART);
    place.upload("first", None, &bytes).await;
    let parts = [(PartNumber::FIRST, Sha1Ctx::START)];
    let content = Some((bytes.len() as u64, sha1(&bytes)));
    let file = NewFile {
        parent: &place.folder,
        name: "second",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content,
        mtime: None,
        tags: Tags::new(),
        parts: &parts,
    };
    let Created::Instant(id) = place.drive.create_file(&file).await.unwrap() else {
        panic!("the service has the bytes and wants them again");
    };
    place.drive.committed(&id, &expected(&bytes)).await.unwrap();
    place.done().await;
}

#[tokio::test]
async fn contract_replacing_a_file_by_another_in_one_step() {
    let place = Place::new().await;
    let (old, new) = (fresh_bytes(100), fresh_bytes(200));
    let target = place.upload("target", None, &old).await;
    let source = place.upload("source", None, &new).await;
    let replaced = place.drive.replace(&target, &source).await.unwrap().expect("instant upload is refused");
    assert_eq!(replaced.file_id, target.file_id);
    assert_eq!((replaced.size, replaced.sha1), (200, Some(sha1(&new))));
    place.done().await;
}

#[tokio::test]
async fn contract_wrong_bytes_are_refused() {
    let place = Place::new().await;
    let bytes = fresh_bytes(3 * PART);
    let (upload, good) = place.send("f", None, &bytes).await;
    let bad = Expected { crc64: good.crc64.map(|crc| crc ^ 1), ..good };
    let refused = place.drive.complete(&upload, &bad).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Integrity);
    assert!(place.names(&place.folder).await.is_empty());
    place.done().await;
}

#[tokio::test]
async fn contract_a_broken_chain_of_midstates_is_refused() {
    let place = Place::new().await;
    let bytes = fresh_bytes(2 * PART);
    let mut parts = split(&bytes);
    parts[1].1.h[0] ^= 1;
    let numbers: Vec<_> = parts.iter().map(|(number, ctx, _)| (*number, *ctx)).collect();
    let file = NewFile {
        parent: &place.folder,
        name: "f",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content: None,
        mtime: None,
        tags: Tags::new(),
        parts: &numbers,
    };
    let Created::Session(upload, urls) = place.drive.create_file(&file).await.unwrap() else {
        panic!("no session");
    };
    for ((_, _, frame), url) in parts.iter().zip(&urls) {
        let frames = [frame.clone()];
        let _ = place.drive.put_part(url, &frames, &AtomicBool::new(false)).await;
    }
    assert!(place.drive.complete(&upload, &expected(&bytes)).await.is_err());
    assert!(place.names(&place.folder).await.is_empty());
    place.done().await;
}

#[tokio::test]
async fn contract_rename_move_times_and_removal() {
    let place = Place::new().await;
    let file = place.upload("f", None, &fresh_bytes(10)).await;
    place.upload("taken", None, &fresh_bytes(11)).await;
    let sub = place.drive.create_folder(&place.folder, "sub", &Tags::new()).await.unwrap().file_id;
    assert_eq!(
        place.drive.rename(&file.file_id, "taken", CheckNameMode::Refuse).await.unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert_eq!(place.drive.rename(&file.file_id, "g", CheckNameMode::Refuse).await.unwrap().name, "g");
    place.drive.relocate(&file.file_id, &sub, CheckNameMode::Refuse).await.unwrap();
    assert_eq!(place.names(&sub).await, ["g"]);
    assert_eq!(place.names(&place.folder).await, ["sub", "taken"]);
    place.drive.remove(&file.file_id, RemoveMode::Trash).await.unwrap();
    assert_eq!(place.drive.get(&file.file_id).await.unwrap_err().kind(), ErrorKind::NotFound);
    // Gone already is gone.
    place.drive.remove(&file.file_id, RemoveMode::Trash).await.unwrap();
    place.done().await;
}

#[tokio::test]
async fn contract_attributes_alone_and_in_a_batch() {
    let place = Place::new().await;
    let file = place.upload("f", None, &fresh_bytes(10)).await;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    let tag = |key: &str, value: &str| Tags::from([(key.to_owned(), value.to_owned())]);
    let set = async |change: AttrChange| {
        let gone = (FileId::new(&"0".repeat(40)).unwrap(), change.clone());
        let alone = place.drive.set_attributes(&[(file.file_id.clone(), change.clone())]).await;
        assert_eq!(alone.iter().map(Result::is_ok).collect::<Vec<_>>(), [true]);
        let outcomes = place.drive.set_attributes(&[gone, (file.file_id.clone(), change)]).await;
        assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
        assert!(outcomes[1].is_ok());
        place.drive.get(&file.file_id).await.unwrap()
    };
    assert_eq!(set(AttrChange { mtime: Some(time), ..AttrChange::default() }).await.mtime, time);
    let tags = [tag("pdsfs.mode", "0600"), tag("theirs", "1")].into_iter().flatten().collect();
    let meta = set(AttrChange { tags: Some(tags), ..AttrChange::default() }).await;
    assert_eq!((meta.mtime, meta.posix.as_ref().unwrap().perm), (time, Some(0o600)));
    assert_eq!(meta.tags()["theirs"], "1");
    let stale = ["pdsfs.mode".to_owned()].into();
    let exact = time + Duration::from_nanos(1);
    let tags = posix::tags(None, exact);
    let meta = set(AttrChange { tags: Some(tags), stale, mtime: None }).await;
    assert_eq!((meta.mtime, meta.posix.as_ref().unwrap().perm), (exact, None));
    let listed = place.drive.list_page(&place.folder, "").await.unwrap().items;
    assert_eq!(listed, [meta], "a listing tells as much");
    // More than one batch.
    let many = vec![(file.file_id.clone(), AttrChange { mtime: Some(time), ..AttrChange::default() }); 250];
    assert_eq!(place.drive.set_attributes(&many).await.iter().filter(|outcome| outcome.is_ok()).count(), 250);
    place.done().await;
}

#[tokio::test]
async fn contract_ranges_and_pages() {
    let place = Place::new().await;
    let bytes = fresh_bytes(3 * PART);
    let meta = place.upload("f", None, &bytes).await;
    let url = place.drive.download_url(&meta.file_id, meta.revision.as_ref(), URL_LIFETIME).await.unwrap();
    for (start, end) in [(0, 1), (PART - 1, PART + 1), (3 * PART - 1, 3 * PART)] {
        assert_eq!(place.drive.read_range(&url, start as u64..end as u64).await.unwrap(), bytes[start..end]);
    }
    let beyond = place.drive.read_range(&url, bytes.len() as u64..bytes.len() as u64 + 10).await;
    assert!(matches!(beyond, Err(RangeError::Failed(_))), "{beyond:?}");
    for i in 0..120 {
        place.drive.create_folder(&place.folder, &format!("d{i:03}"), &Tags::new()).await.unwrap();
    }
    let names = place.names(&place.folder).await;
    assert_eq!(names.len(), 121);
    assert!(names.is_sorted(), "pages in the order of names: {names:?}");
    place.done().await;
}

#[tokio::test]
async fn contract_quota() {
    let place = Place::new().await;
    let quota = place.drive.quota().await.unwrap();
    assert!(quota.total_bytes.is_none_or(|total| total > 0));
    place.done().await;
}
