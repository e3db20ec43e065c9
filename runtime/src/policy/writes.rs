//! Streams of stores to pages that can be read already.
//!
//! While a kernel runs, its faults come one or a few at a time. Pages that it will store to are often mapped for loads before, since it
//! loads what it changes, or because prefetch maps for loads only; then each page's first store is a fault of its own. If such faults follow
//! each other upwards in a VMA, the pages behind them are made writable ahead, twice as many each time. A wrong guess costs the CPU its
//! read mapping of a page, which a fault gives back without a copy, as nothing is dirty.

use crate::addr::PageIndex;
use std::collections::BTreeMap;

/// Pages made writable ahead, at most: 2 MiB.
const MAX_AHEAD: u32 = 512;
/// How far beyond the expected page a stream may go on: several workgroups share it.
const SLACK: u32 = 8;
/// VMAs that are followed at a time.
const MAX_STREAMS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where the next fault is expected.
    next: u32,
    window: u32,
}

/// Follows stores, a VMA each.
#[derive(Debug, Default)]
pub struct Writes {
    streams: BTreeMap<u64, Stream>,
}

impl Writes {
    /// A round of faults for storing, from `low` to `high`, in the VMA called `id`. Returns how many pages behind `high` are likely to be
    /// stored to next; [`granted`](Self::granted) says how many of them were made writable.
    pub fn round(&mut self, id: u64, low: PageIndex, high: PageIndex) -> u32 {
        if self.streams.len() >= MAX_STREAMS && !self.streams.contains_key(&id) {
            self.streams.pop_first();
        }
        let stream = self.streams.entry(id).or_insert(Stream { next: u32::MAX, window: 0 });
        let goes_on = low.0 >= stream.next && low.0 - stream.next < SLACK;
        stream.window = if goes_on { (2 * stream.window).clamp(1, MAX_AHEAD) } else { 0 };
        stream.next = high.0.saturating_add(1);
        stream.window
    }

    /// Of what the last round of `id` was answered with, `count` pages were made writable.
    pub fn granted(&mut self, id: u64, count: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.next = stream.next.saturating_add(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Faults page by page from `first` on, all of what is expected being granted; how many faults it takes to `end`.
    fn faults(writes: &mut Writes, first: u32, end: u32) -> u32 {
        let (mut at, mut faults) = (first, 0);
        while at < end {
            let ahead = writes.round(7, PageIndex(at), PageIndex(at));
            writes.granted(7, ahead);
            at += 1 + ahead;
            faults += 1;
        }
        faults
    }

    #[test]
    fn a_stream_faults_ever_more_seldom() {
        let mut writes = Writes::default();
        assert!(faults(&mut writes, 0, 4096) < 24);
    }

    #[test]
    fn scattered_stores_grant_nothing() {
        let mut writes = Writes::default();
        for page in [5, 100, 90, 4000, 17, 3] {
            assert_eq!(writes.round(1, PageIndex(page), PageIndex(page)), 0, "page {page}");
        }
    }

    #[test]
    fn a_stream_that_leaves_its_way_starts_over() {
        let mut writes = Writes::default();
        faults(&mut writes, 0, 1000);
        assert_eq!(writes.round(7, PageIndex(9000), PageIndex(9000)), 0);
        assert_eq!(writes.round(7, PageIndex(9001), PageIndex(9002)), 1);
        writes.granted(7, 1);
        assert_eq!(
            writes.round(7, PageIndex(9006), PageIndex(9006)),
            2,
            "a few pages further on is still the same stream"
        );
    }

    #[test]
    fn what_could_not_be_granted_is_asked_for_again() {
        let mut writes = Writes::default();
        writes.round(1, PageIndex(10), PageIndex(10));
        assert_eq!(writes.round(1, PageIndex(11), PageIndex(11)), 1);
        assert_eq!(writes.round(1, PageIndex(12), PageIndex(12)), 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut writes = Writes::default();
        for id in 0..1000 {
            writes.round(id, PageIndex(0), PageIndex(0));
        }
        assert!(writes.streams.len() <= MAX_STREAMS);
    }
}
