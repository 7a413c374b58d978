//! Keeps the machine from sleeping and shutting down while files are unsaved: an inhibitor lock of logind.
//!
//! A lock is a file descriptor. logind releases it when the last copy is closed, so a dead process holds
//! none. The reason of a lock cannot change: a lock with the new reason is taken before the old one is
//! closed. The mode `block` is tried first; where it is not allowed (a service, a remote session), `delay` is
//! used. If logind exits, its end of the lock closes, and a lock is requested from the next logind.

use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;
use zbus::Connection;

use super::bus::{self, DbusObject};

const LOGIND: DbusObject = DbusObject {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const WHAT: &str = "shutdown:sleep";
const WHO: &str = "pdsfs";
/// In the order of attempts.
const MODES: [&str; 2] = ["block", "delay"];

/// Intervals between calls.
#[derive(Clone, Copy, Debug)]
struct Intervals {
    /// Between updates of the reason.
    renew: Duration,
    /// Before the next attempt after a failure. It doubles with each further failure.
    retry: Duration,
    /// Limit of `retry`.
    retry_max: Duration,
}

const INTERVALS: Intervals = Intervals {
    renew: Duration::from_secs(10),
    retry: Duration::from_secs(2),
    retry_max: Duration::from_secs(300),
};

#[derive(Debug)]
struct InhibitorLock {
    fd: AsyncFd<std::os::fd::OwnedFd>,
    why: String,
    renew_at: Instant,
}

/// Holds a lock while there is a reason. Returns when the sender is dropped.
pub async fn hold_while_needed(reason: watch::Receiver<Option<String>>) {
    hold_with(INTERVALS, || Box::pin(bus::connect(Connection::system())), reason).await;
}

async fn hold_with<C>(
    intervals: Intervals,
    connect: impl Fn() -> C,
    mut reason: watch::Receiver<Option<String>>,
) where
    C: Future<Output = Option<Connection>>,
{
    let mut logind = LogindClient {
        intervals,
        connect,
        connection: None,
        retry_pause: intervals.retry,
        retry_at: Instant::now(),
        has_logged: false,
    };
    let mut lock: Option<InhibitorLock> = None;
    loop {
        let why = reason.borrow_and_update().clone();
        let due_at = match (&lock, &why) {
            (_, None) => {
                lock = None;
                None
            }
            (Some(held), Some(why)) if held.why == *why => None,
            (Some(held), Some(_)) => Some(held.renew_at.max(logind.retry_at)),
            (None, Some(_)) => Some(logind.retry_at),
        };
        if let (Some(why), Some(due_at)) = (why, due_at)
            && due_at <= Instant::now()
        {
            // A reason that disappears cancels the call. The old lock is closed after the new one is taken.
            tokio::select! {
                new = logind.take_lock(why) => lock = new.or(lock),
                () = reason_ended(reason.clone()) => if reason.has_changed().is_err() {
                    return;
                },
            }
            continue;
        }
        tokio::select! {
            changed = reason.changed() => if changed.is_err() {
                return;
            },
            () = lock_lost(lock.as_ref()) => {
                lock = None;
                logind.schedule_retry();
            }
            () = tokio::time::sleep_until(due_at.unwrap_or_else(Instant::now)), if due_at.is_some() => {}
        }
    }
}

/// Returns when there is no reason, or the sender is dropped.
async fn reason_ended(mut reason: watch::Receiver<Option<String>>) {
    reason.wait_for(Option::is_none).await.ok();
}

/// Returns when logind has closed its end of the lock.
async fn lock_lost(lock: Option<&InhibitorLock>) {
    let lost = match lock {
        Some(lock) => lock.fd.ready(Interest::ERROR).await.is_ok(),
        None => false,
    };
    if !lost {
        std::future::pending::<()>().await;
    }
}

/// The connection to logind, and the time of the next attempt.
struct LogindClient<F> {
    intervals: Intervals,
    connect: F,
    connection: Option<Connection>,
    retry_pause: Duration,
    retry_at: Instant,
    has_logged: bool,
}

impl<C: Future<Output = Option<Connection>>, F: Fn() -> C> LogindClient<F> {
    /// Takes a lock. After a failure it returns `None` and schedules the next attempt.
    async fn take_lock(&mut self, why: String) -> Option<InhibitorLock> {
        if self.connection.is_none() {
            self.connection = (self.connect)().await;
        }
        let answer = match &self.connection {
            Some(connection) => inhibit(connection, &why).await,
            None => Err("no system bus".to_owned()),
        };
        match answer {
            Ok(fd) => {
                self.retry_pause = self.intervals.retry;
                Some(InhibitorLock { fd, why, renew_at: Instant::now() + self.intervals.renew })
            }
            Err(refused) => {
                if !std::mem::replace(&mut self.has_logged, true) {
                    tracing::debug!("the machine may sleep while files are unsaved: {refused}");
                }
                self.schedule_retry();
                None
            }
        }
    }

    /// Drops the connection: logind or the bus may have been restarted.
    fn schedule_retry(&mut self) {
        self.connection = None;
        self.retry_at = Instant::now() + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(self.intervals.retry_max);
    }
}

async fn inhibit(connection: &Connection, why: &str) -> Result<AsyncFd<std::os::fd::OwnedFd>, String> {
    let mut refused = String::new();
    for mode in MODES {
        match LOGIND.call(connection, "Inhibit", &(WHAT, WHO, why, mode)).await {
            Ok(answer) => {
                let fd = answer.body().deserialize::<zbus::OwnedFd>().map_err(|e| e.to_string())?;
                // SAFETY: an owned descriptor stays open, and the same, while it is owned.
                let watched = unsafe { AsyncFd::register_with_interest(fd.into(), Interest::ERROR) };
                return watched.map_err(|e| e.to_string());
            }
            Err(e) => refused = e,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::bus::tests::{connection_pair, next_call};
    use std::io::Read;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use zbus::OwnedFd;

    /// The arguments `what`, `who`, `why` and `mode`.
    type InhibitCall = (String, String, String, String);
    /// logind's end of a lock: a pipe whose other end is the lock.
    type LockEnd = std::io::PipeReader;

    /// A fake logind at the other end of a socket pair, and the calls that it gets.
    async fn logind(allow_block: bool) -> (Connection, UnboundedReceiver<(InhibitCall, Option<LockEnd>)>) {
        let (server, client) = connection_pair().await;
        let (sender, calls) = unbounded_channel();
        tokio::spawn(serve(server, allow_block, sender));
        (client, calls)
    }

    async fn serve(
        connection: Connection,
        allow_block: bool,
        sender: UnboundedSender<(InhibitCall, Option<LockEnd>)>,
    ) {
        let mut calls = zbus::MessageStream::from(&connection);
        while let Some(call) = next_call(&mut calls, &LOGIND, "Inhibit").await {
            let header = call.header();
            let arguments: InhibitCall = call.body().deserialize().unwrap();
            if arguments.3 == "block" && !allow_block {
                connection
                    .reply_error(&header, "org.freedesktop.DBus.Error.AccessDenied", &"no")
                    .await
                    .unwrap();
                sender.send((arguments, None)).unwrap();
                continue;
            }
            let (reader, writer) = std::io::pipe().unwrap();
            let lock = OwnedFd::from(std::os::fd::OwnedFd::from(writer));
            connection.reply(&header, &lock).await.unwrap();
            drop(lock);
            sender.send((arguments, Some(reader))).unwrap();
        }
    }

    /// Returns when the lock is released.
    async fn released(mut lock: LockEnd) {
        tokio::task::spawn_blocking(move || lock.read_to_end(&mut Vec::new()).unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn lock_is_held_while_there_is_a_reason() {
        let (client, mut calls) = logind(true).await;
        let (reasons, reason) = watch::channel(None);
        let holding = tokio::spawn(hold_with(
            INTERVALS,
            move || {
                let client = client.clone();
                async move { Some(client) }
            },
            reason,
        ));
        for text in ["3 uploads, 1.2 GB left", "1 upload, 5 B left"] {
            reasons.send_replace(Some(text.to_owned()));
            let (call, lock) = calls.recv().await.unwrap();
            assert_eq!(call, (WHAT.into(), WHO.into(), text.into(), "block".into()));
            reasons.send_replace(None);
            released(lock.unwrap()).await;
        }
        reasons.send_replace(Some("again".to_owned()));
        let (_, lock) = calls.recv().await.unwrap();
        drop(reasons);
        released(lock.unwrap()).await;
        holding.await.unwrap();
        assert!(calls.recv().await.is_none(), "one call too many");
    }

    #[tokio::test]
    async fn new_reason_takes_a_new_lock_after_the_interval() {
        let (client, mut calls) = logind(true).await;
        let (reasons, reason) = watch::channel(Some("one".to_owned()));
        let intervals = Intervals { renew: Duration::from_millis(200), ..INTERVALS };
        let connect = move || std::future::ready(Some(client.clone()));
        let holding = tokio::spawn(hold_with(intervals, connect, reason));
        let (_, first) = calls.recv().await.unwrap();
        let taken_at = Instant::now();
        let mut call = None;
        for n in 0.. {
            reasons.send_replace(Some(format!("{n} left")));
            if let Ok(calls) = tokio::time::timeout(Duration::from_millis(5), calls.recv()).await {
                call = calls;
                break;
            }
        }
        let (call, second) = call.unwrap();
        assert!(taken_at.elapsed() >= intervals.renew / 2, "renewed after {:?}", taken_at.elapsed());
        assert!(call.2.ends_with(" left"), "{call:?}");
        released(first.unwrap()).await;
        reasons.send_replace(None);
        released(second.unwrap()).await;
        drop(reasons);
        holding.await.unwrap();
    }

    #[tokio::test]
    async fn delay_is_used_where_block_is_refused() {
        let (client, mut calls) = logind(false).await;
        let lock = inhibit(&client, "why").await.unwrap();
        let (call, refused) = calls.recv().await.unwrap();
        assert!(call.3 == "block" && refused.is_none());
        let (call, granted) = calls.recv().await.unwrap();
        assert_eq!(call.3, "delay");
        drop(lock);
        released(granted.unwrap()).await;
    }

    #[tokio::test]
    async fn restarted_logind_is_asked_again() {
        let (connect_tx, mut connects) = unbounded_channel();
        let (reasons, reason) = watch::channel(Some("why".to_owned()));
        let connect = move || {
            let (sender, calls) = tokio::sync::oneshot::channel();
            connect_tx.send(sender).unwrap();
            async move { calls.await.ok() }
        };
        let intervals = Intervals { retry: Duration::from_millis(1), ..INTERVALS };
        let holding = tokio::spawn(hold_with(intervals, connect, reason));
        for _ in 0..2 {
            let (client, mut calls) = logind(true).await;
            connects.recv().await.unwrap().send(client).unwrap();
            let (call, lock) = calls.recv().await.unwrap();
            assert_eq!(call.2, "why");
            // This logind exits, and its locks with it.
            drop((calls, lock));
        }
        let _unanswered = connects.recv().await.unwrap();
        // A pending connection does not delay the end of the reason.
        reasons.send_replace(None);
        drop(reasons);
        holding.await.unwrap();
    }

    #[tokio::test]
    async fn old_lock_is_kept_if_no_new_one_is_granted() {
        let (server, client) = connection_pair().await;
        let (sender, mut calls) = unbounded_channel();
        let serving = tokio::spawn(serve(server, true, sender));
        let (reasons, reason) = watch::channel(Some("one".to_owned()));
        let first = parking_lot::Mutex::new(Some(client));
        let (tried, mut tries) = unbounded_channel();
        let connect = move || {
            tried.send(()).unwrap();
            std::future::ready(first.lock().take())
        };
        let intervals =
            Intervals { renew: Duration::from_millis(1), retry: Duration::from_millis(1), ..INTERVALS };
        let holding = tokio::spawn(hold_with(intervals, connect, reason));
        let (_, lock) = calls.recv().await.unwrap();
        let mut lock = lock.unwrap();
        // The bus goes away, and the next one refuses connections.
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        reasons.send_replace(Some("two".to_owned()));
        for _ in 0..3 {
            tries.recv().await.unwrap();
        }
        set_nonblocking(&lock);
        let kind = lock.read(&mut [0]).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::WouldBlock, "the lock was released");
        drop(reasons);
        holding.await.unwrap();
    }

    fn set_nonblocking(lock: &LockEnd) {
        rustix::fs::fcntl_setfl(lock, rustix::fs::OFlags::NONBLOCK).unwrap();
    }

    #[tokio::test]
    async fn missing_logind_is_retried_with_growing_pauses() {
        let (tried, mut tries) = unbounded_channel();
        let (reasons, reason) = watch::channel(Some("why".to_owned()));
        let connect = move || {
            tried.send(Instant::now()).unwrap();
            async { None }
        };
        let intervals = Intervals { retry: Duration::from_millis(100), ..INTERVALS };
        let holding = tokio::spawn(hold_with(intervals, connect.clone(), reason.clone()));
        let first = tries.recv().await.unwrap();
        let second = tries.recv().await.unwrap();
        assert!(second - first >= intervals.retry);
        assert!(tries.recv().await.unwrap() - second >= intervals.retry * 2, "the pause did not grow");
        // This one waits for its next attempt when the sender is dropped.
        let pausing = tokio::spawn(hold_with(INTERVALS, connect, reason));
        drop(reasons);
        holding.await.unwrap();
        pausing.await.unwrap();
    }
}
