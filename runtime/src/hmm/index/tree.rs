//! Intervals of any length, in a tree.
//!
//! Intervals stand sorted by start in leaves of up to [`LEAF`]; the leaves form a treap, a search tree kept balanced by
//! pseudo-random priorities, in which each node knows the furthest end in and below it, so that a query leaves out
//! every subtree that ends too early. Inserting, removing and finding `k` overlapping intervals take O(log n), O(log n) and
//! O(log n + k log n) steps on average, whatever the intervals are. Linux keeps interval notifiers in an augmented red-black
//! tree to the same end (`interval_tree_insert` and kin).
//!
//! Leaves rather than single intervals in the tree, because what costs is not steps but cache misses: the 24-byte nodes of
//! 100,000 intervals stay in the second-level cache, and one leaf is a few neighbouring lines.
//!
//! No lock in here: the owner (`shard.rs`) has one.

use super::{Item, Keyed, Order};
use crate::addr::PageRange;
use std::sync::Arc;

/// Intervals in a full leaf.
const LEAF: usize = 32;
pub(super) const NIL: u32 = u32::MAX;

/// What a query looks at on its way down.
#[derive(Clone, Copy)]
pub(super) struct Node {
    /// No interval of this leaf, or to its right, starts earlier.
    lower: u32,
    /// The furthest end in this leaf.
    furthest_here: u32,
    /// The furthest end in this subtree.
    furthest: u32,
    priority: u32,
    pub(super) left: u32,
    pub(super) right: u32,
}

/// The rest of a node.
struct Leaf<T> {
    /// With the node's `lower`: the place from which on intervals belong here, up to the next leaf's.
    lower_key: usize,
    items: Vec<Item<T>>,
}

/// Page ranges with a value each.
pub(super) struct IntervalTree<T> {
    pub(super) nodes: Vec<Node>,
    leaves: Vec<Leaf<T>>,
    free: Vec<u32>,
    pub(super) root: u32,
    /// Leaves ever made: what priorities are made from.
    made: u32,
}

