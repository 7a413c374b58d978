//! Reads of committed content from the drive.
//!
//! One [`Reader`] serves all files of a mount. A read takes its blocks from the cache or from requests in
//! flight, and requests the missing ones. The read-ahead of each handle is decided by its [`ReadCursor`]. A
//! read returns bytes of one revision: if the content was overwritten, the read fails.
//!
//! Assumes that the transport retries, and that it checks that an answer has the requested range. This module
//! retries only an expired URL.
//!
//! * `target`: the key of a content
//! * `window`: which ranges to request (pure)
//! * `cache`: the block cache
//! * `flight`: one request, many waiters
//! * `blocks`: combines the three
//! * `urls`: the cache of download URLs
//! * `open_bodies`: answers of stores that ignore `Range`
//! * `seen_objects`: whether all ranges come from one object

mod blocks;
mod cache;
mod flight;
mod open_bodies;
mod seen_objects;
mod target;
mod urls;
mod window;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use blocks::ReadCursor;
pub use target::ReadTarget;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::drive::{
    CallPriority, DOWNLOAD_URL_LIFETIME_MAX, DownloadUrl, Drive, FileMeta, RangeError, RangeRequest,
};
use blocks::Blocks;
use open_bodies::{Admission, OpenBodies, QueuedRun};
use seen_objects::SeenObjects;
use urls::{LiveUrl, UrlCache};

/// Requested lifetime of a download URL.
const URL_LIFETIME: Duration = Duration::from_secs(3600);

/// How many expired URLs one read accepts before it fails.
const EXPIRED_MAX: u32 = 3;

/// Reads committed content. One per mount.
#[derive(Debug)]
pub struct Reader {
    drive: Drive,
    blocks: Arc<Blocks>,
    urls: Arc<UrlCache>,
    bodies: Arc<OpenBodies>,
    objects: SeenObjects,
}

impl Reader {
    /// A reader with a cache of `cache_bytes_max`. Requests in flight come on top, with a fixed bound.
    pub fn new(drive: Drive, cache_bytes_max: u64) -> Arc<Self> {
        let (blocks, urls) = (Blocks::new(cache_bytes_max), UrlCache::new());
        Arc::new(Self { drive, blocks, urls, bodies: OpenBodies::new(), objects: SeenObjects::new() })
    }

    /// The read position of a new handle.
    pub fn cursor(&self) -> ReadCursor {
        self.blocks.cursor()
    }

    /// Reads bytes `offset..offset + len` of `target`, fewer only at the end of the file. Cancel-safe:
    /// requests in flight still fill the cache.
    pub async fn read(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        offset: u64,
        len: u64,
    ) -> Result<Bytes> {
        let fetch = |run: Range<u64>, priority| {
            let (reader, target) = (self.clone(), target.clone());
            // Read-ahead has its permit. It takes its place now, before the next read of the program, which may be
            // far behind it. A read that waits for a permit must not hold up runs that have one.
            let is_ahead = priority == CallPriority::ReadAhead;
            let queued = is_ahead.then(|| self.bodies.enqueue(&target, run.start)).flatten();
            async move { reader.fetch(&target, run, queued, priority).await }
        };
        self.blocks.read(target, cursor, offset, len, fetch).await
    }

    /// Keeps a URL that a listing contained, for the first read of the file.
    pub fn offer_url(&self, meta: &FileMeta, url: DownloadUrl) {
        if meta.size > 0 {
            self.urls.offer(ReadTarget::of(meta), url);
        }
    }

    /// Drops the URLs of a file whose content has changed. Its blocks stay: their key is the content.
    pub fn forget(&self, file_id: &FileId) {
        self.urls.forget(file_id);
        self.bodies.forget(file_id);
    }

    /// Drops the cached bytes of a content: they were found to be wrong.
    pub fn drop_blocks(&self, target: &ReadTarget) {
        self.blocks.drop_content(target);
    }

    /// Keeps the content of a file readable after its deletion, until [`Self::unpin`] or the longest lifetime
    /// of a URL. A presigned URL stays valid when its file goes to the recycle bin.
    pub async fn pin(&self, target: &ReadTarget) -> Result<()> {
        let (requested_at, revision) = (Instant::now(), target.revision.as_ref());
        let (file, priority) = (&target.file_id, CallPriority::Lookup);
        let answer = self.drive.download_url(file, revision, DOWNLOAD_URL_LIFETIME_MAX, priority).await;
        self.urls.pin(target, Arc::new(LiveUrl::new(check_url(target, answer)?, requested_at)));
        Ok(())
    }

