//! Who sits at the desktop is told when a file could not be saved, and when a login is needed.
//!
//! Many failures become one notification that is renewed: a drive that is full must not cover the screen.
//! What is told is gathered for a moment first, and while one notification is fresh, what comes meanwhile
//! waits for the next, which counts what it takes the place of. Without a session bus, or anybody on it, it waits
//! until there is one; only so many names are kept meanwhile, the others are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zbus::{Connection, Variant};

use super::bus::{self, Object};
use crate::printable::is_active;

const NOTIFICATIONS: Object = Object {
    service: "org.freedesktop.Notifications",
    path: "/org/freedesktop/Notifications",
    interface: "org.freedesktop.Notifications",
};
/// Who notifies.
const APP: &str = "pdsfs";
const ICON_FAILED: &str = "dialog-error";
const ICON_LOGIN: &str = "dialog-password";
/// Failures that are named; the others are counted.
const NAMES_MAX: usize = 5;
/// Longest name and reason, in characters.
const TEXT_CHARS_MAX: usize = 200;
/// What may wait to be told; what is beyond that is only counted.
const WAITING_MAX: usize = 64;

/// The pauses between notifications.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// How long failures are gathered before they are told.
    gather: Duration,
    /// The least time from one notification to the next.
    pause: Duration,
    /// The longest time until what could not be told is told again.
    retry_max: Duration,
    /// Failures with less time between them share a notification.
    together: Duration,
}

const PACE: Pace = Pace {
    gather: Duration::from_secs(1),
    pause: Duration::from_secs(15),
    retry_max: Duration::from_secs(600),
    together: Duration::from_secs(600),
};

/// A file that is not on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    path: String,
    reason: String,
}

/// The way to whoever sits at the desktop. Dropped, what was told last may still appear.
#[derive(Clone, Debug)]
pub struct Notices {
    to: mpsc::Sender<Failure>,
    uncounted: Arc<AtomicU64>,
    /// Why nothing goes on without a login, as long as that is so.
    login: Arc<watch::Sender<Option<String>>>,
}

impl Notices {
    /// For the mount that is called `place`; and what tells, which ends soon after the last of these is dropped. Must be
    /// called on a runtime.
    pub fn start(place: &str) -> (Self, JoinHandle<()>) {
        Self::start_with(place, PACE, || bus::connect(Connection::session()))
    }

    fn start_with<C>(
        place: &str,
        pace: Pace,
        connect: impl Fn() -> C + Send + 'static,
    ) -> (Self, JoinHandle<()>)
    where
        C: Future<Output = Option<Connection>> + Send + 'static,
    {
        let (to, notices) = mpsc::channel(WAITING_MAX);
        let uncounted = Arc::new(AtomicU64::new(0));
        let (login, login_now) = watch::channel(None);
        let teller = Teller {
            place: place.to_owned(),
            pace,
            notices,
            uncounted: uncounted.clone(),
            login: login_now,
            login_told: None,
            untold: Failures::default(),
            shown: None,
        };
        let telling = tokio::spawn(teller.run(connect));
        (Self { to, uncounted, login: Arc::new(login) }, telling)
    }

    /// A file is not on the drive. Never waits.
    pub fn failed(&self, path: &str, reason: &str) {
        let failure = Failure { path: path.to_owned(), reason: reason.to_owned() };
        if self.to.try_send(failure).is_err() {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nothing goes on until somebody has logged in again. Never waits.
    pub fn login_needed(&self, detail: &str) {
        self.login.send_replace(Some(detail.to_owned()));
    }

    /// Somebody has: who has not been told need not be. Never waits.
    pub fn login_done(&self) {
        self.login.send_replace(None);
    }
}

struct Teller {
    place: String,
    pace: Pace,
    notices: mpsc::Receiver<Failure>,
    uncounted: Arc<AtomicU64>,
    login: watch::Receiver<Option<String>>,
    /// What was told of it last.
    login_told: Option<String>,
    /// What nobody has seen yet.
    untold: Failures,
    shown: Option<Shown>,
}

/// Failures, the first of them with path and reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Failures {
    named: Vec<(String, String)>,
    count: u64,
}

impl Failures {
    fn add(&mut self, path: String, reason: String) {
        self.count += 1;
        if self.named.len() < NAMES_MAX {
            self.named.push((path, reason));
        }
    }

