//! The bound on concurrent API calls, and the order in which calls wait.
//!
//! A permit covers one attempt of a call: it is returned before the pause of a retry, and no call waits for
//! another one while it has a permit. So calls cannot wait for each other in a circle.
//!
//! * At most `calls_max` attempts run at a time. Parts and downloads are not calls and have bounds of their
//!   own.
//! * No priority has more than its share of them ([`CallPriority::share`]). The shares of the lower priorities
//!   sum to less than the whole, so calls that are stuck leave room for every higher priority. Transfers leave
//!   room for lookups.
//! * Below 4 calls at a time, the shares cannot do that. The last call is then kept for commits and tokens, if
//!   there are at least 2.
//! * The highest priority that waits goes first, and calls of one priority go in order. A priority that was
//!   passed over [`PASSED_OVER_MAX`] times in a row goes next, so every call begins at last.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many calls of higher priorities may begin while one of a lower priority could.
const PASSED_OVER_MAX: u32 = 8;

/// What a call is for. Earlier ones go first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallPriority {
    /// Begins or completes an upload, or gets a token.
    Commit,
    /// Gets URLs for the parts of an upload.
    PartUrl,
    /// A program waits for names, attributes or content.
    Lookup,
    /// No program waits yet.
    ReadAhead,
}

impl CallPriority {
    const ALL: [Self; 4] = [Self::Commit, Self::PartUrl, Self::Lookup, Self::ReadAhead];

    /// The most calls of this priority at a time, of `calls_max`.
    fn share(self, calls_max: usize) -> usize {
        let eighths = match self {
            Self::Commit => 4,
            Self::Lookup => 3,
            Self::PartUrl | Self::ReadAhead => 2,
        };
        (calls_max * eighths / 8).max(1)
    }
}

/// Bounds the calls of one service.
#[derive(Debug)]
pub(super) struct CallLimiter {
    calls_max: usize,
    /// A leaf lock.
    queues: Mutex<CallQueues>,
}

/// By [`CallPriority`].
#[derive(Debug, Default)]
struct CallQueues {
    running: [usize; 4],
    waiting: [VecDeque<oneshot::Sender<CallPermit>>; 4],
    passed_over: [u32; 4],
}

/// The right to send one attempt. Returned by its drop.
#[derive(Debug)]
pub(super) struct CallPermit {
    limiter: Arc<CallLimiter>,
    priority: CallPriority,
}

impl CallLimiter {
    pub(super) fn new(calls_max: usize) -> Arc<Self> {
        Arc::new(Self { calls_max, queues: Mutex::default() })
    }

