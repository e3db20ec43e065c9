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

/// Longest hole that is filled.
const MAX_HOLE: u32 = 8;
/// Longest span: it bounds how long page locks are held and what is undone on a collision.
pub(super) const MAX_SPAN: u32 = 4096;

/// Drops duplicates from `faults`, keeping the strongest access of each page, and sorts by page. Returns how many
/// were dropped.
pub(super) fn deduplicate(faults: &mut Vec<PageFault>) -> usize {
    let before = faults.len();
    // Strongest first within a page, and the first of each page stays.
    faults.sort_unstable_by(|a, b| a.page.cmp(&b.page).then(b.access.cmp(&a.access)));
    faults.dedup_by_key(|fault| fault.page);
    before - faults.len()
}

/// Cuts sorted faults inside `vma` into spans. A hole is filled if `fill_holes`, it is short, and at least half of the span's
/// pages are asked for with it.
pub(super) fn spans(faults: &[PageFault], first: usize, vma: PageRange, fill_holes: bool) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, fault) in faults.iter().enumerate() {
        debug_assert!(vma.contains(fault.page));
        let at = first + at;
        if let Some(last) = spans.last_mut() {
            let hole = fault.page.0 - last.pages.end.0;
            let pages = fault.page.0 + 1 - last.pages.start.0;
            let asked = (at + 1 - last.faults.start) as u32;
            let joins = hole == 0 || (fill_holes && hole <= MAX_HOLE && asked * 2 >= pages);
            if joins && pages <= MAX_SPAN {
                last.pages.end = fault.page.plus(1);
                last.faults.end = at + 1;
                continue;
            }
        }
        spans.push(Span { pages: PageRange::single(fault.page), faults: at..at + 1 });
    }
    spans
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
        let spans = spans(&list, 0, VMA, true);
        let pages: Vec<_> = spans.iter().map(|span| (span.pages.start.0, span.pages.end.0)).collect();
        assert_eq!(pages, [(1, 4), (50, 51), (100, 102)]);
        assert_eq!(spans[2].faults, 4..6);
    }

    #[test]
    fn short_holes_are_filled_only_while_half_of_the_span_is_asked_for() {
        let joined = spans(&faults(&[0, 1, 2, 3, 6]), 0, VMA, true);
        assert_eq!(joined.len(), 1);
        assert_eq!(joined[0].pages.len(), 7);
        assert_eq!(spans(&faults(&[0, 4]), 0, VMA, true).len(), 2);
        assert_eq!(spans(&faults(&[0, 1, 2, 3, 6]), 0, VMA, false).len(), 2);
    }
}
