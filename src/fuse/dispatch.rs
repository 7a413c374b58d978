//! From a request of the kernel to its one answer.
//!
//! A request never waits in a session thread: where it has to, its reply moves into a task of the
//! runtime, so a stalled transfer holds up nobody but the program that asked. Every task has a deadline. When it
//! passes, the program gets ETIMEDOUT; the operation itself is not cut off in the middle (`vfs`
//! bounds what it does), and what it still hands out afterwards, a handle or a counted name, is
//! taken back, because the kernel will never hear of it.
//!
//! The same holds for a program that is killed while it waits. The kernel would tell, but fuser refuses to listen, so
//! that Ctrl-C or `kill -9` would have no effect before the answer: who waits long is looked at every now and then.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, Request};
use tracing::{Level, Span};

use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{DirEntry, Entry, Fh, Opened, Statfs, Vfs, is_killed};

/// How often it is looked whether a program that waits has been killed.
const KILL_LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// One request, as the log knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) name: &'static str,
    pub(super) ino: u64,
    /// The thread that asked; 0 for the kernel itself.
    pub(super) pid: u32,
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Op {
    pub(super) fn on(request: &Request, name: &'static str, ino: u64) -> Self {
        Self { name, ino, pid: request.pid(), fh: 0, offset: 0, len: 0 }
    }

    pub(super) fn with_handle(self, fh: u64) -> Self {
        Self { fh, ..self }
    }

    pub(super) fn over(self, offset: u64, len: u64) -> Self {
        Self { offset, len, ..self }
    }

    /// Costs one comparison unless `debug` is on.
    pub(super) fn span(self) -> Span {
        let Self { name, ino, pid, fh, offset, len } = self;
        tracing::debug_span!("fuse", op = name, ino, pid, fh, offset, len)
    }

    /// One line for a failure, with the path of what it was about; a failure that was told before is a line
    /// for `debug` only.
    fn log(self, error: &Error, named: impl FnOnce(u64) -> String) {
        let Self { name: op, ino, pid, fh, offset, len } = self;
        let errno = error.errno();
        let level = error.kind().level();
        if level > Level::WARN || !error.is_first_told() {
            tracing::debug!(op, ino, pid, fh, offset, len, errno, "{error}");
        } else if level == Level::WARN {
            tracing::warn!(op, ino, pid, fh, offset, len, errno, "{}: {error}", named(ino));
        } else {
            tracing::error!(op, ino, pid, fh, offset, len, errno, "{}: {error}", named(ino));
        }
    }
}

/// A place for one answer. Dropped without one, fuser answers EIO.
pub(super) trait Reply: Send + 'static {
    /// Answers with an error.
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

/// Answers with an error about what has no name.
pub(super) fn refuse(op: Op, reply: impl Reply, error: &Error) {
    refuse_named(op, reply, error, |ino| format!("inode {ino}"));
}

/// The one place where an error becomes a log line and an errno.
pub(super) fn refuse_named(op: Op, reply: impl Reply, error: &Error, named: impl FnOnce(u64) -> String) {
    op.log(error, named);
    reply.fail(Errno::from_i32(error.errno()));
}

/// What an operation hands out.
pub(super) trait Outcome: Send + 'static {
    /// Gives back what the kernel will not hear of.
    fn take_back(self, vfs: &Vfs) -> impl Future<Output = ()> + Send;
}

/// Attributes of an inode that the kernel knows already: nothing was counted.
pub(super) struct Seen(pub(super) Entry);

/// A handle of a folder.
pub(super) struct OpenedFolder(pub(super) Fh);

macro_rules! nothing_to_take_back {
    ($($outcome:ty),+) => {
        $(impl Outcome for $outcome {
            async fn take_back(self, _: &Vfs) {}
        })+
    };
}

nothing_to_take_back!((), u32, Bytes, Statfs, Vec<DirEntry>, Seen);

impl Outcome for Entry {
    async fn take_back(self, vfs: &Vfs) {
        vfs.forget(self.attr.ino, 1);
    }
}

impl Outcome for Option<Entry> {
    async fn take_back(self, vfs: &Vfs) {
        if let Some(entry) = self {
            entry.take_back(vfs).await;
        }
    }
}

impl Outcome for Opened {
    async fn take_back(self, vfs: &Vfs) {
        if let Err(error) = vfs.release(self.fh).await {
            let op = Op { name: "late release", ino: 0, pid: 0, fh: self.fh.0, offset: 0, len: 0 };
            op.log(&error, |_| "a file that was opened too late".to_owned());
        }
    }
}

impl Outcome for (Entry, Opened) {
    async fn take_back(self, vfs: &Vfs) {
        self.1.take_back(vfs).await;
        self.0.take_back(vfs).await;
    }
}

impl Outcome for OpenedFolder {
    async fn take_back(self, vfs: &Vfs) {
        vfs.releasedir(self.0);
    }
}

/// How long a request may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    /// So long.
    Within(Duration),
    /// As long as bytes move, and so long after the last one.
    WhileMoving(Duration),
    /// As long as content comes, and so long after the last byte.
    WhileComing(Duration),
}

