//! The behaviour that the client expects of a drive, endpoint by endpoint.
//!
//! Runs with the embedded server, or with a real domain if `PDSFS_LIVE_ENDPOINT`, `PDSFS_LIVE_TOKEN`
//! and `PDSFS_LIVE_DRIVE_ID` are set. On a real domain every test creates its own folder in the root
//! of the drive, touches nothing else, and moves the folder to the recycle bin at the end.

mod recovery;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::{Credential, MountConfig, RemoveMode};
use crate::error::ErrorKind;
use crate::ids::{DriveId, FileId, PartNumber, Secret, Sha1Hash};
use crate::pds::drive::{
    AttrChange, CallPriority, CreateOutcome, DownloadUrl, Drive, ExpectedContent, FileMeta, NewFile,
    PutOutcome, RangeError, RangeRequest, UploadSession,
};
use crate::pds::part_body::Frame;
use crate::pds::put_control::{PutControl, PutEnd, PutMeter};
use crate::pds::types::{CheckNameMode, FileType, PartUrl};
use crate::posix::{self, Tags};
use crate::rolling_sha1::{RollingSha1, Sha1Midstate};
use crate::server::{Server, ServerConfig};

/// For presigned URLs that are used at once.
const URL_LIFETIME: Duration = Duration::from_secs(600);
/// The object store refuses smaller parts, except the last one.
const PART: usize = 128 << 10;

/// Every attempt begins at once.
#[derive(Debug)]
pub(super) struct Unlimited;

impl PutMeter for Unlimited {
    fn sent(&self, _: u64) {}
}

impl PutControl for Unlimited {
    type Permit = ();

    async fn admit(&self) {}

    fn ended(&self, (): (), _: PutEnd) {}

    fn meter(&self, (): &()) -> Arc<dyn PutMeter> {
        Arc::new(Self)
    }
}

/// A folder of its own for one test. `local` is the embedded server, if the test uses it.
struct ScratchFolder {
    drive: Drive,
    folder: FileId,
    local: Option<(Server, tempfile::TempDir)>,
}

