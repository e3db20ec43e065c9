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
