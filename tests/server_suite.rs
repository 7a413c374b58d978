//! The embedded server over loopback, spoken to by a client that shares no code with it.

// Marked so that helper functions may unwrap as tests may.
#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // `json!({..})` is written where it is used.
mod server_suite {
    mod captures;
    mod faults;
    pub(crate) mod http;
    mod objects;
    mod paging;
    mod persistence;
    pub(crate) mod rig;
    mod taken_names;
    mod tokens;
    mod uploads;
}
