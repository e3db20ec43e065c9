//! An interval index: which of many page ranges overlap a given one.
//!
//! A treap: a search tree by start, kept balanced by pseudo-random priorities, in which each node knows the
//! furthest end below it, so that a query leaves out every subtree that ends too early. Inserting, removing and finding
//! the `k` overlapping intervals take O(log n), O(log n) and O(log n + k) steps on average, whatever the intervals are.
//! Linux keeps interval notifiers in an augmented red-black tree to the same end (`interval_tree_insert` and kin).
//!
//! The nodes that a query visits lie in one dense array, 24 bytes each; values lie apart, and are only touched for hits.
//! No lock in here: the owner (`shard.rs`) has one.

use crate::addr::PageRange;

const NIL: u32 = u32::MAX;

struct Node {
    start: u32,
    end: u32,
    /// The largest `end` in this subtree.
    furthest: u32,
    priority: u32,
    left: u32,
    right: u32,
}

/// Page ranges with a value each. Ranges may overlap or be equal; `key` tells equal ones apart.
pub(super) struct IntervalIndex<T> {
    nodes: Vec<Node>,
    values: Vec<Option<(usize, T)>>,
    free: Vec<u32>,
    root: u32,
}

impl<T> IntervalIndex<T> {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), values: Vec::new(), free: Vec::new(), root: NIL }
    }

    /// Adds `value`; no value with the same range and key may be there.
    pub(super) fn insert(&mut self, pages: PageRange, key: usize, value: T) {
        let (start, end) = (pages.start.0, pages.end.0);
        let node = Node { start, end, furthest: end, priority: scatter(key), left: NIL, right: NIL };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                self.values[at as usize] = Some((key, value));
                at
            }
            None => {
                // A node is 24 bytes: the address space of the process runs out before the number does.
                let at = self.nodes.len() as u32;
                self.nodes.push(node);
                self.values.push(Some((key, value)));
                at
            }
        };
        self.root = self.insert_below(self.root, at);
    }

    /// Removes and returns the value with this range and key.
    pub(super) fn remove(&mut self, pages: PageRange, key: usize) -> Option<T> {
        let (root, removed) = self.remove_below(self.root, (pages.start.0, key));
        self.root = root;
        let removed = removed?;
        self.free.push(removed);
        self.values[removed as usize].take().map(|(_, value)| value)
    }

    /// Calls `hit` for each value whose range shares a page with `pages`, by ascending start.
    pub(super) fn for_each_overlapping(&self, pages: PageRange, mut hit: impl FnMut(&T)) {
        self.visit(self.root, pages.start.0, pages.end.0, &mut hit);
    }

    /// Calls `each` for every value.
    pub(super) fn for_each(&self, each: impl FnMut(&T)) {
        self.values.iter().flatten().map(|(_, value)| value).for_each(each);
    }

    fn visit(&self, mut at: u32, start: u32, end: u32, hit: &mut impl FnMut(&T)) {
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.furthest <= start {
                return;
            }
            if node.left != NIL {
                self.visit(node.left, start, end, hit);
            }
            if node.start >= end {
                return;
            }
            if node.end > start
                && let Some((_, value)) = &self.values[at as usize]
            {
                hit(value);
            }
            at = node.right;
        }
    }

    /// The order of the tree: by start, then by key.
    fn order(&self, at: u32) -> (u32, usize) {
        (self.nodes[at as usize].start, self.values[at as usize].as_ref().map_or(0, |&(key, _)| key))
    }

    fn insert_below(&mut self, root: u32, new: u32) -> u32 {
        if root == NIL {
            return new;
        }
        if self.nodes[new as usize].priority > self.nodes[root as usize].priority {
            let (left, right) = self.split(root, self.order(new));
            self.nodes[new as usize].left = left;
            self.nodes[new as usize].right = right;
            self.refresh(new);
            return new;
        }
        if self.order(new) < self.order(root) {
            self.nodes[root as usize].left = self.insert_below(self.nodes[root as usize].left, new);
        } else {
            self.nodes[root as usize].right = self.insert_below(self.nodes[root as usize].right, new);
        }
        self.refresh(root);
        root
    }

    /// Cuts a subtree in two: what comes before `order`, and the rest.
    fn split(&mut self, root: u32, order: (u32, usize)) -> (u32, u32) {
        if root == NIL {
            return (NIL, NIL);
        }
        if self.order(root) < order {
            let (left, right) = self.split(self.nodes[root as usize].right, order);
            self.nodes[root as usize].right = left;
            self.refresh(root);
            (root, right)
        } else {
            let (left, right) = self.split(self.nodes[root as usize].left, order);
            self.nodes[root as usize].left = right;
            self.refresh(root);
            (left, root)
        }
    }

    /// The subtree without the node at `order`, and that node.
    fn remove_below(&mut self, root: u32, order: (u32, usize)) -> (u32, Option<u32>) {
        if root == NIL {
            return (NIL, None);
        }
        let here = self.order(root);
        if here == order {
            let Node { left, right, .. } = self.nodes[root as usize];
            return (self.join(left, right), Some(root));
        }
        let removed;
        if order < here {
            let (left, found) = self.remove_below(self.nodes[root as usize].left, order);
            self.nodes[root as usize].left = left;
            removed = found;
        } else {
            let (right, found) = self.remove_below(self.nodes[root as usize].right, order);
            self.nodes[root as usize].right = right;
            removed = found;
        }
        self.refresh(root);
        (root, removed)
    }

    /// Joins two subtrees of which all of `left` comes before all of `right`.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL {
            return right;
        }
        if right == NIL {
            return left;
        }
        if self.nodes[left as usize].priority > self.nodes[right as usize].priority {
            self.nodes[left as usize].right = self.join(self.nodes[left as usize].right, right);
            self.refresh(left);
            left
        } else {
            self.nodes[right as usize].left = self.join(left, self.nodes[right as usize].left);
            self.refresh(right);
            right
        }
    }

    /// Recomputes `furthest` from the node and its children.
    fn refresh(&mut self, at: u32) {
        let Node { end, left, right, .. } = self.nodes[at as usize];
        let below = |child: u32| if child == NIL { 0 } else { self.nodes[child as usize].furthest };
        self.nodes[at as usize].furthest = end.max(below(left)).max(below(right));
    }
}

