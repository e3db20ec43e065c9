//! Which process this is, told apart from its forked children by one load.
//!
//! A forked child inherits a tracker's data but neither its threads nor the app view, and its
//! userfaultfd still acts on the *parent's* memory. So a tracker remembers the process that made
//! it and does nothing in any other. The identity lives in a page that the kernel clears in a forked
//! child (`MADV_WIPEONFORK`); a child made by `vfork` or `posix_spawn` shares the memory, and rightly
//! counts as the same process.

use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// An address space's identity: equal as long as no fork lies between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessId(pub(super) u64);

/// The page that a fork clears; none where the kernel cannot clear one.
static PAGE: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
/// Identities handed out. In ordinary memory, so that a child goes on counting where the parent was.
static LAST: AtomicU64 = AtomicU64::new(0);

impl ProcessId {
    /// This process's identity, made if it has none. Not for signal handlers.
    pub(super) fn establish() -> Self {
        if let Some(cell) = PAGE.get_or_init(fork_cleared_cell) {
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            // Acquire/Release are not needed: the value alone is the message.
            let _ = cell.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
        Self::current()
    }

    /// This process's identity; 0, which no tracker has, if none was established since the last
    /// fork. Async-signal-safe.
    pub(super) fn current() -> Self {
        match PAGE.get() {
            Some(Some(cell)) => Self(cell.load(Ordering::Relaxed)),
            _ => Self(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs().into()),
        }
    }

    /// Whether the calling process is another one than this.
    pub(super) fn is_other(self) -> bool {
        self != Self::current()
    }
}

fn fork_cleared_cell() -> Option<&'static AtomicU64> {
    let size = crate::addr::PAGE_SIZE;
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice replaces
    // nothing. The advice only changes what a fork copies.
    unsafe {
        let page = libc::mmap(
            null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if page == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(page, size, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, size);
            return None;
        }
        // SAFETY: zeroed, aligned, never unmapped, and only ever accessed as this atomic.
        Some(&*page.cast::<AtomicU64>())
    }
}
