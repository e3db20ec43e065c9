//! A value per page, kept as maximal runs of equal values: one entry where the kernel keeps one
//! VMA. Trackers use it to skip system calls that would change nothing and to count the kernel
//! mappings that they cause.

use crate::addr::{PageIndex, PageRange};
use std::collections::BTreeMap;

/// A value for each page of `[0, pages)`. Neighbouring runs never hold equal values.
#[derive(Debug)]
pub(super) struct RunMap<V> {
    runs: BTreeMap<PageIndex, V>,
    pages: u32,
}

impl<V: Copy + Eq> RunMap<V> {
    /// Every page holds `value`.
    pub(super) fn new(pages: u32, value: V) -> Self {
        Self { runs: BTreeMap::from([(PageIndex(0), value)]), pages }
    }

    /// Number of runs.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The run that `page` lies in, and its value.
    ///
    /// # Panics
    /// If `page` lies outside the map.
    pub(super) fn run(&self, page: PageIndex) -> (PageRange, V) {
        assert!(page.0 < self.pages, "{page} lies outside the reservation of {} pages", self.pages);
        let (&start, &value) =
            self.runs.range(..=page).next_back().unwrap_or_else(|| unreachable!("page 0 always starts a run"));
        let end = self.runs.range(page.plus(1)..).next().map_or(PageIndex(self.pages), |(&next, _)| next);
        (PageRange::new(start, end), value)
    }

    /// The runs that overlap `pages`, clipped to it, in order.
    pub(super) fn iter(&self, pages: PageRange) -> impl Iterator<Item = (PageRange, V)> {
        let first = self.runs.range(..=pages.start).next_back();
        let rest = self.runs.range(pages.start.plus(1)..pages.end.max(pages.start.plus(1)));
        let mut starts = first.into_iter().chain(rest).map(|(&start, &value)| (start, value)).peekable();
        std::iter::from_fn(move || {
            let (start, value) = starts.next().filter(|_| !pages.is_empty())?;
            let end = starts.peek().map_or(pages.end, |&(next, _)| next);
            Some((PageRange::new(start.max(pages.start), end.min(pages.end)), value))
        })
    }

    /// Whether every page of `pages` holds `value`.
    pub(super) fn all(&self, pages: PageRange, value: V) -> bool {
        self.iter(pages).all(|(_, found)| found == value)
    }

    /// Gives every page of `pages` the value `value`.
    pub(super) fn set(&mut self, pages: PageRange, value: V) {
        if pages.is_empty() {
            return;
        }
        let after = (pages.end.0 < self.pages).then(|| self.run(pages.end).1);
        let before = (pages.start.0 > 0).then(|| self.run(PageIndex(pages.start.0 - 1)).1);
        while let Some((&inside, _)) = self.runs.range(pages.start..pages.end).next() {
            self.runs.remove(&inside);
        }
        if before != Some(value) {
            self.runs.insert(pages.start, value);
        }
        match after {
            Some(after) if after == value => drop(self.runs.remove(&pages.end)),
            Some(after) => drop(self.runs.insert(pages.end, after)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u32, end: u32) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    #[test]
    fn setting_splits_and_merges_runs() {
        let mut map = RunMap::new(100, 'a');
        map.set(range(10, 20), 'b');
        assert_eq!(map.len(), 3);
        map.set(range(20, 30), 'b');
        assert_eq!(map.run(PageIndex(25)), (range(10, 30), 'b'));
        map.set(range(5, 30), 'a');
        assert_eq!((map.len(), map.run(PageIndex(99))), (1, (range(0, 100), 'a')));
    }

    proptest! {
        #[test]
        fn agrees_with_an_array(ops in prop::collection::vec((0u32..64, 0u32..64, 0u8..3), 1..40)) {
            let mut map = RunMap::new(64, 0u8);
            let mut array = [0u8; 64];
            for (a, b, value) in ops {
                let pages = range(a.min(b), a.max(b));
                map.set(pages, value);
                array[pages.indices()].fill(value);
                let edges = array.windows(2).filter(|pair| pair[0] != pair[1]).count();
                prop_assert_eq!(map.len(), edges + 1);
                let flat: Vec<u8> =
                    map.iter(pages).flat_map(|(run, value)| vec![value; run.len() as usize]).collect();
                prop_assert_eq!(flat, &array[pages.indices()]);
                prop_assert_eq!(map.run(PageIndex(a)).1, array[a as usize]);
            }
        }
    }
}