/// A number that looks random from a key (an address, whose low bits are all alike): the finaliser of splitmix64.
fn scatter(key: usize) -> u32 {
    let mut x = (key as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::addr::PageIndex;
    use proptest::prelude::*;

    fn overlapping(index: &IntervalIndex<usize>, pages: PageRange) -> Vec<usize> {
        let mut hits = Vec::new();
        index.for_each_overlapping(pages, |&value| hits.push(value));
        hits.sort_unstable();
        hits
    }

    fn depth(index: &IntervalIndex<usize>, at: u32) -> usize {
        if at == NIL {
            return 0;
        }
        let node = &index.nodes[at as usize];
        1 + depth(index, node.left).max(depth(index, node.right))
    }

    #[test]
    fn a_hundred_thousand_sorted_insertions_stay_shallow() {
        let mut index = IntervalIndex::new();
        for n in 0..100_000 {
            index.insert(PageRange::single(PageIndex(n)), n as usize * 64, n as usize);
        }
        assert!(depth(&index, index.root) < 60, "depth {}", depth(&index, index.root));
    }

    #[test]
    fn a_removed_slot_is_used_again() {
        let mut index = IntervalIndex::new();
        for round in 0..10 {
            index.insert(PageRange::of_len(PageIndex(round), 3), 1, 0);
            assert_eq!(index.remove(PageRange::of_len(PageIndex(round), 3), 1), Some(0));
        }
        assert_eq!(index.nodes.len(), 1);
        assert_eq!(index.remove(PageRange::of_len(PageIndex(0), 3), 1), None);
    }

    proptest! {
        #[test]
        fn queries_agree_with_a_plain_list(
            steps in prop::collection::vec((any::<bool>(), 0u32..200, 1u32..60, 0usize..40), 1..300),
            queries in prop::collection::vec((0u32..260, 1u32..80), 1..20),
        ) {
            let mut index = IntervalIndex::new();
            let mut list: Vec<(PageRange, usize)> = Vec::new();
            for (insert, start, length, pick) in steps {
                if insert || list.is_empty() {
                    let (pages, key) = (PageRange::of_len(PageIndex(start), length), list.iter().map(|e| e.1).max().unwrap_or(0) + 1);
                    index.insert(pages, key, key);
                    list.push((pages, key));
                } else {
                    let (pages, key) = list.swap_remove(pick % list.len());
                    prop_assert_eq!(index.remove(pages, key), Some(key));
                }
            }
            for (start, length) in queries {
                let query = PageRange::of_len(PageIndex(start), length);
                let mut expected: Vec<_> = list.iter().filter(|e| e.0.overlaps(query)).map(|e| e.1).collect();
                expected.sort_unstable();
                prop_assert_eq!(overlapping(&index, query), expected);
            }
        }
    }
}
