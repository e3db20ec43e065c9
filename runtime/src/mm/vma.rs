//! The VMAs of the heap: which pages are mapped, and with what attributes.
//!
//! A plain data structure without locks; the address space holds it under its own lock. Unlike a range
//! map it never merges neighbours: two VMAs side by side with equal attributes stay two, because a VMA's id
//! is also a generation: whoever remembers a page together with the id of its VMA can tell later whether
//! it is still looking at the same mapping.
//!
//! Invariants: VMAs are not empty, do not overlap and lie inside the heap; the free extents are exactly the
//! pages of no VMA that were not withdrawn; an id is given to one VMA once. Where a VMA is split, **the lower part keeps the id and the
//! upper part gets a new one**; attributes are kept by both. An operation that fails changes nothing.

mod extents;

use super::advice::{Advice, Hint};
use crate::addr::{PageIndex, PageRange};
use extents::FreeExtents;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names a VMA; never given twice by one [`VmaMap`].
/// Linux: none; interval sequence numbers serve instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmaId(pub u64);

/// What CPU and devices may do with a VMA's pages.
/// Linux: `VM_READ` and `VM_WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Permission {
    /// Loads only; a store is a fatal fault.
    ReadOnly,
    /// Loads and stores.
    #[default]
    ReadWrite,
}

/// Who made a VMA.
/// Linux: `vm_ops`, as far as it tells who made the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum VmaKind {
    /// The heap's allocator: an arena of small objects or one large allocation.
    #[default]
    Heap,
    /// The program, by mapping pages itself.
    Mapping,
}

impl VmaKind {
    /// Whether the program made it.
    pub fn is_mapping(self) -> bool {
        self == Self::Mapping
    }
}

/// What a VMA's pages have in common. Splitting and moving keep it.
/// Linux: `vm_flags` and `anon_name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct VmaAttributes {
    /// What may be done with the pages.
    pub permission: Permission,
    /// Hints.
    pub advice: Advice,
    /// Who made it.
    pub kind: VmaKind,
    /// A name for error messages and traces.
    pub name: Option<Arc<str>>,
}

/// A contiguous range of the heap with one set of attributes.
/// Linux: `struct vm_area_struct`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its pages, never empty.
    pub range: PageRange,
    /// Its name and generation.
    pub id: VmaId,
    /// What it was first a part of: parts of one mapping or allocation have it in common, also after they were moved.
    pub origin: VmaId,
    /// What its pages have in common.
    pub attributes: VmaAttributes,
}

impl Vma {
    /// What may be done with the pages.
    pub fn permission(&self) -> Permission {
        self.attributes.permission
    }

    /// The hints given.
    pub fn advice(&self) -> Advice {
        self.attributes.advice
    }

    /// Who made it.
    pub fn kind(&self) -> VmaKind {
        self.attributes.kind
    }
}

/// A VMA operation was refused; nothing was changed.
/// Linux: the error codes of `mmap`, `mprotect` and `mremap`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmaError {
    /// The range has no page.
    #[error("the range at {at} is empty; name at least one page")]
    Empty {
        /// Where.
        at: PageIndex,
    },
    /// The range reaches past the heap's end.
    #[error("{range:?} reach past the heap's {pages} pages")]
    OutOfHeap {
        /// The range asked for.
        range: PageRange,
        /// Pages there are.
        pages: u32,
    },
    /// Something is mapped there.
    #[error("{range:?} overlap the VMA of {with:?}; unmap it first or choose another place")]
    Overlap {
        /// The range asked for.
        range: PageRange,
        /// The first VMA in the way, or the source of a move.
        with: PageRange,
    },
    /// A part of the range is not mapped.
    #[error("{range:?} are not mapped throughout: {hole:?} belong to no VMA")]
    Unmapped {
        /// The range asked for.
        range: PageRange,
        /// The first part that belongs to no VMA.
        hole: PageRange,
    },
    /// No free extent is long enough.
    #[error(
        "no room for {pages} pages aligned to {align}: {free} pages of the heap are free, {longest} of them in one \
         piece; unmap something or open a larger heap"
    )]
    NoRoom {
        /// Pages asked for.
        pages: u32,
        /// Their alignment in pages.
        align: u32,
        /// Free pages in all.
        free: u32,
        /// Free pages in the longest extent.
        longest: u32,
    },
}

