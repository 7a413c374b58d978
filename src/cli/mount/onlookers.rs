//! Whoever looks at a mount while it runs: the control socket, the figures for Prometheus, the desktop.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::config::MountConfig;
use crate::control::metrics::MetricsListener;
use crate::control::recent::{Happened, Recent};
use crate::control::types::{Drained, Unsaved};
use crate::control::{Answers, ControlSocket, Served, Surroundings};
use crate::desktop::notification::Notices;
use crate::error::{Error, Result};
use crate::status::{Event, Pause, PauseReason, Progress};
use crate::vfs::Vfs;

/// How long the end of a mount waits for the desktop to hear of it.
const LAST_NOTICE_MAX: Duration = Duration::from_secs(3);

/// What is asked for by name and can be refused, before anything is mounted.
#[derive(Debug)]
pub(super) struct Prepared {
    metrics: Option<MetricsListener>,
}

/// Onlookers of a mount that runs.
#[derive(Debug)]
pub(super) struct Onlookers {
    /// `None` where there is no place for it; the mount does without.
    control: Option<ControlSocket>,
    tasks: Vec<JoinHandle<()>>,
    /// The desktop, and what tells it.
    desktop: Option<(Notices, JoinHandle<()>)>,
}

impl Onlookers {
    /// Takes what has to be there before the drive is mounted.
    pub(super) async fn prepare(config: &MountConfig) -> Result<Prepared> {
        let metrics = match config.metrics_listen {
            Some(address) => Some(MetricsListener::bind(address).await?),
            None => None,
        };
        Ok(Prepared { metrics })
    }

    /// Tells them how the mount has ended; `given_up` where more may be lost than `unsaved` names.
    pub(super) async fn finish(mut self, unsaved: Vec<(String, Error)>, given_up: bool) {
        // What failed on the way was told; of what was given up, nobody has heard.
        if let (Some((notices, _)), true) = (&self.desktop, given_up) {
            for (path, error) in &unsaved {
                notices.failed(path, &error.to_string());
            }
        }
        let unsaved = unsaved.into_iter().map(|(path, error)| Unsaved { path, error: error.to_string() });
        if let Some(control) = &self.control {
            control.finish(Drained { unsaved: unsaved.collect(), timed_out: given_up }).await;
        }
        self.close();
        let Some((notices, telling)) = self.desktop.take() else { return };
        for task in self.tasks {
            // They have notices too.
            let _ = task.await;
        }
        drop(notices);
        // Nobody may be there.
        let _ = tokio::time::timeout(LAST_NOTICE_MAX, telling).await;
    }

    /// Takes the control socket away. What was asked may still be answered.
    pub(super) fn close(&self) {
        if let Some(control) = &self.control {
            control.close();
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Prepared {
    /// The drive is mounted.
    pub(super) fn begin(self, vfs: Arc<Vfs>, config: Arc<MountConfig>, progress: Arc<Progress>) -> Onlookers {
        let recent = Arc::new(Recent::default());
        let place = config.mountpoint.display().to_string();
        let desktop = config.notifies_desktop.then(|| Notices::start(&place));
        let notices = desktop.as_ref().map(|(notices, _)| notices.clone());
        let mut tasks = vec![recent.watch(&progress), tell(&progress, recent.clone(), notices)];
        let served = Served { vfs, config, progress, recent, mounted_at: SystemTime::now() };
        let served = Arc::new(served);
        if let Some(metrics) = self.metrics {
            if let Ok(address) = metrics.address() {
                tracing::info!("figures for Prometheus are at http://{address}/metrics");
            }
            tasks.push(metrics.serve(served.clone()));
        }
        let control = ControlSocket::start(&Surroundings::of_this_process(), Answers::new(served));
        let control = control.inspect_err(|error| {
            tracing::warn!("no control socket, so that pdsfs status does not see this mount: {error}");
        });
        Onlookers { control: control.ok(), tasks, desktop }
    }
}

/// Tells the desktop of failures, and the log of what is missing.
fn tell(progress: &Progress, recent: Arc<Recent>, notices: Option<Notices>) -> JoinHandle<()> {
    let (mut events, mut pauses) = (progress.subscribe(), progress.subscribe_pauses());
    tokio::spawn(async move {
        let mut known: Vec<Pause> = Vec::new();
        loop {
            tokio::select! {
                event = events.recv() => match (event, &notices) {
                    (Ok(Event::Failed { name, error }), Some(notices)) => {
                        notices.failed(&name, &error.to_string());
                    }
                    (Err(RecvError::Closed), _) => return,
                    _ => {}
                },
                changed = pauses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = pauses.borrow_and_update().clone();
                    note(&recent, notices.as_ref(), &known, &now);
                    known = now;
                }
            }
        }
    })
}

fn note(recent: &Recent, notices: Option<&Notices>, before: &[Pause], now: &[Pause]) {
    let is_in = |pauses: &[Pause], of: &Pause| pauses.iter().any(|pause| pause.reason == of.reason);
    for pause in now.iter().filter(|pause| !is_in(before, pause)) {
        recent.add(Happened::warning(format!("paused: {}: {}", pause.reason.name(), pause.detail)));
        if let (PauseReason::LoginNeeded, Some(notices)) = (pause.reason, notices) {
            notices.login_needed(&pause.detail);
        }
    }
    for pause in before.iter().filter(|pause| !is_in(now, pause)) {
        recent.add(Happened::warning(format!("goes on: no longer {}", pause.reason.name())));
        if let (PauseReason::LoginNeeded, Some(notices)) = (pause.reason, notices) {
            notices.login_done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_and_its_end_are_events() {
        let (progress, recent) = (Progress::new(), Arc::new(Recent::default()));
        let mut newest = recent.subscribe();
        let task = tell(&progress, recent.clone(), None);
        progress.pause(PauseReason::Offline, "no route to host");
        newest.wait_for(|seq| *seq == 1).await.unwrap();
        progress.pause(PauseReason::Offline, "no name server");
        progress.resume(PauseReason::Offline);
        newest.wait_for(|seq| *seq == 2).await.unwrap();
        let texts: Vec<_> = recent.after(0, 9).into_iter().map(|entry| entry.text).collect();
        assert_eq!(texts, ["paused: offline: no route to host", "goes on: no longer offline"]);
        drop(progress);
        task.await.unwrap();
    }
}
