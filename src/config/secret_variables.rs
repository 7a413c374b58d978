//! Secrets of environment variables. They are taken out of the environment before the first thread starts.
//! Programs that this process runs do not inherit them, and `/proc/PID/environ` does not show them.

use std::ffi::{CStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

use zeroize::Zeroize;

use crate::ids::Secret;

/// The access token. A token file or an account in the environment overrides it.
pub const TOKEN_VARIABLE: &str = "PDSFS_TOKEN";
/// The secret of the access key of `pdsfs login`.
pub const ACCESS_KEY_VARIABLE: &str = "PDSFS_ACCESS_KEY_SECRET";

/// All variables with secrets.
const VARIABLES: [&CStr; 5] = [
    c"PDSFS_TOKEN",
    c"PDSFS_ACCESS_KEY_SECRET",
    c"PDSFS_SERVE_CLIENT_SECRET",
    c"PDSFS_SERVE_PASSWORD",
    c"PDSFS_SERVE_ACCESS_KEY_SECRET",
];

type TakenVariable = (&'static CStr, Secret<Vec<u8>>);

static TAKEN: OnceLock<Vec<TakenVariable>> = OnceLock::new();

/// Removes the variables from the environment, and overwrites their values where the kernel shows them.
///
/// # Safety
///
/// No other thread may use the environment during the call, and the caller holds no reference into it.
pub unsafe fn take() {
    let mut taken = Vec::new();
    for variable in VARIABLES {
        // SAFETY: the name ends with NUL.
        let value = unsafe { libc::getenv(variable.as_ptr()) };
        if value.is_null() {
            continue;
        }
        // SAFETY: getenv returned a string that ends with NUL and that nothing else uses: see above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), libc::strlen(value)) };
        taken.push((variable, Secret::new(bytes.to_vec())));
        bytes.zeroize();
        let name = std::ffi::OsStr::from_bytes(variable.to_bytes());
        // SAFETY: no other thread uses the environment: see above.
        unsafe { std::env::remove_var(name) };
    }
    // Only the first call finds variables.
    TAKEN.set(taken).ok();
}

/// The value that a variable had at the start of the program.
pub fn get(name: &str) -> Option<OsString> {
    let taken =
        TAKEN.get().and_then(|taken| taken.iter().find(|(taken, _)| taken.to_bytes() == name.as_bytes()));
    taken.map(|(_, value)| OsString::from_vec(value.expose().clone())).or_else(|| std::env::var_os(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_are_consistent() {
        for name in [TOKEN_VARIABLE, ACCESS_KEY_VARIABLE] {
            assert!(VARIABLES.iter().any(|variable| variable.to_bytes() == name.as_bytes()), "{name}");
        }
    }
}
