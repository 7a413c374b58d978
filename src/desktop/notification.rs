//! Desktop notifications: a file could not be saved, or a login is needed.
//!
//! Many failures become one notification that is updated: a full drive must not cover the screen. Failures
//! are collected for a moment before they are shown. Later failures replace the notification and count the
//! earlier ones too. Without a session bus or a notification service they wait; a few names are kept, the
//! others are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zbus::{Connection, Variant};

use super::bus::{self, DbusObject};
use crate::escape::is_active;
use crate::messages::notification as messages;

const NOTIFICATIONS: DbusObject = DbusObject {
    service: "org.freedesktop.Notifications",
    path: "/org/freedesktop/Notifications",
    interface: "org.freedesktop.Notifications",
};
const APP: &str = "pdsfs";
const ICON_FAILED: &str = "dialog-error";
const ICON_LOGIN: &str = "dialog-password";
/// Failures with a name in one notification. The others are counted.
const NAMES_MAX: usize = 5;
/// Longest name and reason, in characters.
const TEXT_CHARS_MAX: usize = 200;
/// Failures in the queue. Those beyond it are only counted.
const QUEUE_MAX: usize = 64;

/// Times between notifications.
#[derive(Clone, Copy, Debug)]
struct RateLimit {
    /// How long failures are collected before they are shown.
    collect: Duration,
    /// Shortest time between two notifications, and before the first retry.
    pause: Duration,
    /// Longest time before a retry.
    retry_max: Duration,
    /// A failure within this time after the last notification replaces it.
    merge: Duration,
}

const RATE_LIMIT: RateLimit = RateLimit {
    collect: Duration::from_secs(1),
    pause: Duration::from_secs(15),
    retry_max: Duration::from_secs(600),
    merge: Duration::from_secs(600),
};

/// A file that could not be saved.
#[derive(Clone, PartialEq, Eq, Debug)]
struct FailedSave {
    path: String,
    reason: String,
}

/// The sending end. No method waits. Notifications of the last moment still appear after it is dropped.
#[derive(Clone, Debug)]
pub struct Notifier {
    to: mpsc::Sender<FailedSave>,
    /// Failures that did not fit into the queue.
    overflow: Arc<AtomicU64>,
    /// Why a login is needed, while it is.
    login: Arc<watch::Sender<Option<String>>>,
}

impl Notifier {
    /// Starts the task that shows the notifications of one mount. The task ends soon after the last clone of
    /// the notifier is dropped. Must be called on a runtime.
    pub fn start(mountpoint: &str) -> (Self, JoinHandle<()>) {
        Self::start_with(mountpoint, RATE_LIMIT, || bus::connect(Connection::session()))
    }

    fn start_with<C>(
        mountpoint: &str,
        rate_limit: RateLimit,
        connect: impl Fn() -> C + Send + 'static,
    ) -> (Self, JoinHandle<()>)
    where
        C: Future<Output = Option<Connection>> + Send + 'static,
    {
        let (to, queue) = mpsc::channel(QUEUE_MAX);
        let overflow = Arc::new(AtomicU64::new(0));
        let (login, login_now) = watch::channel(None);
        let task = NotifierTask {
            mountpoint: mountpoint.to_owned(),
            rate_limit,
            queue,
            overflow: overflow.clone(),
            login: login_now,
            login_shown: None,
            pending: FailureBatch::default(),
            last: None,
        };
        let delivery = tokio::spawn(task.run(connect));
        (Self { to, overflow, login: Arc::new(login) }, delivery)
    }

