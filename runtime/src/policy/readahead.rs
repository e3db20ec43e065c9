//! Read-ahead for CPU faults: a program that goes through memory gets spans, one that jumps around gets single pages.
//!
//! Linux's readahead (`mm/readahead.c`) is the model: a fault exactly where the last window of a stream ended goes on with
//! that stream, with a window twice as long; any other fault starts a stream with a window of one page. So a single
//! fault costs what a single page costs, and a scan of n pages faults O(log n) times and then once per [`MAX_WINDOW`].
//!
//! A stream whose windows have become long may be read ahead in the background: behind each window one page, the *marker*, is left
//! out, and the pages behind it are fetched while the program goes through the window (Linux: `PG_readahead`). The fault on the marker is
//! what keeps the stream going.
//!
//! ```text
//!    window (fetched at once)   m   ahead (in the background)      m'
//!  |■■■■■■■■■■■■■■■■■■■■■■■■■■|   |■■■■■■■■■■■■■■■■■■■■■■■■■■■■|    |
//!                               fault: m at once, the next ahead behind m'
//! ```
//!
//! Streams live in a few slots of one atomic each. Threads that race for a slot lose a stream's history, nothing else.

use crate::addr::{PageIndex, PageRange};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Pages of the longest window: 2 MiB.
pub const MAX_WINDOW: u32 = 512;
/// Windows from this length on go on in the background.
const BACKGROUND: u32 = 64;
/// Streams followed at a time.
const STREAMS: usize = 16;
/// In a slot: the pages behind the one that is to fault next are being fetched in the background.
const FETCHING: u64 = 1 << 31;

/// What to bring back for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pages from the fault's on, at least one.
    pub pages: u32,
    /// What to fetch in the background.
    pub ahead: Option<PageRange>,
    /// The slot of the stream that the fault goes on with.
    stream: Option<usize>,
    /// What the slot is to hold.
    then: u64,
}

/// Recognises streams of faults. Each slot holds the page where the stream is to fault next, and the length of the window before it or,
/// while there is one in the background, behind it.
#[derive(Debug, Default)]
pub struct Readahead {
    slots: [AtomicU64; STREAMS],
    oldest: AtomicU32,
}

impl Readahead {
    /// What to bring back for a fault on `page`, at most `limit` pages (at least one) from it on. Plans for the background only if
    /// `background`. Asking changes nothing: see [`went`](Self::went).
    pub fn window(&self, page: PageIndex, limit: u32, background: bool) -> Window {
        let limit = limit.max(1);
        for (number, slot) in self.slots.iter().enumerate() {
            let old = slot.load(Ordering::Relaxed);
            let (next, length) = ((old >> 32) as u32, old as u32 & !(FETCHING as u32));
            let fetching = old & FETCHING != 0;
            let stream = Some(number);
            if fetching && page.0 < next && next - page.0 <= MAX_WINDOW {
                // The background has not got this far, or was not asked: what is left up to the marker is waited for.
                return Window { pages: (next - page.0).min(limit), ahead: None, stream, then: old };
            }
            if length == 0 || next != page.0 {
                continue;
            }
            let longer = (length * 2).min(MAX_WINDOW);
            // Up to the next marker: a new window, or the marker that was touched and what was fetched behind it.
            let (pages, covered) = if fetching { (1, 1 + length) } else { (longer.min(limit), longer.min(limit)) };
            let room = limit.saturating_sub(covered + 1).min(longer);
            if background && longer >= BACKGROUND && room > 0 {
                let marker = page.plus(covered);
                let ahead = Some(PageRange::of_len(marker.plus(1), room));
                return Window { pages, ahead, stream, then: pack(marker, room) | FETCHING };
            }
            let then = pack(page.plus(covered.min(limit)), covered.min(MAX_WINDOW));
            return Window { pages, ahead: None, stream, then };
        }
        Window { pages: 1, ahead: None, stream: None, then: pack(page.plus(1), 1) }
    }

    /// The fault was resolved with this window: the stream's next fault will be behind it.
    pub fn went(&self, window: Window) {
        let oldest = || self.oldest.fetch_add(1, Ordering::Relaxed) as usize % STREAMS;
        self.slots[window.stream.unwrap_or_else(oldest)].store(window.then, Ordering::Relaxed);
    }
}

