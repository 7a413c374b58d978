//! The machine does not go to sleep or off while bytes are on their way: an inhibitor of logind.
//!
//! A lock is a file descriptor; logind lets go of it when the last copy is closed, so also when this
//! process dies. Its reason cannot be changed, so a lock with a new reason is taken before the old one
//! is given back. Blocking is asked for first; where that is not allowed to us (a service, a remote
//! session), a lock that delays is better than none. A logind that went takes its end of the lock with it,
//! which is seen at once, and the next one is asked.

use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;
use zbus::Connection;

use super::bus::{self, Object};

const LOGIND: Object = Object {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
const WHAT: &str = "shutdown:sleep";
const WHO: &str = "pdsfs";
/// The strongest first.
const MODES: [&str; 2] = ["block", "delay"];

/// The pauses between calls.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// How often the reason of a lock is brought up to date.
    renew: Duration,
    /// How long to do without after logind was not there; twice as long after each further try.
    retry: Duration,
    /// The longest that becomes.
    retry_max: Duration,
}

const PACE: Pace = Pace {
    renew: Duration::from_secs(10),
    retry: Duration::from_secs(2),
    retry_max: Duration::from_secs(300),
};

/// A lock that is held.
#[derive(Debug)]
struct Lock {
    fd: AsyncFd<std::os::fd::OwnedFd>,
    why: String,
    renew_at: Instant,
}

/// Holds a lock whenever there is a reason, until the sender is gone.
pub async fn keep(reason: watch::Receiver<Option<String>>) {
    keep_by(PACE, || Box::pin(bus::connect(Connection::system())), reason).await;
}

async fn keep_by<C>(pace: Pace, connect: impl Fn() -> C, mut reason: watch::Receiver<Option<String>>)
where
    C: Future<Output = Option<Connection>>,
{
    let mut asking = Asking {
        pace,
        connect,
        logind: None,
        pause: pace.retry,
        retry_at: Instant::now(),
        was_missed: false,
    };
    let mut lock: Option<Lock> = None;
    loop {
        let why = reason.borrow_and_update().clone();
        let due_at = match (&lock, &why) {
            (_, None) => {
                lock = None;
                None
            }
            (Some(held), Some(why)) if held.why == *why => None,
            (Some(held), Some(_)) => Some(held.renew_at.max(asking.retry_at)),
            (None, Some(_)) => Some(asking.retry_at),
        };
        if let (Some(why), Some(due_at)) = (why, due_at)
            && due_at <= Instant::now()
        {
            // Whoever has no reason any more waits for nothing. The old lock goes after the new one has come.
            tokio::select! {
                new = asking.ask(why) => lock = new.or(lock),
                () = is_over(reason.clone()) => if reason.has_changed().is_err() {
                    return;
                },
            }
            continue;
        }
        tokio::select! {
            changed = reason.changed() => if changed.is_err() {
                return;
            },
            () = is_lost(lock.as_ref()) => {
                lock = None;
                asking.put_off();
            }
            () = tokio::time::sleep_until(due_at.unwrap_or_else(Instant::now)), if due_at.is_some() => {}
        }
    }
}

/// Resolves when there is no reason any more, or will be none.
async fn is_over(mut reason: watch::Receiver<Option<String>>) {
    reason.wait_for(Option::is_none).await.ok();
}

/// Resolves when logind has closed its end of the lock.
async fn is_lost(lock: Option<&Lock>) {
    let lost = match lock {
        Some(lock) => lock.fd.ready(Interest::ERROR).await.is_ok(),
        None => false,
    };
    if !lost {
        std::future::pending::<()>().await;
    }
}

/// Who is asked for locks, and when it may be asked again.
struct Asking<F> {
    pace: Pace,
    connect: F,
    logind: Option<Connection>,
    pause: Duration,
    retry_at: Instant,
    was_missed: bool,
}

impl<C: Future<Output = Option<Connection>>, F: Fn() -> C> Asking<F> {
    /// A lock; `None` where there is none to be had for a while.
    async fn ask(&mut self, why: String) -> Option<Lock> {
        if self.logind.is_none() {
            self.logind = (self.connect)().await;
        }
        let answer = match &self.logind {
            Some(connection) => inhibit(connection, &why).await,
            None => Err("there is no system bus".to_owned()),
        };
        match answer {
            Ok(fd) => {
                self.pause = self.pace.retry;
                Some(Lock { fd, why, renew_at: Instant::now() + self.pace.renew })
            }
            Err(refused) => {
                if !std::mem::replace(&mut self.was_missed, true) {
                    tracing::debug!("the machine may sleep while files are being saved: {refused}");
                }
                self.put_off();
                None
            }
        }
    }

