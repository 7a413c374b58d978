//! The remote drive: shapes, transport, authentication, and one typed method per endpoint.
//!
//! `types` is shapes only and is shared with the embedded server; everything else is the client's.

pub mod auth;
pub mod domain;
pub mod drive;
pub mod endpoint;
pub mod frame;
mod reach;
pub mod retry;
mod routes;
pub mod session;
pub mod sign;
pub mod transport;
pub mod types;
