//! Pages that are being taken away while nobody holds the device's locks.
//!
//! Taking pages away while a kernel runs (`taking.rs`) first makes entries invalid, or read-only, under the update lock; then waits for a grace
//! period without any lock of the device, so that others can do the same and share it; then, under the update lock again, collects what kernels set
//! meanwhile, brings home what is dirty and gives frames back. In between nobody else may take the pages for home: their newest contents are still in
//! frames. What sees to that:
//!
//! - nobody maps them: the pages' locks are held, or ranges over them are invalid throughout (`hmm`), or both;
//! - an invalidation of the same pages, which may come from outside without page locks, waits until they have landed;
//! - eviction passes over what is in flight: a page that an invalidation from outside makes read-only is still mapped meanwhile.

use crate::addr::PageRange;
use crate::sync::{Condvar, Mutex};

/// What is in flight. Its lock is a leaf; nobody waits here with another lock but page locks and `mm`.
pub(super) struct Flying {
    flights: Mutex<Flights>,
    landed: Condvar,
}

struct Flights {
    next: u64,
    pages: Vec<(u64, PageRange)>,
}

/// Pages in flight; they land when this is dropped.
pub(super) struct Flight<'f> {
    flying: &'f Flying,
    number: u64,
}

impl Flying {
    pub(super) fn new() -> Self {
        Self { flights: Mutex::new(Flights { next: 0, pages: Vec::new() }), landed: Condvar::new() }
    }

    /// What took `pages` is about to wait. The update lock is held, and none of them is in flight ([`overlaps`](Self::overlaps)).
    pub(super) fn begin(&self, pages: impl Iterator<Item = PageRange>) -> Flight<'_> {
        let mut flights = self.flights.lock();
        let number = flights.next;
        flights.next += 1;
        flights.pages.extend(pages.map(|pages| (number, pages)));
        Flight { flying: self, number }
    }

    /// Whether any of `pages` is in flight; holds while the update lock is held.
    pub(super) fn overlaps(&self, pages: PageRange) -> bool {
        overlaps(&self.flights.lock(), pages)
    }

    /// Waits until none of `pages` is.
    pub(super) fn wait_for(&self, pages: PageRange) {
        let mut flights = self.flights.lock();
        while overlaps(&flights, pages) {
            flights = self.landed.wait(flights);
        }
    }
}

fn overlaps(flights: &Flights, pages: PageRange) -> bool {
    flights.pages.iter().any(|(_, other)| other.overlaps(pages))
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flying.flights.lock().pages.retain(|&(number, _)| number != self.number);
        self.flying.landed.notify_all();
    }
}
