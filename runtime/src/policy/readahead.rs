//! Read-ahead for CPU faults: a program that goes through memory gets spans, one that jumps around gets single pages.
//!
//! Linux's readahead (`mm/readahead.c`) is the model: a fault exactly where the last window of a stream ended goes on with
//! that stream, with a window twice as long; any other fault starts a stream with a window of one page. So a single
//! fault costs what a single page costs, and a scan of n pages faults O(log n) times and then once per [`MAX_WINDOW`].
//!
//! Streams live in a few slots of one atomic each. Threads that race for a slot lose a stream's history, nothing else.

use crate::addr::PageIndex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Pages of the longest window: 2 MiB.
pub const MAX_WINDOW: u32 = 512;
/// Streams followed at a time.
const STREAMS: usize = 16;

/// Recognises streams of faults. Each slot holds the page after the last window and that window's length.
#[derive(Debug, Default)]
pub struct Readahead {
    slots: [AtomicU64; STREAMS],
    oldest: AtomicU32,
}

/// How far to go for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pages from the fault's on, at least one.
    pub pages: u32,
    /// The slot of the stream that the fault goes on with.
    stream: Option<usize>,
}

impl Readahead {
    /// How many pages from `page` on to bring back, at most `limit` (at least one). Asking changes nothing:
    /// see [`went`](Self::went).
    pub fn window(&self, page: PageIndex, limit: u32) -> Window {
        for (number, slot) in self.slots.iter().enumerate() {
            let old = slot.load(Ordering::Relaxed);
            let (next, length) = ((old >> 32) as u32, old as u32);
            if length > 0 && next == page.0 {
                let pages = (length * 2).min(MAX_WINDOW).min(limit.max(1));
                return Window { pages, stream: Some(number) };
            }
        }
        Window { pages: 1, stream: None }
    }

    /// The fault at `page` was resolved with this window: the stream's next fault will be behind it.
    pub fn went(&self, page: PageIndex, window: Window) {
        let oldest = || self.oldest.fetch_add(1, Ordering::Relaxed) as usize % STREAMS;
        let slot = window.stream.unwrap_or_else(oldest);
        self.slots[slot].store(pack(page.plus(window.pages), window.pages), Ordering::Relaxed);
    }
}

fn pack(next: PageIndex, length: u32) -> u64 {
    u64::from(next.0) << 32 | u64::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(readahead: &Readahead, page: PageIndex, limit: u32) -> u32 {
        let window = readahead.window(page, limit);
        readahead.went(page, window);
        window.pages
    }

    /// Faults of a scan over `pages` pages from `start` on.
    fn scan(readahead: &Readahead, start: u32, pages: u32) -> u32 {
        let (mut at, mut faults) = (start, 0);
        while at < start + pages {
            at += window(readahead, PageIndex(at), start + pages - at);
            faults += 1;
        }
        faults
    }

    #[test]
    fn a_scan_faults_ever_more_rarely() {
        let readahead = Readahead::default();
        // 1 + 2 + … + 256 pages in nine faults, then 512 at a time.
        assert_eq!(scan(&readahead, 100, 511), 9);
        assert_eq!(scan(&Readahead::default(), 0, 511 + 10 * 512), 19);
    }

    #[test]
    fn pages_in_random_order_are_brought_one_by_one() {
        let readahead = Readahead::default();
        for n in 0..1000u32 {
            assert_eq!(window(&readahead, PageIndex(n.wrapping_mul(7919) % 100_003), 1000), 1);
        }
    }

    #[test]
    fn several_scans_do_not_disturb_each_other() {
        let readahead = Readahead::default();
        let mut at: Vec<u32> = (0..8).map(|stream| stream * 100_000).collect();
        for _ in 0..12 {
            for at in &mut at {
                *at += window(&readahead, PageIndex(*at), u32::MAX);
            }
        }
        assert_eq!(window(&readahead, PageIndex(at[3]), u32::MAX), MAX_WINDOW);
    }

    #[test]
    fn windows_stay_inside_their_limit() {
        let readahead = Readahead::default();
        assert_eq!(window(&readahead, PageIndex(0), 0), 1);
        for _ in 0..20 {
            window(&readahead, PageIndex(1), 1);
        }
        assert_eq!(window(&readahead, PageIndex(1), 1), 1);
    }

    #[test]
    fn a_fault_that_was_put_off_goes_on_with_its_stream() {
        let readahead = Readahead::default();
        scan(&readahead, 0, 15);
        let before = readahead.window(PageIndex(15), 1000);
        assert_eq!((before.pages, readahead.window(PageIndex(15), 1000)), (16, before));
    }
}
