//! Answers each kernel request exactly once.
//!
//! Session threads never wait. A request that has to wait moves, with its reply, into a task of the runtime.
//! So a stalled transfer delays only the program that waits for it. Every task has a deadline, after which
//! the program gets ETIMEDOUT. The operation is not aborted (`vfs` bounds its duration). If it returns a
//! handle or a counted lookup afterwards, that result is undone, because the kernel does not learn of it.
//!
//! The same applies to a program that is killed while it waits. fuser does not pass interruptions on, so
//! Ctrl-C and `kill -9` would take effect only after the answer. Therefore the callers of long requests are
//! polled.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, Request};
use tracing::{Level, Span};

use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_duration;
use crate::vfs::{DirEntry, Entry, Fh, OpenedFile, Statfs, Vfs};

/// How often a waiting caller is checked for a fatal signal.
const KILL_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A request with its fields for the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct FuseOp {
    pub(super) name: &'static str,
    pub(super) ino: u64,
    /// Thread id of the caller. 0 for the kernel itself.
    pub(super) pid: u32,
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl FuseOp {
    pub(super) fn new(request: &Request, name: &'static str, ino: u64) -> Self {
        Self { name, ino, pid: request.pid(), fh: 0, offset: 0, len: 0 }
    }

    pub(super) fn with_handle(self, fh: u64) -> Self {
        Self { fh, ..self }
    }

    pub(super) fn with_range(self, offset: u64, len: u64) -> Self {
        Self { offset, len, ..self }
    }

    /// The tracing span of the request. Costs one comparison unless `debug` is enabled.
    pub(super) fn span(self) -> Span {
        let Self { name, ino, pid, fh, offset, len } = self;
        tracing::debug_span!("fuse", op = name, ino, pid, fh, offset, len)
    }

    /// Logs a failure with its path. An error that was logged before, and an expected one, is logged at
    /// DEBUG.
    fn log(self, error: &Error, path_of: impl FnOnce(u64) -> String) {
        let Self { name: op, ino, pid, fh, offset, len } = self;
        let errno = error.errno();
        let level = error.kind().level();
        if level > Level::WARN || !error.claim_log_line() {
            tracing::debug!(op, ino, pid, fh, offset, len, errno, "{error}");
        } else if level == Level::WARN {
            tracing::warn!(op, ino, pid, fh, offset, len, errno, "{}: {error}", path_of(ino));
        } else {
            tracing::error!(op, ino, pid, fh, offset, len, errno, "{}: {error}", path_of(ino));
        }
    }
}

/// The reply to one request. Dropped without an answer, fuser replies EIO.
pub(super) trait Reply: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! replies {
    ($($reply:ident),+) => {
        $(impl Reply for fuser::$reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

replies!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Replies with an error. For operations without a path.
pub(super) fn reply_error(op: FuseOp, reply: impl Reply, error: &Error) {
    reply_error_at(op, reply, error, |ino| format!("inode {ino}"));
}

/// The only place that turns an error into a log line and an errno.
pub(super) fn reply_error_at(
    op: FuseOp,
    reply: impl Reply,
    error: &Error,
    path_of: impl FnOnce(u64) -> String,
) {
    op.log(error, path_of);
    reply.fail(Errno::from_i32(error.errno()));
}

/// The result of an operation.
pub(super) trait Outcome: Send + 'static {
    /// Undoes a result that came after the deadline: the kernel does not learn of it.
    fn undo(self, vfs: &Vfs) -> impl Future<Output = ()> + Send;
}

/// Attributes that do not count as a lookup.
pub(super) struct Uncounted(pub(super) Entry);

/// A directory handle.
pub(super) struct OpenedDir(pub(super) Fh);

macro_rules! nothing_to_undo {
    ($($outcome:ty),+) => {
        $(impl Outcome for $outcome {
            async fn undo(self, _: &Vfs) {}
        })+
    };
}

nothing_to_undo!((), u32, Bytes, Statfs, Vec<DirEntry>, Uncounted);

impl Outcome for Entry {
    async fn undo(self, vfs: &Vfs) {
        vfs.forget(self.attr.ino, 1);
    }
}

impl Outcome for Option<Entry> {
    async fn undo(self, vfs: &Vfs) {
        if let Some(entry) = self {
            entry.undo(vfs).await;
        }
    }
}

impl Outcome for OpenedFile {
    async fn undo(self, vfs: &Vfs) {
        if let Err(error) = vfs.abandon_open(self.fh).await {
            let op = FuseOp { name: "late release", ino: 0, pid: 0, fh: self.fh.0, offset: 0, len: 0 };
            op.log(&error, |_| "file opened after the deadline".to_owned());
        }
    }
}

impl Outcome for (Entry, OpenedFile) {
    async fn undo(self, vfs: &Vfs) {
        self.1.undo(vfs).await;
        self.0.undo(vfs).await;
    }
}

impl Outcome for OpenedDir {
    async fn undo(self, vfs: &Vfs) {
        vfs.releasedir(self.0);
    }
}

/// Deadline of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deadline {
    /// After a fixed time.
    Fixed(Duration),
    /// When no byte was uploaded for this time.
    UploadIdle(Duration),
    /// When no byte was uploaded or downloaded for this time.
    TransferIdle(Duration),
}

impl Deadline {
    /// Resolves with a timeout error when the deadline is reached.
    pub(super) async fn expired(self, vfs: &Vfs) -> Error {
        match self {
            Self::Fixed(limit) => {
                tokio::time::sleep(limit).await;
                Error::new(ErrorKind::Timeout, format!("timed out after {}", exact_duration(limit)))
            }
            Self::TransferIdle(limit) => {
                vfs.drive_idle(limit).await;
                Error::new(
                    ErrorKind::Timeout,
                    format!("transfer stalled: no data sent or received for {}", exact_duration(limit)),
                )
            }
            Self::UploadIdle(limit) => {
                vfs.upload_idle(limit).await;
                Error::new(
                    ErrorKind::Timeout,
                    format!("upload stalled: no data accepted for {}", exact_duration(limit)),
                )
            }
        }
    }
}

/// Resolves when the calling thread is being killed.
pub(super) async fn caller_killed(vfs: &Vfs, tid: u32) -> Error {
    loop {
        tokio::time::sleep(KILL_CHECK_INTERVAL).await;
        if vfs.is_killed(tid).await {
            return Error::new(ErrorKind::Interrupted, "the calling program was killed");
        }
    }
}

/// Runs `work` and replies once: with its result, its error, or the error of `late`. Returns a result that
/// came after `late`.
pub(super) async fn reply_within<R: Reply, T>(
    op: FuseOp,
    late: impl Future<Output = Error>,
    reply: R,
    work: impl Future<Output = Result<T>>,
    answer: impl FnOnce(R, T),
    path_of: impl FnOnce(u64) -> String,
) -> Option<T> {
    let mut work = pin!(work);
    let outcome = tokio::select! {
        biased;
        outcome = &mut work => outcome,
        late = late => {
            reply_error_at(op, reply, &late, path_of);
            return work.await.ok();
        }
    };
    match outcome {
        Ok(outcome) => answer(reply, outcome),
        Err(error) => reply_error_at(op, reply, &error, path_of),
    }
    None
}

/// Polls a request once. Returns it if it is not finished.
pub(super) fn poll_once<F: Future<Output = ()>>(op: &str, mut request: Pin<Box<F>>) -> Option<Pin<Box<F>>> {
    // The next poll registers its own waker.
    let mut context = Context::from_waker(Waker::noop());
    match guarded(op, || request.as_mut().poll(&mut context)) {
        Some(Poll::Pending) => Some(request),
        Some(Poll::Ready(())) | None => None,
    }
}

/// Runs code of a handler in the session thread, which a panic must not end. Returns `None` after a panic: the
/// dropped reply answers EIO.
pub(super) fn guarded<T>(op: &str, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| tracing::error!("panic in FUSE handler {op}; please report this as a bug")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Records the reply.
    struct Recorder(Sender<std::result::Result<u32, i32>>);

    impl Reply for Recorder {
        fn fail(self, errno: Errno) {
            self.0.send(Err(errno.code())).unwrap();
        }
    }

    impl Recorder {
        fn written(self, count: u32) {
            self.0.send(Ok(count)).unwrap();
        }
    }

    const OP: FuseOp = FuseOp { name: "write", ino: 1, pid: 5, fh: 2, offset: 3, len: 4 };

    fn path_of(ino: u64) -> String {
        format!("/{ino}")
    }

    #[tokio::test]
    async fn result_is_replied_once() {
        let (sender, receiver) = channel();
        let late = reply_within(
            OP,
            std::future::pending(),
            Recorder(sender),
            async { Ok(7) },
            Recorder::written,
            path_of,
        )
        .await;
        assert_eq!((late, receiver.iter().collect::<Vec<_>>()), (None, vec![Ok(7)]));
    }

    #[tokio::test]
    async fn request_that_waits_continues_in_a_task() {
        let (sender, receiver) = channel();
        let (release, released) = tokio::sync::oneshot::channel();
        assert!(poll_once("write", Box::pin(async {})).is_none());
        let rest = poll_once(
            "write",
            Box::pin(async move {
                sender.send(1).unwrap();
                released.await.unwrap();
                sender.send(2).unwrap();
            }),
        );
        assert_eq!(receiver.try_recv(), Ok(1));
        let rest = tokio::spawn(rest.unwrap());
        release.send(()).unwrap();
        rest.await.unwrap();
        assert_eq!(receiver.recv(), Ok(2));
    }

    #[test]
    fn panic_ends_only_its_request() {
        let (sender, receiver) = channel::<()>();
        assert_eq!(guarded("forget", || 7), Some(7));
        let reply = sender.clone();
        let done = guarded("forget", move || {
            let _reply = reply;
            panic!("on purpose");
        });
        assert!(done.is_none());
        let rest = poll_once(
            "write",
            Box::pin(async move {
                let _reply = sender;
                panic!("on purpose");
            }),
        );
        assert!(rest.is_none());
        assert!(receiver.recv().is_err(), "the reply was not dropped");
    }

    #[tokio::test]
    async fn error_is_replied_as_errno() {
        let (sender, receiver) = channel();
        let work = async { Err(Error::new(ErrorKind::QuotaExceeded, "full")) };
        let late =
            reply_within(OP, std::future::pending(), Recorder(sender), work, Recorder::written, path_of)
                .await;
        assert_eq!(late, None);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), vec![Err(ErrorKind::QuotaExceeded.errno())]);
    }

    #[tokio::test]
    async fn deadline_replies_timeout_and_returns_late_result() {
        let (sender, receiver) = channel();
        let (release, released) = tokio::sync::oneshot::channel();
        let work = async {
            released.await.unwrap();
            Ok(7)
        };
        let task = tokio::spawn(reply_within(
            OP,
            async { Error::new(ErrorKind::Timeout, "late") },
            Recorder(sender),
            work,
            Recorder::written,
            path_of,
        ));
        // The reply is sent while the operation still runs.
        let first = tokio::task::spawn_blocking(move || (receiver.recv(), receiver)).await.unwrap();
        assert_eq!(first.0, Ok(Err(ErrorKind::Timeout.errno())));
        release.send(()).unwrap();
        assert_eq!(task.await.unwrap(), Some(7));
        assert!(first.1.recv().is_err(), "replied twice");
    }
}