    /// Reports a file that could not be saved.
    pub fn failed(&self, path: &str, reason: &str) {
        let failure = FailedSave { path: path.to_owned(), reason: reason.to_owned() };
        if self.to.try_send(failure).is_err() {
            self.overflow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports that nothing can be saved without a login.
    pub fn login_needed(&self, detail: &str) {
        self.login.send_replace(Some(detail.to_owned()));
    }

    /// Withdraws a needed login that was not shown yet.
    pub fn login_done(&self) {
        self.login.send_replace(None);
    }
}

struct NotifierTask {
    mountpoint: String,
    rate_limit: RateLimit,
    queue: mpsc::Receiver<FailedSave>,
    overflow: Arc<AtomicU64>,
    login: watch::Receiver<Option<String>>,
    /// The detail of the last login notification, while that login is needed.
    login_shown: Option<String>,
    /// Failures that were not shown yet.
    pending: FailureBatch,
    last: Option<LastNotification>,
}

/// Failures, the first of them with path and reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct FailureBatch {
    named: Vec<(String, String)>,
    count: u64,
}

impl FailureBatch {
    fn add(&mut self, path: String, reason: String) {
        self.count += 1;
        if self.named.len() < NAMES_MAX {
            self.named.push((path, reason));
        }
    }

    /// These failures and `older` ones; the names of the newer ones come first.
    fn and(mut self, older: &Self) -> Self {
        self.count += older.count;
        self.named.extend(older.named.iter().take(NAMES_MAX - self.named.len()).cloned());
        self
    }
}

/// The last notification about failures.
#[derive(Debug)]
struct LastNotification {
    /// The id that the notification service returned.
    id: u32,
    failures: FailureBatch,
    at: Instant,
}

#[derive(PartialEq, Eq, Debug)]
struct NotificationText {
    summary: String,
    body: String,
}

impl NotifierTask {
    /// Runs until all senders are dropped. After a failure, notifications stay pending and are tried again:
    /// the session bus may end and start again.
    async fn run<C: Future<Output = Option<Connection>>>(mut self, connect: impl Fn() -> C) {
        let mut bus = None;
        let mut retry = self.rate_limit.pause;
        loop {
            let retry_at = Instant::now() + retry;
            let has_senders = tokio::select! {
                failure = self.queue.recv() => failure.map(|failure| self.add(failure)).is_some(),
                Ok(()) = self.login.changed() => true,
                () = tokio::time::sleep_until(retry_at), if self.has_pending() => true,
            };
            if !has_senders {
                return;
            }
            let is_last = !self.collect().await;
            if self.login.borrow_and_update().is_none() {
                // The next needed login is shown even with the same detail.
                self.login_shown = None;
            }
            if !self.has_pending() {
                continue;
            }
            if bus.is_none() {
                bus = connect().await;
                // Ids of notifications belong to one bus.
                self.last = None;
            }
            let result = match &bus {
                Some(connection) => self.show(connection).await,
                None => Err("no session bus".to_owned()),
            };
            match result {
                Ok(()) => retry = self.rate_limit.pause,
                Err(why) => {
                    tracing::debug!("cannot show a desktop notification: {why}");
                    bus = None;
                    retry = (retry * 2).min(self.rate_limit.retry_max);
                }
            }
            if is_last {
                return;
            }
            tokio::time::sleep(self.rate_limit.pause).await;
        }
    }

    fn has_pending(&self) -> bool {
        self.pending.count > 0 || self.pending_login().is_some()
    }

    /// The detail of a needed login that was not shown yet.
    fn pending_login(&self) -> Option<String> {
        self.login.borrow().clone().filter(|detail| self.login_shown.as_ref() != Some(detail))
    }

    fn add(&mut self, failure: FailedSave) {
        self.pending.add(failure.path, failure.reason);
    }

    /// Collects failures for a moment. Returns `false` if all senders are dropped.
    async fn collect(&mut self) -> bool {
        let deadline = tokio::time::sleep(self.rate_limit.collect);
        tokio::pin!(deadline);
        let has_senders = loop {
            tokio::select! {
                failure = self.queue.recv() => match failure {
                    Some(failure) => self.add(failure),
                    None => break false,
                },
                () = &mut deadline => break true,
            }
        };
        self.pending.count += self.overflow.swap(0, Ordering::Relaxed);
        has_senders
    }