impl ScratchFolder {
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
        let drive_id = DriveId::new(&drive_id).unwrap();
        let mut config = MountConfig::new(endpoint.parse().unwrap(), drive_id, credential);
        config.options.commit_timeout = Duration::from_secs(60);
        let drive = Drive::new(&config).unwrap();
        let stamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let folder = drive
            .create_folder(&FileId::root(), &format!("pdsfs-contract-{stamp}"), &Tags::new())
            .await
            .unwrap();
        Self { drive, folder: folder.file_id, local }
    }

    async fn clean_up(self) {
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

    /// Creates an upload session without a size, with the midstates of all parts. Sends the parts, the last one
    /// first if the session is parallel.
    async fn send(
        &self,
        name: &str,
        overwrite: Option<&FileId>,
        bytes: &[u8],
    ) -> (UploadSession, ExpectedContent) {
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
        let CreateOutcome::Session(upload, mut urls) = self.drive.create_file(&file).await.unwrap() else {
            panic!("no session for {name}");
        };
        if numbers.len() > 1 {
            urls.extend(self.drive.get_upload_urls(&upload, &numbers[1..]).await.unwrap());
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

async fn read(
    drive: &Drive,
    url: &DownloadUrl,
    range: std::ops::Range<u64>,
) -> Result<bytes::Bytes, RangeError> {
    let body = parking_lot::Mutex::new(None);
    let request = RangeRequest { url: &url.url, range, check: &|_| Ok(()), body: &body, skipped: &|_, _| {} };
    Ok(drive.read_range(&request).await?.bytes)
}

async fn put(drive: &Drive, url: &PartUrl, frame: &Frame) {
    let frames = [frame.clone()];
    let outcome = drive.put_part(url, &frames, &Unlimited).await.unwrap();
    let Frame::Memory(bytes) = frame else { panic!("{frame:?}") };
    assert_eq!(outcome, PutOutcome::Stored { crc64: crc64(bytes) });
}

fn crc64(bytes: &[u8]) -> u64 {
    let mut digest = crate::crc64::digest();
    digest.update(bytes);
    digest.finalize()
}

fn split(bytes: &[u8]) -> Vec<(PartNumber, Sha1Midstate, Frame)> {
    let mut rolling = RollingSha1::default();
    let mut parts = Vec::new();
    for (index, piece) in bytes.chunks(PART).enumerate() {
        let number = PartNumber::new(index as u32 + 1).unwrap();
        parts.push((number, rolling.midstate().unwrap(), Frame::Memory(piece.to_vec().into())));
        rolling.update(piece);
    }
    parts
}

fn expected(bytes: &[u8]) -> ExpectedContent {
    let crc =
        bytes.chunks(PART).fold(0, |crc, piece| crate::crc64::combine(crc, crc64(piece), piece.len() as u64));
    ExpectedContent { size: bytes.len() as u64, sha1: sha1(bytes), crc64: Some(crc) }
}

fn sha1(bytes: &[u8]) -> Sha1Hash {
    use sha1::Digest;
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

/// Pseudo-random bytes that differ from call to call.
fn fresh_bytes(len: usize) -> Vec<u8> {
    use sha1::Digest;
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let seed = format!("{:?} {}", SystemTime::now(), CALLS.fetch_add(1, Ordering::Relaxed));
    let blocks = (0u64..).flat_map(|i| sha1::Sha1::digest(format!("{seed} {i}")).to_vec());
    blocks.take(len).collect()
}

#[tokio::test]
async fn contract_folders_are_created_and_listed() {
    let scratch = ScratchFolder::new().await;
    let made = scratch.drive.create_folder(&scratch.folder, "sub", &Tags::new()).await.unwrap();
    assert_eq!((made.kind, made.name.as_str()), (FileType::Folder, "sub"));
    let again = scratch.drive.create_folder(&scratch.folder, "sub", &Tags::new()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert_eq!(scratch.names(&scratch.folder).await, ["sub"]);
    assert_eq!(scratch.drive.get(&made.file_id).await.unwrap().parent_id.as_ref(), Some(&scratch.folder));
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_parallel_upload_needs_no_size() {
    let scratch = ScratchFolder::new().await;
    for len in [1, PART, PART + 1, 5 * PART - 7] {
        let bytes = fresh_bytes(len);
        let meta = scratch.upload(&format!("f{len}"), None, &bytes).await;
        assert_eq!((meta.size, meta.sha1), (len as u64, Some(sha1(&bytes))));
        let url = scratch
            .drive
            .download_url(&meta.file_id, None, URL_LIFETIME, CallPriority::Lookup)
            .await
            .unwrap();
        assert_eq!(read(&scratch.drive, &url, 0..len as u64).await.unwrap(), bytes);
    }
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_unfinished_upload_is_invisible() {
    let scratch = ScratchFolder::new().await;
    let (upload, expected) = scratch.send("f", None, &fresh_bytes(2 * PART)).await;
    assert!(scratch.names(&scratch.folder).await.is_empty());
    assert_eq!(scratch.drive.get(&upload.file_id).await.unwrap_err().kind(), ErrorKind::NotFound);
    scratch.drive.complete(&upload, &expected).await.unwrap();
    assert_eq!(scratch.names(&scratch.folder).await, ["f"]);
    // The second time the session has ended, but the file is there with our hash.
    scratch.drive.complete(&upload, &expected).await.unwrap();
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_overwrite_keeps_id_and_old_content() {
    let scratch = ScratchFolder::new().await;
    let (old, new) = (fresh_bytes(PART + 5), fresh_bytes(3 * PART));
    let first = scratch.upload("f", None, &old).await;
    let (upload, expected) = scratch.send("f", Some(&first.file_id), &new).await;
    let url =
        scratch.drive.download_url(&first.file_id, None, URL_LIFETIME, CallPriority::Lookup).await.unwrap();
    assert_eq!(read(&scratch.drive, &url, 0..old.len() as u64).await.unwrap(), old);
    let second = scratch.drive.complete(&upload, &expected).await.unwrap();
    assert_eq!(second.file_id, first.file_id);
    assert_ne!(second.revision, first.revision);
    assert_eq!(scratch.names(&scratch.folder).await, ["f"]);
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_taken_name_is_reported() {
    let scratch = ScratchFolder::new().await;
    let first = scratch.upload("f", None, &fresh_bytes(10)).await;
    let parts = [(PartNumber::FIRST, Sha1Midstate::START)];
    let file = NewFile {
        parent: &scratch.folder,
        name: "f",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content: None,
        mtime: None,
        tags: Tags::new(),
        parts: &parts,
    };
    match scratch.drive.create_file(&file).await.unwrap() {
        CreateOutcome::NameTaken(id, FileType::File) => assert_eq!(id, first.file_id),
        other => panic!("{other:?}"),
    }
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_known_bytes_upload_instantly() {
    let scratch = ScratchFolder::new().await;
    let bytes = fresh_bytes(2 * PART);
    scratch.upload("first", None, &bytes).await;
    let parts = [(PartNumber::FIRST, Sha1Midstate::START)];
    let content = Some((bytes.len() as u64, sha1(&bytes)));
    let file = NewFile {
        parent: &scratch.folder,
        name: "second",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content,
        mtime: None,
        tags: Tags::new(),
        parts: &parts,
    };
    let CreateOutcome::InstantUpload(instant) = scratch.drive.create_file(&file).await.unwrap() else {
        panic!("the service has the bytes and requests them again");
    };
    let get = async |is_new| {
        let meta = scratch.drive.get_committed(&instant, &expected(&bytes), (None, is_new)).await.unwrap();
        (meta.file_id, meta.parent_id, meta.name, meta.size, meta.sha1, meta.revision)
    };
    assert_eq!(get(true).await, get(false).await);
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_replace_keeps_the_target_id() {
    let scratch = ScratchFolder::new().await;
    let (old, new) = (fresh_bytes(100), fresh_bytes(200));
    let target = scratch.upload("target", None, &old).await;
    let source = scratch.upload("source", None, &new).await;
    let replaced = scratch.drive.replace(&target, &source).await.unwrap().expect("instant upload is refused");
    assert_eq!(replaced.file_id, target.file_id);
    assert_eq!((replaced.size, replaced.sha1), (200, Some(sha1(&new))));
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_wrong_bytes_are_refused() {
    let scratch = ScratchFolder::new().await;
    let bytes = fresh_bytes(3 * PART);
    let (upload, good) = scratch.send("f", None, &bytes).await;
    let bad = ExpectedContent { crc64: good.crc64.map(|crc| crc ^ 1), ..good };
    let refused = scratch.drive.complete(&upload, &bad).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Integrity);
    assert!(scratch.names(&scratch.folder).await.is_empty());
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_broken_midstate_chain_is_refused() {
    let scratch = ScratchFolder::new().await;
    let bytes = fresh_bytes(2 * PART);
    let mut parts = split(&bytes);
    parts[1].1.h[0] ^= 1;
    let numbers: Vec<_> = parts.iter().map(|(number, ctx, _)| (*number, *ctx)).collect();
    let file = NewFile {
        parent: &scratch.folder,
        name: "f",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content: None,
        mtime: None,
        tags: Tags::new(),
        parts: &numbers,
    };
    let CreateOutcome::Session(upload, urls) = scratch.drive.create_file(&file).await.unwrap() else {
        panic!("no session");
    };
    for ((_, _, frame), url) in parts.iter().zip(&urls) {
        let frames = [frame.clone()];
        let _ = scratch.drive.put_part(url, &frames, &Unlimited).await;
    }
    assert!(scratch.drive.complete(&upload, &expected(&bytes)).await.is_err());
    assert!(scratch.names(&scratch.folder).await.is_empty());
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_rename_move_and_removal_work() {
    let scratch = ScratchFolder::new().await;
    let file = scratch.upload("f", None, &fresh_bytes(10)).await;
    scratch.upload("taken", None, &fresh_bytes(11)).await;
    let sub = scratch.drive.create_folder(&scratch.folder, "sub", &Tags::new()).await.unwrap().file_id;
    assert_eq!(
        scratch.drive.rename(&file.file_id, "taken", CheckNameMode::Refuse).await.unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert_eq!(scratch.drive.rename(&file.file_id, "g", CheckNameMode::Refuse).await.unwrap().name, "g");
    scratch.drive.move_to(&file.file_id, &sub, CheckNameMode::Refuse).await.unwrap();
    assert_eq!(scratch.names(&sub).await, ["g"]);
    assert_eq!(scratch.names(&scratch.folder).await, ["sub", "taken"]);
    scratch.drive.remove(&file.file_id, RemoveMode::Trash).await.unwrap();
    assert_eq!(scratch.drive.get(&file.file_id).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The removal of a removed file succeeds.
    scratch.drive.remove(&file.file_id, RemoveMode::Trash).await.unwrap();
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_attributes_are_set_singly_and_batched() {
    let scratch = ScratchFolder::new().await;
    let file = scratch.upload("f", None, &fresh_bytes(10)).await;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    let tag = |key: &str, value: &str| Tags::from([(key.to_owned(), value.to_owned())]);
    let set = async |change: AttrChange| {
        let gone = (FileId::new(&"0".repeat(40)).unwrap(), change.clone());
        let alone = scratch.drive.set_attributes(&[(file.file_id.clone(), change.clone())]).await;
        assert_eq!(alone.iter().map(Result::is_ok).collect::<Vec<_>>(), [true]);
        let outcomes = scratch.drive.set_attributes(&[gone, (file.file_id.clone(), change)]).await;
        assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
        assert!(outcomes[1].is_ok());
        scratch.drive.get(&file.file_id).await.unwrap()
    };
    assert_eq!(set(AttrChange { mtime: Some(time), ..AttrChange::default() }).await.mtime, time);
    let tags = [tag("pdsfs.mode", "0600"), tag("theirs", "1")].into_iter().flatten().collect();
    let meta = set(AttrChange { tags, sends_tags: true, ..AttrChange::default() }).await;
    assert_eq!((meta.mtime, meta.posix.as_ref().unwrap().perm), (time, Some(0o600)));
    assert_eq!(meta.tags()["theirs"], "1");
    let stale = ["pdsfs.mode".to_owned()].into();
    let exact = time + Duration::from_nanos(1);
    let tags = posix::tags(None, exact);
    let meta = set(AttrChange { tags, sends_tags: true, stale, mtime: None }).await;
    assert_eq!((meta.mtime, meta.posix.as_ref().unwrap().perm), (exact, None));
    let listed = scratch.drive.list_page(&scratch.folder, "").await.unwrap().items;
    assert_eq!(listed, [meta], "the listing has other attributes");
    // More than one batch.
    let many = vec![(file.file_id.clone(), AttrChange { mtime: Some(time), ..AttrChange::default() }); 250];
    assert_eq!(
        scratch.drive.set_attributes(&many).await.iter().filter(|outcome| outcome.is_ok()).count(),
        250
    );
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_ranges_and_pages_are_complete() {
    let scratch = ScratchFolder::new().await;
    let bytes = fresh_bytes(3 * PART);
    let meta = scratch.upload("f", None, &bytes).await;
    let url = scratch
        .drive
        .download_url(&meta.file_id, meta.revision.as_ref(), URL_LIFETIME, CallPriority::Lookup)
        .await
        .unwrap();
    for (start, end) in [(0, 1), (PART - 1, PART + 1), (3 * PART - 1, 3 * PART)] {
        assert_eq!(read(&scratch.drive, &url, start as u64..end as u64).await.unwrap(), bytes[start..end]);
    }
    let beyond = read(&scratch.drive, &url, bytes.len() as u64..bytes.len() as u64 + 10).await;
    assert!(matches!(beyond, Err(RangeError::Failed(_))), "{beyond:?}");
    for i in 0..120 {
        scratch.drive.create_folder(&scratch.folder, &format!("d{i:03}"), &Tags::new()).await.unwrap();
    }
    let names = scratch.names(&scratch.folder).await;
    assert_eq!(names.len(), 121);
    assert!(names.is_sorted(), "pages are not in the order of names: {names:?}");
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_quota_is_reported() {
    let scratch = ScratchFolder::new().await;
    let quota = scratch.drive.quota().await.unwrap();
    assert!(quota.total_bytes.is_none_or(|total| total > 0));
    scratch.clean_up().await;
}
