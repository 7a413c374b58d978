//! The error type of the crate, and the one table that maps errors to errno.
//!
//! Every fallible function returns [`Error`]; the errno constants appear in no other module. The
//! [`ErrorKind`] selects errno and log level. The message is for people: what failed, why, what to do next.
//! Only the FUSE layer and background tasks log errors, each error once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::messages::{Cause, Language};

/// The cause of a failure as far as programs can tell. Selects errno and log level.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Invalid,
    /// The drive does not accept this file name.
    InvalidName,
    /// Longer than 255 bytes.
    NameTooLong,
    /// The drive or the service does not exist. Says nothing about a file.
    NoDrive,
    /// The service or the mount options forbid the operation.
    Denied,
    /// The token is not valid any more and could not be refreshed.
    Unauthenticated,
    /// The drive is full.
    QuotaExceeded,
    /// Local disk space for staged files is used up.
    NoSpace,
    /// The mount has too many local files, or snapshots of directories, for this user.
    TooManyFiles,
    /// Larger than the largest file that fits into the parts of one upload.
    TooLarge,
    /// The service asked to slow down for longer than the retry policy allows.
    Throttled,
    /// The content that was opened does not exist any more.
    Stale,
    /// Not an open handle, or not open for this access.
    BadHandle,
    Unsupported,
    /// Never possible on this file system, for example hard links and devices.
    NotPermitted,
    /// Answered with ENOSYS: the kernel does not send the operation again.
    NotImplemented,
    NoAttribute,
    /// The buffer of an xattr call is too small.
    OutOfRoom,
    Timeout,
    /// The network or the server cannot be reached.
    Unreachable,
    /// The mount is about to end and accepts no more content. ESHUTDOWN: EIO would blame the disk, and programs
    /// do not repeat the write.
    Stopping,
    /// Another program is writing the file, or the drive is changing it.
    Busy,
    /// The calling program was killed and does not see the answer.
    Interrupted,
    /// A task panicked or was aborted. Not EINTR: programs retry EINTR at once and
    /// forever, or mistake it for success (`close`).
    Cancelled,
    /// Size or hash does not match.
    Integrity,
    /// The server sent an answer that violates the protocol.
    Protocol,
    /// A local system call or task failed.
    Io,
}

