//! The cache of download URLs. One request to the drive serves all reads that need the URL; it is used until
//! shortly before it expires.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use super::flight::{Flight, FlightOwner};
use super::target::ReadTarget;
use crate::error::Result;
use crate::ids::FileId;
use crate::pds::drive::DownloadUrl;

/// Cached URLs at most. Each has about a kilobyte.
const URLS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(511);
/// URLs of listings at most. Those of the latest entries stay.
const LISTED_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// A URL is renewed this long before it expires, or after nine tenths of its lifetime if that is later: a
/// request may be sent late.
const RENEW_MARGIN: Duration = Duration::from_secs(60);

/// A download URL of one content, and the time of its renewal.
#[derive(Debug)]
pub(super) struct LiveUrl {
    pub(super) url: DownloadUrl,
    /// A listing contained it.
    pub(super) is_listed: bool,
    renew_at: Instant,
}

impl LiveUrl {
    pub(super) fn new(url: DownloadUrl, requested_at: Instant) -> Self {
        let lifetime = url.expires_at.saturating_duration_since(requested_at);
        let margin = RENEW_MARGIN.min(lifetime / 10);
        let renew_at = url.expires_at.checked_sub(margin).unwrap_or(requested_at);
        Self { url, is_listed: false, renew_at }
    }
}

#[derive(Debug)]
enum UrlEntry {
    /// The request is running; all reads wait for the same answer.
    Requested(Arc<Flight<Arc<LiveUrl>>>),
    Live(Arc<LiveUrl>),
}

/// The download URLs of a mount. Neither lock is held across an await, or while the other is held.
#[derive(Debug)]
pub(super) struct UrlCache {
    /// A leaf lock.
    entries: Mutex<LruCache<ReadTarget, UrlEntry>>,
    /// URLs of listings that no read has used yet. A leaf lock.
    listed: Mutex<LruCache<ReadTarget, Arc<LiveUrl>>>,
    /// URLs of deleted files: the drive issues no new ones. A leaf lock.
    pinned: Mutex<HashMap<ReadTarget, Arc<LiveUrl>>>,
}

impl UrlCache {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::new(LruCache::new(URLS_MAX)),
            listed: Mutex::new(LruCache::new(LISTED_MAX)),
            pinned: Mutex::default(),
        })
    }

    fn pinned(&self) -> MutexGuard<'_, HashMap<ReadTarget, Arc<LiveUrl>>> {
        self.pinned.lock()
    }

    /// Keeps a URL until [`Self::unpin`] or its expiry.
    pub(super) fn pin(&self, target: &ReadTarget, live: Arc<LiveUrl>) {
        let (mut pinned, now) = (self.pinned(), Instant::now());
        pinned.retain(|_, live| now < live.url.expires_at);
        pinned.insert(target.clone(), live);
    }

    pub(super) fn unpin(&self, target: &ReadTarget) {
        self.pinned().remove(target);
    }

    /// Keeps the URL of a listing.
    pub(super) fn offer(&self, target: ReadTarget, url: DownloadUrl) {
        let live = LiveUrl { is_listed: true, ..LiveUrl::new(url, Instant::now()) };
        self.listed.lock().put(target, Arc::new(live));
    }

    /// Takes the URL of a listing that does not expire soon.
    fn take_listed(&self, target: &ReadTarget) -> Option<Arc<LiveUrl>> {
        self.listed.lock().pop(target).filter(|live| Instant::now() < live.renew_at)
    }

    fn entries(&self) -> MutexGuard<'_, LruCache<ReadTarget, UrlEntry>> {
        self.entries.lock()
    }

    /// A URL of `target` that does not expire soon. `request_url` gets one from the drive. A failure reaches
    /// all waiters and is not cached.
    pub(super) async fn get<Fut>(
        self: &Arc<Self>,
        target: &ReadTarget,
        request_url: impl FnOnce() -> Fut,
    ) -> Result<Arc<LiveUrl>>
    where
        Fut: Future<Output = Result<DownloadUrl>> + Send + 'static,
    {
        if let Some(live) = self.pinned().get(target) {
            return Ok(live.clone());
        }
        let listed = self.take_listed(target);
        let (flight, owner) = {
            let mut entries = self.entries();
            match (entries.get(target), listed) {
                (Some(UrlEntry::Live(live)), _) if Instant::now() < live.renew_at => return Ok(live.clone()),
                (Some(UrlEntry::Requested(flight)), _) => (flight.clone(), None),
                (_, Some(live)) => {
                    entries.put(target.clone(), UrlEntry::Live(live.clone()));
                    return Ok(live);
                }
                (_, None) => {
                    let (flight, owner) = Flight::start();
                    entries.put(target.clone(), UrlEntry::Requested(flight.clone()));
                    (flight, Some(owner))
                }
            }
        };
        // Spawned without the lock: a runtime that shuts down drops a new task at once, and the drop takes
        // the lock.
        if let Some(owner) = owner {
            let request = UrlRequest {
                urls: self.clone(),
                target: target.clone(),
                owner: Some(owner),
                requested_at: Instant::now(),
            };
            let answer = request_url();
            tokio::spawn(async move { request.answered(answer.await) });
        }
        flight.outcome().await
    }

    /// Removes `used`, which the store refused, unless it was renewed since.
    pub(super) fn discard(&self, target: &ReadTarget, used: &Arc<LiveUrl>) {
        self.unpin(target);
        let mut entries = self.entries();
        if matches!(entries.peek(target), Some(UrlEntry::Live(live)) if Arc::ptr_eq(live, used)) {
            entries.pop(target);
        }
    }

    /// Removes all URLs of a file.
    pub(super) fn forget(&self, file_id: &FileId) {
        self.entries().retain(|target, _| target.file_id != *file_id);
        self.listed.lock().retain(|target, _| target.file_id != *file_id);
    }
}

