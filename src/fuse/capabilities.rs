//! Negotiation of sizes and capabilities with the kernel.
//!
//! Writes have at most 1 MiB. The kernel sends one write of a file at a time. The writeback cache is never
//! used: it would reorder writes and hide their errors from the program.

use fuser::{InitFlags, KernelConfig};

/// Largest READ and WRITE, in bytes (`fs.fuse.max_pages_limit` is 256 pages by default).
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Most read-ahead requests in the kernel's queue.
const BACKGROUND_REQUESTS_MAX: u16 = 128;
/// Requested if the kernel offers them. `WRITEBACK_CACHE` and `ASYNC_DIO` are missing on purpose.
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Drops cached pages when GETATTR returns a new size or mtime.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_HAS_EXPIRE_ONLY,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

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
            tracing::debug!("kernel does not support {capability:?}");
        }
    }
}
