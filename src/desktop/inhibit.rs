//! The machine does not go to sleep or off while bytes are on their way: an inhibitor of logind.
//!
//! A lock is a file descriptor; logind lets go of it when the last copy is closed, so also when this
//! process dies. Its reason cannot be changed, so a lock with a new reason is taken before the old one
//! is given back. Blocking is asked for first; where that is not allowed to us (a service, a remote
//! session), a lock that delays is better than none.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zbus::{Connection, OwnedFd};

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
    /// How long to do without after logind was not there.
    retry: Duration,
}

const PACE: Pace = Pace { renew: Duration::from_secs(10), retry: Duration::from_secs(60) };

/// Holds a lock whenever there is a reason, until the sender is gone.
pub async fn keep(reason: watch::Receiver<Option<String>>) {
    keep_by(PACE, || Box::pin(bus::connect(Connection::system())), reason).await;
}

async fn keep_by<C>(pace: Pace, connect: impl Fn() -> C, mut reason: watch::Receiver<Option<String>>)
where
    C: Future<Output = Option<Connection>>,
{
    let mut logind = None;
    let mut was_missed = false;
    while reason.wait_for(Option::is_some).await.is_ok() {
        if logind.is_none() {
            logind = connect().await;
        }
        let outcome = match &logind {
            Some(connection) => hold(pace, connection, &mut reason).await,
            None => Outcome::Refused("there is no system bus".to_owned()),
        };
        match outcome {
            Outcome::Released => {}
            Outcome::Ended => return,
            Outcome::Refused(why) => {
                if !std::mem::replace(&mut was_missed, true) {
                    tracing::debug!("the machine may sleep while files are being saved: {why}");
                }
                logind = None;
                // Whoever waits for the end of the mount does not wait for this.
                tokio::select! {
                    () = tokio::time::sleep(pace.retry) => {}
                    () = has_ended(reason.clone()) => return,
                }
            }
        }
    }
}

async fn has_ended(mut reason: watch::Receiver<Option<String>>) {
    while reason.changed().await.is_ok() {}
}

enum Outcome {
    /// There is no reason any more.
    Released,
    /// There will be none.
    Ended,
    /// Logind does not give a lock.
    Refused(String),
}

/// Takes a lock, keeps its reason up to date, and gives it back when there is none.
async fn hold(pace: Pace, connection: &Connection, reason: &mut watch::Receiver<Option<String>>) -> Outcome {
    let mut lock: Option<(OwnedFd, String)> = None;
    loop {
        let Some(why) = reason.borrow_and_update().clone() else { return Outcome::Released };
        if lock.as_ref().is_none_or(|(_, old)| *old != why) {
            match inhibit(connection, &why).await {
                // The old lock goes after the new one has come.
                Ok(new) => lock = Some((new, why)),
                Err(e) => return Outcome::Refused(e),
            }
        }
        let renew_at = Instant::now() + pace.renew;
        loop {
            if reason.changed().await.is_err() {
                return Outcome::Ended;
            }
            if reason.borrow().is_none() {
                return Outcome::Released;
            }
            if Instant::now() >= renew_at {
                break;
            }
        }
    }
}

async fn inhibit(connection: &Connection, why: &str) -> Result<OwnedFd, String> {
    let mut refused = String::new();
    for mode in MODES {
        match LOGIND.call(connection, "Inhibit", &(WHAT, WHO, why, mode)).await {
            Ok(answer) => return answer.body().deserialize::<OwnedFd>().map_err(|e| e.to_string()),
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
        let (reasons, mut reason) = watch::channel(Some("one".to_owned()));
        let pace = Pace { renew: Duration::from_millis(200), ..PACE };
        let held = tokio::spawn(async move { hold(pace, &client, &mut reason).await });
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
        assert!(matches!(held.await.unwrap(), Outcome::Released));
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
        assert!(tries.recv().await.unwrap() - first >= pace.retry);
        let patient = tokio::spawn(keep_by(PACE, connect, reason));
        drop(reasons);
        kept.await.unwrap();
        patient.await.unwrap();
    }
}
