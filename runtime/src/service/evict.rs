//! Eviction: making room for pages that are needed now.
//!
//! Victims are chosen by a clock hand over the frames, passing over pages that a kernel used since their accessed bit was last
//! collected, and pages serviced for work that still waits (I7). A victim whose page lock is not free at once is passed over:
//! somebody is changing it. In replay mode no dispatch is in flight, since the caller is the thread that dispatches; in live mode
//! taking a page away waits for the kernels that use it.

use super::fault::Service;
use crate::addr::{PageIndex, PageRange};
use crate::device::layout::pte;
use crate::mm::pages::PageState;
use crate::mm::state::evicted;
use crate::observe::Counters;

/// What came of an eviction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evicted {
    /// Frames that came free.
    pub(super) pages: usize,
    /// Whether there were victims that somebody else was changing: later there may be frames.
    pub(super) busy: bool,
}

impl Service {
    /// Takes up to `count` frames from pages nobody waits for. Passes over `span`, whose page locks the caller holds.
    pub(super) fn evict(&mut self, count: usize, span: PageRange) -> Evicted {
        if !self.tight {
            // From here on it matters what was used since when.
            self.tight = true;
        }
        let mirror = self.mirror.clone();
        let mut victims = self.victims(count, span);
        if victims.is_empty() && self.live {
            // Kernels that run need only the pages of one access at a time: what they used before may go.
            self.forget_use();
            victims = self.victims(count, span);
        }
        let candidates = victims.len();
        let pages = victims.into_iter().filter(|&page| self.evict_page(page)).count();
        Counters::add(&mirror.counters.evictions, pages as u64);
        Evicted { pages, busy: pages < candidates }
    }

    fn victims(&self, count: usize, span: PageRange) -> Vec<PageIndex> {
        let mut state = self.mirror.lock();
        let state = &mut *state;
        let (table, protected) = (&state.table, &self.protected);
        state.frames.victims(count, |page| {
            table.load(page) & pte::ACCESSED == 0 && !protected.contains(&page) && !span.contains(page)
        })
    }

    /// False if somebody else is changing the page, or has taken its frame.
    fn evict_page(&self, page: PageIndex) -> bool {
        let mirror = &self.mirror;
        let pages = &mirror.home.pages;
        let Some(_page) = pages.try_lock(page) else { return false };
        let mut state = mirror.lock();
        let entry = state.table.load(page);
        if entry & pte::VALID == 0 || entry & (pte::ZERO | pte::HOME) != 0 {
            return false;
        }
        mirror.take_away(&mut state, PageRange::single(page), true);
        // Home is the truth; the CPU's next touch maps it.
        pages.set_state(page, evicted(pages.state(page), PageState::Device(mirror.number())));
        true
    }

    /// Starts a launch: nothing waits yet, and frames are not known to be short.
    pub fn begin_launch(&mut self) {
        self.protected.clear();
        self.tight = false;
    }

    /// A live dispatch starts: pages are protected from eviction only while the faults they came with are served.
    pub fn begin_live(&mut self) {
        self.live = true;
    }

    /// The live dispatch has ended.
    pub fn end_live(&mut self) {
        self.live = false;
    }

    /// Forgets what earlier work waited for: everything may be evicted again. Accessed bits are collected, so that those set from
    /// now on tell what the next dispatches use.
    pub fn unprotect(&mut self) {
        self.protected.clear();
        if self.tight {
            self.forget_use();
        }
    }

    /// Collects all accessed bits.
    fn forget_use(&self) {
        let state = self.mirror.lock();
        for page in state.frames.pages() {
            let entry = state.table.clear_flags(page, pte::ACCESSED);
            self.mirror.home.pages.mark(page, entry & pte::ACCESSED != 0, false);
        }
    }

    /// Whether frames are so short that eviction was needed.
    pub fn is_tight(&self) -> bool {
        self.tight
    }
}
