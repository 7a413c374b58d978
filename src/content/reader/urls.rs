//! Download addresses: asked for once however many requests need one, kept until shortly before
//! they expire.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::ReadTarget;
use super::flight::{Flight, Pilot};
use crate::error::Result;
use crate::ids::FileId;
use crate::pds::drive::DownloadUrl;

/// Addresses kept. Each is about a kilobyte.
const URLS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(511);
/// An address is not used for new requests when it has less than this left, or a tenth of its
/// lifetime if that is shorter: a request takes a while to be sent.
const RENEW_MARGIN: Duration = Duration::from_secs(60);

/// An address of one content, and until when to use it.
#[derive(Debug)]
pub(super) struct LiveUrl {
    pub(super) url: DownloadUrl,
    renew_at: Instant,
}

impl LiveUrl {
    pub(super) fn new(url: DownloadUrl, asked_at: Instant) -> Self {
        let lifetime = url.expires_at.saturating_duration_since(asked_at);
        let margin = RENEW_MARGIN.min(lifetime / 10);
        let renew_at = url.expires_at.checked_sub(margin).unwrap_or(asked_at);
        Self { url, renew_at }
    }
}

#[derive(Debug)]
enum Slot {
    /// Asked for; everybody who needs it waits for the same answer.
    Asked(Arc<Flight<Arc<LiveUrl>>>),
    /// There.
    Live(Arc<LiveUrl>),
}

/// The addresses of a mount. The lock is never held across an await.
#[derive(Debug)]
pub(super) struct UrlCache {
    slots: Mutex<LruCache<ReadTarget, Slot>>,
    /// Addresses that cannot be asked for again. A leaf lock.
    held: Mutex<HashMap<ReadTarget, Arc<LiveUrl>>>,
}

impl UrlCache {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { slots: Mutex::new(LruCache::new(URLS_MAX)), held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ReadTarget, Arc<LiveUrl>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an address until it is let go, or has ended.
    pub(super) fn hold(&self, target: &ReadTarget, live: Arc<LiveUrl>) {
        let (mut held, now) = (self.held(), Instant::now());
        held.retain(|_, live| now < live.url.expires_at);
        held.insert(target.clone(), live);
    }

    /// Forgets a held address.
    pub(super) fn let_go(&self, target: &ReadTarget) {
        self.held().remove(target);
    }

    fn slots(&self) -> MutexGuard<'_, LruCache<ReadTarget, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address of `target` that will not expire at once; `ask` gets one from the drive. A failure
    /// goes to everybody who waits and is not remembered.
    pub(super) async fn get<Fut>(
        self: &Arc<Self>,
        target: &ReadTarget,
        ask: impl FnOnce() -> Fut,
    ) -> Result<Arc<LiveUrl>>
    where
        Fut: Future<Output = Result<DownloadUrl>> + Send + 'static,
    {
        if let Some(live) = self.held().get(target) {
            return Ok(live.clone());
        }
        let (flight, pilot) = {
            let mut slots = self.slots();
            match slots.get(target) {
                Some(Slot::Live(live)) if Instant::now() < live.renew_at => return Ok(live.clone()),
                Some(Slot::Asked(flight)) => (flight.clone(), None),
                _ => {
                    let (flight, pilot) = Flight::start();
                    slots.put(target.clone(), Slot::Asked(flight.clone()));
                    (flight, Some(pilot))
                }
            }
        };
        // Spawned with the lock released: a runtime that is shutting down drops a new task at once,
        // and dropping it takes the lock.
        if let Some(pilot) = pilot {
            let question = Question {
                urls: self.clone(),
                target: target.clone(),
                pilot: Some(pilot),
                asked_at: Instant::now(),
            };
            let answer = ask();
            tokio::spawn(async move { question.answered(answer.await) });
        }
        flight.outcome().await
    }

    /// Forgets `used` because the store refuses it, unless somebody has renewed it meanwhile.
    pub(super) fn discard(&self, target: &ReadTarget, used: &Arc<LiveUrl>) {
        self.let_go(target);
        let mut slots = self.slots();
        if matches!(slots.peek(target), Some(Slot::Live(live)) if Arc::ptr_eq(live, used)) {
            slots.pop(target);
        }
    }

    /// Forgets every address of a file.
    pub(super) fn forget(&self, file_id: &FileId) {
        self.slots().retain(|target, _| target.file_id != *file_id);
    }
}

/// A question to the drive under way. Dropped without an answer, it takes its slot back, so that
/// the next one who needs the address asks again.
struct Question {
    urls: Arc<UrlCache>,
    target: ReadTarget,
    pilot: Option<Pilot<Arc<LiveUrl>>>,
    asked_at: Instant,
}

impl Question {
    fn answered(mut self, answer: Result<DownloadUrl>) {
        let outcome = answer.map(|url| Arc::new(LiveUrl::new(url, self.asked_at)));
        self.finish(Some(outcome));
    }

