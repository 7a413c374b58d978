//! The client on domains that deviate from the documentation, and with answers that are lost or wrong.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use sha1::Digest;

use super::contract::Unlimited;
use crate::config::{Credential, MountConfig};
use crate::content::reader::{ReadCursor, ReadTarget, Reader};
use crate::error::{ErrorKind, Result};
use crate::ids::{DriveId, FileId, Ino, PartNumber, Secret, Sha1Hash};
use crate::pds::drive::{
    CreateOutcome, Drive, ExpectedContent, FileMeta, NewFile, PutOutcome, UploadSession,
};
use crate::pds::part_body::Frame;
use crate::pds::types::CheckNameMode;
use crate::posix::Tags;
use crate::rolling_sha1::Sha1Midstate;
use crate::server::{FaultAction, FaultRule, Quirks, Server, ServerConfig};
use crate::status::Progress;
use crate::vfs::{Caller, Vfs};

const MIB: usize = 1 << 20;
/// Longest time of an operation that must end by itself.
const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    server: Server,
    drive: Drive,
    config: Arc<MountConfig>,
    _data: tempfile::TempDir,
}

impl Rig {
    async fn with(configure: impl FnOnce(&mut Quirks)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(data.path(), Secret::new("token".to_owned()));
        configure(&mut config.quirks);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, config).await.unwrap();
        let endpoint = format!("http://{}", server.addr()).parse().unwrap();
        let credential = Credential::Token(Secret::new("token".into()));
        let mut config = MountConfig::new(endpoint, DriveId::new("1").unwrap(), credential);
        config.options.commit_timeout = Duration::from_secs(5);
        let drive = Drive::new(&config).unwrap();
        Self { server, drive, config: Arc::new(config), _data: data }
    }

    fn fault(&self, rule: FaultRule) {
        self.server.faults().add(rule);
    }

    fn vfs(&self) -> Arc<Vfs> {
        Vfs::new(self.config.clone(), Drive::new(&self.config).unwrap(), Progress::new())
    }

    /// Creates an upload session of one part and sends it.
    async fn send(&self, overwrite: Option<&FileId>, bytes: &[u8]) -> (UploadSession, ExpectedContent) {
        let file = NewFile { overwrite, ..new_file() };
        let CreateOutcome::Session(upload, urls) = self.drive.create_file(&file).await.unwrap() else {
            panic!("no upload session");
        };
        let frames = [Frame::Memory(bytes.to_vec().into())];
        let outcome = self.drive.put_part(&urls[0], &frames, &Unlimited).await.unwrap();
        let PutOutcome::Stored { crc64 } = outcome else { panic!("{outcome:?}") };
        (upload, ExpectedContent { size: bytes.len() as u64, sha1: sha1(bytes), crc64: Some(crc64) })
    }

    async fn upload(&self, overwrite: Option<&FileId>, bytes: &[u8]) -> Result<FileMeta> {
        let (upload, expected) = self.send(overwrite, bytes).await;
        self.drive.complete(&upload, &expected).await
    }

    async fn content(&self, file: &FileId) -> Vec<u8> {
        let meta = self.drive.get(file).await.unwrap();
        let reader = Reader::new(self.drive.clone(), 64 << 20);
        reader.read(&ReadTarget::of(&meta), &reader.cursor(), 0, meta.size).await.unwrap().to_vec()
    }
}

/// A new file "f" in the root, with one part.
fn new_file() -> NewFile<'static> {
    static ROOT: std::sync::LazyLock<FileId> = std::sync::LazyLock::new(FileId::root);
    static PARTS: [(PartNumber, Sha1Midstate); 1] = [(PartNumber::FIRST, Sha1Midstate::START)];
    NewFile {
        parent: &ROOT,
        name: "f",
        overwrite: None,
        mode: CheckNameMode::Refuse,
        content: None,
        mtime: None,
        tags: Tags::new(),
        parts: &PARTS,
    }
}

fn sha1(bytes: &[u8]) -> Sha1Hash {
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

/// Bytes without a short period.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|i| sha1::Sha1::digest([&[seed][..], &i.to_le_bytes()].concat()));
    blocks.take(len).collect()
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: no end"))
}

#[tokio::test(flavor = "multi_thread")]
async fn early_success_stores_no_part() {
    let rig = Rig::with(|_| {}).await;
    // Larger than the buffers of a connection.
    let content = bytes(1, 24 * MIB);
    rig.fault(FaultRule::times("put_part", 1, FaultAction::AnswerEarly { bytes: 1000 }));
    let meta = rig.upload(None, &content).await.unwrap();
    assert_eq!(rig.server.faults().hits(), [1]);
    assert_eq!(meta.sha1, Some(sha1(&content)));
}

