//! Tests of the embedded server over loopback, with a client that shares no code with it.

// `cfg(test)` lets helper functions unwrap like tests.
#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // `json!({..})` is passed by value.
mod server_suite {
    mod captures;
    mod faults;
    pub(crate) mod http;
    mod objects;
    mod paging;
    mod persistence;
    mod quirks;
    pub(crate) mod rig;
    mod shares;
    mod taken_names;
    mod tokens;
    mod uploads;
    mod wire;
}
