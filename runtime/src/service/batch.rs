//! Batches: parts of VMAs that are serviced with one hold of their page locks, one range, one list of protection changes, one list of
//! copies and one commit. Plain data.

use super::coalesce::{MAX_SPAN, Span};
use crate::addr::PageRange;
use crate::mm::vma::{Vma, VmaMap};

/// A span, and what its VMA was when it was last looked at.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) span: Span,
    pub(super) vma: Vma,
    /// Whether the VMA ends a mapping: no object straddles its end.
    pub(super) ends: bool,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// It was serviced.
    Done,
    /// It was not, nor anything of it: its parts are to be serviced one by one.
    Apart,
}

/// What is done about frames that are lacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing: the batch is given up.
    Find,
    /// Pages that nobody waits for are evicted.
    Make,
}

/// Most parts of a batch.
const MAX_PARTS: usize = 4096;

/// How many of `parts`, at least one if there is one, make a batch: ascending, and together no longer than a span may be.
pub(super) fn batch_length(parts: &[Part]) -> usize {
    let (mut pages, mut end) = (0, 0);
    let fits = |part: &&Part| {
        let Span { pages: span, .. } = part.span;
        pages += span.len();
        let ascends = span.start.0 >= end;
        end = span.end.0;
        ascends && pages <= MAX_SPAN
    };
    parts.iter().take(MAX_PARTS).take_while(fits).count().max(1).min(parts.len())
}

/// Whether all parts lie in the VMAs that they were cut for. Brings `vma` and `ends` up to date.
pub(super) fn still_there(parts: &mut [Part], vmas: &VmaMap) -> bool {
    let mut last: Option<(&Vma, bool)> = None;
    parts.iter_mut().all(|part| {
        let pages = part.span.pages;
        if last.is_none_or(|(vma, _)| !vma.range.contains(pages.start)) {
            last = vmas.find(pages.start).map(|vma| (vma, !vmas.continues(vma)));
        }
        let Some((now, ends)) = last else { return false };
        let (was, range) = (&mut part.vma, now.range);
        let same = now.id == was.id && now.permission() == was.permission() && range.contains_range(pages);
        was.range = range;
        part.ends = ends;
        same
    })
}

/// The pages of all parts, in order.
pub(super) fn pages_of(parts: &[Part]) -> impl Iterator<Item = crate::addr::PageIndex> + '_ {
    parts.iter().flat_map(|part| part.span.pages.iter())
}

/// The number of pages of all parts.
pub(super) fn count_of(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.span.pages.len() as usize).sum()
}

/// Joins `page` to the last of `runs` if it follows it.
pub(super) fn extend_runs(runs: &mut Vec<PageRange>, page: crate::addr::PageIndex) {
    match runs.last_mut() {
        Some(run) if run.end == page => run.end = page.plus(1),
        _ => runs.push(PageRange::single(page)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PageIndex;
    use crate::mm::vma::VmaAttributes;

    fn parts(vmas: &VmaMap, spans: &[(u32, u32)]) -> Vec<Part> {
        let part = |&(start, end): &(u32, u32)| Part {
            span: Span { pages: PageRange::new(PageIndex(start), PageIndex(end)), faults: 0..0 },
            vma: vmas.find(PageIndex(start)).unwrap().clone(),
            ends: false,
        };
        spans.iter().map(part).collect()
    }

    fn map(vmas: &[(u32, u32)]) -> VmaMap {
        let mut map = VmaMap::new(100_000);
        for &(start, end) in vmas {
            map.insert(PageRange::new(PageIndex(start), PageIndex(end)), VmaAttributes::default()).unwrap();
        }
        map
    }

    #[test]
    fn a_batch_ends_where_it_grows_too_long_or_turns_back() {
        let vmas = map(&[(0, 50_000)]);
        let length = |spans: &[(u32, u32)]| batch_length(&parts(&vmas, spans));
        assert_eq!(length(&[]), 0);
        assert_eq!(length(&[(0, 4096), (5000, 5001)]), 1);
        assert_eq!(length(&[(0, 1), (10, 20), (30, 31)]), 3);
        assert_eq!(length(&[(0, 1), (10, 20), (5, 6)]), 2);
        assert_eq!(length(&[(0, 4000), (4000, 4096), (4100, 4101)]), 2);
    }

    #[test]
    fn a_part_whose_vma_was_replaced_is_noticed() {
        let mut vmas = map(&[(0, 10), (10, 20), (30, 40)]);
        let mut parts = parts(&vmas, &[(2, 4), (12, 20), (31, 32)]);
        assert!(still_there(&mut parts, &vmas));
        vmas.remove(PageRange::new(PageIndex(30), PageIndex(40))).unwrap();
        assert!(!still_there(&mut parts, &vmas));
        vmas.insert(PageRange::new(PageIndex(30), PageIndex(40)), VmaAttributes::default()).unwrap();
        assert!(!still_there(&mut parts, &vmas), "another VMA in the same place is not the same");
    }
}
