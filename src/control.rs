//! The control socket of a running mount, with a JSON API.
//!
//! Each daemon has one socket, private to its user. `pdsfs status`, `wait`, `log` and `umount --drain` are
//! separate programs and access a mount only through this API. [`types`] has the JSON types; all paths begin
//! with `/v1`. Fields may be added to `/v1`. They are never removed, and their meaning never changes.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`types::Status`] |
//! | `GET /v1/events?since=SEQ&follow=true` | [`types::LogEntry`], one a line; with `follow` until the mount ends |
//! | `GET /v1/end` | [`types::Drained`] when the mount has ended; the head of the answer comes at once |
//! | `POST /v1/drain?timeout_ms=N` | [`types::Drained`] when everything written is on the drive |
//! | `POST /v1/credentials/reload` | `{}` when the credential was read again, after a new login |
//! | `GET /v1/versions?ino=N` | [`types::Versions`] of the file with that inode number |
//! | `GET /v1/versions/content?ino=N&id=ID` | the content of a version; too short after a failure |
//! | `POST /v1/versions/restore?ino=N&id=ID` | `{}` when the file has the content of that version |
//! | `GET /v1/trash` | [`types::Trash`] |
//! | `POST /v1/trash/restore?id=ID` | [`types::Restored`] when the object is back |
//! | `POST /v1/trash/delete?id=ID` | `{}` when the object is deleted for good |
//!
//! Parameters are percent-encoded. An error is [`types::ApiError`] with a status of 400 or more. Only the user of the daemon and root get
//! answers. No answer contains a secret.

mod api;
pub mod client;
pub mod event_log;
mod http;
pub mod metrics;
mod mount_handle;
mod server;
pub mod socket_dirs;
pub mod types;

pub use api::ControlApi;
#[cfg(any(test, fuzzing))]
pub use api::check_query;
pub use mount_handle::{KernelView, MountHandle, MountLookup};
pub use server::ControlSocket;
pub use socket_dirs::SocketDirs;
