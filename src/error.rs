//! Errors, and the one table that turns them into errno.
//!
//! Everything below `fuse.rs` speaks [`Error`]; the errno constants are named nowhere else. A kind
//! says what the *program* should be told; `detail` says what went wrong and what to do. The log
//! level belongs to the kind, so that only the border logs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What went wrong, as far as the program that asked needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// No such file, folder or name.
    NotFound,
    /// The name is taken.
    Exists,
    /// A folder was needed.
    NotDirectory,
    /// A file was needed.
    IsDirectory,
    /// The folder has entries.
    NotEmpty,
    /// An argument makes no sense.
    Invalid,
    /// The drive refuses this name.
    InvalidName,
    /// Longer than 255 bytes.
    NameTooLong,
    /// There is no such drive, or no such service at that address: it says nothing of a file.
    NoDrive,
    /// The service or the mount refuses this to us.
    Denied,
    /// The token is dead and could not be renewed.
    Unauthenticated,
    /// The drive is full.
    QuotaExceeded,
    /// Local space for staged content has run out.
    NoSpace,
    /// Larger than the largest file that parts can hold.
    TooLarge,
    /// The service asked us to slow down for longer than we may wait.
    Throttled,
    /// The content that was opened no longer exists.
    Stale,
    /// Not an open handle, or not open for this.
    BadHandle,
    /// The operation is not offered.
    Unsupported,
    /// Mounted read-only.
    ReadOnly,
    /// Not allowed by nature (hard links, devices).
    NotPermitted,
    /// Moving a drive's file to where it cannot go.
    CrossDevice,
    /// An operation that this mount never offers; the kernel need not ask again.
    NotImplemented,
    /// No extended attribute of that name.
    NoAttribute,
    /// The caller offered too little room for the answer.
    OutOfRoom,
    /// An answer did not come in time.
    Timeout,
    /// The network or the server is not reachable.
    Unreachable,
    /// Who asked has been killed, and hears no answer.
    Interrupted,
    /// The daemon is stopping, or work was given up or ended by a mistake. Not EINTR: programs try again at once, for ever,
    /// or take it for done (`close`).
    Cancelled,
    /// Bytes or hashes do not agree.
    Integrity,
    /// The server's answer made no sense.
    Protocol,
    /// The local system failed.
    Io,
}

impl ErrorKind {
    /// The errno that the program sees.
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
            Self::TooLarge => libc::EFBIG,
            Self::Stale => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::ReadOnly => libc::EROFS,
            Self::NotPermitted => libc::EPERM,
            Self::CrossDevice => libc::EXDEV,
            Self::NotImplemented => libc::ENOSYS,
            Self::NoAttribute => libc::ENODATA,
            Self::OutOfRoom => libc::ERANGE,
            Self::Timeout => libc::ETIMEDOUT,
            Self::Unreachable => libc::EHOSTUNREACH,
            Self::Interrupted => libc::EINTR,
            // Throttling that outlasts the retry policy is a failure of the transfer: programs
            // that see EAGAIN on a regular file spin on it.
            Self::Throttled
            | Self::Cancelled
            | Self::NoDrive
            | Self::Integrity
            | Self::Protocol
            | Self::Io => libc::EIO,
        }
    }

    /// How loud the one log line of such an error is.
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
            | Self::Interrupted
            | Self::NameTooLong => tracing::Level::DEBUG,
            Self::InvalidName
            | Self::Denied
            | Self::QuotaExceeded
            | Self::NoSpace
            | Self::TooLarge
            | Self::Throttled
            | Self::Stale
            | Self::BadHandle
            | Self::ReadOnly
            | Self::CrossDevice
            | Self::Timeout
            | Self::Unreachable
            | Self::Cancelled => tracing::Level::WARN,
            Self::Unauthenticated | Self::NoDrive | Self::Integrity | Self::Protocol | Self::Io => {
                tracing::Level::ERROR
            }
        }
    }

    /// Every kind.
    pub const ALL: [Self; 31] = [
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
        Self::TooLarge,
        Self::Throttled,
        Self::Stale,
        Self::BadHandle,
        Self::Unsupported,
        Self::ReadOnly,
        Self::NotPermitted,
        Self::CrossDevice,
        Self::NoAttribute,
        Self::OutOfRoom,
        Self::NotImplemented,
        Self::Timeout,
        Self::Unreachable,
        Self::Interrupted,
        Self::Cancelled,
        Self::Integrity,
        Self::Protocol,
        Self::Io,
    ];
}

/// One failure. Cheap to clone, because a failed upload reports the same error many times.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    said: Arc<Said>,
}

#[derive(Debug)]
struct Said {
    detail: Box<str>,
    /// Whether the log has it.
    is_told: AtomicBool,
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a sentence that says what went wrong, for people.
    pub fn new(kind: ErrorKind, detail: impl AsRef<str>) -> Self {
        let said = Said { detail: detail.as_ref().into(), is_told: AtomicBool::new(false) };
        Self { kind, said: Arc::new(said) }
    }

    /// What the program is told.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The errno that the program sees.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// Whether the log does not have this error yet, from which it has it: one failure is told to many
    /// programs and calls, and is one line in the log.
    pub fn is_first_told(&self) -> bool {
        !self.said.is_told.swap(true, Ordering::Relaxed)
    }

    /// The same error with the operation or file named in front.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{what}: {}", self.said.detail))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said.detail)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<crate::ids::InvalidValue> for Error {
    fn from(e: crate::ids::InvalidValue) -> Self {
        Self::new(ErrorKind::Invalid, e.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_real_errno() {
        for kind in ErrorKind::ALL {
            assert!(kind.errno() > 0, "{kind:?}");
        }
    }

    #[test]
    fn programs_see_the_errno_they_expect() {
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
            (ErrorKind::Stale, "ESTALE", 116),
            (ErrorKind::NoAttribute, "ENODATA", 61),
        ];
        for (kind, name, number) in table {
            assert_eq!(kind.errno(), number, "{name}");
        }
    }

    #[test]
    fn one_failure_is_told_once_however_often_it_is_met() {
        let e = Error::new(ErrorKind::QuotaExceeded, "full");
        assert!(e.is_first_told());
        assert!(!e.clone().is_first_told());
        assert!(Error::new(ErrorKind::QuotaExceeded, "full").is_first_told());
    }

    #[test]
    fn context_keeps_the_kind() {
        let e = Error::new(ErrorKind::TooLarge, "too large").context("movie.mp4");
        assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::TooLarge, "movie.mp4: too large"));
    }
}
