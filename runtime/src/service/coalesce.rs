//! Coalescing: from faults on single pages to spans, one VMA at a time. Pure data, no locks.

use crate::addr::{Access, PageIndex, PageRange};

/// A page that a kernel missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageFault {
    /// The page.
    pub page: PageIndex,
    /// The strongest access asked for.
    pub access: Access,
}

/// Neighbouring faults that are serviced together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The pages, inside one VMA.
    pub pages: PageRange,
    /// The faults' positions in the sorted list.
    pub faults: std::ops::Range<usize>,
}

/// Longest span: it bounds how long page locks are held and what is undone on a collision.
pub(super) const MAX_SPAN: u32 = 4096;

/// Drops duplicates from `faults`, keeping the strongest access of each page, and sorts by page. Returns how many
/// were dropped.
pub(super) fn deduplicate(faults: &mut Vec<PageFault>) -> usize {
    let before = faults.len();
    // Strongest first within a page, and the first of each page stays.
    faults.sort_unstable_by_key(|fault| u64::from(fault.page.0) << 1 | u64::from(fault.access == Access::Read));
    faults.dedup_by_key(|fault| fault.page);
    before - faults.len()
}

/// Cuts sorted faults inside `vma` into spans. A hole is filled if it is of at most `max_hole` pages, and at least half of the span's
/// pages are asked for with it. `first` is the position of the first fault in the whole list.
pub(super) fn spans(
    faults: &[PageFault],
    first: usize,
    vma: PageRange,
    max_hole: u32,
) -> impl Iterator<Item = Span> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let mut pages = PageRange::single(faults.get(at)?.page);
        debug_assert!(vma.contains(pages.start));
        at += 1;
        while let Some(fault) = faults.get(at) {
            let hole = fault.page.0 - pages.end.0;
            let length = fault.page.0 + 1 - pages.start.0;
            let asked = (at + 1 - start) as u32;
            let joins = hole == 0 || (hole <= max_hole && asked * 2 >= length);
            if !joins || length > MAX_SPAN {
                break;
            }
            pages.end = fault.page.plus(1);
            at += 1;
        }
        Some(Span { pages, faults: first + start..first + at })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(pages: &[u32]) -> Vec<PageFault> {
        pages.iter().map(|&page| PageFault { page: PageIndex(page), access: Access::Read }).collect()
    }

    const VMA: PageRange = PageRange { start: PageIndex(0), end: PageIndex(1000) };

    #[test]
    fn keeps_the_strongest_access_of_each_page() {
        let mut list = vec![
            PageFault { page: PageIndex(7), access: Access::Read },
            PageFault { page: PageIndex(3), access: Access::Read },
            PageFault { page: PageIndex(7), access: Access::Write },
            PageFault { page: PageIndex(7), access: Access::Read },
        ];
        assert_eq!(deduplicate(&mut list), 2);
        assert_eq!(list[0], PageFault { page: PageIndex(3), access: Access::Read });
        assert_eq!(list[1], PageFault { page: PageIndex(7), access: Access::Write });
    }

    #[test]
    fn neighbours_become_one_span_and_sparse_faults_stay_apart() {
        let list = faults(&[1, 2, 3, 50, 100, 101]);
        let spans: Vec<Span> = spans(&list, 0, VMA, 8).collect();
        let pages: Vec<_> = spans.iter().map(|span| (span.pages.start.0, span.pages.end.0)).collect();
        assert_eq!(pages, [(1, 4), (50, 51), (100, 102)]);
        assert_eq!(spans[2].faults, 4..6);
    }

    #[test]
    fn short_holes_are_filled_only_while_half_of_the_span_is_asked_for() {
        let cut = |pages: &[u32], max_hole| {
            spans(&faults(pages), 0, VMA, max_hole).map(|span| span.pages.len()).collect::<Vec<_>>()
        };
        assert_eq!(cut(&[0, 1, 2, 3, 6], 8), [7]);
        assert_eq!(cut(&[0, 4], 8), [1, 1]);
        assert_eq!(cut(&[0, 1, 2, 3, 6], 1), [4, 1]);
        assert_eq!(cut(&[0, 1, 3], 1), [4]);
        assert_eq!(cut(&[0, 1, 3], 0), [2, 1]);
    }
}
