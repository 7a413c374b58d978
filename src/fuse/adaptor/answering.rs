//! How every request comes to its answer, whatever it asks for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::{Adaptor, COMMIT_MARGIN};
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::dispatch::{self, Limit, Op, Outcome, Reply, answer_within, killed, refuse};
use crate::ids::Ino;
use crate::vfs::Vfs;

impl Adaptor {
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
            commit_wait_max: Limit::WhileMoving(commit_timeout + COMMIT_MARGIN),
            ended,
            busy,
        }
    }

    /// Runs `work`; the reply goes with it. As far as it comes without waiting it runs here, which
    /// for what is cached is the whole way and costs no change of threads; the rest is a task.
    pub(super) fn dispatch<R: Reply, T: Outcome>(
        &self,
        op: Op,
        limit: Limit,
        reply: R,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let (vfs, busy) = (self.vfs.clone(), self.busy.clone());
        let task = async move {
            let named = |ino| vfs.name_of(Ino(ino));
            let late = async {
                tokio::select! {
                    error = limit.reached(&vfs) => error,
                    error = killed(op.pid) => error,
                }
            };
            let outcome = answer_within(op, late, reply, work, answer, named).await;
            if let Some(late) = outcome {
                late.take_back(&vfs).await;
            }
            drop(busy);
        };
        let _inside = self.runtime.enter();
        if let Some(rest) = dispatch::started(Box::pin(task.instrument(op.span()))) {
            self.runtime.spawn(rest);
        }
    }

    pub(super) fn refuse(&self, op: Op, reply: impl Reply, error: &Error) {
        dispatch::refuse_named(op, reply, error, |ino| self.vfs.name_of(Ino(ino)));
    }

    pub(super) fn never(op: Op, kind: ErrorKind, reply: impl Reply) {
        refuse(op, reply, &Error::new(kind, "not offered by this file system"));
    }
}
