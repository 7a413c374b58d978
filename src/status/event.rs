//! How transfers end.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// How a file was committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CommitMethod {
    /// Its bytes were sent.
    Uploaded,
    /// The service had the same bytes in another file; nothing was sent.
    Instant,
    /// The file had these bytes already; nothing was sent.
    Unchanged,
}

impl fmt::Display for CommitMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uploaded => "uploaded",
            Self::Instant => "instant",
            Self::Unchanged => "unchanged",
        })
    }
}

/// The end of a transfer, or a refusal of attributes.
#[derive(Clone, Debug)]
pub enum ProgressEvent {
    /// The drive has the file, verified.
    Committed {
        /// The path when the transfer ended.
        name: Arc<str>,
        bytes: u64,
        /// From the start of the transfer to the commit.
        elapsed_ms: u64,
        how: CommitMethod,
    },
    /// The file could not be saved. The program that wrote it got the error.
    Failed {
        /// The path when the transfer ended.
        name: Arc<str>,
        error: Error,
    },
    /// The drive refused the attributes of an object. No program got the error.
    AttributesRefused { name: Arc<str>, error: Error },
}