    /// Waits for a permit. Cancel-safe.
    pub(super) async fn acquire(self: &Arc<Self>, priority: CallPriority) -> CallPermit {
        let (sender, permit) = oneshot::channel();
        self.queues.lock().waiting[priority as usize].push_back(sender);
        self.start_next();
        match permit.await {
            Ok(permit) => permit,
            // A sender leaves the queue only to send.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives permits to the calls that may begin.
    fn start_next(self: &Arc<Self>) {
        loop {
            let next = self.queues.lock().pop_next(self.calls_max);
            let Some((priority, sender)) = next else { return };
            // If the call was cancelled in this moment, the permit comes back and its drop continues.
            let _ = sender.send(CallPermit { limiter: self.clone(), priority });
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.limiter.queues.lock().running[self.priority as usize] -= 1;
        self.limiter.start_next();
    }
}

impl CallQueues {
    /// The next call that may begin, which counts as running from now on.
    fn pop_next(&mut self, calls_max: usize) -> Option<(CallPriority, oneshot::Sender<CallPermit>)> {
        for queue in &mut self.waiting {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
        }
        let running = self.running.iter().sum::<usize>();
        if running >= calls_max {
            return None;
        }
        let lower = running - self.running[CallPriority::Commit as usize];
        let keeps_last = calls_max > 1 && lower + 1 >= calls_max;
        let can_begin = |priority: &CallPriority| {
            let index = *priority as usize;
            let has_share = self.running[index] < priority.share(calls_max);
            !self.waiting[index].is_empty() && has_share && (*priority == CallPriority::Commit || !keeps_last)
        };
        let able: Vec<_> = CallPriority::ALL.into_iter().filter(can_begin).collect();
        let is_due = |priority: &&CallPriority| self.passed_over[**priority as usize] >= PASSED_OVER_MAX;
        let next = *able.iter().find(is_due).or(able.first())?;
        for lower in able.into_iter().filter(|priority| *priority as usize > next as usize) {
            self.passed_over[lower as usize] += 1;
        }
        self.passed_over[next as usize] = 0;
        let sender = self.waiting[next as usize].pop_front()?;
        self.running[next as usize] += 1;
        Some((next, sender))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use CallPriority::{Commit, Lookup, PartUrl, ReadAhead};
    use tokio::task::JoinSet;

    use super::*;

    /// Queues one call per priority, in order. Each records its priority when it begins, and ends at once.
    async fn order_of(limiter: &Arc<CallLimiter>, calls: &[CallPriority]) -> Vec<CallPriority> {
        let began = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let blocker = {
            let mut queues = limiter.queues.lock();
            std::mem::replace(&mut queues.running, [limiter.calls_max, 0, 0, 0])
        };
        for (index, &priority) in calls.iter().enumerate() {
            let (calls, began) = (limiter.clone(), began.clone());
            tasks.spawn(async move {
                let permit = calls.acquire(priority).await;
                began.lock().push(priority);
                drop(permit);
            });
            while limiter.queues.lock().waiting.iter().map(VecDeque::len).sum::<usize>() <= index {
                tokio::task::yield_now().await;
            }
        }
        limiter.queues.lock().running = blocker;
        limiter.start_next();
        tasks.join_all().await;
        std::mem::take(&mut *began.lock())
    }

    #[tokio::test]
    async fn higher_priority_goes_first() {
        let limiter = CallLimiter::new(1);
        let began = order_of(&limiter, &[ReadAhead, Lookup, PartUrl, Commit]).await;
        assert_eq!(began, [Commit, PartUrl, Lookup, ReadAhead]);
        assert_eq!(limiter.queues.lock().running, [0; 4]);
    }

    #[tokio::test]
    async fn low_priority_is_not_starved() {
        let limiter = CallLimiter::new(1);
        let calls = [vec![ReadAhead; 2], vec![Lookup; 2], vec![Commit; 40]].concat();
        let began = order_of(&limiter, &calls).await;
        let max = PASSED_OVER_MAX as usize;
        assert_eq!(began[..max], vec![Commit; max]);
        assert_eq!(began[max..max + 3], [Lookup, ReadAhead, Commit]);
        let last = began.iter().rposition(|priority| *priority != Commit).unwrap();
        assert!(last < 3 * max, "{began:?}");
    }

    #[tokio::test]
    async fn stuck_calls_leave_room_for_others() {
        let limiter = CallLimiter::new(16);
        let mut stuck = Vec::new();
        for (priority, share) in [(Lookup, 6), (ReadAhead, 4)] {
            for _ in 0..share {
                stuck.push(limiter.acquire(priority).await);
            }
            let mut more = Box::pin(limiter.acquire(priority));
            assert!(still_waits(&mut more).await, "{priority:?} has more than its share");
        }
        let mut commits = Vec::new();
        for _ in 0..4 {
            commits.push(limiter.acquire(Commit).await);
        }
        stuck.extend([limiter.acquire(PartUrl).await, limiter.acquire(PartUrl).await]);
        let mut beyond = Box::pin(limiter.acquire(Commit));
        assert!(still_waits(&mut beyond).await, "more than 16 calls at a time");
        drop(commits);
        drop(beyond.await);
    }

    #[tokio::test]
    async fn stuck_lower_priorities_leave_room_to_commit() {
        for calls_max in [2, 3, 4, 5, 8, 64] {
            // The runtime bounds what a task may poll in one go.
            tokio::task::yield_now().await;
            let (limiter, mut stuck) = (CallLimiter::new(calls_max), Vec::new());
            for priority in [PartUrl, Lookup, ReadAhead] {
                loop {
                    let mut call = Box::pin(limiter.acquire(priority));
                    match std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
                        Poll::Ready(permit) => stuck.push(permit),
                        Poll::Pending => break,
                    }
                }
            }
            let mut commit = Box::pin(limiter.acquire(Commit));
            assert!(!still_waits(&mut commit).await, "{} of {calls_max} calls are stuck", stuck.len());
        }
    }

    #[tokio::test]
    async fn cancelled_calls_return_their_permits() {
        let limiter = CallLimiter::new(2);
        let held = limiter.acquire(Lookup).await;
        let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(limiter.acquire(Lookup))).collect();
        for call in &mut waiting {
            assert!(still_waits(call).await);
        }
        drop(held);
        // The first has its permit and never sees it.
        drop(waiting);
        drop(limiter.acquire(Lookup).await);
        assert_eq!(limiter.queues.lock().running, [0; 4]);
    }

    /// Polls once; true if the future still waits.
    async fn still_waits<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
