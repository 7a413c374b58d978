//! The client of the PDS API: JSON types, transport, retries, tokens, and one typed method per endpoint.
//!
//! ```text
//! drive, domain -> listing_bounds, session -> tokens -> transport -> call_limiter, retry, part_body -> connectivity -> route_monitor
//! ```
//!
//! The embedded server shares `types` and nothing else.

mod call_limiter;
mod connectivity;
mod content_hosts;
pub mod domain;
pub mod drive;
pub mod listing_bounds;
pub mod part_body;
pub mod put_control;
pub mod retry;
pub mod retry_observer;
mod route_monitor;
pub mod session;
pub mod tokens;
pub mod transport;
pub mod types;