    fn finish(&mut self, outcome: Option<Result<Arc<LiveUrl>>>) {
        let Some(pilot) = self.pilot.take() else { return };
        {
            let mut slots = self.urls.slots();
            // Forgotten or pushed out meanwhile: then the answer is for those who wait only.
            if matches!(slots.peek(&self.target), Some(Slot::Asked(flight)) if pilot.flies(flight)) {
                match &outcome {
                    Some(Ok(live)) => {
                        slots.put(self.target.clone(), Slot::Live(live.clone()));
                    }
                    Some(Err(_)) | None => {
                        slots.pop(&self.target);
                    }
                }
            }
        }
        if let Some(outcome) = outcome {
            pilot.land(outcome);
        }
    }
}

impl Drop for Question {
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

    /// A drive that counts how often it is asked.
    #[derive(Clone, Default)]
    struct Asked(Arc<AtomicU32>);

    impl Asked {
        fn times(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        async fn answer(self, lifetime: Duration) -> Result<DownloadUrl> {
            self.0.fetch_add(1, Ordering::SeqCst);
            // Lets everybody else get as far as waiting.
            tokio::task::yield_now().await;
            let (url, expires_at) = (Secret::new("http://127.0.0.1/".to_owned()), Instant::now() + lifetime);
            Ok(DownloadUrl { url, expires_at, revision: None, size: None })
        }
    }

    const LONG: Duration = Duration::from_secs(900);

    #[tokio::test]
    async fn many_who_need_an_address_ask_once() {
        let (urls, asked, file) = (UrlCache::new(), Asked::default(), target("a", 1));
        let get = || urls.get(&file, || asked.clone().answer(LONG));
        let (a, b, c) = tokio::join!(get(), get(), get());
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&b, &c));
        assert!(Arc::ptr_eq(&a, &get().await.unwrap()));
        assert_eq!(asked.times(), 1);
    }

    #[tokio::test]
    async fn an_address_that_ends_soon_is_renewed() {
        let (urls, asked, file) = (UrlCache::new(), Asked::default(), target("a", 1));
        for times in 1..=3 {
            urls.get(&file, || asked.clone().answer(Duration::ZERO)).await.unwrap();
            assert_eq!(asked.times(), times);
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
    async fn a_failure_reaches_all_and_is_not_remembered() {
        let (urls, asked, file) = (UrlCache::new(), Asked::default(), target("a", 1));
        let fail = || async {
            tokio::task::yield_now().await;
            Err(Error::new(ErrorKind::Unreachable, "no network"))
        };
        let (a, b) = tokio::join!(urls.get(&file, fail), urls.get(&file, fail));
        assert_eq!(a.unwrap_err().kind(), ErrorKind::Unreachable);
        assert_eq!(b.unwrap_err().kind(), ErrorKind::Unreachable);
        urls.get(&file, || asked.clone().answer(LONG)).await.unwrap();
        assert_eq!(asked.times(), 1);
    }

    #[tokio::test]
    async fn only_the_refused_address_is_discarded() {
        let (urls, asked, file) = (UrlCache::new(), Asked::default(), target("a", 1));
        let get = || urls.get(&file, || asked.clone().answer(LONG));
        let first = get().await.unwrap();
        urls.discard(&file, &first);
        let second = get().await.unwrap();
        assert_eq!(asked.times(), 2);
        // Somebody whose request took longer reports the first one again.
        urls.discard(&file, &first);
        assert!(Arc::ptr_eq(&second, &get().await.unwrap()));
        urls.forget(&FileId::new("b").unwrap());
        assert!(Arc::ptr_eq(&second, &get().await.unwrap()));
        urls.forget(&file.file_id);
        get().await.unwrap();
        assert_eq!(asked.times(), 3);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_and_a_forgotten_question_do_no_harm() {
        let (urls, asked, file) = (UrlCache::new(), Asked::default(), target("a", 1));
        let ask = || asked.clone().answer(LONG);
        {
            let mut leaves = std::pin::pin!(urls.get(&file, ask));
            assert!(still_waits(leaves.as_mut()).await);
        }
        let answer = urls.get(&file, ask).await.unwrap();
        assert_eq!(asked.times(), 1);
        urls.discard(&file, &answer);
        let mut waits = std::pin::pin!(urls.get(&file, ask));
        assert!(still_waits(waits.as_mut()).await);
        urls.forget(&file.file_id);
        waits.await.unwrap();
        urls.get(&file, ask).await.unwrap();
        assert_eq!(asked.times(), 3);
    }

    /// Polls once; true if the future is still waiting.
    async fn still_waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
