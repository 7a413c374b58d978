//! The async runtime of a command, and its end.

use std::process::ExitCode;
use std::time::Duration;

use crate::daemon::TOKEN_REFRESH_END_MAX;
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::pds::tokens::wait_for_token_requests;

/// How long background tasks may take to notice the end of the program.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);

/// Runs a command on a runtime with one worker for each core, and at least two.
pub(super) fn on_runtime(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|e| Error::from(e).context("cannot start the async runtime"))?;
    let outcome = runtime.block_on(command);
    runtime.block_on(wait_for_token_requests(TOKEN_REFRESH_END_MAX));
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    outcome
}

/// Runs a command until a signal. After the signal it runs on only while a credential that the service issues
/// once has not been stored, and no longer than [`TOKEN_REFRESH_END_MAX`].
pub(super) async fn until_signal(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut command = std::pin::pin!(command);
    let signal = tokio::select! {
        outcome = &mut command => return outcome,
        signal = signals.next() => signal,
    };
    tokio::select! {
        biased;
        () = wait_for_token_requests(TOKEN_REFRESH_END_MAX) => {
            Err(Error::new(ErrorKind::Cancelled, format!("interrupted by {signal}")))
        }
        outcome = &mut command => outcome,
    }
}