/// All VMAs of a heap. See the module's page for the rules.
/// Linux: `mm_mt`, the maple tree of an `mm_struct`.
#[derive(Debug)]
pub struct VmaMap {
    by_start: BTreeMap<PageIndex, Vma>,
    free: FreeExtents,
    /// Never used again: by start, disjoint.
    withdrawn: BTreeMap<PageIndex, PageRange>,
    /// The starts of VMAs with hints.
    advised: BTreeSet<PageIndex>,
    /// Changes with what stands in `advised`, or with the extents and hints of these VMAs.
    advice_version: u64,
    pages: u32,
    next_id: u64,
}

impl VmaMap {
    /// An empty map over a heap of `pages` pages.
    pub fn new(pages: u32) -> Self {
        let all = PageRange::of_len(PageIndex(0), pages);
        Self {
            by_start: BTreeMap::new(),
            free: FreeExtents::new(all),
            withdrawn: BTreeMap::new(),
            advised: BTreeSet::new(),
            advice_version: 0,
            pages,
            next_id: 1,
        }
    }

    /// Number of VMAs.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// Pages in VMAs, or withdrawn.
    pub fn mapped_pages(&self) -> u32 {
        self.pages - self.free.free_pages()
    }

    /// All VMAs, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> + ExactSizeIterator {
        self.by_start.values()
    }

    /// The VMA that holds `page`.
    pub fn find(&self, page: PageIndex) -> Option<&Vma> {
        self.by_start.range(..=page).next_back().map(|(_, vma)| vma).filter(|vma| vma.range.contains(page))
    }

    /// The VMAs that share a page with `range`, ascending, whole (not clipped).
    pub fn find_overlapping(&self, range: PageRange) -> impl DoubleEndedIterator<Item = &Vma> {
        let from = self.find(range.start).map_or(range.start, |vma| vma.range.start);
        // An empty range lets `from..range.end` run backwards when it lies inside a VMA.
        let until = if range.is_empty() { from } else { range.end };
        self.by_start.range(from..until).map(|(_, vma)| vma)
    }

    /// Whether what is mapped as `vma` goes on behind it: the next VMA is a part of the same mapping or allocation, split off. An
    /// object may straddle that border, but not one between two allocations.
    pub fn continues(&self, vma: &Vma) -> bool {
        self.find(vma.range.end).is_some_and(|next| next.origin == vma.origin)
    }

    /// The part of `range` that belongs to no VMA and lies lowest; `None` if all of it is mapped.
    pub fn first_hole(&self, range: PageRange) -> Option<PageRange> {
        let mut at = range.start;
        for vma in self.find_overlapping(range) {
            if at < vma.range.start {
                return Some(PageRange::new(at, vma.range.start));
            }
            at = vma.range.end;
        }
        (at < range.end).then(|| PageRange::new(at, range.end))
    }

    /// The lowest free place for `pages` pages at a multiple of `align` pages (1: anywhere), in logarithmic
    /// time. With an alignment the place may be higher than the lowest if very many free extents lie badly.
    pub fn find_gap(&self, pages: u32, align: u32) -> Option<PageIndex> {
        if pages == 0 { None } else { self.free.first_fit(pages, align) }
    }

    /// As [`VmaMap::find_gap`], saying what there is if nothing is found.
    ///
    /// # Errors
    /// If `pages` is zero or there is no room.
    pub fn place(&self, pages: u32, align: u32) -> Result<PageIndex, VmaError> {
        if pages == 0 {
            return Err(VmaError::Empty { at: PageIndex(0) });
        }
        let (free, longest) = (self.free.free_pages(), self.free.longest());
        self.find_gap(pages, align).ok_or(VmaError::NoRoom { pages, align, free, longest })
    }

    /// Makes a VMA of `range`.
    ///
    /// # Errors
    /// If the range is empty, leaves the heap, or overlaps a VMA.
    pub fn insert(&mut self, range: PageRange, attributes: VmaAttributes) -> Result<VmaId, VmaError> {
        self.check(range)?;
        if let Some(with) = self.in_the_way(range) {
            return Err(VmaError::Overlap { range, with });
        }
        Ok(self.put(range, attributes, None))
    }

    /// Makes a VMA of `pages` pages in the place that [`VmaMap::find_gap`] finds.
    ///
    /// # Errors
    /// If `pages` is zero or there is no room.
    pub fn insert_lowest(&mut self, pages: u32, align: u32, attributes: VmaAttributes) -> Result<&Vma, VmaError> {
        let start = self.place(pages, align)?;
        self.put(PageRange::of_len(start, pages), attributes, None);
        Ok(&self.by_start[&start])
    }

    /// Unmaps `range` (as munmap does: holes in it are no error), splitting the VMAs at its borders.
    /// Returns what was taken out, ascending, clipped to `range`.
    ///
    /// # Errors
    /// If the range is empty or leaves the heap.
    pub fn remove(&mut self, range: PageRange) -> Result<Vec<Vma>, VmaError> {
        self.check(range)?;
        self.isolate(range);
        let starts: Vec<_> = self.by_start.range(range.start..range.end).map(|(&start, _)| start).collect();
        Ok(starts
            .into_iter()
            .filter_map(|start| self.by_start.remove(&start))
            .inspect(|vma| {
                self.free.give_back(vma.range);
                if self.advised.remove(&vma.range.start) {
                    self.advice_version += 1;
                }
            })
            .collect())
    }

    /// Takes `range` out of use for good: what is mapped there is unmapped, and nothing will be mapped there again. For addresses that the
    /// program gave to something else.
    ///
    /// # Errors
    /// If the range is empty or leaves the heap.
    pub fn withdraw(&mut self, range: PageRange) -> Result<(), VmaError> {
        self.remove(range)?;
        let mut at = range.start;
        while at < range.end {
            let before = self.withdrawn.range(..=at).next_back().map(|(_, &old)| old).filter(|old| old.contains(at));
            if let Some(old) = before {
                at = old.end;
                continue;
            }
            let next = self.withdrawn.range(at..range.end).next().map_or(range.end, |(&start, _)| start);
            let fresh = PageRange::new(at, next);
            self.free.take(fresh);
            self.withdrawn.insert(at, fresh);
            at = next;
        }
        Ok(())
    }

    /// What keeps a VMA from being made of `range`: another one, or what was withdrawn.
    pub fn in_the_way(&self, range: PageRange) -> Option<PageRange> {
        let withdrawn = self.withdrawn.range(..range.end).next_back().map(|(_, &old)| old);
        let vma = self.find_overlapping(range).next().map(|vma| vma.range);
        vma.or(withdrawn.filter(|old| old.overlaps(range)))
    }

    /// Changes what may be done with `range`, splitting VMAs that change in part. VMAs that already have the
    /// permission are left whole.
    ///
    /// # Errors
    /// If the range is empty, leaves the heap, or is not mapped throughout (as mprotect's ENOMEM).
    pub fn set_permission(&mut self, range: PageRange, permission: Permission) -> Result<(), VmaError> {
        self.change(range, |attributes| attributes.permission != permission, |a| a.permission = permission)
    }

    /// Adds a hint for `range`, splitting VMAs that change in part.
    ///
    /// # Errors
    /// As [`VmaMap::set_permission`].
    pub fn advise(&mut self, range: PageRange, hint: Hint) -> Result<(), VmaError> {
        self.change(range, |a| a.advice.with(hint) != a.advice, |a| a.advice = a.advice.with(hint))
    }

    /// The VMAs with hints, ascending.
    pub fn advised(&self) -> impl Iterator<Item = &Vma> {
        self.advised.iter().filter_map(|start| self.by_start.get(start))
    }

    /// Another number whenever [`advised`](Self::advised) may say something else.
    pub fn advice_version(&self) -> u64 {
        self.advice_version
    }

    /// Moves `range` to the free pages from `to` on (as mremap), VMA borders and attributes included,
    /// splitting VMAs at its borders. What arrives gets new ids. Returns what was taken out and what was put
    /// in, pairwise.
    ///
    /// # Errors
    /// If the range is empty or not mapped throughout, or the target overlaps it or a VMA or leaves the heap.
    pub fn move_to(&mut self, range: PageRange, to: PageIndex) -> Result<Vec<(Vma, Vma)>, VmaError> {
        self.check(range)?;
        if range.len() > self.pages.saturating_sub(to.0) {
            return Err(VmaError::OutOfHeap { range: PageRange::new(to, PageIndex(u32::MAX)), pages: self.pages });
        }
        let target = PageRange::of_len(to, range.len());
        if let Some(hole) = self.first_hole(range) {
            return Err(VmaError::Unmapped { range, hole });
        }
        if target.overlaps(range) {
            return Err(VmaError::Overlap { range: target, with: range });
        }
        if let Some(with) = self.in_the_way(target) {
            return Err(VmaError::Overlap { range: target, with });
        }
        let moved = self.remove(range)?;
        Ok(moved
            .into_iter()
            .map(|old| {
                let start = target.start.plus(old.range.start.0 - range.start.0);
                let range = PageRange::of_len(start, old.range.len());
                let id = self.put(range, old.attributes.clone(), Some(old.origin));
                let new = Vma { range, id, ..old.clone() };
                (old, new)
            })
            .collect())
    }

    fn check(&self, range: PageRange) -> Result<(), VmaError> {
        if range.is_empty() {
            Err(VmaError::Empty { at: range.start })
        } else if range.end.0 > self.pages {
            Err(VmaError::OutOfHeap { range, pages: self.pages })
        } else {
            Ok(())
        }
    }

    /// Makes a VMA of pages known to be free, a part of `origin` if it is one.
    fn put(&mut self, range: PageRange, attributes: VmaAttributes, origin: Option<VmaId>) -> VmaId {
        self.free.take(range);
        let id = self.fresh_id();
        self.by_start.insert(range.start, Vma { range, id, origin: origin.unwrap_or(id), attributes });
        self.note_advice(range.start);
        id
    }

    /// The VMA that starts there is new, or another than it was.
    fn note_advice(&mut self, start: PageIndex) {
        let has = self.by_start.get(&start).is_some_and(|vma| vma.advice() != Advice::NONE);
        let had = if has { !self.advised.insert(start) } else { self.advised.remove(&start) };
        self.advice_version += u64::from(has || had);
    }

    fn fresh_id(&mut self) -> VmaId {
        let id = VmaId(self.next_id);
        self.next_id += 1;
        id
    }

    fn change(
        &mut self,
        range: PageRange,
        differs: impl Fn(&VmaAttributes) -> bool,
        apply: impl Fn(&mut VmaAttributes),
    ) -> Result<(), VmaError> {
        self.check(range)?;
        if let Some(hole) = self.first_hole(range) {
            return Err(VmaError::Unmapped { range, hole });
        }
        let affected: Vec<PageRange> =
            self.find_overlapping(range).filter(|vma| differs(&vma.attributes)).map(|vma| vma.range).collect();
        for whole in affected {
            let part = whole.intersect(range);
            self.isolate(part);
            if let Some(vma) = self.by_start.get_mut(&part.start) {
                apply(&mut vma.attributes);
                self.note_advice(part.start);
            }
        }
        Ok(())
    }

    /// Splits VMAs so that none crosses a border of `range`.
    fn isolate(&mut self, range: PageRange) {
        self.split_at(range.start);
        self.split_at(range.end);
    }

    fn split_at(&mut self, page: PageIndex) {
        let Some(vma) = self.find(page).filter(|vma| vma.range.start < page) else { return };
        let lower = vma.range.start;
        let mut upper = vma.clone();
        upper.range.start = page;
        upper.id = self.fresh_id();
        if let Some(vma) = self.by_start.get_mut(&lower) {
            vma.range.end = page;
        }
        self.by_start.insert(page, upper);
        self.note_advice(page);
    }
}

#[cfg(test)]
mod tests;
