//! The free page extents of the heap, ordered by address and searchable by size.
//!
//! A treap keyed by the extent's start in which every node knows the longest extent below it: the lowest
//! extent that is long enough is found by one descent. Nodes live in a vector and name each other by position.
//!
//! Invariants: extents neither overlap nor touch (neighbours are merged when pages are given back);
//! `longest` of a node is the maximum length in its subtree; a parent's `rank` is not below its children's.

use crate::addr::{PageIndex, PageRange};

/// No node.
const NIL: u32 = u32::MAX;

/// Extents that are long enough but perhaps badly placed for an aligned request and that are tried one by one,
/// lowest first, before the first extent that fits whatever its place is taken.
const ALIGNED_TRIES: u32 = 32;

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    len: u32,
    longest: u32,
    rank: u32,
    left: u32,
    right: u32,
}

/// The set of free extents.
#[derive(Debug)]
pub(super) struct FreeExtents {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    root: u32,
    free: u32,
}

impl FreeExtents {
    /// Everything in `pages` is free.
    pub(super) fn new(pages: PageRange) -> Self {
        let mut extents = Self { nodes: Vec::new(), vacant: Vec::new(), root: NIL, free: 0 };
        extents.give_back(pages);
        extents
    }

    /// Free pages.
    pub(super) fn free_pages(&self) -> u32 {
        self.free
    }

    /// Pages in the longest extent.
    pub(super) fn longest(&self) -> u32 {
        self.longest_below(self.root)
    }

    /// Adds `pages`, none of which is free, merging them with their neighbours.
    pub(super) fn give_back(&mut self, pages: PageRange) {
        if pages.is_empty() {
            return;
        }
        self.free += pages.len();
        let (mut start, mut end) = (pages.start.0, pages.end.0);
        if let Some((before, len)) = self.last_before(start)
            && before + len == start
        {
            self.remove(before);
            start = before;
        }
        if let Some(len) = self.len_at(end) {
            self.remove(end);
            end += len;
        }
        self.insert(start, end - start);
    }

    /// Takes out `pages`, all of which are free.
    pub(super) fn take(&mut self, pages: PageRange) {
        if pages.is_empty() {
            return;
        }
        let (start, len) = self
            .last_before(pages.start.0 + 1)
            .filter(|&(start, len)| pages.end.0 <= start + len)
            .unwrap_or_else(|| panic!("{pages:?} are taken out of the free extents but are not free"));
        self.free -= pages.len();
        self.remove(start);
        if start < pages.start.0 {
            self.insert(start, pages.start.0 - start);
        }
        if pages.end.0 < start + len {
            self.insert(pages.end.0, start + len - pages.end.0);
        }
    }

    /// The lowest place for `pages` pages at a multiple of `align`. With an alignment it may
    /// not be the very lowest when many extents are long enough but lie badly; it is found if there is one.
    pub(super) fn first_fit(&self, pages: u32, align: u32) -> Option<PageIndex> {
        let lowest = |len| self.lowest_of_len(self.root, len);
        if align <= 1 {
            return lowest(pages).map(PageIndex);
        }
        let mut tries = ALIGNED_TRIES;
        if let Some(found) = self.aligned(self.root, pages, align, &mut tries) {
            return Some(PageIndex(found));
        }
        if tries > 0 {
            return None;
        }
        if let Some(start) = lowest(pages.saturating_add(align - 1)) {
            return Some(PageIndex(start.next_multiple_of(align)));
        }
        let mut unbounded = u32::MAX;
        self.aligned(self.root, pages, align, &mut unbounded).map(PageIndex)
    }

    fn longest_below(&self, node: u32) -> u32 {
        if node == NIL { 0 } else { self.nodes[node as usize].longest }
    }

    fn lowest_of_len(&self, mut at: u32, len: u32) -> Option<u32> {
        if self.longest_below(at) < len {
            return None;
        }
        loop {
            let node = &self.nodes[at as usize];
            if self.longest_below(node.left) >= len {
                at = node.left;
            } else if node.len >= len {
                return Some(node.start);
            } else {
                at = node.right;
            }
        }
    }

