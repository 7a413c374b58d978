//! Desktop integration over D-Bus: sleep inhibition and notifications.
//!
//! Both are optional. Without a bus or a service, nothing else changes.

mod bus;
pub mod inhibit;
pub mod notification;
