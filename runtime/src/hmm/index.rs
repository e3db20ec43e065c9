//! An interval index: which of many page ranges overlap a given one.
//!
//! Two structures side by side, by length:
//!
//! - intervals of at most [`SHORT`] pages, which is nearly all of them when there are many, in a table that is addressed
//!   directly (`blocks.rs`): finding them costs the same however many there are;
//! - longer ones, and mirrors, which cover everything, in a tree (`tree.rs`). Linux keeps all interval notifiers in an augmented
//!   red-black tree (`interval_tree_insert` and kin).
//!
//! No lock in here: the owner (`shard.rs`) has one.

mod blocks;
mod tree;

use crate::addr::PageRange;
use blocks::BlockTable;
use std::sync::Arc;
use tree::IntervalTree;

/// Pages of the longest interval in the table of blocks.
const SHORT: u32 = 64;

/// Where an interval stands: by start, then by its value's [`Keyed::key`], which tells equal intervals apart.
type Order = (u32, usize);

/// A value that can be told from all others.
pub(super) trait Keyed {
    /// A number that no other living value has; not zero.
    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

struct Item<T> {
    start: u32,
    end: u32,
    value: Arc<T>,
}

impl<T: Keyed> Item<T> {
    fn order(&self) -> Order {
        (self.start, self.value.key())
    }
}

/// Page ranges with a value each. Ranges may overlap or be equal; one value stands in an index once.
pub(super) struct IntervalIndex<T> {
    short: BlockTable<T>,
    long: IntervalTree<T>,
}

impl<T: Keyed> IntervalIndex<T> {
    pub(super) fn new() -> Self {
        Self { short: BlockTable::new(), long: IntervalTree::new() }
    }

    /// Adds `value`, which must not be there.
    pub(super) fn insert(&mut self, pages: PageRange, value: Arc<T>) {
        if pages.len() <= SHORT { self.short.insert(pages, value) } else { self.long.insert(pages, value) }
    }

    /// Removes and returns `value`, if it is there under `pages`.
    pub(super) fn remove(&mut self, pages: PageRange, value: &Arc<T>) -> Option<Arc<T>> {
        if pages.len() <= SHORT { self.short.remove(pages, value) } else { self.long.remove(pages, value) }
    }

    /// Calls `hit` for each value whose range shares a page with `pages`, in no particular order.
    pub(super) fn for_each_overlapping(&self, pages: PageRange, mut hit: impl FnMut(&Arc<T>)) {
        self.long.for_each_overlapping(pages, &mut hit);
        self.short.for_each_overlapping(pages, hit);
    }

    /// Calls `each` for every value.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Arc<T>)) {
        self.long.for_each(&mut each);
        self.short.for_each(each);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::tree::NIL;
    use super::*;
    use crate::addr::PageIndex;
    use proptest::prelude::*;

    impl Keyed for usize {}

    fn overlapping(index: &IntervalIndex<usize>, pages: PageRange) -> Vec<usize> {
        let mut hits = Vec::new();
        index.for_each_overlapping(pages, |value| hits.push(**value));
        hits.sort_unstable();
        hits
    }

    fn depth(index: &IntervalTree<usize>, at: u32) -> usize {
        if at == NIL {
            return 0;
        }
        let node = &index.nodes[at as usize];
        1 + depth(index, node.left).max(depth(index, node.right))
    }

    #[test]
    fn a_hundred_thousand_sorted_insertions_stay_shallow() {
        let mut index = IntervalTree::new();
        for n in 0..100_000 {
            index.insert(PageRange::single(PageIndex(n)), Arc::new(n as usize));
        }
        assert!(depth(&index, index.root) < 50, "depth {}", depth(&index, index.root));
    }

    #[test]
    fn emptied_leaves_are_used_again() {
        let mut index = IntervalTree::new();
        let span = |n: usize| PageRange::of_len(PageIndex(n as u32), 3);
        let values: Vec<_> = (0..1000).map(Arc::new).collect();
        let mut most = 0;
        for round in 0..10 {
            values.iter().for_each(|value| index.insert(span(**value), Arc::clone(value)));
            if round == 0 {
                most = index.nodes.len();
            }
            for value in &values {
                assert_eq!(index.remove(span(**value), value).as_deref(), Some(&**value));
            }
        }
        assert!(index.nodes.len() <= most && most > 30);
        assert_eq!(index.remove(span(0), &values[0]), None);
        index.for_each_overlapping(PageRange::of_len(PageIndex(0), 2000), |value| panic!("{value} is gone"));
    }

    #[test]
    fn short_intervals_at_the_ends_of_the_numbers_are_found() {
        let mut index = IntervalIndex::new();
        let (first, last) =
            (PageRange::single(PageIndex(0)), PageRange::new(PageIndex(u32::MAX - 64), PageIndex(u32::MAX)));
        index.insert(first, Arc::new(1));
        index.insert(last, Arc::new(2));
        assert_eq!(overlapping(&index, first), [1]);
        assert_eq!(overlapping(&index, PageRange::new(PageIndex(u32::MAX - 1), PageIndex(u32::MAX))), [2]);
        assert_eq!(overlapping(&index, PageRange::of_len(PageIndex(1), 1 << 31)), []);
    }

    proptest! {
        #[test]
        fn queries_agree_with_a_plain_list(
            steps in prop::collection::vec((0..10u32, 0u32..300, 1u32..90, any::<prop::sample::Index>(), prop::sample::select(vec![0, 4000, 1 << 20])), 1..1200),
            growth in 4..7u32,
            queries in prop::collection::vec((0u32..360, 1u32..80, prop::sample::select(vec![0, 3900, 1 << 20])), 1..20),
        ) {
            let mut index = IntervalIndex::new();
            let mut list: Vec<(PageRange, Arc<usize>)> = Vec::new();
            for (step, (kind, start, length, pick, base)) in steps.into_iter().enumerate() {
                if kind < growth || list.is_empty() {
                    let entry = (PageRange::of_len(PageIndex(base + start), length), Arc::new(step));
                    index.insert(entry.0, Arc::clone(&entry.1));
                    list.push(entry);
                } else {
                    let (pages, value) = list.swap_remove(pick.index(list.len()));
                    prop_assert!(index.remove(pages, &value).is_some());
                }
            }
            let everywhere = PageRange::new(PageIndex(0), PageIndex(u32::MAX));
            let queries = queries.into_iter().map(|(start, length, base)| PageRange::of_len(PageIndex(base + start), length));
            for query in queries.chain([everywhere, PageRange::of_len(PageIndex(100), 5000)]) {
                let mut expected: Vec<_> = list.iter().filter(|e| e.0.overlaps(query)).map(|e| *e.1).collect();
                expected.sort_unstable();
                prop_assert_eq!(overlapping(&index, query), expected);
            }
            let mut all = 0;
            index.for_each(|_| all += 1);
            prop_assert_eq!(all, list.len());
        }
    }
}
