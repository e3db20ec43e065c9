//! What became of pages that were brought along with their neighbours: which of them kernels used.
//!
//! As with guesses (`guesses.rs`), the page table says it while a page stays mapped, and what is taken away earlier is noted at the moment
//! when its bits are collected. A leaf lock, taken under the update lock.

use crate::addr::{PageIndex, PageRange};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that one entry follows: the bits of a word.
const ENTRY: u32 = 64;
/// Entries of a VMA; what is brought along beyond that is not followed until these were judged.
const MAX_ENTRIES: usize = 512;
/// VMAs that are followed at a time: those for which the policy keeps records, and some that it has let go of.
const MAX_VMAS: usize = 96;

#[derive(Clone, Copy, Debug)]
struct Entry {
    pages: PageRange,
    /// Those that were taken away after they had been used.
    used: u64,
}

/// Pages that were brought along and wait to be judged.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// First page and one past the last of all that is followed, so that most pages need no lock.
    cover: AtomicU64,
    /// By VMA, each sorted by page. Lists are kept when they were judged, so that following allocates nothing for long.
    vmas: Mutex<BTreeMap<u64, Vec<Entry>>>,
}

impl Filled {
    /// Starts to follow pages of the VMA called `id`, as far as there is room and they are not followed already. Returns how many.
    pub(super) fn follow(&self, id: u64, ranges: impl Iterator<Item = PageRange>) -> u32 {
        let mut ranges = ranges.flat_map(|range| {
            let starts = (range.start.0..range.end.0).step_by(ENTRY as usize);
            starts.map(move |start| PageRange::of_len(PageIndex(start), ENTRY.min(range.end.0 - start)))
        });
        let Some(first) = ranges.next() else { return 0 };
        let mut vmas = self.vmas.lock();
        if vmas.len() >= MAX_VMAS && !vmas.contains_key(&id) {
            vmas.pop_first();
        }
        let entries = vmas.entry(id).or_default();
        let known = entries.len();
        let mut pages = 0;
        for range in std::iter::once(first).chain(ranges).take(MAX_ENTRIES - known) {
            let behind = entries[..known].partition_point(|entry| entry.pages.end <= range.start);
            if entries[..known].get(behind).is_none_or(|entry| entry.pages.start >= range.end) {
                entries.push(Entry { pages: range, used: 0 });
                pages += range.len();
            }
        }
        entries.sort_unstable_by_key(|entry| entry.pages.start);
        let cover = self.cover.load(Ordering::Relaxed);
        if let (Some(low), Some(high)) = (entries.first(), entries.last()) {
            let low = if cover == 0 { low.pages.start.0 } else { low.pages.start.0.min((cover >> 32) as u32) };
            let high = high.pages.end.0.max(cover as u32);
            self.cover.store(u64::from(low) << 32 | u64::from(high), Ordering::Release);
        }
        pages
    }

    /// A page that had been used is taken away.
    pub(super) fn used(&self, page: PageIndex) {
        let cover = self.cover.load(Ordering::Acquire);
        if !((cover >> 32) as u32..cover as u32).contains(&page.0) {
            return;
        }
        for entries in self.vmas.lock().values_mut() {
            let behind = entries.partition_point(|entry| entry.pages.end <= page);
            if let Some(entry) = entries.get_mut(behind).filter(|entry| entry.pages.contains(page)) {
                entry.used |= 1 << (page.0 - entry.pages.start.0);
                return;
            }
        }
    }

    /// How many pages of the VMA were followed, and how many of them were used: those taken away since, and of the others those of
    /// which `mapped` says so. Ends following them.
    pub(super) fn judge(&self, id: u64, mapped: impl Fn(PageIndex) -> bool) -> (u32, u32) {
        let mut vmas = self.vmas.lock();
        let Some(entries) = vmas.get_mut(&id) else { return (0, 0) };
        let (mut filled, mut used) = (0, 0);
        for Entry { pages, used: bits } in entries.drain(..) {
            filled += pages.len();
            let noted = |page: PageIndex| bits >> (page.0 - pages.start.0) & 1 == 1;
            used += pages.iter().filter(|&page| noted(page) || mapped(page)).count() as u32;
        }
        if vmas.values().all(Vec::is_empty) {
            self.cover.store(0, Ordering::Release);
        }
        (filled, used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u32, end: u32) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    #[test]
    fn a_page_counts_whether_it_is_still_mapped_or_was_taken_away_after_use() {
        let filled = Filled::default();
        assert_eq!(filled.follow(1, [range(500, 502), range(100, 300)].into_iter()), 202);
        for page in [100, 100, 299, 300, 501, 900] {
            filled.used(PageIndex(page));
        }
        assert_eq!(filled.judge(1, |page| page == PageIndex(100) || page == PageIndex(200)), (202, 4));
        assert_eq!(filled.judge(1, |_| true), (0, 0), "judged once");
    }

    #[test]
    fn what_is_brought_along_again_is_followed_once() {
        let filled = Filled::default();
        assert_eq!(filled.follow(1, [range(10, 20)].into_iter()), 10);
        assert_eq!(filled.follow(1, [range(5, 7), range(12, 13), range(30, 31)].into_iter()), 3);
        assert_eq!(filled.judge(1, |_| false), (13, 0));
    }

    #[test]
    fn vmas_are_told_apart_and_lists_are_bounded() {
        let filled = Filled::default();
        filled.follow(1, [range(0, 10)].into_iter());
        filled.follow(2, [range(50, 60)].into_iter());
        filled.used(PageIndex(3));
        filled.used(PageIndex(55));
        assert_eq!((filled.judge(2, |_| false), filled.judge(1, |_| false)), ((10, 1), (10, 1)));
        let many = (0..10_000).map(|n| range(n * 2, n * 2 + 1));
        assert_eq!(filled.follow(3, many.clone()), MAX_ENTRIES as u32);
        assert_eq!(filled.follow(3, many), 0);
        for id in 0..1000 {
            filled.follow(id, [range(0, 1)].into_iter());
        }
        assert!(filled.vmas.lock().len() <= MAX_VMAS);
    }
}