/// The names of the root as a mount shows them.
async fn names_in_mount(rig: &Rig) -> Result<Vec<String>> {
    let vfs = rig.vfs();
    let (dh, mut names, mut cookie) =
        (vfs.opendir(Ino::ROOT, Caller { uid: 0, gid: 0, tid: 0 }).await?, Vec::new(), 0);
    loop {
        let entries = vfs.readdir(dh, cookie, true).await?;
        let Some(last) = entries.last() else { return Ok(names) };
        cookie = last.cookie;
        names.extend(entries.iter().map(|entry| entry.name.to_str().unwrap().to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_items_leave_a_listing_readable() {
    let rig = Rig::with(|quirks| {
        quirks.odd_list_items = true;
        quirks.list_page_max = 2;
    })
    .await;
    let root = FileId::root();
    rig.upload(None, b"x").await.unwrap();
    for name in ["d", "e"] {
        rig.drive.create_folder(&root, name, &Tags::new()).await.unwrap();
    }
    let page = rig.drive.list_page(&root, "").await.unwrap();
    assert_eq!(page.items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["d", "e"]);
    let mut names = names_in_mount(&rig).await.unwrap();
    names.sort();
    assert_eq!(names, [".", "..", "d", "e", "f"]);
    rig.drive.find_folder(&root, "e").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_listing_ends_with_an_error() {
    let rig = Rig::with(|quirks| {
        quirks.endless_list = true;
        quirks.list_page_max = 1;
    })
    .await;
    let root = FileId::root();
    let folder = rig.drive.create_folder(&root, "d", &Tags::new()).await.unwrap().file_id;
    for name in ["e", "f", "g"] {
        rig.drive.create_folder(&root, name, &Tags::new()).await.unwrap();
    }
    let found = in_time("find_folder", rig.drive.find_folder(&root, "missing")).await.unwrap_err();
    let listed = in_time("readdir", names_in_mount(&rig)).await.unwrap_err();
    for error in [found, listed] {
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.to_string().contains("marker"), "{error}");
    }
    // An empty directory whose listing does not end is not known to be empty.
    let vfs = rig.vfs();
    assert_eq!(rig.drive.get(&folder).await.unwrap().name, "d");
    let removed = in_time("rmdir", vfs.rmdir(Ino::ROOT, OsStr::new("d"))).await.unwrap_err();
    assert_eq!(removed.kind(), ErrorKind::Protocol);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_overwrite_of_equal_size_fails() {
    for no_hashes in [true, false] {
        let rig = Rig::with(|quirks| quirks.no_hashes = no_hashes).await;
        let (old, new) = (bytes(1, 1000), bytes(2, 1000));
        let file = rig.upload(None, &old).await.unwrap().file_id;
        rig.drive.list_page(&FileId::root(), "").await.unwrap();
        // The request is not executed and has no answer.
        rig.fault(FaultRule::new("file/complete", FaultAction::Reset));
        let error = rig.upload(Some(&file), &new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert_eq!(rig.content(&file).await, old);
        // It is executed and has no answer.
        rig.server.faults().clear();
        rig.fault(FaultRule::times("file/complete", 1, FaultAction::CloseAfter));
        let meta = rig.upload(Some(&file), &new).await.unwrap();
        assert_eq!((meta.file_id, rig.content(&file).await), (file, new));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_new_file_without_hash_is_found() {
    let rig = Rig::with(|quirks| quirks.no_hashes = true).await;
    rig.fault(FaultRule::times("file/complete", 1, FaultAction::CloseAfter));
    let meta = rig.upload(None, b"new").await.unwrap();
    assert_eq!(rig.content(&meta.file_id).await, b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_overwrite_is_not_an_instant_upload() {
    let rig = Rig::with(|quirks| {
        quirks.no_hashes = true;
        quirks.refuse_overwrite = true;
    })
    .await;
    let (old, new) = (bytes(1, 1000), bytes(2, 1000));
    let file = rig.upload(None, &old).await.unwrap().file_id;
    for content in [None, Some((1000, sha1(&new)))] {
        let request = NewFile { overwrite: Some(&file), content, ..new_file() };
        let error = rig.drive.create_file(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    }
    assert_eq!(rig.content(&file).await, old);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_two_revisions_are_not_mixed() {
    for no_hashes in [false, true] {
        let rig = Rig::with(|quirks| {
            quirks.unversioned_urls = true;
            quirks.no_hashes = no_hashes;
        })
        .await;
        let (old, new) = (bytes(1, 2 * MIB), bytes(2, 2 * MIB));
        let meta = rig.upload(None, &old).await.unwrap();
        let reader = Reader::new(rig.drive.clone(), 64 << 20);
        let (target, cursor) = (ReadTarget::of(&meta), reader.cursor());
        assert_eq!(reader.read(&target, &cursor, 0, 1000).await.unwrap(), old[..1000]);
        let changed = rig.upload(Some(&meta.file_id), &new).await.unwrap();
        let end = 2 * MIB as u64 - 1000;
        let error = reader.read(&target, &cursor, end, 1000).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
        reader.forget(&meta.file_id);
        let read = reader.read(&ReadTarget::of(&changed), &reader.cursor(), end, 1000).await.unwrap();
        assert_eq!(read, new[end as usize..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_range_costs_one_download() {
    let rig = Rig::with(|quirks| quirks.ignore_range = true).await;
    let content = bytes(1, 24 * MIB);
    let meta = rig.upload(None, &content).await.unwrap();
    // Larger and smaller than the file.
    for cache_bytes in [64 << 20, 4 << 20] {
        let before = rig.server.stats();
        let reader = Reader::new(rig.drive.clone(), cache_bytes);
        let (target, cursor) = (ReadTarget::of(&meta), reader.cursor());
        for offset in (0..content.len()).step_by(128 << 10) {
            let read = reader.read(&target, &cursor, offset as u64, 128 << 10).await.unwrap();
            assert!(read == content[offset..content.len().min(offset + (128 << 10))], "offset {offset}");
        }
        let after = rig.server.stats();
        assert_eq!(after.count("get_object") - before.count("get_object"), 1, "cache of {cache_bytes}");
        assert_eq!(after.sent_bytes - before.sent_bytes, content.len() as u64, "cache of {cache_bytes}");
    }
}

/// A reader of one file on a store that ignores `Range`.
struct WholeReader {
    rig: Rig,
    reader: Arc<Reader>,
    target: ReadTarget,
    content: Vec<u8>,
    downloads_before: u64,
}

impl WholeReader {
    async fn new(size: usize, cache_bytes: u64) -> Self {
        let rig = Rig::with(|quirks| quirks.ignore_range = true).await;
        let content = bytes(1, size);
        let target = ReadTarget::of(&rig.upload(None, &content).await.unwrap());
        let reader = Reader::new(rig.drive.clone(), cache_bytes);
        let downloads_before = rig.server.stats().count("get_object");
        Self { rig, reader, target, content, downloads_before }
    }

    /// Reads a range in the order and size of a program that copies.
    async fn read(&self, cursor: &ReadCursor, range: std::ops::Range<usize>) {
        for offset in range.clone().step_by(128 << 10) {
            let end = range.end.min(offset + (128 << 10));
            let read = self.reader.read(&self.target, cursor, offset as u64, (end - offset) as u64);
            assert!(read.await.unwrap() == self.content[offset..end], "offset {offset}");
        }
    }

    /// Requests that the store has answered or is answering.
    async fn downloads(self) -> u64 {
        let Self { rig, reader, downloads_before, .. } = self;
        drop(reader);
        let server = rig.server;
        let count = server.stats().count("get_object");
        server.shutdown().await;
        count - downloads_before
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_a_whole_download() {
    let whole = WholeReader::new(16 * MIB, 64 << 20).await;
    let cursors = [whole.reader.cursor(), whole.reader.cursor(), whole.reader.cursor()];
    let range = 0..16 * MIB;
    tokio::join!(
        whole.read(&cursors[0], range.clone()),
        whole.read(&cursors[1], range.clone()),
        whole.read(&cursors[2], range)
    );
    assert_eq!(whole.downloads().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn seek_back_costs_one_more_download() {
    let whole = WholeReader::new(16 * MIB, 2 << 20).await;
    let cursor = whole.reader.cursor();
    whole.read(&cursor, 0..MIB).await;
    // As a player that looks for the index at the end of the file.
    whole.read(&cursor, 15 * MIB..16 * MIB).await;
    whole.read(&cursor, MIB..16 * MIB).await;
    assert_eq!(whole.downloads().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_apart_have_a_download_each() {
    // The cache has room for the read-ahead of both and for the bytes that the other one reads in between.
    let whole = WholeReader::new(24 * MIB, 6 << 20).await;
    let cursors = [whole.reader.cursor(), whole.reader.cursor()];
    for step in 0..8 {
        for (cursor, start) in cursors.iter().zip([0, 12]) {
            whole.read(cursor, (start + step) * MIB..(start + step + 1) * MIB).await;
        }
    }
    assert_eq!(whole.downloads().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_read_continues_the_download() {
    let whole = WholeReader::new(16 * MIB, 64 << 20).await;
    let cursor = whole.reader.cursor();
    whole.rig.server.faults().add(FaultRule::new("get_object", FaultAction::Stall));
    for offset in [0, 8 << 20, 4 << 20] {
        let read = whole.reader.read(&whole.target, &cursor, offset, 1000);
        tokio::time::timeout(Duration::ZERO, read).await.expect_err("it did not wait");
    }
    whole.rig.server.faults().clear();
    whole.read(&cursor, 0..16 * MIB).await;
    assert_eq!(whole.downloads().await, 1);
}
