//! Placeholder: content.
pub mod budget;
pub mod in_flight;
pub mod part;
