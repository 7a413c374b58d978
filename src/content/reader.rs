//! Bytes of committed content, from the drive.
//!
//! A [`Reader`] serves all files of a mount. A read finds its blocks in the cache or on their way,
//! asks for the missing ones, and returns when its own bytes are there; how far ahead to ask is
//! decided per handle ([`ReadCursor`]). What is read is one revision: content that was overwritten
//! meanwhile is an error, never a mixture.
//!
//! May assume: nothing is retried below this file's callers but by the transport, which also checks
//! that an answer is the range that was asked for. This file retries one thing, an address that
//! has expired.
//!
//! * `window`: what to ask for (pure)
//! * `cache`: what is kept
//! * `flight`: one request, many waiters
//! * `blocks`: puts the three together
//! * `urls`: where to ask

mod blocks;
mod cache;
mod flight;
mod urls;
mod window;

use std::future::Future;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use blocks::ReadCursor;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::drive::{DOWNLOAD_URL_LIFETIME_MAX, DownloadUrl, Drive, RangeError};
use blocks::Blocks;
use urls::{LiveUrl, UrlCache};

/// Lifetime asked for an address.
const URL_LIFETIME: Duration = Duration::from_secs(3600);

/// How often one request may be told that its address has expired.
const EXPIRED_MAX: u32 = 3;

/// One committed content of one file. Two targets are the same bytes exactly when they are equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadTarget {
    /// The file.
    pub file_id: FileId,
    /// Its content. Without one, hash and size have to tell contents apart.
    pub revision: Option<RevisionId>,
    /// Bytes.
    pub size: u64,
    /// What the drive says the SHA-1 is.
    pub sha1: Option<Sha1Hash>,
}

// The identity of a file spreads well enough; a lookup need not hash the rest of it.
impl Hash for ReadTarget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file_id.hash(state);
    }
}

/// Reads committed content. One per mount.
#[derive(Debug)]
pub struct Reader {
    drive: Drive,
    blocks: Arc<Blocks>,
    urls: Arc<UrlCache>,
}

impl Reader {
    /// A reader whose cache holds at most `cache_bytes_max`; requests on their way come on top, with
    /// a fixed bound.
    pub fn new(drive: Drive, cache_bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { drive, blocks: Blocks::new(cache_bytes_max), urls: UrlCache::new() })
    }

    /// The read position of a new handle.
    pub fn cursor(&self) -> ReadCursor {
        self.blocks.cursor()
    }

    /// The bytes of `target` from `offset`: `len` of them, fewer only at the end of the file, none
    /// behind it. May be given up at any time; what is on its way still arrives in the cache.
    pub async fn read(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        offset: u64,
        len: u64,
    ) -> Result<Bytes> {
        let fetch = |run| {
            let (reader, target) = (self.clone(), target.clone());
            async move { reader.fetch(&target, run).await }
        };
        self.blocks.read(target, cursor, offset, len, fetch).await
    }

    /// Forgets the addresses of a file, whose content has changed. Blocks need no forgetting: they
    /// are kept by content.
    pub fn forget(&self, file_id: &FileId) {
        self.urls.forget(file_id);
    }

    /// Keeps a content readable whose file is about to be deleted, until [`Self::let_go`] or for as long as
    /// an address can live: signed addresses outlive the file's way to the recycle bin.
    pub async fn hold(&self, target: &ReadTarget) -> Result<()> {
        let (asked_at, revision) = (Instant::now(), target.revision.as_ref());
        let answer = self.drive.download_url(&target.file_id, revision, DOWNLOAD_URL_LIFETIME_MAX).await;
        self.urls.hold(target, Arc::new(LiveUrl::new(checked(target, answer)?, asked_at)));
        Ok(())
    }

    /// Nobody reads a held content any more.
    pub fn let_go(&self, target: &ReadTarget) {
        self.urls.let_go(target);
    }

    /// Bytes that the cache holds now.
    pub fn cached_bytes(&self) -> u64 {
        self.blocks.cached_bytes()
    }

    async fn fetch(self: &Arc<Self>, target: &ReadTarget, run: Range<u64>) -> Result<Bytes> {
        let ask = || {
            let (drive, target) = (self.drive.clone(), target.clone());
            async move {
                let revision = target.revision.as_ref();
                let answer = drive.download_url(&target.file_id, revision, URL_LIFETIME).await;
                checked(&target, answer)
            }
        };
        let get = |live: Arc<LiveUrl>| {
            let run = run.clone();
            async move { self.drive.read_range(&live.url, run).await }
        };
        fetch_range(&self.urls, target, ask, get).await
    }
}

/// Whether an address is one of the content that is wanted.
fn checked(target: &ReadTarget, answer: Result<DownloadUrl>) -> Result<DownloadUrl> {
    let stale = |detail: String| Err(Error::new(ErrorKind::Stale, detail));
    let url = match answer {
        Ok(url) => url,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return stale(format!("the content that was opened is gone: {error}"));
        }
        Err(error) => return Err(error),
    };
    let same_revision = match (&target.revision, &url.revision) {
        (Some(wanted), Some(offered)) if wanted != offered => {
            return stale(format!("the file was overwritten: {offered} is there instead of {wanted}"));
        }
        (Some(_), Some(_)) => true,
        _ => false,
    };
    match url.size {
        Some(size) if size != target.size && same_revision => {
            let detail = format!("the drive now says {size} bytes of a revision that had {}", target.size);
            Err(Error::new(ErrorKind::Integrity, detail))
        }
        Some(size) if size != target.size => {
            stale(format!("the file was overwritten: it has {size} bytes instead of {}", target.size))
        }
        // From here on the size is known, so that every answer is compared with it.
        _ => Ok(DownloadUrl { size: Some(target.size), ..url }),
    }
}

/// Gets one range, with a new address where the store says that the old one has expired.
async fn fetch_range<Ask, Get>(
    urls: &Arc<UrlCache>,
    target: &ReadTarget,
    ask: impl Fn() -> Ask,
    get: impl Fn(Arc<LiveUrl>) -> Get,
) -> Result<Bytes>
where
    Ask: Future<Output = Result<DownloadUrl>> + Send + 'static,
    Get: Future<Output = std::result::Result<Bytes, RangeError>>,
{
    for _ in 0..EXPIRED_MAX {
        let live = urls.get(target, &ask).await?;
        match get(live.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(RangeError::Failed(error)) => return Err(error),
            Err(RangeError::Expired) => urls.discard(target, &live),
        }
    }
    let detail =
        format!("{EXPIRED_MAX} download addresses in a row were refused as expired; is a clock wrong?");
    Err(Error::new(ErrorKind::Protocol, detail))
}

#[cfg(test)]
mod tests;
