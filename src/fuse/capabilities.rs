//! What the kernel is told about this file system as a whole.
//!
//! Writes come in pieces of up to 1 MiB, one at a time per file, and never through a writeback
//! cache, which would reorder them and keep their errors from the program.

use fuser::{InitFlags, KernelConfig};

/// Largest WRITE and READ, in bytes (`fs.fuse.max_pages_limit` is 256 pages by default).
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Read-ahead requests that the kernel may have open at once.
const BACKGROUND_REQUESTS_MAX: u16 = 128;
/// Asked for where the kernel offers it. Not here on purpose: `WRITEBACK_CACHE` and `ASYNC_DIO`.
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // A new size or mtime of a file, as seen by the next GETATTR, drops its cached pages.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_HAS_EXPIRE_ONLY,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Settles sizes and capabilities with the kernel.
pub(super) fn negotiate(kernel: &mut KernelConfig) {
    if let Err(most) = kernel.set_max_write(REQUEST_BYTES_MAX) {
        kernel.set_max_write(most).ok();
    }
    if let Err(most) = kernel.set_max_readahead(REQUEST_BYTES_MAX) {
        kernel.set_max_readahead(most).ok();
    }
    kernel.set_max_background(BACKGROUND_REQUESTS_MAX).ok();
    for capability in CAPABILITIES {
        if kernel.add_capabilities(capability).is_err() {
            tracing::debug!("this kernel does not offer {capability:?}");
        }
    }
}
