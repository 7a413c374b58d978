//! Who sits at the desktop is told when a file could not be saved, and when a login is needed.
//!
//! Many failures become one notification that is renewed: a drive that is full must not cover the screen.
//! What is told is gathered for a moment first, and while one notification is fresh, what comes meanwhile
//! waits for the next. Without a session bus, or anybody on it, nothing happens.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use zbus::{Connection, Variant};

use super::bus::{self, Object};

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
}

const PACE: Pace = Pace { gather: Duration::from_secs(1), pause: Duration::from_secs(15) };

/// What is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Notice {
    Failed { path: String, reason: String },
    LoginNeeded { detail: String },
}

/// The way to whoever sits at the desktop. Dropped, what was told last may still appear.
#[derive(Clone, Debug)]
pub struct Notices {
    to: mpsc::Sender<Notice>,
    uncounted: Arc<AtomicU64>,
}

impl Notices {
    /// For the mount that is called `place`. Must be called on a runtime.
    pub fn start(place: &str) -> Self {
        Self::start_with(place, PACE, || bus::connect(Connection::session()))
    }

    fn start_with<C>(place: &str, pace: Pace, connect: impl Fn() -> C + Send + 'static) -> Self
    where
        C: Future<Output = Option<Connection>> + Send + 'static,
    {
        let (to, notices) = mpsc::channel(WAITING_MAX);
        let uncounted = Arc::new(AtomicU64::new(0));
        let teller =
            Teller { place: place.to_owned(), pace, notices, uncounted: uncounted.clone(), shown: 0 };
        tokio::spawn(teller.run(connect));
        Self { to, uncounted }
    }

    /// A file is not on the drive. Never waits.
    pub fn failed(&self, path: &str, reason: &str) {
        self.tell(Notice::Failed { path: path.to_owned(), reason: reason.to_owned() });
    }

    /// Nothing goes on until somebody has logged in again. Never waits.
    pub fn login_needed(&self, detail: &str) {
        self.tell(Notice::LoginNeeded { detail: detail.to_owned() });
    }

    fn tell(&self, notice: Notice) {
        if self.to.try_send(notice).is_err() {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Teller {
    place: String,
    pace: Pace,
    notices: mpsc::Receiver<Notice>,
    uncounted: Arc<AtomicU64>,
    /// The notification about failures that was shown last; the next one takes its place.
    shown: u32,
}

/// What one notification says.
#[derive(PartialEq, Eq, Debug)]
struct Text {
    summary: String,
    body: String,
}

impl Teller {
    /// Tells until nobody has anything to tell any more.
    async fn run<C: Future<Output = Option<Connection>>>(mut self, connect: impl Fn() -> C) {
        let mut bus = None;
        while let Some(first) = self.notices.recv().await {
            let mut failed = Vec::new();
            let mut login = None;
            let mut next = Some(first);
            let gathered = tokio::time::sleep(self.pace.gather);
            tokio::pin!(gathered);
            while let Some(notice) = next {
                match notice {
                    Notice::Failed { path, reason } => failed.push((path, reason)),
                    Notice::LoginNeeded { detail } => login = Some(detail),
                }
                next = tokio::select! {
                    notice = self.notices.recv() => notice,
                    () = &mut gathered => None,
                };
            }
            if bus.is_none() {
                bus = connect().await;
            }
            if let Some(connection) = &bus
                && let Err(why) = self.show(connection, &failed, login.as_deref()).await
            {
                tracing::debug!("nobody at the desktop is told: {why}");
                bus = None;
            }
            tokio::time::sleep(self.pace.pause).await;
        }
    }

    async fn show(
        &mut self,
        connection: &Connection,
        failed: &[(String, String)],
        login: Option<&str>,
    ) -> Result<(), String> {
        if let Some(detail) = login {
            notify(connection, 0, ICON_LOGIN, &login_text(&self.place, detail)).await?;
        }
        let more = self.uncounted.swap(0, Ordering::Relaxed);
        if let Some(text) = failed_text(&self.place, failed, more) {
            self.shown = notify(connection, self.shown, ICON_FAILED, &text).await?;
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

fn failed_text(place: &str, failed: &[(String, String)], more: u64) -> Option<Text> {
    let (path, reason) = failed.first()?;
    let count = failed.len() as u64 + more;
    if count == 1 {
        let summary = format!("Not saved: {}", short(path));
        return Some(Text { summary, body: format!("{}\n{}", escaped(reason), escaped(place)) });
    }
    let mut lines: Vec<_> = failed
        .iter()
        .take(NAMES_MAX)
        .map(|(path, reason)| format!("{}: {}", escaped(path), escaped(reason)))
        .collect();
    if count > lines.len() as u64 {
        lines.push(format!("and {} more; see: pdsfs log", count - lines.len() as u64));
    }
    Some(Text { summary: format!("{count} files not saved on {}", short(place)), body: lines.join("\n") })
}

/// Not too long, and without what a screen would obey.
fn short(text: &str) -> String {
    let shown: String =
        text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
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
        let pace = Pace { gather: Duration::from_millis(50), pause: Duration::from_millis(50) };
        Notices::start_with("/mnt", pace, move || {
            let client = client.clone();
            async move { Some(client) }
        })
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
        let (_, replaces, _, summary, ..) = heard.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (7, "Not saved: /again"));
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
    async fn without_anybody_there_nothing_happens() {
        let (tried, mut tries) = unbounded_channel();
        let pace = Pace { gather: Duration::from_millis(1), pause: Duration::from_millis(1) };
        let notices = Notices::start_with("/mnt", pace, move || {
            tried.send(()).unwrap();
            async { None }
        });
        notices.failed("/a", "full");
        tries.recv().await.unwrap();
        notices.failed("/b", "full");
        tries.recv().await.unwrap();
        drop(notices);
        assert!(tries.recv().await.is_none(), "the task did not end");
    }

    #[test]
    fn texts_are_short_and_obey_nobody() {
        let text = failed_text("/m", &[("/\x1b".repeat(500), "r".repeat(500))], 0).unwrap();
        assert!(text.summary.chars().count() < 250 && text.body.chars().count() < 250);
        assert!(!text.summary.contains('\x1b'));
        assert_eq!(failed_text("/m", &[], 3), None);
    }
}