    /// These, and before them in time `older` ones.
    fn and(mut self, older: &Self) -> Self {
        self.count += older.count;
        self.named.extend(older.named.iter().take(NAMES_MAX - self.named.len()).cloned());
        self
    }
}

/// The notification about failures that was shown last.
#[derive(Debug)]
struct Shown {
    number: u32,
    failures: Failures,
    at: Instant,
}

/// What one notification says.
#[derive(PartialEq, Eq, Debug)]
struct Text {
    summary: String,
    body: String,
}

impl Teller {
    /// Tells until nobody has anything to tell any more. What nobody could be told is kept, and told when somebody
    /// is there: the bus of a session may end and begin again.
    async fn run<C: Future<Output = Option<Connection>>>(mut self, connect: impl Fn() -> C) {
        let mut bus = None;
        let mut retry = self.pace.pause;
        loop {
            let again_at = Instant::now() + retry;
            let has_more = tokio::select! {
                failure = self.notices.recv() => failure.map(|failure| self.take(failure)).is_some(),
                Ok(()) = self.login.changed() => true,
                () = tokio::time::sleep_until(again_at), if self.has_untold() => true,
            };
            if !has_more {
                return;
            }
            let is_last = !self.gather().await;
            if self.login.borrow_and_update().is_none() {
                // The next one is another one, whatever it says.
                self.login_told = None;
            }
            if !self.has_untold() {
                continue;
            }
            if bus.is_none() {
                bus = connect().await;
                // Another bus has other numbers.
                self.shown = None;
            }
            let outcome = match &bus {
                Some(connection) => self.show(connection).await,
                None => Err("there is no session bus".to_owned()),
            };
            match outcome {
                Ok(()) => retry = self.pace.pause,
                Err(why) => {
                    tracing::debug!("nobody at the desktop is told: {why}");
                    bus = None;
                    retry = (retry * 2).min(self.pace.retry_max);
                }
            }
            if is_last {
                return;
            }
            tokio::time::sleep(self.pace.pause).await;
        }
    }

    fn has_untold(&self) -> bool {
        self.untold.count > 0 || self.login_untold().is_some()
    }

    /// The login that is needed and that nobody has heard of.
    fn login_untold(&self) -> Option<String> {
        self.login.borrow().clone().filter(|needed| self.login_told.as_ref() != Some(needed))
    }

    fn take(&mut self, failure: Failure) {
        self.untold.add(failure.path, failure.reason);
    }

    /// Waits a moment for more; `false` where there will be no more.
    async fn gather(&mut self) -> bool {
        let gathered = tokio::time::sleep(self.pace.gather);
        tokio::pin!(gathered);
        let has_more = loop {
            tokio::select! {
                failure = self.notices.recv() => match failure {
                    Some(failure) => self.take(failure),
                    None => break false,
                },
                () = &mut gathered => break true,
            }
        };
        self.untold.count += self.uncounted.swap(0, Ordering::Relaxed);
        has_more
    }

