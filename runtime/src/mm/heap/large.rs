//! Large allocations: each has a VMA of its own.
//!
//! Lock protocol: `live` is a leaf, held for a few tree operations; the page source is called with it released.

use super::class::SizeClass;
use super::{HeapError, PageSource};
use crate::addr::{GRANULE_PAGES, PAGE_SIZE, PageIndex, PageRange};
use parking_lot::Mutex;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pages in the largest leaf of a device page table: 2 MiB.
const LARGE_LEAF_PAGES: u32 = (2 << 20) / PAGE_SIZE as u32;
/// The coarsest alignment of an allocation, in bytes: that of the heap's reservation.
pub(super) const COARSEST_ALIGN: usize = 2 << 20;
/// The largest allocation, in bytes: less than what 32 bits can number in pages.
pub(super) const LARGEST: usize = (u32::MAX as usize - LARGE_LEAF_PAGES as usize) * PAGE_SIZE;

/// A live large allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    /// The whole VMA.
    pub(super) vma: PageRange,
    /// Pages from its start that belong to the allocation; the rest was given up by shrinking.
    pub(super) pages: u32,
}

impl Large {
    /// Bytes that the allocation holds.
    pub(super) fn bytes(self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// Whether it is what `layout` asks for.
    pub(super) fn fits(self, layout: Layout) -> bool {
        SizeClass::of(layout).is_none() && layout.size().div_ceil(PAGE_SIZE) == self.pages as usize
    }
}

/// All live large allocations.
pub(super) struct LargeAllocations {
    source: Arc<dyn PageSource>,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    by_start: BTreeMap<PageIndex, Large>,
    mapped_pages: u64,
    allocated_pages: u64,
}

/// Totals of the large allocations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LargeTotals {
    pub(super) count: u64,
    pub(super) mapped_pages: u64,
    pub(super) allocated_pages: u64,
}

fn pages_of(layout: Layout) -> u32 {
    // Callers have checked that it is at most `LARGEST` bytes.
    layout.size().div_ceil(PAGE_SIZE) as u32
}

impl LargeAllocations {
    pub(super) fn new(source: Arc<dyn PageSource>) -> Self {
        Self { source, live: Mutex::default() }
    }

    /// Maps a VMA for `layout`. Its pages read as zeros.
    pub(super) fn alloc(&self, layout: Layout) -> Result<Large, HeapError> {
        let asked = layout.size() as u64;
        if layout.size() > LARGEST {
            return Err(HeapError::TooLarge { asked, limit: LARGEST as u64 });
        }
        if layout.align() > COARSEST_ALIGN {
            return Err(HeapError::Alignment { asked: layout.align() as u64, limit: COARSEST_ALIGN as u64 });
        }
        let pages = pages_of(layout);
        let needed = layout.align().div_ceil(PAGE_SIZE) as u32;
        // Where it helps a device to translate with fewer, larger leaves, start at a border of them.
        let wished = match pages {
            LARGE_LEAF_PAGES.. => LARGE_LEAF_PAGES,
            GRANULE_PAGES.. => GRANULE_PAGES,
            _ => 1,
        };
        let start = match self.source.map(pages, needed.max(wished)) {
            Err(HeapError::Exhausted { .. }) if needed < wished => self.source.map(pages, needed)?,
            mapped => mapped?,
        };
        let large = Large { vma: PageRange::of_len(start, pages), pages };
        let mut live = self.live.lock();
        live.by_start.insert(start, large);
        live.mapped_pages += u64::from(pages);
        live.allocated_pages += u64::from(pages);
        Ok(large)
    }

    /// Unmaps the allocation that starts at `page`, if there is one and `accept` agrees; answers with what
    /// was there.
    pub(super) fn free(&self, page: PageIndex, accept: impl FnOnce(Large) -> bool) -> Option<Large> {
        let large = {
            let mut live = self.live.lock();
            let large = *live.by_start.get(&page)?;
            if !accept(large) {
                return Some(large);
            }
            live.by_start.remove(&page);
            live.mapped_pages -= u64::from(large.vma.len());
            live.allocated_pages -= u64::from(large.pages);
            large
        };
        self.source.unmap(large.vma);
        Some(large)
    }

    /// Changes the size of the allocation at `page` without moving it; `None` if its VMA has no room or it is
    /// not there. The memory of pages given up is given back.
    pub(super) fn resize(&self, page: PageIndex, layout: Layout) -> Option<Large> {
        if layout.size() > LARGEST {
            return None;
        }
        let pages = pages_of(layout);
        let (large, before) = {
            let mut live = self.live.lock();
            let large = live.by_start.get_mut(&page)?;
            if pages > large.vma.len() {
                return None;
            }
            let before = std::mem::replace(&mut large.pages, pages);
            let large = *large;
            live.allocated_pages = live.allocated_pages - u64::from(before) + u64::from(pages);
            (large, before)
        };
        if pages < before {
            self.source.discard(PageRange::new(page.plus(pages), page.plus(before)));
        }
        Some(large)
    }

    /// The allocation that starts last at or before `page`, and the first that starts after it.
    pub(super) fn around(&self, page: PageIndex) -> [Option<Large>; 2] {
        let live = self.live.lock();
        [
            live.by_start.range(..=page).next_back().map(|(_, &large)| large),
            live.by_start.range(page.plus(1)..).next().map(|(_, &large)| large),
        ]
    }

    pub(super) fn totals(&self) -> LargeTotals {
        let live = self.live.lock();
        LargeTotals {
            count: live.by_start.len() as u64,
            mapped_pages: live.mapped_pages,
            allocated_pages: live.allocated_pages,
        }
    }

    /// Unmaps everything. For the end of the heap.
    pub(super) fn unmap_all(&mut self) {
        for large in std::mem::take(self.live.get_mut()).by_start.into_values() {
            self.source.unmap(large.vma);
        }
    }
}
