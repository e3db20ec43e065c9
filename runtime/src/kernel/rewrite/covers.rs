//! Accesses that need no look at the page table, because one before them, on every way there, was on the same page.
//!
//! A translation *covers* a later access if its block dominates the later one's, the two addresses differ by a constant, and alignment proves that
//! both lie on one page: an aligned access promises that all up to the next multiple of its alignment is on its page. During a replayed
//! dispatch no page is taken away, so its device address plus the difference is good. What else may have happened since is the library's business
//! (`link_again_…`): an invocation that was poisoned since stores nothing, and live, where every translation in between was a safe point and a
//! barrier lets others come to one, the page is looked up again.
//!
//! A store is covered by stores and atomics only: what was looked up for reading need not be writable, nor marked as dirty.

use super::addresses::Key;
use super::graph::Graph;
use rspirv::spirv::Word;
use std::collections::HashMap;

/// Most covers that are remembered of one address.
const MAX_COVERS: usize = 16;
const PAGE: u64 = crate::addr::PAGE_SIZE as u64;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    Read,
    Write,
    Atomic,
}

/// Bytes that are accessed, none of them beyond the next multiple of their alignment.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) align: u64,
}

impl Span {
    /// Whether both lie on one page, given `from`'s place relative to this; both are aligned.
    fn is_beside(&self, from: &Span) -> bool {
        let within = |inner: &Span, outer: &Span| {
            let at = inner.offset.wrapping_sub(outer.offset);
            let align = outer.align.min(PAGE);
            at < align && inner.bytes <= align - at
        };
        within(self, from) || within(from, self)
    }
}

/// A translation that was made.
struct Cover {
    block: usize,
    span: Span,
    writes: bool,
    /// The device address.
    translated: Word,
}

/// What covers an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Covered {
    pub(super) translated: Word,
    /// Bytes from there, which may be negative.
    pub(super) distance: u64,
    /// The library's function that makes the address of it.
    pub(super) function: &'static str,
}

/// The translations made in a function so far.
pub(super) struct Covers<'a> {
    graph: &'a Graph,
    block: usize,
    made: HashMap<Key, Vec<Cover>>,
}

impl<'a> Covers<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        Self { graph, block: 0, made: HashMap::new() }
    }

    /// The accesses to come are this block's. Blocks come after those that dominate them.
    pub(super) fn enter(&mut self, block: usize) {
        self.block = block;
    }

    /// What covers an access.
    pub(super) fn find(&self, span: &Span, does: Does) -> Option<Covered> {
        let covers = self.made.get(&span.key)?.iter().rev();
        let mut covers = covers.filter(|cover| {
            (does == Does::Read || cover.writes)
                && span.is_beside(&cover.span)
                && self.graph.reachable(self.block)
                && self.graph.dominates(cover.block, self.block)
        });
        let first = covers.next()?;
        // One that only read is the cheaper for reading.
        let cover = if does == Does::Read { covers.find(|cover| !cover.writes).unwrap_or(first) } else { first };
        let function = match does {
            Does::Read if cover.writes => "link_again_read_stored",
            Does::Read => "link_again_read",
            Does::Write => "link_again_write",
            Does::Atomic => "link_again_atomic",
        };
        let distance = span.offset.wrapping_sub(cover.span.offset);
        Some(Covered { translated: cover.translated, distance, function })
    }

    /// Notes a translation.
    pub(super) fn note(&mut self, span: Span, does: Does, translated: Word) {
        let covers = self.made.entry(span.key.clone()).or_default();
        if covers.len() == MAX_COVERS {
            covers.remove(0);
        }
        covers.push(Cover { block: self.block, span, writes: does != Does::Read, translated });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rewrite::{RewriteStats, rewrite};

    fn stats(name: &str) -> RewriteStats {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/shaders/plain/spv");
        rewrite(&std::fs::read(format!("{folder}/{name}.spv")).unwrap()).unwrap().stats
    }

    fn span(offset: u64, bytes: u64, align: u64) -> Span {
        Span { key: Key::default(), offset, bytes, align }
    }

    #[test]
    fn only_an_alignment_says_that_two_accesses_are_on_one_page() {
        assert!(span(12, 4, 4).is_beside(&span(0, 4, 16)), "within the sixteen bytes that the first promises");
        assert!(span(0, 8, 16).is_beside(&span(8, 4, 4)), "the later one promises it");
        assert!(span(4, 4, 4).is_beside(&span(4, 4, 4)));
        assert!(!span(4, 4, 4).is_beside(&span(0, 4, 4)), "a page may end between them");
        assert!(!span(12, 8, 4).is_beside(&span(0, 4, 16)), "it reaches past them");
        assert!(!span(16, 4, 4).is_beside(&span(0, 4, 16)));
        assert!(!span(PAGE, 4, 4).is_beside(&span(0, 4, 2 * PAGE)), "a page ends between them, whatever is promised");
    }

    #[test]
    fn members_of_an_object_are_covered_by_the_first_across_stores_and_branches() {
        let stats = stats("again_members");

        assert_eq!((stats.loads, stats.stores), (7, 4));
        assert_eq!((stats.translations, stats.covered), (2, 9));
    }

    #[test]
    fn a_store_is_not_covered_by_a_load() {
        let stats = stats("update");

        assert_eq!((stats.loads, stats.stores, stats.translations, stats.covered), (2, 1, 3, 0));
    }

    #[test]
    fn loads_that_a_loop_does_not_change_are_looked_up_ahead_of_it() {
        assert_eq!(stats("invariant").hoisted, 1);
        assert_eq!(stats("invariant_null").hoisted, 1);
        // The next node is another each time round.
        assert_eq!(stats("list").hoisted, 0);
    }
}