    /// Logind, or the bus to it, is not what it was.
    fn put_off(&mut self) {
        self.logind = None;
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(self.pace.retry_max);
    }
}

async fn inhibit(connection: &Connection, why: &str) -> Result<AsyncFd<std::os::fd::OwnedFd>, String> {
    let mut refused = String::new();
    for mode in MODES {
        match LOGIND.call(connection, "Inhibit", &(WHAT, WHO, why, mode)).await {
            Ok(answer) => {
                let fd = answer.body().deserialize::<zbus::OwnedFd>().map_err(|e| e.to_string())?;
                // SAFETY: an owned descriptor is the same open one for as long as it is owned.
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
    use crate::desktop::bus::tests::{line, next_call};
    use std::io::Read;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use zbus::OwnedFd;

    type Asked = (String, String, String, String);
    /// A lock as logind sees it: the end of a pipe that closes with the other one.
    type Lock = std::io::PipeReader;

    /// A logind at the other end of a socket pair.
    async fn logind(allow_block: bool) -> (Connection, UnboundedReceiver<(Asked, Option<Lock>)>) {
        let (server, client) = line().await;
        let (told, heard) = unbounded_channel();
        tokio::spawn(serve(server, allow_block, told));
        (client, heard)
    }

    async fn serve(connection: Connection, allow_block: bool, told: UnboundedSender<(Asked, Option<Lock>)>) {
        let mut calls = zbus::MessageStream::from(&connection);
        while let Some(call) = next_call(&mut calls, &LOGIND, "Inhibit").await {
            let header = call.header();
            let asked: Asked = call.body().deserialize().unwrap();
            if asked.3 == "block" && !allow_block {
                connection
                    .reply_error(&header, "org.freedesktop.DBus.Error.AccessDenied", &"no")
                    .await
                    .unwrap();
                told.send((asked, None)).unwrap();
                continue;
            }
            let (reader, writer) = std::io::pipe().unwrap();
            let lock = OwnedFd::from(std::os::fd::OwnedFd::from(writer));
            connection.reply(&header, &lock).await.unwrap();
            drop(lock);
            told.send((asked, Some(reader))).unwrap();
        }
    }

    /// Returns when the lock is given back.
    async fn released(mut lock: Lock) {
        tokio::task::spawn_blocking(move || lock.read_to_end(&mut Vec::new()).unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_is_held_for_as_long_as_there_is_a_reason() {
        let (client, mut heard) = logind(true).await;
        let (reasons, reason) = watch::channel(None);
        let kept = tokio::spawn(keep_by(
            PACE,
            move || {
                let client = client.clone();
                async move { Some(client) }
            },
            reason,
        ));
        for text in ["3 uploads, 1.2 GB left", "1 upload, 5 B left"] {
            reasons.send_replace(Some(text.to_owned()));
            let (asked, lock) = heard.recv().await.unwrap();
            assert_eq!(asked, (WHAT.into(), WHO.into(), text.into(), "block".into()));
            reasons.send_replace(None);
            released(lock.unwrap()).await;
        }
        reasons.send_replace(Some("again".to_owned()));
        let (_, lock) = heard.recv().await.unwrap();
        drop(reasons);
        released(lock.unwrap()).await;
        kept.await.unwrap();
        assert!(heard.recv().await.is_none(), "nothing else was asked");
    }

    #[tokio::test]
    async fn a_new_reason_comes_with_a_new_lock_but_not_at_once() {
        let (client, mut heard) = logind(true).await;
        let (reasons, reason) = watch::channel(Some("one".to_owned()));
        let pace = Pace { renew: Duration::from_millis(200), ..PACE };
        let connect = move || std::future::ready(Some(client.clone()));
        let kept = tokio::spawn(keep_by(pace, connect, reason));
        let (_, first) = heard.recv().await.unwrap();
        let taken_at = Instant::now();
        let mut asked = None;
        for n in 0.. {
            reasons.send_replace(Some(format!("{n} left")));
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(5), heard.recv()).await {
                asked = heard;
                break;
            }
        }
        let (asked, second) = asked.unwrap();
        assert!(taken_at.elapsed() >= pace.renew / 2, "renewed after {:?}", taken_at.elapsed());
        assert!(asked.2.ends_with(" left"), "{asked:?}");
        released(first.unwrap()).await;
        reasons.send_replace(None);
        released(second.unwrap()).await;
        drop(reasons);
        kept.await.unwrap();
    }

    #[tokio::test]
    async fn where_blocking_is_refused_a_delay_is_taken() {
        let (client, mut heard) = logind(false).await;
        let lock = inhibit(&client, "why").await.unwrap();
        let (asked, refused) = heard.recv().await.unwrap();
        assert!(asked.3 == "block" && refused.is_none());
        let (asked, given) = heard.recv().await.unwrap();
        assert_eq!(asked.3, "delay");
        drop(lock);
        released(given.unwrap()).await;
    }

    #[tokio::test]
    async fn a_logind_that_comes_again_is_asked_again() {
        let (lines, mut waiting) = unbounded_channel();
        let (reasons, reason) = watch::channel(Some("why".to_owned()));
        let connect = move || {
            let (told, heard) = tokio::sync::oneshot::channel();
            lines.send(told).unwrap();
            async move { heard.await.ok() }
        };
        let pace = Pace { retry: Duration::from_millis(1), ..PACE };
        let kept = tokio::spawn(keep_by(pace, connect, reason));
        for _ in 0..2 {
            let (client, mut heard) = logind(true).await;
            waiting.recv().await.unwrap().send(client).unwrap();
            let (asked, lock) = heard.recv().await.unwrap();
            assert_eq!(asked.2, "why");
            // What was held in its memory is lost with it.
            drop((heard, lock));
        }
        let _unanswered = waiting.recv().await.unwrap();
        // While it is connected to, nothing is waited for that has no reason any more.
        reasons.send_replace(None);
        drop(reasons);
        kept.await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_is_kept_where_no_newer_one_can_be_had() {
        let (server, client) = line().await;
        let (told, mut heard) = unbounded_channel();
        let serving = tokio::spawn(serve(server, true, told));
        let (reasons, reason) = watch::channel(Some("one".to_owned()));
        let first = std::sync::Mutex::new(Some(client));
        let (tried, mut tries) = unbounded_channel();
        let connect = move || {
            tried.send(()).unwrap();
            std::future::ready(first.lock().unwrap().take())
        };
        let pace = Pace { renew: Duration::from_millis(1), retry: Duration::from_millis(1), ..PACE };
        let kept = tokio::spawn(keep_by(pace, connect, reason));
        let (_, lock) = heard.recv().await.unwrap();
        let mut lock = lock.unwrap();
        // The bus goes, and the next one lets nobody in.
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        reasons.send_replace(Some("two".to_owned()));
        for _ in 0..3 {
            tries.recv().await.unwrap();
        }
        set_nonblocking(&lock);
        let kind = lock.read(&mut [0]).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::WouldBlock, "the lock was given back");
        drop(reasons);
        kept.await.unwrap();
    }

    fn set_nonblocking(lock: &Lock) {
        use std::os::fd::AsRawFd as _;
        // SAFETY: the descriptor is open, and the call takes no pointer.
        assert_eq!(unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    }

    #[tokio::test]
    async fn without_logind_it_is_tried_again_later_and_ends_at_once() {
        let (tried, mut tries) = unbounded_channel();
        let (reasons, reason) = watch::channel(Some("why".to_owned()));
        let connect = move || {
            tried.send(Instant::now()).unwrap();
            async { None }
        };
        let pace = Pace { retry: Duration::from_millis(100), ..PACE };
        let kept = tokio::spawn(keep_by(pace, connect.clone(), reason.clone()));
        let first = tries.recv().await.unwrap();
        let second = tries.recv().await.unwrap();
        assert!(second - first >= pace.retry);
        assert!(tries.recv().await.unwrap() - second >= pace.retry * 2, "it is asked as often as before");
        let patient = tokio::spawn(keep_by(PACE, connect, reason));
        drop(reasons);
        kept.await.unwrap();
        patient.await.unwrap();
    }
}
