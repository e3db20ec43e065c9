//! Invalidations that wait for running kernels without a lock.
//!
//! An invalidation first makes entries invalid, or read-only, under the update lock; then it waits for a grace period without any lock, so that others
//! can do the same and share it; then, under the update lock again, it collects what kernels set meanwhile, brings home what is dirty and gives
//! frames back. In between nobody else may take the pages for home: their newest contents are still in frames. Three
//! things see to that:
//!
//! - ranges over the pages are invalid throughout, so no service maps them (`hmm`);
//! - whoever changes their state, or evicts them, holds their page locks, as the invalidation's cause does, and passes over pages
//!   that are not mapped;
//! - another invalidation of the same pages, which needs no page locks if it comes from outside, waits until this one has ended.

use crate::addr::PageRange;
use crate::sync::{Condvar, Mutex};

/// The invalidations in between. Its lock is a leaf; nobody waits here with another lock but page locks and `mm`.
pub(super) struct Flying {
    pages: Mutex<Vec<PageRange>>,
    landed: Condvar,
}

/// One of them; it ends when this is dropped.
pub(super) struct Flight<'f> {
    flying: &'f Flying,
    pages: PageRange,
}

impl Flying {
    pub(super) fn new() -> Self {
        Self { pages: Mutex::new(Vec::new()), landed: Condvar::new() }
    }

    /// An invalidation of `pages` is about to wait. The update lock is held, and none [overlaps](Self::overlaps).
    pub(super) fn begin(&self, pages: PageRange) -> Flight<'_> {
        self.pages.lock().push(pages);
        Flight { flying: self, pages }
    }

    /// Whether one of them overlaps `pages`; holds while the update lock is held.
    pub(super) fn overlaps(&self, pages: PageRange) -> bool {
        overlaps(&self.pages.lock(), pages)
    }

    /// Waits until none overlaps `pages`.
    pub(super) fn wait_for(&self, pages: PageRange) {
        let mut flying = self.pages.lock();
        while overlaps(&flying, pages) {
            flying = self.landed.wait(flying);
        }
    }
}

fn overlaps(flying: &[PageRange], pages: PageRange) -> bool {
    flying.iter().any(|other| other.overlaps(pages))
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flying = self.flying.pages.lock();
        if let Some(at) = flying.iter().position(|&pages| pages == self.pages) {
            flying.swap_remove(at);
        }
        self.flying.landed.notify_all();
    }
}