impl<T: Keyed> IntervalTree<T> {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), leaves: Vec::new(), free: Vec::new(), root: NIL, made: 0 }
    }

    /// Adds `value`, which must not be there.
    pub(super) fn insert(&mut self, pages: PageRange, value: Arc<T>) {
        let item = Item { start: pages.start.0, end: pages.end.0, value };
        if self.root == NIL {
            // The first leaf takes everything that comes before the others, and is never removed.
            self.root = self.make_leaf((0, 0), Vec::new());
        }
        let at = self.leaf_of(item.order());
        let items = &mut self.leaves[at as usize].items;
        let place = items.partition_point(|other| other.order() < item.order());
        let end = item.end;
        items.insert(place, item);
        if items.len() <= LEAF {
            let node = &mut self.nodes[at as usize];
            node.furthest_here = node.furthest_here.max(end);
            self.raise(at, end);
        } else {
            let upper = items.split_off(LEAF / 2);
            self.measure(at);
            self.refresh_path(self.root, self.lower(at));
            let new = self.make_leaf(upper[0].order(), upper);
            self.root = self.insert_below(self.root, new);
        }
    }

    /// Removes and returns `value`, if it is there under `pages`.
    pub(super) fn remove(&mut self, pages: PageRange, value: &Arc<T>) -> Option<Arc<T>> {
        if self.root == NIL {
            return None;
        }
        let order = (pages.start.0, value.key());
        let at = self.leaf_of(order);
        let items = &mut self.leaves[at as usize].items;
        let place = items.binary_search_by_key(&order, Item::order).ok()?;
        let removed = items.remove(place);
        if items.is_empty() && self.lower(at) != (0, 0) {
            self.root = self.remove_below(self.root, at);
            self.free.push(at);
        } else if removed.end == self.nodes[at as usize].furthest_here {
            self.measure(at);
            self.refresh_path(self.root, self.lower(at));
        }
        Some(removed.value)
    }

    /// Calls `hit` for each value whose range shares a page with `pages`, by ascending start.
    pub(super) fn for_each_overlapping(&self, pages: PageRange, mut hit: impl FnMut(&Arc<T>)) {
        self.visit(self.root, pages.start.0, pages.end.0, &mut hit);
    }

    /// Calls `each` for every value.
    pub(super) fn for_each(&self, each: impl FnMut(&Arc<T>)) {
        self.leaves.iter().flat_map(|leaf| &leaf.items).map(|item| &item.value).for_each(each);
    }

    fn visit(&self, mut at: u32, start: u32, end: u32, hit: &mut impl FnMut(&Arc<T>)) {
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.furthest <= start {
                return;
            }
            self.visit(node.left, start, end, hit);
            if node.lower >= end {
                return;
            }
            if node.furthest_here > start {
                let items = self.leaves[at as usize].items.iter();
                items
                    .take_while(|item| item.start < end)
                    .filter(|item| item.end > start)
                    .for_each(|item| hit(&item.value));
            }
            at = node.right;
        }
    }

    fn lower(&self, at: u32) -> Order {
        (self.nodes[at as usize].lower, self.leaves[at as usize].lower_key)
    }

    /// Where to go from `at` to find the leaf with this lower bound: to the left, or not.
    fn is_left(&self, order: Order, at: u32) -> bool {
        let lower = self.nodes[at as usize].lower;
        order.0 < lower || (order.0 == lower && order.1 < self.leaves[at as usize].lower_key)
    }

    /// The leaf in which `order` stands, or would stand. There is one: the first begins before everything.
    fn leaf_of(&self, order: Order) -> u32 {
        let (mut at, mut found) = (self.root, NIL);
        while at != NIL {
            if self.is_left(order, at) {
                at = self.nodes[at as usize].left;
            } else {
                found = at;
                at = self.nodes[at as usize].right;
            }
        }
        found
    }

    /// A leaf that is not yet in the tree.
    fn make_leaf(&mut self, lower: Order, items: Vec<Item<T>>) -> u32 {
        self.made = self.made.wrapping_add(1);
        let node =
            Node { lower: lower.0, furthest_here: 0, furthest: 0, priority: scatter(self.made), left: NIL, right: NIL };
        let leaf = Leaf { lower_key: lower.1, items };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                self.leaves[at as usize] = leaf;
                at
            }
            None => {
                self.nodes.push(node);
                self.leaves.push(leaf);
                // Lossless: a node and its leaf take 56 bytes, so memory runs out first.
                (self.nodes.len() - 1) as u32
            }
        };
        self.measure(at);
        self.refresh(at);
        at
    }

    /// Recomputes the furthest end in a leaf.
    fn measure(&mut self, at: u32) {
        let ends = self.leaves[at as usize].items.iter().map(|item| item.end);
        self.nodes[at as usize].furthest_here = ends.max().unwrap_or(0);
    }

    /// Recomputes the furthest end in a subtree from its root and that root's children.
    fn refresh(&mut self, at: u32) {
        let Node { furthest_here, left, right, .. } = self.nodes[at as usize];
        let below = |child: u32| if child == NIL { 0 } else { self.nodes[child as usize].furthest };
        self.nodes[at as usize].furthest = furthest_here.max(below(left)).max(below(right));
    }

    /// Takes a new, later end in leaf `target` into account on the way down to it.
    fn raise(&mut self, target: u32, end: u32) {
        let order = self.lower(target);
        let mut at = self.root;
        loop {
            let node = &mut self.nodes[at as usize];
            node.furthest = node.furthest.max(end);
            if at == target {
                return;
            }
            at = if self.is_left(order, at) { self.nodes[at as usize].left } else { self.nodes[at as usize].right };
        }
    }

    /// Recomputes the furthest ends from the leaf with this lower bound up to `at`.
    fn refresh_path(&mut self, at: u32, lower: Order) {
        if self.lower(at) != lower {
            let Node { left, right, .. } = self.nodes[at as usize];
            self.refresh_path(if self.is_left(lower, at) { left } else { right }, lower);
        }
        self.refresh(at);
    }

    fn insert_below(&mut self, root: u32, new: u32) -> u32 {
        if root == NIL {
            return new;
        }
        if self.nodes[new as usize].priority > self.nodes[root as usize].priority {
            let (left, right) = self.split(root, self.lower(new));
            self.nodes[new as usize].left = left;
            self.nodes[new as usize].right = right;
            self.refresh(new);
            return new;
        }
        if self.is_left(self.lower(new), root) {
            self.nodes[root as usize].left = self.insert_below(self.nodes[root as usize].left, new);
        } else {
            self.nodes[root as usize].right = self.insert_below(self.nodes[root as usize].right, new);
        }
        self.refresh(root);
        root
    }

    /// Cuts a subtree in two: the leaves that begin before `order`, and the rest.
    fn split(&mut self, root: u32, order: Order) -> (u32, u32) {
        if root == NIL {
            return (NIL, NIL);
        }
        if self.is_left(order, root) {
            let (left, right) = self.split(self.nodes[root as usize].left, order);
            self.nodes[root as usize].left = right;
            self.refresh(root);
            (left, root)
        } else {
            let (left, right) = self.split(self.nodes[root as usize].right, order);
            self.nodes[root as usize].right = left;
            self.refresh(root);
            (root, right)
        }
    }

    /// The subtree without the leaf `target`, which is in it.
    fn remove_below(&mut self, root: u32, target: u32) -> u32 {
        let Node { left, right, .. } = self.nodes[root as usize];
        if root == target {
            return self.join(left, right);
        }
        if self.is_left(self.lower(target), root) {
            self.nodes[root as usize].left = self.remove_below(left, target);
        } else {
            self.nodes[root as usize].right = self.remove_below(right, target);
        }
        self.refresh(root);
        root
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
}

/// A number that looks random: the finaliser of splitmix64.
fn scatter(number: u32) -> u32 {
    let mut x = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}