    /// Drops the URL of pinned content.
    pub fn unpin(&self, target: &ReadTarget) {
        self.urls.unpin(target);
    }

    async fn fetch(
        self: &Arc<Self>,
        target: &ReadTarget,
        run: Range<u64>,
        queued: Option<QueuedRun>,
        priority: CallPriority,
    ) -> Result<Bytes> {
        let admission = self.bodies.admit(target, &run, queued, || self.blocks.cached(target, &run)).await;
        let turn = match admission {
            Admission::Fetch(turn) => turn,
            Admission::Cached(bytes) => return Ok(bytes),
        };
        let request_url = || {
            let (drive, target) = (self.drive.clone(), target.clone());
            async move {
                let revision = target.revision.as_ref();
                let answer = drive.download_url(&target.file_id, revision, URL_LIFETIME, priority).await;
                check_url(&target, answer)
            }
        };
        let get = |live: Arc<LiveUrl>| {
            let (run, turn) = (&run, &turn);
            async move {
                let request = RangeRequest {
                    url: &live.url.url,
                    range: run.clone(),
                    check: &|info| self.objects.check(target, info),
                    body: &turn.body,
                    skipped: &|at, bytes| self.blocks.insert_skipped(target, run, at, bytes),
                };
                self.drive.read_range(&request).await
            }
        };
        let answer = fetch_range(&self.urls, target, request_url, get).await;
        match &answer {
            Ok(answer) => self.bodies.note_answer(answer.ignored_range),
            Err(_) => self.bodies.note_failure(),
        }
        answer.map(|answer| answer.bytes)
    }
}

/// Checks that a download URL is for the content of `target`.
fn check_url(target: &ReadTarget, answer: Result<DownloadUrl>) -> Result<DownloadUrl> {
    let stale = |detail: String| Err(Error::new(ErrorKind::Stale, detail));
    let url = match answer {
        Ok(url) => url,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return stale(format!("the opened revision is no longer on the drive: {error}"));
        }
        Err(error) => return Err(error),
    };
    let same_revision = match (&target.revision, &url.revision) {
        (Some(wanted), Some(offered)) if wanted != offered => {
            return stale(format!(
                "the file was overwritten on the drive: it has revision {offered} instead of {wanted}"
            ));
        }
        (Some(_), Some(_)) => true,
        _ => false,
    };
    match url.size {
        Some(size) if size != target.size && same_revision => {
            let detail =
                format!("the drive now reports {size} bytes for a revision that had {}", target.size);
            Err(Error::new(ErrorKind::Integrity, detail))
        }
        Some(size) if size != target.size => stale(format!(
            "the file was overwritten on the drive: it has {size} bytes instead of {}",
            target.size
        )),
        _ => Ok(url),
    }
}

/// Gets one range. Renews the URL if the store reports that it has expired.
async fn fetch_range<Request, Get, T>(
    urls: &Arc<UrlCache>,
    target: &ReadTarget,
    request_url: impl Fn() -> Request,
    get: impl Fn(Arc<LiveUrl>) -> Get,
) -> Result<T>
where
    Request: Future<Output = Result<DownloadUrl>> + Send + 'static,
    Get: Future<Output = std::result::Result<T, RangeError>>,
{
    for _ in 0..EXPIRED_MAX {
        let live = urls.get(target, &request_url).await?;
        match get(live.clone()).await {
            Ok(answer) => return Ok(answer),
            // The URL of a listing may be for another use, or shorter-lived than documented.
            Err(RangeError::Failed(error)) if live.is_listed && error.kind() == ErrorKind::Denied => {
                urls.discard(target, &live);
            }
            Err(RangeError::Failed(error)) => return Err(error),
            Err(RangeError::Expired) => urls.discard(target, &live),
        }
    }
    let detail = format!("{EXPIRED_MAX} download URLs in a row were expired; check the system clock");
    Err(Error::new(ErrorKind::Protocol, detail))
}

#[cfg(test)]
mod tests;
