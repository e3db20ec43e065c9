//! Scarcity on request: every place where the runtime asks the system for something that may be refused *while it runs* asks here first, and a test may have
//! the n-th of them refused. So a test that counts n up until a run meets no refusal has seen the runtime without each of them.
//!
//! Asked for are memory and mappings (`mmap`, `mprotect`, `madvise`, `fallocate`, `pwrite`), userfaultfd's calls, threads, and what Vulkan allocates or
//! makes. Not among them is memory from Rust's allocator: when that is refused the process is aborted, by the language's design.
//!
//! In release builds there is nothing of it. In debug builds a question is one relaxed load unless a test is at work, and nothing is
//! allocated on the fault path (I1).

use rustix::io::Errno;

#[cfg(debug_assertions)]
mod counted {
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Questions so far, while a test is at work.
    static ASKED: AtomicU64 = AtomicU64::new(0);
    /// The question that is refused first, counted from 1; zero: no test is at work.
    static FIRST: AtomicU64 = AtomicU64::new(0);
    /// How many are refused.
    static TIMES: AtomicU64 = AtomicU64::new(0);
    /// What was asked for, and whether that was refused.
    static NOTES: Mutex<Vec<(&'static str, bool)>> = Mutex::new(Vec::new());
    /// Notes that are kept: room for them is made beforehand, since who asks may be on the fault path.
    const NOTED: usize = 1 << 16;

    pub(super) fn is_refused(what: &'static str) -> bool {
        let first = FIRST.load(Ordering::Relaxed);
        if first == 0 {
            return false;
        }
        let number = ASKED.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = number >= first && number - first < TIMES.load(Ordering::Relaxed);
        let mut notes = NOTES.lock();
        if notes.len() < notes.capacity() {
            notes.push((what, refused));
        }
        refused
    }

    /// Has `times` questions refused, from the `first` one on, counted from 1 from now on. For tests in processes of their own: it
    /// holds for all runtimes of the process.
    pub fn refuse(first: u64, times: u64) {
        *NOTES.lock() = Vec::with_capacity(NOTED);
        ASKED.store(0, Ordering::Relaxed);
        TIMES.store(times, Ordering::Relaxed);
        FIRST.store(first, Ordering::SeqCst);
    }

    /// Ends refusing: what was asked for since, in order, and whether it was refused.
    pub fn relent() -> Vec<(&'static str, bool)> {
        FIRST.store(0, Ordering::SeqCst);
        std::mem::take(&mut *NOTES.lock())
    }
}

#[cfg(debug_assertions)]
pub use counted::{refuse, relent};

/// Whether the system may be asked for `what`; `refusal` if a test has it refused.
#[inline]
pub(crate) fn ask(what: &'static str, refusal: Errno) -> Result<(), Errno> {
    #[cfg(debug_assertions)]
    if counted::is_refused(what) {
        return Err(refusal);
    }
    let _ = (what, refusal);
    Ok(())
}