    /// Tries the extents of at least `pages` pages in order of address until one fits or `tries` runs out.
    fn aligned(&self, at: u32, pages: u32, align: u32, tries: &mut u32) -> Option<u32> {
        if self.longest_below(at) < pages {
            return None;
        }
        let node = self.nodes[at as usize];
        if let Some(found) = self.aligned(node.left, pages, align, tries) {
            return Some(found);
        }
        if *tries == 0 {
            return None;
        }
        if node.len >= pages {
            *tries -= 1;
            let place = u64::from(node.start).next_multiple_of(u64::from(align));
            if place + u64::from(pages) <= u64::from(node.start) + u64::from(node.len) {
                return Some(place as u32);
            }
        }
        self.aligned(node.right, pages, align, tries)
    }

    /// The extent with the highest start below `page`.
    fn last_before(&self, page: u32) -> Option<(u32, u32)> {
        let (mut at, mut best) = (self.root, None);
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.start < page {
                best = Some((node.start, node.len));
                at = node.right;
            } else {
                at = node.left;
            }
        }
        best
    }

    fn len_at(&self, start: u32) -> Option<u32> {
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            match start.cmp(&node.start) {
                std::cmp::Ordering::Less => at = node.left,
                std::cmp::Ordering::Greater => at = node.right,
                std::cmp::Ordering::Equal => return Some(node.len),
            }
        }
        None
    }

    fn insert(&mut self, start: u32, len: u32) {
        // Fibonacci hashing of the start serves as the random rank: starts are chosen by the
        // allocator, not by an adversary.
        let rank = (u64::from(start).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        let node = Node { start, len, longest: len, rank, left: NIL, right: NIL };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                // An extent has at least one page, so there are fewer nodes than page numbers.
                (self.nodes.len() - 1) as u32
            }
        };
        let (below, above) = self.split(self.root, start);
        let below = self.merge(below, at);
        self.root = self.merge(below, above);
    }

    fn remove(&mut self, start: u32) {
        self.root = self.remove_below(self.root, start);
    }

    fn remove_below(&mut self, at: u32, start: u32) -> u32 {
        assert!(at != NIL, "no free extent starts at page {start}");
        let node = self.nodes[at as usize];
        match start.cmp(&node.start) {
            std::cmp::Ordering::Equal => {
                self.vacant.push(at);
                return self.merge(node.left, node.right);
            }
            std::cmp::Ordering::Less => self.nodes[at as usize].left = self.remove_below(node.left, start),
            std::cmp::Ordering::Greater => self.nodes[at as usize].right = self.remove_below(node.right, start),
        }
        self.refresh(at);
        at
    }

    /// Parts a subtree into the extents that start before `page` and the others.
    fn split(&mut self, at: u32, page: u32) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let node = self.nodes[at as usize];
        if node.start < page {
            let (below, above) = self.split(node.right, page);
            self.nodes[at as usize].right = below;
            self.refresh(at);
            (at, above)
        } else {
            let (below, above) = self.split(node.left, page);
            self.nodes[at as usize].left = above;
            self.refresh(at);
            (below, at)
        }
    }

    /// Joins two subtrees, every extent of `below` lying before every extent of `above`.
    fn merge(&mut self, below: u32, above: u32) -> u32 {
        if below == NIL || above == NIL {
            return if below == NIL { above } else { below };
        }
        let (low, high) = (self.nodes[below as usize], self.nodes[above as usize]);
        let top = if low.rank >= high.rank {
            self.nodes[below as usize].right = self.merge(low.right, above);
            below
        } else {
            self.nodes[above as usize].left = self.merge(below, high.left);
            above
        };
        self.refresh(top);
        top
    }

    fn refresh(&mut self, at: u32) {
        let node = self.nodes[at as usize];
        self.nodes[at as usize].longest =
            node.len.max(self.longest_below(node.left)).max(self.longest_below(node.right));
    }
}