impl ErrorKind {
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::Invalid | Self::InvalidName => libc::EINVAL,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Denied | Self::Unauthenticated => libc::EACCES,
            Self::QuotaExceeded | Self::NoSpace => libc::ENOSPC,
            // Not EMFILE: the program itself is within its limit.
            Self::TooManyFiles => libc::ENFILE,
            Self::TooLarge => libc::EFBIG,
            Self::Stale => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::NotPermitted => libc::EPERM,
            Self::NotImplemented => libc::ENOSYS,
            Self::NoAttribute => libc::ENODATA,
            Self::OutOfRoom => libc::ERANGE,
            Self::Timeout => libc::ETIMEDOUT,
            Self::Unreachable => libc::EHOSTUNREACH,
            Self::Stopping => libc::ESHUTDOWN,
            Self::Busy => libc::EBUSY,
            Self::Interrupted => libc::EINTR,
            // Not EAGAIN for throttling: programs spin on EAGAIN from a regular file.
            Self::Throttled
            | Self::Cancelled
            | Self::NoDrive
            | Self::Integrity
            | Self::Protocol
            | Self::Io => libc::EIO,
        }
    }

    /// The level of the one log line of such an error.
    pub fn level(self) -> tracing::Level {
        match self {
            Self::NotFound
            | Self::Exists
            | Self::NotDirectory
            | Self::IsDirectory
            | Self::NotEmpty
            | Self::NoAttribute
            | Self::OutOfRoom
            | Self::NotImplemented
            | Self::Unsupported
            | Self::NotPermitted
            | Self::Invalid
            | Self::Busy
            | Self::Interrupted
            | Self::Stopping
            | Self::NameTooLong => tracing::Level::DEBUG,
            Self::InvalidName
            | Self::Denied
            | Self::QuotaExceeded
            | Self::NoSpace
            | Self::TooManyFiles
            | Self::TooLarge
            | Self::Throttled
            | Self::Stale
            | Self::BadHandle
            | Self::Timeout
            | Self::Unreachable
            | Self::Cancelled => tracing::Level::WARN,
            Self::Unauthenticated | Self::NoDrive | Self::Integrity | Self::Protocol | Self::Io => {
                tracing::Level::ERROR
            }
        }
    }

    pub const ALL: [Self; 32] = [
        Self::NotFound,
        Self::Exists,
        Self::NotDirectory,
        Self::IsDirectory,
        Self::NotEmpty,
        Self::Invalid,
        Self::InvalidName,
        Self::NameTooLong,
        Self::NoDrive,
        Self::Denied,
        Self::Unauthenticated,
        Self::QuotaExceeded,
        Self::NoSpace,
        Self::TooManyFiles,
        Self::TooLarge,
        Self::Throttled,
        Self::Stale,
        Self::BadHandle,
        Self::Unsupported,
        Self::NotPermitted,
        Self::NoAttribute,
        Self::OutOfRoom,
        Self::NotImplemented,
        Self::Timeout,
        Self::Unreachable,
        Self::Stopping,
        Self::Busy,
        Self::Interrupted,
        Self::Cancelled,
        Self::Integrity,
        Self::Protocol,
        Self::Io,
    ];
}

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// One failure. Cheap to clone: a failed upload reports the same error several times.
///
/// `Display` shows the message and, after a colon, the sentence of the [`Cause`], else the source. Code that
/// walks [`source()`](std::error::Error::source) must not print both.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Empty if the text of `cause` or `source` is enough.
    message: Box<str>,
    /// With the answer of the service or the network in technical terms.
    cause: Option<(Cause, Arc<str>)>,
    source: Option<Source>,
    logged: AtomicBool,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Self::from_parts(kind, message.as_ref(), None, None)
    }

    pub fn invalid(message: impl AsRef<str>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub fn protocol(message: impl AsRef<str>) -> Self {
        Self::new(ErrorKind::Protocol, message)
    }

    /// An error that another error caused. `message` does not repeat the text of `source`: `Display` appends
    /// it.
    pub fn with_source(
        kind: ErrorKind,
        message: impl AsRef<str>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::from_parts(kind, message.as_ref(), None, Some(source.into().into()))
    }

    /// Wraps another error with a kind. The text of `source` is the message.
    pub fn from_source(kind: ErrorKind, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::with_source(kind, "", source)
    }

    /// An error that people read as the sentence of `cause`. `detail` has the facts for a report: the call,
    /// the code of the service, the id of the request.
    pub fn from_cause(kind: ErrorKind, cause: Cause, detail: impl AsRef<str>) -> Self {
        Self::from_parts(kind, "", Some((cause, detail.as_ref().into())), None)
    }

    fn from_parts(
        kind: ErrorKind,
        message: &str,
        cause: Option<(Cause, Arc<str>)>,
        source: Option<Source>,
    ) -> Self {
        let inner = Inner { message: message.into(), cause, source, logged: AtomicBool::new(false) };
        Self { kind, inner: Arc::new(inner) }
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    pub fn cause(&self) -> Option<&Cause> {
        self.inner.cause.as_ref().map(|(cause, _)| cause)
    }

    /// The facts behind the cause; not for the eyes of users.
    pub fn detail(&self) -> Option<&str> {
        self.inner.cause.as_ref().map(|(_, detail)| &**detail)
    }

    /// The text in this language. Only causes are translated.
    pub fn text(&self, language: Language) -> String {
        let Inner { message, cause, .. } = &*self.inner;
        match cause {
            Some((cause, _)) if message.is_empty() => cause.text(language),
            Some((cause, _)) => format!("{message}: {}", cause.text(language)),
            None => self.to_string(),
        }
    }

    /// Whether the drive could not be queried. Such an error says nothing about the content of the drive.
    pub fn is_outage(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Throttled)
    }

    /// Returns `true` on the first call only, for all clones together: one failure may reach several
    /// programs, and is one line in the log.
    pub fn claim_log_line(&self) -> bool {
        !self.inner.logged.swap(true, Ordering::Relaxed)
    }

    /// The same error with the operation or file in front of its message.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Self {
        let Inner { message, cause, source, .. } = &*self.inner;
        let message = if message.is_empty() { what.to_string() } else { format!("{what}: {message}") };
        Self::from_parts(self.kind, &message, cause.clone(), source.clone())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { message, cause, source, .. } = &*self.inner;
        let reason = cause.as_ref().map(|(cause, _)| cause as &dyn fmt::Display);
        match reason.or(source.as_ref().map(|source| source as &dyn fmt::Display)) {
            None => f.write_str(message),
            Some(reason) if message.is_empty() => reason.fmt(f),
            Some(reason) => write!(f, "{message}: {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::from_source(kind, e)
    }
}

impl From<crate::ids::InvalidValue> for Error {
    fn from(e: crate::ids::InvalidValue) -> Self {
        Self::from_source(ErrorKind::Invalid, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_errno() {
        for kind in ErrorKind::ALL {
            assert!(kind.errno() > 0, "{kind:?}");
        }
    }

    #[test]
    fn kinds_map_to_the_usual_errno() {
        let table = [
            (ErrorKind::NotFound, "ENOENT", 2),
            (ErrorKind::Denied, "EACCES", 13),
            (ErrorKind::Exists, "EEXIST", 17),
            (ErrorKind::QuotaExceeded, "ENOSPC", 28),
            (ErrorKind::TooLarge, "EFBIG", 27),
            (ErrorKind::NotEmpty, "ENOTEMPTY", 39),
            (ErrorKind::NameTooLong, "ENAMETOOLONG", 36),
            (ErrorKind::Unsupported, "EOPNOTSUPP", 95),
            (ErrorKind::Integrity, "EIO", 5),
            (ErrorKind::Cancelled, "EIO", 5),
            (ErrorKind::Stopping, "ESHUTDOWN", 108),
            (ErrorKind::Busy, "EBUSY", 16),
            (ErrorKind::Stale, "ESTALE", 116),
            (ErrorKind::NoAttribute, "ENODATA", 61),
        ];
        for (kind, name, number) in table {
            assert_eq!(kind.errno(), number, "{name}");
        }
    }

    #[test]
    fn clones_of_an_error_are_logged_once() {
        let e = Error::new(ErrorKind::QuotaExceeded, "full");
        assert!(e.claim_log_line());
        assert!(!e.clone().claim_log_line());
        assert!(Error::new(ErrorKind::QuotaExceeded, "full").claim_log_line());
    }

    #[test]
    fn context_keeps_the_kind() {
        let e = Error::new(ErrorKind::TooLarge, "too large").context("movie.mp4");
        assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::TooLarge, "movie.mp4: too large"));
    }

    #[test]
    fn cause_is_shown_and_its_detail_is_not() {
        let cause = Cause::ServerFailed { status: 500 };
        let e = Error::from_cause(ErrorKind::Io, cause.clone(), "/v2/x: 500 (request 7)").context("a.txt");
        assert_eq!(e.to_string(), "a.txt: the drive answers 500");
        assert_eq!((e.cause(), e.detail()), (Some(&cause), Some("/v2/x: 500 (request 7)")));
        assert_eq!(e.text(Language::Chinese), "a.txt: 云盘返回错误 500");
        assert_eq!(Error::invalid("x").text(Language::Chinese), "x");
    }

    #[test]
    fn source_is_kept_and_shown_once() {
        let io = || std::io::Error::from_raw_os_error(libc::ENOSPC);
        let e = Error::with_source(ErrorKind::NoSpace, "cannot write", io()).context("a.txt");
        assert_eq!(e.to_string(), format!("a.txt: cannot write: {}", io()));
        let source = std::error::Error::source(&e).unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        let e = Error::from(io());
        assert_eq!((e.kind(), e.to_string()), (ErrorKind::NoSpace, io().to_string()));
        assert_eq!(e.context("a.txt").to_string(), format!("a.txt: {}", io()));
    }
}
