//! Prefetch by density: where most of a neighbourhood is in use, the rest of it comes along.
//!
//! A binary tree lies over the pages of a VMA, as in CUDA's driver for unified memory, but over all of it, not over 2 MiB. For a page
//! that is asked for, the largest block around it is looked for of whose pages more than half are asked for or there already; what is missing
//! of that block is fetched. So a VMA that fills up in whatever order is fetched in ever larger pieces, while
//! pages far from each other bring nothing along.

use crate::addr::{PageIndex, PageRange};

/// Blocks this many times larger than the densest found so far are not looked at: what lies further out says little. For a page with nothing
/// around it that leaves the entries of one cache line.
const GIVE_UP: u32 = 16;

/// What to fetch along with `asked`, ascending pages of `vma`: ranges that are neither asked for nor there. `present` says whether a page is
/// there (pages that are asked for may be, for another access), `limit` how many may be fetched in all.
pub fn fill_up(
    asked: &[PageIndex],
    vma: PageRange,
    limit: u32,
    present: impl Fn(PageIndex) -> bool,
    mut fetch: impl FnMut(PageRange),
) {
    let asked_in = |range: PageRange| {
        let from = asked.partition_point(|&page| page < range.start);
        let to = asked.partition_point(|&page| page < range.end);
        &asked[from..to]
    };
    let used = |range: PageRange| {
        let asked = asked_in(range);
        // All of it: nothing is looked up.
        let all = asked.len() == range.len() as usize;
        if all { range.len() } else { range.len() - unused(range, asked, &present).count() as u32 }
    };
    let (mut at, mut left, mut done) = (0, limit, vma.start);
    while let Some(&page) = asked.get(at) {
        let block = densest_around(page, vma, used);
        // A block may reach back over one that was fetched before.
        let block = PageRange::new(block.start.max(done), block.end);
        let missing = block.len() - used(block);
        if missing > 0 && missing <= left {
            left -= missing;
            let mut run = PageRange::default();
            for page in unused(block, asked_in(block), &present) {
                if run.end != page && !run.is_empty() {
                    fetch(run);
                }
                run = PageRange::new(if run.end == page && !run.is_empty() { run.start } else { page }, page.plus(1));
            }
            fetch(run);
        }
        done = block.end;
        at = asked.partition_point(|&page| page < block.end);
    }
}

/// The pages of `range` that are neither among `asked`, which are those of the range, nor present.
fn unused(
    range: PageRange,
    asked: &[PageIndex],
    present: impl Fn(PageIndex) -> bool,
) -> impl Iterator<Item = PageIndex> {
    let mut asked = asked.iter().peekable();
    range.iter().filter(move |page| asked.next_if_eq(&page).is_none() && !present(*page))
}

/// The largest block around `page` of which more than half is used; the page alone, if there is none.
fn densest_around(page: PageIndex, vma: PageRange, used: impl Fn(PageRange) -> u32) -> PageRange {
    let mut best = PageRange::single(page);
    let mut inner = best;
    let mut inside = 1;
    let mut size = 2u32;
    while inner != vma && size / GIVE_UP < best.len() {
        let start = page.0 / size * size;
        let block = PageRange::new(PageIndex(start), PageIndex(start.saturating_add(size))).intersect(vma);
        // Only what is new is counted.
        let (before, behind) = (PageRange::new(block.start, inner.start), PageRange::new(inner.end, block.end));
        inside += used(before) + used(behind);
        if inside > block.len() / 2 {
            best = block;
        }
        inner = block;
        let Some(next) = size.checked_mul(2) else { break };
        size = next;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const VMA: PageRange = PageRange { start: PageIndex(100), end: PageIndex(10_100) };

    fn fetched(asked: &[u32], there: &BTreeSet<u32>, limit: u32) -> Vec<u32> {
        let asked: Vec<_> = asked.iter().copied().map(PageIndex).collect();
        let mut pages = Vec::new();
        let present = |page: PageIndex| there.contains(&page.0);
        fill_up(&asked, VMA, limit, present, |range| pages.extend(range.iter().map(|page| page.0)));
        pages
    }

    #[test]
    fn lonely_pages_bring_nothing_along() {
        let asked: Vec<u32> = (0..100).map(|n| 100 + n * 97).collect();
        assert_eq!(fetched(&asked, &BTreeSet::new(), 1000), []);
        assert_eq!(fetched(&[4000, 4002], &BTreeSet::new(), 1000), [], "half is not most");
    }

    #[test]
    fn holes_in_what_is_mostly_used_are_filled() {
        assert_eq!(fetched(&[4000, 4001, 4003], &BTreeSet::new(), 1000), [4002]);
        let there = (4096..4096 + 300).collect();
        assert_eq!(fetched(&[4096 + 300], &there, 1000), (4096 + 301..4096 + 512).collect::<Vec<_>>());
    }

    #[test]
    fn blocks_grow_beyond_two_mebibytes_and_end_with_the_vma() {
        let there: BTreeSet<u32> = (8192..8192 + 1500).collect();
        let all = fetched(&[9692], &there, 10_000);
        assert_eq!((all.first(), all.last()), (Some(&9693), Some(&10_099)), "the last block is cut at the VMA's end");
    }

    #[test]
    fn what_does_not_fit_the_limit_is_not_fetched() {
        let there = (4096..4096 + 300).collect();
        assert_eq!(fetched(&[4096 + 300], &there, 100), []);
    }

    proptest! {
        #[test]
        fn fetches_nothing_twice_nothing_asked_for_or_there_and_nothing_outside(
            asked in prop::collection::btree_set(100u32..10_100, 1..200),
            there in prop::collection::btree_set(100u32..10_100, 0..3000), // may be asked for too
        ) {
            let pages = fetched(&asked.iter().copied().collect::<Vec<_>>(), &there, u32::MAX);
            let set: BTreeSet<u32> = pages.iter().copied().collect();
            prop_assert_eq!(set.len(), pages.len());
            prop_assert!(set.is_disjoint(&asked) && set.is_disjoint(&there));
            prop_assert!(set.iter().all(|&page| VMA.contains(PageIndex(page))));
            // Never more than is used already.
            prop_assert!(set.len() < asked.len() + there.len());
        }
    }
}
