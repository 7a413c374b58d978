//! What the machine around a mount is told over D-Bus. Everything here is a courtesy: where nobody
//! listens, nothing is missing.

mod bus;
pub mod inhibit;
pub mod notification;
