//! CPU faults that cannot be resolved for want of something that may come: memory, or a moment in which the kernel is not busy.
//!
//! An access cannot be told that memory is short. It is put off for a while, as it would be in the kernel, and refused then. Each page has a
//! time of its own, from its first failure on; success and refusal end it.

use crate::addr::PageIndex;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a fault is put off.
const PATIENCE: Duration = Duration::from_secs(1);
/// After so long without an end, nobody asks for the page any more.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// Pages that have times of their own. Of fixed size, since nothing is allocated on the fault path (I1).
const FOLLOWED: usize = 64;

#[derive(Clone, Copy)]
struct Failure {
    page: PageIndex,
    first: Instant,
}

/// Pages whose faults failed, and since when. The lock is a leaf.
pub(super) struct Lacking {
    failures: Mutex<[Option<Failure>; FOLLOWED]>,
    count: AtomicUsize,
}

impl Lacking {
    pub(super) fn new() -> Self {
        Self { failures: Mutex::new([None; FOLLOWED]), count: AtomicUsize::new(0) }
    }

    /// A fault on `page` failed: whether it is to be put off. If more pages fail than have times of their own, the others go by the oldest's.
    pub(super) fn puts_off(&self, page: PageIndex, now: Instant) -> bool {
        let mut failures = self.failures.lock();
        for slot in failures.iter_mut() {
            if slot.is_some_and(|it| now.saturating_duration_since(it.first) > FORGOTTEN) {
                *slot = None;
            }
        }
        let at = failures.iter().position(|slot| slot.is_some_and(|it| it.page == page));
        let at = at.or_else(|| failures.iter().position(Option::is_none));
        let first = match at {
            Some(at) => failures[at].get_or_insert(Failure { page, first: now }).first,
            None => failures.iter().flatten().map(|it| it.first).min().unwrap_or(now),
        };
        let put_off = now.saturating_duration_since(first) < PATIENCE;
        if let Some(at) = at.filter(|_| !put_off) {
            failures[at] = None;
        }
        self.count.store(failures.iter().flatten().count(), Ordering::Relaxed);
        put_off
    }

    /// The fault on `page` was resolved, or refused. Costs a load while nothing is lacking.
    pub(super) fn ended(&self, page: PageIndex) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut failures = self.failures.lock();
        for slot in failures.iter_mut() {
            if slot.is_some_and(|it| it.page == page) {
                *slot = None;
            }
        }
        self.count.store(failures.iter().flatten().count(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_put_off_until_its_time_is_up_whatever_becomes_of_others() {
        let (lacking, start) = (Lacking::new(), Instant::now());
        let (stuck, other) = (PageIndex(1), PageIndex(2));
        for tenth in 0..10 {
            let now = start + PATIENCE / 10 * tenth;
            assert!(lacking.puts_off(stuck, now));
            assert!(lacking.puts_off(other, now));
            lacking.ended(other);
        }
        assert!(!lacking.puts_off(stuck, start + PATIENCE));
        assert!(lacking.puts_off(stuck, start + PATIENCE), "a refusal ends it: the next fault has time again");
        assert!(lacking.puts_off(other, start + PATIENCE), "success ends it");
    }

    #[test]
    fn pages_without_a_time_of_their_own_are_refused_in_the_end() {
        let (lacking, start) = (Lacking::new(), Instant::now());
        for page in 0..FOLLOWED as u32 {
            assert!(lacking.puts_off(PageIndex(page), start));
        }
        let one_more = PageIndex(FOLLOWED as u32);
        assert!(lacking.puts_off(one_more, start));
        assert!(!lacking.puts_off(one_more, start + PATIENCE));
        assert!(lacking.puts_off(one_more, start + FORGOTTEN * 2), "the others are forgotten");
    }
}
