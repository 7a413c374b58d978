//! The content of one open or unsaved file.
//!
//! All handles of an inode share one [`OpenFile`]. Its lock is never held across an await: all waiting for
//! the network happens in tasks, and the state records a running commit. A commit whose task dies leaves
//! `Failed`, never success.
//!
//! * `content`: the states
//! * `snapshot`: the state for observers, readable without the lock
//! * `file`: the file, its flags and times
//! * `read`, `write`, `local_only`, `commit`, `give_up`: the operations

mod commit;
mod content;
mod file;
mod give_up;
mod local_only;
mod read;
mod snapshot;
mod write;

pub use commit::{CommitGuard, CommitStep};
pub use content::Writer;
pub use file::OpenFile;
pub use read::ReadSource;
pub use snapshot::{FileStatus, Stage};
pub use write::{WriteAt, WriteOutcome};