    async fn show(&mut self, connection: &Connection) -> Result<(), String> {
        if let Some(detail) = self.pending_login() {
            notify(connection, 0, ICON_LOGIN, &login_text(&self.mountpoint, &detail)).await?;
            self.login_shown = Some(detail);
        }
        if self.pending.count == 0 {
            return Ok(());
        }
        let last = self.last.take().filter(|last| last.at.elapsed() < self.rate_limit.merge);
        let (replaces, failures) = match &last {
            Some(last) => (last.id, self.pending.clone().and(&last.failures)),
            None => (0, self.pending.clone()),
        };
        if let Some(text) = failure_text(&self.mountpoint, &failures) {
            let id = notify(connection, replaces, ICON_FAILED, &text).await?;
            self.pending = FailureBatch::default();
            self.last = Some(LastNotification { id, failures, at: Instant::now() });
        }
        Ok(())
    }
}

fn login_text(mountpoint: &str, detail: &str) -> NotificationText {
    NotificationText {
        summary: messages::login_needed(&short(mountpoint)),
        body: format!("{}\n{}", escaped(detail), messages::uploads_wait()),
    }
}

fn failure_text(mountpoint: &str, failed: &FailureBatch) -> Option<NotificationText> {
    let (path, reason) = failed.named.first()?;
    let count = failed.count;
    if count == 1 {
        let summary = messages::not_saved(&short(path));
        return Some(NotificationText {
            summary,
            body: format!("{}\n{}", escaped(reason), escaped(mountpoint)),
        });
    }
    let mut lines: Vec<_> =
        failed.named.iter().map(|(path, reason)| format!("{}: {}", escaped(path), escaped(reason))).collect();
    if count > lines.len() as u64 {
        lines.push(messages::more_in_log(count - lines.len() as u64));
    }
    let summary = messages::files_not_saved(count, &short(mountpoint));
    Some(NotificationText { summary, body: lines.join("\n") })
}

/// The text without control characters, truncated to [`TEXT_CHARS_MAX`].
fn short(text: &str) -> String {
    let shown: String =
        text.chars().take(TEXT_CHARS_MAX).map(|c| if is_active(c) { '\u{fffd}' } else { c }).collect();
    if shown.len() < text.len() && text.chars().nth(TEXT_CHARS_MAX).is_some() { shown + "..." } else { shown }
}

/// [`short`] for the body, which is markup.
fn escaped(text: &str) -> String {
    short(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Shows a notification and returns its id. It replaces the notification `replaces`, unless that is 0.
async fn notify(
    connection: &Connection,
    replaces: u32,
    icon: &str,
    text: &NotificationText,
) -> Result<u32, String> {
    let hints = HashMap::from([
        ("urgency", Variant::U8(2)),
        ("category", Variant::from("transfer.error")),
        ("desktop-entry", Variant::from(APP)),
    ]);
    let actions: Vec<&str> = Vec::new();
    // -1: the service decides how long it shows the notification.
    let expires_ms = -1_i32;
    let arguments =
        (APP, replaces, icon, text.summary.as_str(), text.body.as_str(), actions, hints, expires_ms);
    let answer = NOTIFICATIONS.call(connection, "Notify", &arguments).await?;
    answer.body().deserialize().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::bus::tests::{connection_pair, next_call};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use zbus::OwnedVariant;

    type NotifyCall = (String, u32, String, String, String, Vec<String>, HashMap<String, OwnedVariant>, i32);

    /// A fake notification service at the other end of a socket pair. Its ids begin at 7.
    async fn desktop() -> (Connection, UnboundedReceiver<NotifyCall>) {
        let (server, client) = connection_pair().await;
        let (sender, calls) = unbounded_channel();
        tokio::spawn(serve(server, sender));
        (client, calls)
    }

    async fn serve(connection: Connection, sender: UnboundedSender<NotifyCall>) {
        let mut calls = zbus::MessageStream::from(&connection);
        let mut id = 7_u32;
        while let Some(call) = next_call(&mut calls, &NOTIFICATIONS, "Notify").await {
            let arguments: NotifyCall = call.body().deserialize().unwrap();
            connection.reply(&call.header(), &id).await.unwrap();
            id += 1;
            sender.send(arguments).unwrap();
        }
    }

    fn notifier(client: Connection) -> Notifier {
        let rate_limit =
            RateLimit { collect: Duration::from_millis(50), pause: Duration::from_millis(50), ..RATE_LIMIT };
        Notifier::start_with("/mnt", rate_limit, move || {
            let client = client.clone();
            async move { Some(client) }
        })
        .0
    }

    #[tokio::test]
    async fn failure_is_shown_with_its_reason() {
        let (client, mut calls) = desktop().await;
        let notifier = notifier(client);
        notifier.failed("/a <b>.txt", "the drive is full & closed");
        let (app, replaces, icon, summary, body, _, hints, expires) = calls.recv().await.unwrap();
        assert_eq!((app.as_str(), replaces, icon.as_str(), expires), ("pdsfs", 0, "dialog-error", -1));
        assert_eq!(summary, "Not saved: /a <b>.txt");
        assert_eq!(body, "the drive is full &amp; closed\n/mnt");
        assert_eq!(u8::try_from(hints["urgency"].clone()).unwrap(), 2);
    }

    #[tokio::test]
    async fn many_failures_are_one_updated_notification() {
        let (client, mut calls) = desktop().await;
        let notifier = notifier(client);
        for n in 0..500 {
            notifier.failed(&format!("/{n}"), "full");
        }
        let (_, replaces, _, summary, body, ..) = calls.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (0, "500 files not saved on /mnt"));
        assert_eq!(body.lines().count(), NAMES_MAX + 1);
        assert!(body.starts_with("/0: full\n") && body.contains("and 495 more"), "{body}");
        notifier.failed("/again", "full");
        let (_, replaces, _, summary, body, ..) = calls.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (7, "501 files not saved on /mnt"));
        assert!(body.starts_with("/again: full\n/0: full\n") && body.contains("and 496 more"), "{body}");
    }

    #[tokio::test]
    async fn much_later_failure_is_a_new_notification() {
        let (client, mut calls) = desktop().await;
        let rate_limit =
            RateLimit { merge: Duration::ZERO, collect: Duration::ZERO, pause: Duration::ZERO, ..RATE_LIMIT };
        let (notifier, _) =
            Notifier::start_with("/mnt", rate_limit, move || std::future::ready(Some(client.clone())));
        for name in ["/a", "/b"] {
            notifier.failed(name, "full");
            let (_, replaces, _, summary, ..) = calls.recv().await.unwrap();
            assert_eq!((replaces, summary), (0, format!("Not saved: {name}")));
        }
    }

    #[tokio::test]
    async fn pending_notifications_are_shown_on_a_new_bus() {
        let (connect_tx, mut connects) = unbounded_channel();
        let rate_limit =
            RateLimit { collect: Duration::from_millis(1), pause: Duration::from_millis(1), ..RATE_LIMIT };
        let (notifier, _) = Notifier::start_with("/mnt", rate_limit, move || {
            let (sender, calls) = tokio::sync::oneshot::channel::<Connection>();
            connect_tx.send(sender).unwrap();
            async move { calls.await.ok() }
        });
        let (client, mut calls) = desktop().await;
        notifier.failed("/a", "full");
        notifier.login_needed("refused");
        // First no bus, then one with a dead peer, then one with a service.
        drop(connects.recv().await.unwrap());
        let (server, dead) = connection_pair().await;
        drop(server);
        connects.recv().await.unwrap().send(dead).unwrap();
        connects.recv().await.unwrap().send(client).unwrap();
        assert_eq!(calls.recv().await.unwrap().3, "/mnt: login needed");
        let (_, replaces, _, summary, ..) = calls.recv().await.unwrap();
        assert_eq!((replaces, summary.as_str()), (0, "Not saved: /a"));
    }

    #[tokio::test]
    async fn needed_login_is_shown() {
        let (client, mut calls) = desktop().await;
        let notifier = notifier(client);
        notifier.login_needed("the refresh token was refused (run pdsfs login)");
        let (_, _, icon, summary, body, ..) = calls.recv().await.unwrap();
        assert_eq!((icon.as_str(), summary.as_str()), ("dialog-password", "/mnt: login needed"));
        assert_eq!(body, "the refresh token was refused (run pdsfs login)\nUploads wait until then.");
    }

    #[tokio::test]
    async fn last_failures_are_shown_and_a_done_login_is_not() {
        let (client, mut calls) = desktop().await;
        let rate_limit =
            RateLimit { collect: Duration::from_millis(50), pause: Duration::from_secs(1000), ..RATE_LIMIT };
        let (notifier, delivery) =
            Notifier::start_with("/mnt", rate_limit, move || std::future::ready(Some(client.clone())));
        notifier.login_needed("refused");
        notifier.login_done();
        notifier.failed("/a", "full");
        drop(notifier);
        // The pauses do not delay the end.
        delivery.await.unwrap();
        assert_eq!(calls.recv().await.unwrap().3, "Not saved: /a");
        assert!(calls.try_recv().is_err());
    }

    #[tokio::test]
    async fn each_needed_login_is_shown_once() {
        let (client, mut calls) = desktop().await;
        let notifier = notifier(client);
        for _ in 0..2 {
            notifier.login_needed("refused");
            assert_eq!(calls.recv().await.unwrap().3, "/mnt: login needed");
            // A repeated report of the same login is not shown.
            notifier.login_needed("refused");
            notifier.login_done();
            // Shown after everything that was reported before it.
            notifier.failed("/a", "full");
            assert_ne!(calls.recv().await.unwrap().3, "/mnt: login needed");
        }
    }

    #[tokio::test]
    async fn missing_bus_is_retried_until_the_end() {
        let (tried, mut tries) = unbounded_channel();
        let rate_limit =
            RateLimit { collect: Duration::from_millis(1), pause: Duration::from_millis(1), ..RATE_LIMIT };
        let (notifier, _) = Notifier::start_with("/mnt", rate_limit, move || {
            tried.send(()).unwrap();
            async { None }
        });
        notifier.failed("/a", "full");
        tries.recv().await.unwrap();
        notifier.failed("/b", "full");
        tries.recv().await.unwrap();
        drop(notifier);
        // One more attempt may be under way.
        while tries.recv().await.is_some() {}
    }

    #[test]
    fn texts_have_the_language_of_the_process() {
        let failed = FailureBatch { named: vec![("/a".into(), "满".into())], count: 1 };
        let texts = || [login_text("/m", "x"), failure_text("/m", &failed).unwrap()];
        assert_eq!(texts().map(|text| text.summary), ["/m: login needed", "Not saved: /a"]);
        let chinese = crate::messages::in_chinese(texts);
        assert_eq!(chinese.map(|text| text.summary), ["/m：需要登录", "未保存：/a"]);
    }

    #[test]
    fn texts_are_short_and_without_control_characters() {
        let failed = FailureBatch { named: vec![("/\x1b".repeat(500), "r".repeat(500))], count: 1 };
        let text = failure_text("/m", &failed).unwrap();
        assert!(text.summary.chars().count() < 250 && text.body.chars().count() < 250);
        assert!(!text.summary.contains('\x1b'));
        assert_eq!(failure_text("/m", &FailureBatch { named: Vec::new(), count: 3 }), None);
    }
}
