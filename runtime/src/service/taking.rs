//! Taking translations away: shootdowns, and what comes before and after them.
//!
//! Entries are made invalid, or read-only, under the update lock; then running kernels are waited for, until none of them can use what it
//! translated before (`epochs.rs`); then, under the lock again, bits that they set late are collected (I8), what is dirty comes home and frames are given
//! back. Invalidations and evictions hold neither gate nor update lock while they wait ([`Flying`](super::flying::Flying)), so that those of several
//! threads share a grace period:
//!
//! ```text
//! CPU fault on page 1          executor, evicting page 2        kernel
//! entry 1 invalid              entry 2 invalid                  uses 1 and 2
//! waits, without a lock        waits, without a lock            safe point: moves over
//! collects, copies 1 home      collects, copies 2 home
//! ```
//!
//! Changes of placement, and the writer of dirty pages (`clean.rs`), wait with the locks held.

use super::epochs::Wait;
use super::flying::Flight;
use super::mirror::{CopyList, DeviceMirror, GateGuard, MirrorState};
use crate::addr::{FrameIndex, PageIndex, PageRange};
use crate::device::frame_of;
use crate::device::layout::pte;
use crate::mm::pages::PageState;
use crate::mm::state::{comes_home, evicted};
use crate::observe::Counters;
use crate::rank::RankedMutexGuard;
use std::time::Instant;

#[cfg(test)]
mod tests;

/// The device's locks, as far as somebody holds them.
pub(super) struct Locks<'m> {
    // Given up first.
    pub(super) state: RankedMutexGuard<'m, MirrorState>,
    /// Only held.
    pub(super) _gate: Option<GateGuard<'m>>,
}

impl DeviceMirror {
    /// Takes this device's translations of `range` away, brings home what is dirty if `bring_home`, and gives the frames
    /// back. Gate and update lock are held; so are the page locks, by the caller or by whom the caller works for.
    pub(super) fn take_away(&self, state: &mut MirrorState, range: PageRange, bring_home: bool) {
        let pages = state.table.clip(range).iter();
        self.take_pages(state, pages, bring_home);
    }

    /// As [`take_away`](Self::take_away), for pages of the table anywhere. Ascending ones are copied together.
    pub(super) fn take_pages(&self, state: &mut MirrorState, pages: impl Iterator<Item = PageIndex>, bring_home: bool) {
        let lists = self.begin_taking(state, pages);
        self.shootdown(&lists);
        self.end_taking(state, lists, bring_home);
    }

    /// The first half of [`take_pages`](Self::take_pages): no kernel finds a translation from here on, but some may be using one.
    pub(super) fn begin_taking(&self, state: &mut MirrorState, pages: impl Iterator<Item = PageIndex>) -> Lists {
        let mut lists = std::mem::take(&mut state.lists);
        lists.clear();
        for page in pages {
            let entry = state.table.load(page);
            if entry & pte::VALID == 0 {
                if entry & pte::PENDING != 0 {
                    state.table.take(page);
                }
                continue;
            }
            lists.taken.push((page, state.table.take(page)));
        }
        lists
    }

    /// The other half, after the shootdown: what was dirty comes home, frames are given back.
    pub(super) fn end_taking(&self, state: &mut MirrorState, mut lists: Lists, bring_home: bool) {
        for &(page, entry) in &lists.taken {
            // Set by kernels between the taking and the end of the shootdown (I8).
            let late = state.table.clear_flags(page, pte::ACCESSED | pte::DIRTY) & (pte::ACCESSED | pte::DIRTY);
            let entry = entry | late;
            self.collect(page, entry);
            if entry & pte::ZERO != 0 {
                continue;
            }
            if comes_home(entry) && bring_home {
                lists.home.add_home(self, state, page, entry);
            }
            if entry & pte::HOME == 0 {
                lists.frames.extend(state.frames.at(frame_of(entry)));
            }
        }
        self.copy_home(state, &lists.home);
        for &frame in &lists.frames {
            state.frames.release(frame);
        }
        state.lists = lists;
    }

    /// Makes this device's translations of `range` read-only; frames stay. What is dirty stays so until
    /// [`end_downgrade`](Self::end_downgrade). Locks as for `take_away`.
    pub(super) fn begin_downgrade(&self, state: &mut MirrorState, range: PageRange) -> Lists {
        let mut lists = std::mem::take(&mut state.lists);
        lists.clear();
        for page in state.table.clip(range).iter() {
            let entry = state.table.load(page);
            // Dirty, but not writable: it was being cleaned.
            if entry & pte::VALID != 0 && entry & (pte::WRITABLE | pte::DIRTY) != 0 {
                lists.taken.push((page, state.table.clear_flags(page, pte::WRITABLE)));
            }
        }
        lists
    }

