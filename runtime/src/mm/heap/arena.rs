//! Arenas: VMAs cut into slabs of one length, which size classes take and give back.
//!
//! Lock protocol: `grow` is taken before `arenas`; `arenas` is a leaf, held for a few tree operations. The
//! page source is called with `arenas` released: to map with `grow` held (so that threads that run out
//! together map one arena, not one each), to discard and unmap with nothing held. A slab on its way back is
//! in nobody's hands meanwhile: its class has forgotten it and the free set does not have it yet.
//!
//! Invariants: a slab is either in `free`, owned by one class, or on its way back; an arena without owned
//! slabs is unmapped; free slabs have no memory and read as zeros.

use super::class::SizeClass;
use super::{HeapError, PageSource};
use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pages in a pool's first arena: 1 MiB. Each further one is twice as large as the one before.
const FIRST_ARENA_PAGES: u32 = (1 << 20) / PAGE_SIZE as u32;
/// Pages in the largest arenas: 64 MiB.
const LARGEST_ARENA_PAGES: u32 = (64 << 20) / PAGE_SIZE as u32;
/// Arenas are aligned to their size up to this many pages (2 MiB), for large leaves in device page tables.
const ARENA_ALIGN: u32 = (2 << 20) / PAGE_SIZE as u32;

/// The arenas whose slabs have one length.
pub(super) struct ArenaPool {
    source: Arc<dyn PageSource>,
    slab_pages: u32,
    /// Pages of the next arena. Held while one is mapped.
    grow: Mutex<u32>,
    arenas: Mutex<Arenas>,
}

#[derive(Default)]
struct Arenas {
    by_start: BTreeMap<PageIndex, Arena>,
    /// Start pages of the free slabs of all arenas: the lowest is handed out first.
    free: BTreeSet<PageIndex>,
    mapped_pages: u64,
}

struct Arena {
    range: PageRange,
    /// Owner of each slab.
    owners: Box<[Option<SizeClass>]>,
    /// Slabs not in the free set.
    used: u32,
}

impl Arenas {
    /// The arena that holds `page`.
    fn holding(&mut self, page: PageIndex) -> Option<&mut Arena> {
        let arena = self.by_start.range_mut(..=page).next_back()?.1;
        arena.range.contains(page).then_some(arena)
    }

    fn take(&mut self, class: SizeClass, slab_pages: u32) -> Option<PageIndex> {
        let start = self.free.pop_first()?;
        if let Some(arena) = self.holding(start) {
            arena.used += 1;
            arena.owners[((start.0 - arena.range.start.0) / slab_pages) as usize] = Some(class);
        }
        Some(start)
    }

    /// Adds an arena, its first slab already taken for `class`.
    fn add(&mut self, range: PageRange, slab_pages: u32, class: SizeClass) -> PageIndex {
        let slabs = range.len() / slab_pages;
        self.free.extend((1..slabs).map(|slab| range.start.plus(slab * slab_pages)));
        self.mapped_pages += u64::from(range.len());
        let mut owners = vec![None; slabs as usize].into_boxed_slice();
        owners[0] = Some(class);
        self.by_start.insert(range.start, Arena { range, owners, used: 1 });
        range.start
    }

    fn forget(&mut self, range: PageRange) {
        self.by_start.remove(&range.start);
        let slabs: Vec<_> = self.free.range(range.start..range.end).copied().collect();
        for slab in slabs {
            self.free.remove(&slab);
        }
        self.mapped_pages -= u64::from(range.len());
    }
}

impl ArenaPool {
    /// A pool without arenas.
    pub(super) fn new(source: Arc<dyn PageSource>, slab_pages: u32) -> Self {
        Self { source, slab_pages, grow: Mutex::new(FIRST_ARENA_PAGES), arenas: Mutex::default() }
    }

    /// The lowest free slab, of zero pages, for `class`; maps another arena if there is none.
    ///
    /// # Errors
    /// What the page source says if not even an arena of one slab can be mapped.
    pub(super) fn take(&self, class: SizeClass) -> Result<PageIndex, HeapError> {
        if let Some(slab) = self.arenas.lock().take(class, self.slab_pages) {
            return Ok(slab);
        }
        let mut next = self.grow.lock();
        // Another thread may have mapped an arena while this one waited.
        if let Some(slab) = self.arenas.lock().take(class, self.slab_pages) {
            return Ok(slab);
        }
        let range = self.map_arena(*next)?;
        *next = (range.len() * 2).min(LARGEST_ARENA_PAGES);
        Ok(self.arenas.lock().add(range, self.slab_pages, class))
    }

    /// Maps an arena of `pages` pages or, near exhaustion, the largest part of that there is room for.
    fn map_arena(&self, mut pages: u32) -> Result<PageRange, HeapError> {
        loop {
            let mapped = self.source.map(pages, pages.min(ARENA_ALIGN)).or_else(|error| match error {
                HeapError::Exhausted { .. } => self.source.map(pages, self.slab_pages),
                other => Err(other),
            });
            match mapped {
                Ok(start) => return Ok(PageRange::of_len(start, pages)),
                Err(HeapError::Exhausted { .. }) if pages > self.slab_pages => pages /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes back a slab that its class has forgotten; gives its memory back, and the arena's if it was the
    /// last.
    pub(super) fn give_back(&self, start: PageIndex) {
        if self.unmap_if_last(start) {
            return;
        }
        self.source.discard(PageRange::of_len(start, self.slab_pages));
        let emptied = {
            let mut arenas = self.arenas.lock();
            arenas.free.insert(start);
            let slab_pages = self.slab_pages;
            let emptied = arenas.holding(start).and_then(|arena| {
                arena.used -= 1;
                arena.owners[((start.0 - arena.range.start.0) / slab_pages) as usize] = None;
                (arena.used == 0).then_some(arena.range)
            });
            // Others came back during the discard and this one was the last after all.
            emptied.inspect(|&range| arenas.forget(range))
        };
        if let Some(range) = emptied {
            self.source.unmap(range);
        }
    }

    /// Unmaps the arena if nothing but the slab at `start` is used in it: that makes the discard unnecessary.
    fn unmap_if_last(&self, start: PageIndex) -> bool {
        let last = {
            let mut arenas = self.arenas.lock();
            let last = arenas.holding(start).filter(|arena| arena.used == 1).map(|arena| arena.range);
            last.inspect(|&range| arenas.forget(range))
        };
        last.inspect(|&range| self.source.unmap(range)).is_some()
    }

    /// The class that owns the slab around `page`. The class may give it up at any time.
    pub(super) fn owner_of(&self, page: PageIndex) -> Option<SizeClass> {
        let mut arenas = self.arenas.lock();
        let arena = arenas.holding(page)?;
        arena.owners[((page.0 - arena.range.start.0) / self.slab_pages) as usize]
    }

    /// Pages in arenas.
    pub(super) fn mapped_pages(&self) -> u64 {
        self.arenas.lock().mapped_pages
    }

    /// Unmaps all arenas, whatever is in them. For the end of the heap, when no class has slabs any more.
    pub(super) fn unmap_all(&mut self) {
        for arena in std::mem::take(self.arenas.get_mut()).by_start.into_values() {
            self.source.unmap(arena.range);
        }
    }
}