impl Limit {
    /// Resolves when it is reached.
    pub(super) async fn reached(self, vfs: &Vfs) -> Error {
        match self {
            Self::Within(limit) => {
                tokio::time::sleep(limit).await;
                Error::new(ErrorKind::Timeout, format!("no outcome within {} s", limit.as_secs()))
            }
            Self::WhileComing(limit) => {
                vfs.drought(limit).await;
                Error::new(ErrorKind::Timeout, format!("nothing has come for {} s", limit.as_secs()))
            }
            Self::WhileMoving(limit) => {
                vfs.standstill(limit).await;
                Error::new(ErrorKind::Timeout, format!("nothing has moved for {} s", limit.as_secs()))
            }
        }
    }
}

/// Resolves when the thread that asked is being killed.
pub(super) async fn killed(tid: u32) -> Error {
    loop {
        tokio::time::sleep(KILL_LOOK_INTERVAL).await;
        if is_killed(tid) {
            return Error::new(ErrorKind::Interrupted, "the program that asked was killed");
        }
    }
}

/// Runs `work` and answers once: with its outcome, its error, or that of `late`. An outcome that comes later is
/// returned.
pub(super) async fn answer_within<R: Reply, T>(
    op: Op,
    late: impl Future<Output = Error>,
    reply: R,
    work: impl Future<Output = Result<T>>,
    answer: impl FnOnce(R, T),
    named: impl FnOnce(u64) -> String,
) -> Option<T> {
    let mut work = pin!(work);
    let in_time = tokio::select! {
        biased;
        outcome = &mut work => outcome,
        late = late => {
            refuse_named(op, reply, &late, named);
            return work.await.ok();
        }
    };
    match in_time {
        Ok(outcome) => answer(reply, outcome),
        Err(error) => refuse_named(op, reply, &error, named),
    }
    None
}

/// Takes the first step of a request; gives it back where that was not the last.
pub(super) fn started<F: Future<Output = ()>>(mut request: Pin<Box<F>>) -> Option<Pin<Box<F>>> {
    // Whoever polls it next leaves a waker of its own, so this one may wake nobody.
    let mut nobody = Context::from_waker(Waker::noop());
    // The session thread must outlive a mistake; the reply that is dropped answers EIO.
    let step = catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut nobody)));
    match step {
        Ok(Poll::Pending) => Some(request),
        Ok(Poll::Ready(())) => None,
        Err(_) => {
            tracing::error!("a request of the kernel stopped at a mistake in this program");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Records what the kernel would have been told.
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

    const OP: Op = Op { name: "write", ino: 1, pid: 5, fh: 2, offset: 3, len: 4 };

    fn named(ino: u64) -> String {
        format!("/{ino}")
    }

    #[tokio::test]
    async fn an_outcome_is_answered_once() {
        let (told, heard) = channel();
        let late = answer_within(
            OP,
            std::future::pending(),
            Recorder(told),
            async { Ok(7) },
            Recorder::written,
            named,
        )
        .await;
        assert_eq!((late, heard.iter().collect::<Vec<_>>()), (None, vec![Ok(7)]));
    }

    #[tokio::test]
    async fn what_need_not_wait_is_answered_at_once_and_the_rest_goes_on_elsewhere() {
        let (told, heard) = channel();
        let (go, gone) = tokio::sync::oneshot::channel();
        assert!(started(Box::pin(async {})).is_none());
        let rest = started(Box::pin(async move {
            told.send(1).unwrap();
            gone.await.unwrap();
            told.send(2).unwrap();
        }));
        assert_eq!(heard.try_recv(), Ok(1));
        let rest = tokio::spawn(rest.unwrap());
        go.send(()).unwrap();
        rest.await.unwrap();
        assert_eq!(heard.recv(), Ok(2));
    }

    #[test]
    fn a_mistake_in_a_request_ends_the_request_alone() {
        let (told, heard) = channel::<()>();
        let rest = started(Box::pin(async move {
            let _reply = told;
            panic!("a mistake");
        }));
        assert!(rest.is_none());
        assert!(heard.recv().is_err(), "the reply was kept");
    }

    #[tokio::test]
    async fn an_error_becomes_its_errno() {
        let (told, heard) = channel();
        let work = async { Err(Error::new(ErrorKind::QuotaExceeded, "full")) };
        let late =
            answer_within(OP, std::future::pending(), Recorder(told), work, Recorder::written, named).await;
        assert_eq!(late, None);
        assert_eq!(heard.iter().collect::<Vec<_>>(), vec![Err(ErrorKind::QuotaExceeded.errno())]);
    }

    #[tokio::test]
    async fn after_the_deadline_the_answer_is_a_timeout_and_the_outcome_comes_back() {
        let (told, heard) = channel();
        let (go, gone) = tokio::sync::oneshot::channel();
        let work = async {
            gone.await.unwrap();
            Ok(7)
        };
        let task = tokio::spawn(answer_within(
            OP,
            async { Error::new(ErrorKind::Timeout, "late") },
            Recorder(told),
            work,
            Recorder::written,
            named,
        ));
        // The answer comes while the operation is still held up.
        let first = tokio::task::spawn_blocking(move || (heard.recv(), heard)).await.unwrap();
        assert_eq!(first.0, Ok(Err(ErrorKind::Timeout.errno())));
        go.send(()).unwrap();
        assert_eq!(task.await.unwrap(), Some(7));
        assert!(first.1.recv().is_err(), "answered twice");
    }
}
