//! The way to ask a running mount: a socket for each daemon, private to its user, and a JSON API on it.
//!
//! `pdsfs status`, `wait`, `log` and `umount --drain` are programs of their own that know a mount only by
//! this. The shapes are in [`types`], the paths are below `/v1`; fields may be added to what `/v1` answers,
//! and are never taken away or given another meaning.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`types::Status`] |
//! | `GET /v1/events?since=SEQ&follow=true` | [`types::LogEntry`], one a line; with `follow` without end |
//! | `GET /v1/end` | [`types::Drained`], once the mount has ended; the head of the answer comes at once |
//! | `POST /v1/drain?timeout_ms=N` | [`types::Drained`], once everything written is on the drive |
//! | `POST /v1/credentials/reload` | `{}`, once the credential was read again, as after a new login |
//!
//! An error is [`types::Refusal`] with a status of 400 or more. Nobody but the user of the daemon and root
//! is answered, and no secret is part of any answer.

mod answers;
pub mod client;
pub mod folder;
pub mod metrics;
pub mod recent;
mod report;
pub mod server;
pub mod types;

pub use answers::{Answers, Served};
pub use client::drain;
pub use folder::Surroundings;
pub use server::ControlSocket;