fn pack(next: PageIndex, length: u32) -> u64 {
    u64::from(next.0) << 32 | u64::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bring(readahead: &Readahead, page: PageIndex, limit: u32, background: bool) -> Window {
        let window = readahead.window(page, limit, background);
        readahead.went(window);
        window
    }

    /// Faults of a scan over `pages` pages from `start` on.
    fn scan(readahead: &Readahead, start: u32, pages: u32) -> u32 {
        let (mut at, mut faults) = (start, 0);
        while at < start + pages {
            at += bring(readahead, PageIndex(at), start + pages - at, false).pages;
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
            let window = bring(&readahead, PageIndex(n.wrapping_mul(7919) % 100_003), 1000, true);
            assert_eq!((window.pages, window.ahead), (1, None));
        }
    }

    #[test]
    fn several_scans_do_not_disturb_each_other() {
        let readahead = Readahead::default();
        let mut at: Vec<u32> = (0..8).map(|stream| stream * 100_000).collect();
        for _ in 0..12 {
            for at in &mut at {
                *at += bring(&readahead, PageIndex(*at), u32::MAX, false).pages;
            }
        }
        assert_eq!(bring(&readahead, PageIndex(at[3]), u32::MAX, false).pages, MAX_WINDOW);
    }

    #[test]
    fn windows_stay_inside_their_limit() {
        let readahead = Readahead::default();
        assert_eq!(bring(&readahead, PageIndex(0), 0, true).pages, 1);
        for _ in 0..20 {
            bring(&readahead, PageIndex(1), 1, true);
        }
        assert_eq!(bring(&readahead, PageIndex(1), 1, true).pages, 1);
    }
    /// A scan whose background keeps up: the pages that faulted, and every page brought, in order of bringing.
    fn scan_ahead(readahead: &Readahead, pages: u32) -> (Vec<u32>, Vec<u32>) {
        let (mut here, mut faults, mut brought) = (vec![false; pages as usize], Vec::new(), Vec::new());
        for at in 0..pages {
            if here[at as usize] {
                continue;
            }
            faults.push(at);
            let window = bring(readahead, PageIndex(at), pages - at, true);
            let now = PageRange::of_len(PageIndex(at), window.pages);
            for page in now.iter().chain(window.ahead.into_iter().flat_map(PageRange::iter)) {
                assert!(!std::mem::replace(&mut here[page.index()], true), "{page} is brought twice");
                brought.push(page.0);
            }
        }
        (faults, brought)
    }

    #[test]
    fn a_long_scan_faults_on_markers_only_and_its_windows_cover_everything_once() {
        let (faults, mut brought) = scan_ahead(&Readahead::default(), 100 * MAX_WINDOW + 7);
        assert!(faults.len() < 110, "{} faults", faults.len());
        brought.sort_unstable();
        assert!(brought.into_iter().eq(0..100 * MAX_WINDOW + 7));
    }

    #[test]
    fn a_scan_that_catches_up_with_the_background_waits_for_all_of_its_window() {
        let readahead = Readahead::default();
        let mut at = 0;
        let ahead = loop {
            let window = bring(&readahead, PageIndex(at), 100_000, true);
            at += window.pages;
            if let Some(ahead) = window.ahead {
                break ahead;
            }
        };
        let next = bring(&readahead, PageIndex(at), 100_000, true);
        assert_eq!((next.pages, ahead.start), (1, PageIndex(at + 1)), "the marker alone");
        let late = bring(&readahead, ahead.start.plus(3), 100_000, true);
        assert_eq!((late.pages, late.ahead), (ahead.len() - 3, None));
        let marker = PageIndex(next.ahead.unwrap().start.0 - 1);
        assert_eq!(bring(&readahead, marker, 100_000, true).pages, 1, "the stream goes on all the same");
    }
    #[test]
    fn a_fault_that_was_put_off_goes_on_with_its_stream() {
        let readahead = Readahead::default();
        scan(&readahead, 0, 15);
        let before = readahead.window(PageIndex(15), 1000, false);
        assert_eq!((before.pages, readahead.window(PageIndex(15), 1000, false)), (16, before));
    }
}
