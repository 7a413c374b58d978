//! The common path of all requests, from dispatch to reply.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::{COMMIT_MARGIN, FuseAdapter};
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::dispatch::{
    self, Deadline, FuseOp, Outcome, Reply, caller_killed, guarded, reply_error, reply_within,
};
use crate::ids::Ino;
use crate::vfs::Vfs;

impl FuseAdapter {
    pub(in crate::fuse) fn new(
        vfs: Arc<Vfs>,
        runtime: Handle,
        commit_timeout: Duration,
        ended: watch::Sender<bool>,
        busy: mpsc::Sender<()>,
    ) -> Self {
        Self {
            vfs,
            runtime,
            commit_wait_max: Deadline::UploadIdle(commit_timeout + COMMIT_MARGIN),
            ended,
            busy,
        }
    }

    /// Runs `work` and sends its result as the reply. Starts in the session thread: cached answers need no
    /// other thread. A request that has to wait continues as a task.
    pub(super) fn dispatch<R: Reply, T: Outcome>(
        &self,
        op: FuseOp,
        deadline: Deadline,
        reply: R,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let (vfs, busy) = (self.vfs.clone(), self.busy.clone());
        let task = async move {
            let path_of = |ino| vfs.path_of(Ino(ino));
            let late = async {
                tokio::select! {
                    error = deadline.expired(&vfs) => error,
                    error = caller_killed(&vfs, op.pid) => error,
                }
            };
            let outcome = reply_within(op, late, reply, work, answer, path_of).await;
            if let Some(late) = outcome {
                late.undo(&vfs).await;
            }
            drop(busy);
        };
        let _inside = self.runtime.enter();
        if let Some(rest) = dispatch::poll_once(op.name, Box::pin(task.instrument(op.span()))) {
            self.runtime.spawn(rest);
        }
    }

    /// Runs `work`, which does not wait, in the session thread, and sends its result as the reply.
    pub(super) fn at_once<R: Reply, T>(
        &self,
        op: FuseOp,
        reply: R,
        work: impl FnOnce(&Vfs) -> Result<T>,
        answer: impl FnOnce(R, T),
    ) {
        guarded(op.name, || match work(&self.vfs) {
            Ok(done) => answer(reply, done),
            Err(error) => self.reply_error(op, reply, &error),
        });
    }

    pub(super) fn reply_error(&self, op: FuseOp, reply: impl Reply, error: &Error) {
        dispatch::reply_error_at(op, reply, error, |ino| self.vfs.path_of(Ino(ino)));
    }

    pub(super) fn reply_unsupported(op: FuseOp, kind: ErrorKind, reply: impl Reply) {
        reply_error(op, reply, &Error::new(kind, "not supported by this file system"));
    }
}

#[cfg(test)]
mod tests {
    /// A panic outside of the guard would end a session thread.
    #[test]
    fn every_handler_runs_under_the_panic_guard() {
        const GUARDS: [&str; 3] = ["self.dispatch(", "self.at_once(", "guarded("];
        // These call nothing that can panic.
        const PLAIN: [&str; 3] = ["init", "destroy", "fsyncdir"];
        let source = include_str!("../adapter.rs");
        let (_, handlers) = source.split_once("impl Filesystem for FuseAdapter {").unwrap();
        let handlers: Vec<_> = handlers.split("\n    fn ").skip(1).collect();
        assert!(handlers.len() > 30, "{}", handlers.len());
        for handler in handlers {
            let name = handler.split('(').next().unwrap();
            let only_refuses =
                handler.matches("self.").count() == 0 && handler.contains("reply_unsupported(");
            let is_guarded = GUARDS.iter().any(|guard| handler.contains(guard));
            assert!(is_guarded || only_refuses || PLAIN.contains(&name), "{name}");
        }
    }
}
