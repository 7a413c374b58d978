//! The content of files: its states, and the effect of a write in each of them.
//!
//! State is per file, not per handle: one [`open_file::OpenFile`] per inode with open handles.
//!
//! ```text
//!        create                         O_TRUNC, truncate(0)
//!          |                                    |
//!          v    write near the beginning        v
//!         New ------------------------> Streaming <------ write at the end of Clean, by a handle that
//!          |                                |  |  ^       wrote it, while the content is retained
//!          | commit (an empty file)         |  |  |       (shell loops)
//!          |                         commit |  |  +--- write at the frontier, to the filling part,
//!          |                                |  |       or a little ahead
//!          |                                |  |
//!          |        any other write, if     |  | the tee has the sent parts
//!          |        not: commit, then Clean |  v
//!          |                                | Staged <--- any other write or truncation of Clean
//!          |                                |  |    <--- write, truncate
//!          +---------------> Committing <---+--+ commit
//!                             |      |
//!           the drive has it  v      v   any failure, also a task that dies
//!                          Clean    Failed -- truncate(0) --> Streaming
//! ```
//!
//! A local-only file is `Local` from its creation on. It accepts any write and has nothing to commit. When it
//! is renamed to an ordinary name, it becomes `Staged`. If the drive refuses it, it becomes `Local` again.

mod arena;
pub mod buffer_pool;
pub mod cached_files;
pub mod commit;
pub mod commit_target;
mod direct_io;
pub mod disk_quota;
pub mod in_flight_parts;
mod local_content;
pub mod open_file;
pub mod open_files;
pub mod part;
mod part_upload;
mod present_ranges;
pub mod reader;
pub mod staged_file;
pub mod streaming;
mod tee;
pub mod tee_queue;
pub mod upload_context;
pub mod upload_limiter;
mod upload_session;
mod uploader;
mod write_plan;
