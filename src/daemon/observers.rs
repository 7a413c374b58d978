//! The outputs of a running mount: control socket, Prometheus metrics and desktop notifications.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::config::MountConfig;
use crate::control::event_log::{Event, EventLog};
use crate::control::metrics::MetricsListener;
use crate::control::types::{Drained, UnsavedEntry};
use crate::control::{ControlApi, ControlSocket, KernelView, MountHandle, MountLookup, SocketDirs};
use crate::desktop::notification::Notifier;
use crate::error::Result;
use crate::fuse::MountControl;
use crate::messages::Language;
use crate::status::{Pause, PauseReason, Progress, ProgressEvent};
use crate::vfs::{UnsavedFile, Vfs};

/// How long the end of a mount waits for the last notification to be delivered.
const LAST_NOTIFICATION_MAX: Duration = Duration::from_secs(3);

/// Outputs that the configuration requests and that can fail, opened before the mount.
#[derive(Debug)]
pub(super) struct ObserverSetup {
    metrics: Option<MetricsListener>,
}

#[derive(Debug)]
pub(super) struct Observers {
    /// `None` if it could not be created; the mount works without it.
    control: Option<ControlSocket>,
    tasks: Vec<JoinHandle<()>>,
    /// Desktop notifications and the task that delivers them.
    desktop: Option<(Notifier, JoinHandle<()>)>,
}

impl Observers {
    /// Opens the outputs whose failure must prevent the mount.
    pub(super) async fn prepare(config: &MountConfig) -> Result<ObserverSetup> {
        let metrics = match config.options.metrics_listen {
            Some(address) => Some(MetricsListener::bind(address).await?),
            None => None,
        };
        Ok(ObserverSetup { metrics })
    }

    /// Reports the end of the mount. With `is_incomplete`, more files than `unsaved` may be lost.
    pub(super) async fn finish(mut self, unsaved: Vec<UnsavedFile>, is_incomplete: bool) {
        // Failed commits were reported when they failed. Files of an interrupted stop were not.
        if let (Some((notifier, _)), true) = (&self.desktop, is_incomplete) {
            for file in &unsaved {
                notifier.failed(&file.path, &file.error.text(Language::current()));
            }
        }
        let unsaved = unsaved.into_iter().map(|file| UnsavedEntry::new(file.path, &file.error));
        if let Some(control) = &self.control {
            control.finish(Drained { unsaved: unsaved.collect(), timed_out: is_incomplete }).await;
        }
        self.close();
        let Some((notifier, delivery)) = self.desktop.take() else { return };
        for task in self.tasks {
            // The tasks hold clones of the notifier.
            let _ = task.await;
        }
        drop(notifier);
        // Without a notification service there is no delivery to wait for.
        let _ = tokio::time::timeout(LAST_NOTIFICATION_MAX, delivery).await;
    }

    /// Removes the control socket. Requests that have arrived may still be answered.
    pub(super) fn close(&self) {
        if let Some(control) = &self.control {
            control.close();
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl ObserverSetup {
    /// Must be called after the mount.
    pub(super) fn start(
        self,
        vfs: Arc<Vfs>,
        control: MountControl,
        config: Arc<MountConfig>,
        progress: Arc<Progress>,
    ) -> Observers {
        let event_log = Arc::new(EventLog::default());
        let mountpoint = config.mountpoint.display().to_string();
        let desktop = config.options.notify.then(|| Notifier::start(&mountpoint));
        let notifier = desktop.as_ref().map(|(notifier, _)| notifier.clone());
        let mut tasks =
            vec![event_log.watch(&progress), forward_events(&progress, event_log.clone(), notifier)];
        let mounted_at = SystemTime::now();
        let mount_lookup = MountLookup(Box::new(move || {
            let now = control.current().ok()??;
            Some(KernelView { is_read_only: now.has_option("ro"), path: now.path })
        }));
        let mount = Arc::new(MountHandle { vfs, config, progress, event_log, mounted_at, mount_lookup });
        if let Some(metrics) = self.metrics {
            if let Ok(address) = metrics.address() {
                tracing::info!("Prometheus metrics are at http://{address}/metrics");
                if !address.ip().is_loopback() {
                    tracing::warn!("other machines can read the metrics at {address} (see metrics_listen)");
                }
            }
            tasks.push(metrics.serve(mount.clone()));
        }
        let control = ControlSocket::start(&SocketDirs::of_this_process(), ControlApi::new(mount));
        let control = control.inspect_err(|error| {
            tracing::warn!(
                "cannot create the control socket: {error}; pdsfs status, wait and log do not show this mount"
            );
        });
        Observers { control: control.ok(), tasks, desktop }
    }
}

/// Sends failures to the desktop, and pauses to the desktop and the event log.
fn forward_events(
    progress: &Progress,
    event_log: Arc<EventLog>,
    notifier: Option<Notifier>,
) -> JoinHandle<()> {
    let (mut events, mut pauses) = (progress.subscribe(), progress.subscribe_pauses());
    tokio::spawn(async move {
        let mut known: Vec<Pause> = Vec::new();
        loop {
            tokio::select! {
                event = events.recv() => match (event, &notifier) {
                    (Ok(ProgressEvent::Failed { name, error }), Some(notifier)) => {
                        notifier.failed(&name, &error.text(Language::current()));
                    }
                    (Err(RecvError::Closed), _) => return,
                    _ => {}
                },
                changed = pauses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = pauses.borrow_and_update().clone();
                    record_pauses(&event_log, notifier.as_ref(), &known, &now);
                    known = now;
                }
            }
        }
    })
}

fn record_pauses(event_log: &EventLog, notifier: Option<&Notifier>, before: &[Pause], now: &[Pause]) {
    let contains = |pauses: &[Pause], other: &Pause| pauses.iter().any(|pause| pause.reason == other.reason);
    for pause in now.iter().filter(|pause| !contains(before, pause)) {
        let text = format!("paused: {}: {}", pause.reason.name(), pause.detail);
        event_log.add(Event { cause: pause.cause.clone(), ..Event::warning(text) });
        if let (PauseReason::LoginNeeded, Some(notifier)) = (pause.reason, notifier) {
            let translated = pause.cause.as_ref().map(|cause| cause.text(Language::current()));
            notifier.login_needed(translated.as_deref().unwrap_or(&pause.detail));
        }
    }
    for pause in before.iter().filter(|pause| !contains(now, pause)) {
        let resumed =
            if pause.reason == PauseReason::LoginNeeded { "logged in again" } else { "back online" };
        event_log.add(Event::warning(resumed));
        if let (PauseReason::LoginNeeded, Some(notifier)) = (pause.reason, notifier) {
            notifier.login_done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pause_and_resume_are_events() {
        let (progress, event_log) = (Progress::new(), Arc::new(EventLog::default()));
        let mut newest = event_log.subscribe();
        let task = forward_events(&progress, event_log.clone(), None);
        progress.pause(PauseReason::Offline, "no route to host", None);
        newest.wait_for(|seq| *seq == 1).await.unwrap();
        progress.pause(PauseReason::Offline, "no name server", None);
        progress.resume(PauseReason::Offline);
        newest.wait_for(|seq| *seq == 2).await.unwrap();
        let texts: Vec<_> = event_log.after(0, 9).into_iter().map(|entry| entry.text).collect();
        assert_eq!(texts, ["paused: offline: no route to host", "back online"]);
        drop(progress);
        task.await.unwrap();
    }
}