    /// The other half, after the shootdown: what is dirty comes home. Who took a page away in between has done that.
    pub(super) fn end_downgrade(&self, state: &mut MirrorState, mut lists: Lists) {
        for &(page, before) in &lists.taken {
            let entry = state.table.load(page);
            if entry & pte::VALID == 0 || frame_of(entry) != frame_of(before) {
                continue;
            }
            let entry = state.table.clear_flags(page, pte::DIRTY | pte::ACCESSED);
            self.collect(page, entry);
            if comes_home(entry) {
                lists.home.add_home(self, state, page, entry);
            }
        }
        self.copy_home(state, &lists.home);
        state.lists = lists;
    }

    /// Waits until no running kernel uses translations that were taken.
    fn shootdown(&self, lists: &Lists) {
        if !lists.taken.is_empty() {
            self.outwait_kernels();
        }
    }

    /// Waits until no running kernel uses what was taken before the call.
    pub(super) fn outwait_kernels(&self) {
        let start = Instant::now();
        let wait = self.epochs.shootdown(self.device.as_ref());
        if wait != Wait::None {
            Counters::add(&self.counters.shootdowns, 1);
            Counters::add(&self.counters.epochs, u64::from(wait == Wait::Ran));
            Counters::add_time(&self.counters.shootdown_nanos, start.elapsed());
        }
    }

    /// Gate and update lock, once none of `pages` is in flight. May wait without them, with page locks and `mm` held only.
    pub(super) fn lock_for(&self, pages: PageRange) -> Locks<'_> {
        loop {
            let gate = self.close_gate();
            let locks = Locks { state: self.lock(), _gate: Some(gate) };
            if !self.flying.overlaps(pages) {
                return locks;
            }
            drop(locks);
            self.flying.wait_for(pages);
        }
    }

    /// Whether `page`, whose page lock is held, has a frame that can be taken. An invalidation from outside, which holds no page lock, relies on
    /// nobody taking what it made read-only before it has brought it home.
    pub(super) fn can_evict(&self, state: &MirrorState, page: PageIndex) -> bool {
        let mapped = state.table.load(page) & (pte::VALID | pte::ZERO | pte::HOME) == pte::VALID;
        mapped && !self.flying.overlaps(PageRange::single(page))
    }

    /// Takes this device's translations of `pages` away, which ascend and of which none is in flight; brings home what is dirty and gives the
    /// frames back. Their page locks are held. While a kernel runs, `locks` are not held until it has let go.
    pub(super) fn take_home(&self, mut locks: Locks<'_>, pages: impl Iterator<Item = PageIndex>) {
        let lists = self.begin_taking(&mut locks.state, pages);
        let (mut locks, _flight) = self.shoot_down(locks, &lists, None, false);
        self.end_taking(&mut locks.state, lists, true);
    }

    /// The locks, after a shootdown of what `lists` holds, which is in flight meanwhile, or all of `pages`. While a kernel runs others may take pages
    /// away meanwhile, so that they share the grace period. The gate stays open then, unless more than those pages is to be taken away
    /// (`closed`): the live pass may have ended while this waited, and a dispatch of replay mode have begun, which goes by the gate alone.
    pub(super) fn shoot_down<'m>(
        &'m self,
        locks: Locks<'m>,
        lists: &Lists,
        pages: Option<PageRange>,
        closed: bool,
    ) -> (Locks<'m>, Option<Flight<'m>>) {
        if lists.taken.is_empty() || !self.epochs.running() {
            return (locks, None);
        }
        let flight = match pages {
            Some(pages) => self.flying.begin(std::iter::once(pages)),
            None => self.flying.begin(lists.taken.iter().map(|&(page, _)| PageRange::single(page))),
        };
        drop(locks);
        self.shootdown(lists);
        // No live pass holds it, so this waits for dispatches of replay mode only.
        let gate = closed.then(|| self.close_gate());
        (Locks { state: self.lock(), _gate: gate }, Some(flight))
    }

    /// Brings everything home: dirty pages are copied, all states go back to the CPU. For shutting down.
    pub fn bring_all_home(&self) {
        let mut pages: Vec<PageIndex> = {
            let state = self.lock();
            state.frames.pages().collect()
        };
        pages.sort_unstable();
        for page in pages {
            let _page = self.home.pages.lock(PageRange::single(page));
            // What an invalidation has taken, and not brought home yet, is in its frame only.
            let locks = self.lock_for(PageRange::single(page));
            self.take_home(locks, std::iter::once(page));
            let becomes = evicted(self.home.pages.state(page), PageState::Device(self.number()));
            self.home.pages.set_state(page, becomes);
        }
    }
}

/// What taking pages away goes through.
#[derive(Default)]
pub(super) struct Lists {
    taken: Vec<(PageIndex, u64)>,
    home: CopyList,
    frames: Vec<FrameIndex>,
}

impl Lists {
    fn clear(&mut self) {
        self.taken.clear();
        self.home.clear();
        self.frames.clear();
    }
}
