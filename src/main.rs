//! The `pdsfs` program: everything is in the library, so that tests reach it.

use std::process::ExitCode;

/// Buffers of 64 KiB to 1 MiB come and go all the time: the system's allocator gives their pages
/// back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pdsfs::cli::run()
}
