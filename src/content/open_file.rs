//! The content of one open or unsaved file.
//!
//! All handles of an inode share one [`OpenFile`]. Its lock is never held across an await or over I/O: waiting
//! for the network and the local disk happens in tasks and threads, and the state records it. A commit whose
//! task dies leaves `Failed`, never success.
//!
//! * `content`: the states
//! * `status`: the state for observers
//! * `file`: the file, its flags and times
//! * `read`, `write`, `disk`, `clone`, `local_only`, `commit`, `give_up`: the operations; `disk` has all that change
//!   local files

mod clone;
mod commit;
mod content;
mod disk;
mod file;
mod give_up;
mod growth;
mod local_only;
mod read;
mod status;
mod write;

pub use super::write_plan::WriteAt;
pub use commit::{CommitGuard, CommitStep};
pub use content::{Unsaved, Writer};
pub use disk::DiskOutcome;
pub use file::OpenFile;
pub use read::ReadSource;
pub use status::{FileStatus, Stage};
pub use write::WriteOutcome;