    async fn show(&mut self, connection: &Connection) -> Result<(), String> {
        if let Some(detail) = self.login_untold() {
            notify(connection, 0, ICON_LOGIN, &login_text(&self.place, &detail)).await?;
            self.login_told = Some(detail);
        }
        if self.untold.count == 0 {
            return Ok(());
        }
        let last = self.shown.take().filter(|last| last.at.elapsed() < self.pace.together);
        let (replaces, failures) = match &last {
            Some(last) => (last.number, self.untold.clone().and(&last.failures)),
            None => (0, self.untold.clone()),
        };
        if let Some(text) = failed_text(&self.place, &failures) {
            let number = notify(connection, replaces, ICON_FAILED, &text).await?;
            self.untold = Failures::default();
            self.shown = Some(Shown { number, failures, at: Instant::now() });
        }
        Ok(())
    }
}

fn login_text(place: &str, detail: &str) -> Text {
    Text {
        summary: format!("{}: login needed", short(place)),
        body: format!("{}\nLog in again with: pdsfs login", escaped(detail)),
    }
}

fn failed_text(place: &str, failed: &Failures) -> Option<Text> {
    let (path, reason) = failed.named.first()?;
    let count = failed.count;
    if count == 1 {
        let summary = format!("Not saved: {}", short(path));
        return Some(Text { summary, body: format!("{}\n{}", escaped(reason), escaped(place)) });
    }
    let mut lines: Vec<_> =
        failed.named.iter().map(|(path, reason)| format!("{}: {}", escaped(path), escaped(reason))).collect();
    if count > lines.len() as u64 {
        lines.push(format!("and {} more; see: pdsfs log", count - lines.len() as u64));
    }
    Some(Text { summary: format!("{count} files not saved on {}", short(place)), body: lines.join("\n") })
}

/// Not too long, and without what a screen would obey.
fn short(text: &str) -> String {
    let shown: String =
        text.chars().take(TEXT_CHARS_MAX).map(|c| if is_active(c) { '\u{fffd}' } else { c }).collect();
    if shown.len() < text.len() && text.chars().nth(TEXT_CHARS_MAX).is_some() { shown + "..." } else { shown }
}

/// The body of a notification is markup; what is in it comes from programs.
fn escaped(text: &str) -> String {
    short(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Shows a notification, in place of an older one unless that is 0; its number.
async fn notify(connection: &Connection, replaces: u32, icon: &str, text: &Text) -> Result<u32, String> {
    let hints = HashMap::from([
        ("urgency", Variant::U8(2)),
        ("category", Variant::from("transfer.error")),
        ("desktop-entry", Variant::from(APP)),
    ]);
    let actions: Vec<&str> = Vec::new();
    // The service decides for how long it shows it.
    let expires_ms = -1_i32;
    let arguments =
        (APP, replaces, icon, text.summary.as_str(), text.body.as_str(), actions, hints, expires_ms);
    let answer = NOTIFICATIONS.call(connection, "Notify", &arguments).await?;
    answer.body().deserialize().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::bus::tests::{line, next_call};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use zbus::OwnedVariant;

    type Asked = (String, u32, String, String, String, Vec<String>, HashMap<String, OwnedVariant>, i32);

    /// A notification service at the other end of a socket pair. It numbers from 7 on.
    async fn desktop() -> (Connection, UnboundedReceiver<Asked>) {
        let (server, client) = line().await;
        let (told, heard) = unbounded_channel();
        tokio::spawn(serve(server, told));
        (client, heard)
    }

    async fn serve(connection: Connection, told: UnboundedSender<Asked>) {
        let mut calls = zbus::MessageStream::from(&connection);
        let mut number = 7_u32;
        while let Some(call) = next_call(&mut calls, &NOTIFICATIONS, "Notify").await {
            let asked: Asked = call.body().deserialize().unwrap();
            connection.reply(&call.header(), &number).await.unwrap();
            number += 1;
            told.send(asked).unwrap();
        }
    }

    fn notices(client: Connection) -> Notices {
        let pace = Pace { gather: Duration::from_millis(50), pause: Duration::from_millis(50), ..PACE };
        Notices::start_with("/mnt", pace, move || {
            let client = client.clone();
            async move { Some(client) }
        })
        .0
    }

    #[tokio::test]
    async fn a_failure_is_shown_with_its_reason() {
        let (client, mut heard) = desktop().await;
        let notices = notices(client);
        notices.failed("/a <b>.txt", "the drive is full & closed");
        let (app, replaces, icon, summary, body, _, hints, expires) = heard.recv().await.unwrap();
        assert_eq!((app.as_str(), replaces, icon.as_str(), expires), ("pdsfs", 0, "dialog-error", -1));
        assert_eq!(summary, "Not saved: /a <b>.txt");
        assert_eq!(body, "the drive is full &amp; closed\n/mnt");
        assert_eq!(u8::try_from(hints["urgency"].clone()).unwrap(), 2);
    }

    #[tokio::test]
    async fn many_failures_are_one_notification_that_is_renewed() {
        let (client, mut heard) = desktop().await;
        let notices = notices(client);
        for n in 0..500 {
            notices.failed(&format!("/{n}"), "full");
        }
        let (_, replaces, _, summary, body, ..) = heard.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (0, "500 files not saved on /mnt"));
        assert_eq!(body.lines().count(), NAMES_MAX + 1);
        assert!(body.starts_with("/0: full\n") && body.contains("and 495 more"), "{body}");
        notices.failed("/again", "full");
        let (_, replaces, _, summary, body, ..) = heard.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (7, "501 files not saved on /mnt"));
        assert!(body.starts_with("/again: full\n/0: full\n") && body.contains("and 496 more"), "{body}");
    }

    #[tokio::test]
    async fn what_fails_much_later_is_a_notification_of_its_own() {
        let (client, mut heard) = desktop().await;
        let pace = Pace { together: Duration::ZERO, gather: Duration::ZERO, pause: Duration::ZERO, ..PACE };
        let (notices, _) =
            Notices::start_with("/mnt", pace, move || std::future::ready(Some(client.clone())));
        for name in ["/a", "/b"] {
            notices.failed(name, "full");
            let (_, replaces, _, summary, ..) = heard.recv().await.unwrap();
            assert_eq!((replaces, summary), (0, format!("Not saved: {name}")));
        }
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_when_the_bus_is_back() {
        let (lines, mut waiting) = unbounded_channel();
        let pace = Pace { gather: Duration::from_millis(1), pause: Duration::from_millis(1), ..PACE };
        let (notices, _) = Notices::start_with("/mnt", pace, move || {
            let (told, heard) = tokio::sync::oneshot::channel::<Connection>();
            lines.send(told).unwrap();
            async move { heard.await.ok() }
        });
        let (client, mut heard) = desktop().await;
        notices.failed("/a", "full");
        notices.login_needed("refused");
        // No bus, one whose other end is gone, and one with a desktop.
        drop(waiting.recv().await.unwrap());
        let (server, dead) = line().await;
        drop(server);
        waiting.recv().await.unwrap().send(dead).unwrap();
        waiting.recv().await.unwrap().send(client).unwrap();
        assert_eq!(heard.recv().await.unwrap().3, "/mnt: login needed");
        let (_, replaces, _, summary, ..) = heard.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (0, "Not saved: /a"));
    }

    #[tokio::test]
    async fn a_needed_login_is_shown() {
        let (client, mut heard) = desktop().await;
        let notices = notices(client);
        notices.login_needed("the refresh token was refused");
        let (_, _, icon, summary, body, ..) = heard.recv().await.unwrap();
        assert_eq!((icon.as_str(), summary.as_str()), ("dialog-password", "/mnt: login needed"));
        assert!(
            body.starts_with("the refresh token was refused\n") && body.contains("pdsfs login"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn a_login_that_was_made_is_not_asked_for_and_the_last_words_are_told() {
        let (client, mut heard) = desktop().await;
        let pace = Pace { gather: Duration::from_millis(50), pause: Duration::from_secs(1000), ..PACE };
        let (notices, telling) =
            Notices::start_with("/mnt", pace, move || std::future::ready(Some(client.clone())));
        notices.login_needed("refused");
        notices.login_done();
        notices.failed("/a", "full");
        drop(notices);
        // Soon, whatever the pauses are.
        telling.await.unwrap();
        assert_eq!(heard.recv().await.unwrap().3, "Not saved: /a");
        assert!(heard.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_login_is_asked_for_each_time_it_is_needed() {
        let (client, mut heard) = desktop().await;
        let notices = notices(client);
        for _ in 0..2 {
            notices.login_needed("refused");
            assert_eq!(heard.recv().await.unwrap().3, "/mnt: login needed");
            // Told again while it lasts, it is the same.
            notices.login_needed("refused");
            notices.login_done();
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(heard.try_recv().is_err());
        }
    }

    #[tokio::test]
    async fn without_anybody_there_nothing_happens() {
        let (tried, mut tries) = unbounded_channel();
        let pace = Pace { gather: Duration::from_millis(1), pause: Duration::from_millis(1), ..PACE };
        let (notices, _) = Notices::start_with("/mnt", pace, move || {
            tried.send(()).unwrap();
            async { None }
        });
        notices.failed("/a", "full");
        tries.recv().await.unwrap();
        notices.failed("/b", "full");
        tries.recv().await.unwrap();
        drop(notices);
        // It may have been about to try again.
        while tries.recv().await.is_some() {}
    }

    #[test]
    fn texts_are_short_and_obey_nobody() {
        let failed = Failures { named: vec![("/\x1b".repeat(500), "r".repeat(500))], count: 1 };
        let text = failed_text("/m", &failed).unwrap();
        assert!(text.summary.chars().count() < 250 && text.body.chars().count() < 250);
        assert!(!text.summary.contains('\x1b'));
        assert_eq!(failed_text("/m", &Failures { named: Vec::new(), count: 3 }), None);
    }
}