/// A running request for a URL. Dropped without an answer, it removes its entry, so that the next read
/// requests the URL again.
struct UrlRequest {
    urls: Arc<UrlCache>,
    target: ReadTarget,
    owner: Option<FlightOwner<Arc<LiveUrl>>>,
    requested_at: Instant,
}

impl UrlRequest {
    fn answered(mut self, answer: Result<DownloadUrl>) {
        let outcome = answer.map(|url| Arc::new(LiveUrl::new(url, self.requested_at)));
        self.finish(Some(outcome));
    }

    fn finish(&mut self, outcome: Option<Result<Arc<LiveUrl>>>) {
        let Some(owner) = self.owner.take() else { return };
        {
            let mut entries = self.urls.entries();
            // An entry that was removed or replaced stays so: then only the waiters get the answer.
            if matches!(entries.peek(&self.target), Some(UrlEntry::Requested(flight)) if owner.owns(flight)) {
                match &outcome {
                    Some(Ok(live)) => {
                        entries.put(self.target.clone(), UrlEntry::Live(live.clone()));
                    }
                    Some(Err(_)) | None => {
                        entries.pop(&self.target);
                    }
                }
            }
        }
        if let Some(outcome) = outcome {
            owner.complete(outcome);
        }
    }
}

impl Drop for UrlRequest {
    fn drop(&mut self) {
        self.finish(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::content::reader::tests::target;
    use crate::error::{Error, ErrorKind};
    use crate::ids::Secret;

    /// A drive that counts the requests for URLs.
    #[derive(Clone, Default)]
    struct FakeDrive(Arc<AtomicU32>);

    impl FakeDrive {
        fn requests(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        async fn answer(self, lifetime: Duration) -> Result<DownloadUrl> {
            self.0.fetch_add(1, Ordering::SeqCst);
            // Lets the other tasks start to wait.
            tokio::task::yield_now().await;
            let (url, expires_at) = (Secret::new("http://127.0.0.1/".to_owned()), Instant::now() + lifetime);
            Ok(DownloadUrl { url, expires_at, revision: None, size: None })
        }
    }

    const LONG: Duration = Duration::from_secs(900);

    #[tokio::test]
    async fn concurrent_reads_share_one_url_request() {
        let (urls, drive, file) = (UrlCache::new(), FakeDrive::default(), target("a", 1));
        let get = || urls.get(&file, || drive.clone().answer(LONG));
        let (a, b, c) = tokio::join!(get(), get(), get());
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&b, &c));
        assert!(Arc::ptr_eq(&a, &get().await.unwrap()));
        assert_eq!(drive.requests(), 1);
    }

    #[tokio::test]
    async fn url_near_its_expiry_is_renewed() {
        let (urls, drive, file) = (UrlCache::new(), FakeDrive::default(), target("a", 1));
        for times in 1..=3 {
            urls.get(&file, || drive.clone().answer(Duration::ZERO)).await.unwrap();
            assert_eq!(drive.requests(), times);
        }
        let now = Instant::now();
        let until = |secs| DownloadUrl {
            url: Secret::new(String::new()),
            expires_at: now + Duration::from_secs(secs),
            revision: None,
            size: None,
        };
        assert_eq!(LiveUrl::new(until(3600), now).renew_at, now + Duration::from_secs(3540));
        assert_eq!(LiveUrl::new(until(100), now).renew_at, now + Duration::from_secs(90));
    }

    #[tokio::test]
    async fn url_failure_reaches_all_waiters_uncached() {
        let (urls, drive, file) = (UrlCache::new(), FakeDrive::default(), target("a", 1));
        let fail = || async {
            tokio::task::yield_now().await;
            Err(Error::new(ErrorKind::Unreachable, "no network"))
        };
        let (a, b) = tokio::join!(urls.get(&file, fail), urls.get(&file, fail));
        assert_eq!(a.unwrap_err().kind(), ErrorKind::Unreachable);
        assert_eq!(b.unwrap_err().kind(), ErrorKind::Unreachable);
        urls.get(&file, || drive.clone().answer(LONG)).await.unwrap();
        assert_eq!(drive.requests(), 1);
    }

    #[tokio::test]
    async fn only_the_refused_url_is_discarded() {
        let (urls, drive, file) = (UrlCache::new(), FakeDrive::default(), target("a", 1));
        let get = || urls.get(&file, || drive.clone().answer(LONG));
        let first = get().await.unwrap();
        urls.discard(&file, &first);
        let second = get().await.unwrap();
        assert_eq!(drive.requests(), 2);
        // A slower request reports the first URL again.
        urls.discard(&file, &first);
        assert!(Arc::ptr_eq(&second, &get().await.unwrap()));
        urls.forget(&FileId::new("b").unwrap());
        assert!(Arc::ptr_eq(&second, &get().await.unwrap()));
        urls.forget(&file.file_id);
        get().await.unwrap();
        assert_eq!(drive.requests(), 3);
    }

    #[tokio::test]
    async fn listed_url_is_used_until_it_is_refused() {
        let (urls, drive) = (UrlCache::new(), FakeDrive::default());
        let (file, stale) = (target("a", 1), target("b", 1));
        let until = |expires_at| {
            let url = Secret::new(String::new());
            DownloadUrl { url, expires_at, revision: None, size: None }
        };
        urls.offer(file.clone(), until(Instant::now() + LONG));
        urls.offer(stale.clone(), until(Instant::now()));
        let get = |file| urls.get(file, || drive.clone().answer(LONG));
        let listed = get(&file).await.unwrap();
        assert!(listed.is_listed && Arc::ptr_eq(&listed, &get(&file).await.unwrap()));
        assert_eq!(drive.requests(), 0);
        assert!(!get(&stale).await.unwrap().is_listed);
        urls.discard(&file, &listed);
        assert!(!get(&file).await.unwrap().is_listed);
        assert_eq!(drive.requests(), 2);
        urls.offer(target("c", 1), until(Instant::now() + LONG));
        urls.forget(&FileId::new("c").unwrap());
        assert!(!get(&target("c", 1)).await.unwrap().is_listed);
    }

    #[tokio::test]
    async fn url_request_outlives_waiter_and_entry() {
        let (urls, drive, file) = (UrlCache::new(), FakeDrive::default(), target("a", 1));
        let request_url = || drive.clone().answer(LONG);
        {
            let mut cancelled = std::pin::pin!(urls.get(&file, request_url));
            assert!(still_waits(cancelled.as_mut()).await);
        }
        let answer = urls.get(&file, request_url).await.unwrap();
        assert_eq!(drive.requests(), 1);
        urls.discard(&file, &answer);
        let mut waits = std::pin::pin!(urls.get(&file, request_url));
        assert!(still_waits(waits.as_mut()).await);
        urls.forget(&file.file_id);
        waits.await.unwrap();
        urls.get(&file, request_url).await.unwrap();
        assert_eq!(drive.requests(), 3);
    }

    /// Polls once; true if the future is still waiting.
    async fn still_waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
