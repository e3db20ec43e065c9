//! Placement: which pages a device maps where they are, at home, instead of copying them.
//!
//! Where a page is to be says `policy/placement.rs`; at home (state `Remote`) it can be only if the device can reach it. Before a page changes between the two kinds, the device's own entry of the old kind is *shed*: taken away,
//! dirty data brought home, its frame given back. What others hold goes by the invalidation that the service makes anyway.

use super::batch::{Part, count_of, extend_runs, pages_of};
use super::fault::{Service, ServiceError};
use crate::addr::{Access, PageIndex, PageRange};
use crate::device::layout::pte;
use crate::mm::pages::{PageInfo, PageState};
use crate::mm::state::{Placement, evicted, sheds};
use crate::observe::Counters;
use crate::policy::{Wanted, is_sparse, placement};

/// The most pages that are followed for having been read here and there.
const MOST_SPARSE: usize = 1 << 16;
/// Launches without a use after which a page is followed no more: it stays at home.
const MOST_IDLE: u8 = 4;
/// Fewest pages that are worth a call to fill the runtime's mapping in.
const POPULATED: u32 = 8;

/// A page that is at home because little was read around it.
pub(super) struct Sparse {
    page: PageIndex,
    /// Whether the launch that it was placed for has used it.
    launched: bool,
    /// Launches since it was last used.
    idle: u8,
}

impl Service {
    /// Pages that were placed at home because they looked as if little of them were read, once, and that later launches used as well, are taken from
    /// there: they are copied when they are asked for next. No dispatch is in flight.
    pub(super) fn revisit_sparse(&mut self) {
        if self.sparse.is_empty() {
            return;
        }
        let mirror = self.mirror.clone();
        let pages = &mirror.home.pages;
        let _gate = mirror.close_gate();
        let mut state = mirror.lock();
        let mut again = 0;
        self.sparse.retain_mut(|Sparse { page, launched, idle }| {
            let entry = state.table.load(*page);
            if entry & (pte::VALID | pte::HOME) != pte::VALID | pte::HOME {
                return false;
            }
            let used = entry & pte::ACCESSED != 0;
            if used && !*launched {
                // That was the launch it was placed for.
                mirror.collect(*page, state.table.clear_flags(*page, pte::ACCESSED) & pte::ACCESSED);
                *launched = true;
            } else if used && let Some(_page) = pages.try_lock(*page) {
                mirror.take_away(&mut state, PageRange::single(*page), true);
                again += 1;
                return false;
            }
            *idle = if used { 0 } else { *idle + 1 };
            *idle < MOST_IDLE
        });
        Counters::add(&mirror.counters.pages_sparse_again, again);
    }

    /// Chooses where each page of `parts`, whose page locks are held, is to be.
    pub(super) fn place(&mut self, parts: &[Part]) {
        let (home, mirror) = (&self.mirror.home, &self.mirror);
        self.placements.clear();
        self.placements.resize(count_of(parts), Placement::Copy);
        if mirror.device.info().import.is_none() {
            return;
        }
        let mut state = None;
        if self.habit.placement == Placement::Remote || self.habit.sparse_at_home {
            // What was never written is read as zeros that take no memory. Written since, it is copied: that is looked at again.
            self.contents.look(home, parts);
        }
        let sparse = self.habit.sparse_at_home && self.sparse.len() < MOST_SPARSE;
        let mut wishes = self.placements.iter_mut().zip(&self.access);
        for part in parts {
            let advice = part.vma.advice();
            let alone = sparse && part.span.pages.len() == 1;
            for (page, (chosen, &access)) in part.span.pages.iter().zip(&mut wishes) {
                let PageInfo { state: now, pinned_home: pinned, faults, .. } = home.pages.info(page);
                let wanted =
                    Wanted { device: mirror.number(), access, state: now, pinned, advice, moving: self.moving };
                // Also what is mapped to the zero frame already, ahead of a fault that was on its way.
                let clean = matches!(now, PageState::Cpu | PageState::Shared);
                let reads_zeros = access != Some(Access::Write) && clean;
                let empty = reads_zeros && !self.contents.has(&home.pages, page);
                let habit = if empty { Placement::Copy } else { self.habit.placement };
                let sparse = !empty && is_sparse(wanted, alone, faults);
                if sparse || placement(wanted, habit) == Placement::Remote {
                    let state = state.get_or_insert_with(|| mirror.lock());
                    if mirror.home_address(state, page).is_some() {
                        *chosen = Placement::Remote;
                        if sparse && !pinned {
                            self.sparse.push(Sparse { page, launched: false, idle: 0 });
                        }
                    }
                }
            }
        }
    }

    /// Takes this device's entries of `parts` away that are of the wrong kind for where the pages are to be. The page locks are held.
    pub(super) fn shed(&mut self, parts: &[Part]) {
        let mirror = &self.mirror;
        let pages = &mirror.home.pages;
        if mirror.device.info().import.is_none() {
            return;
        }
        let mut state = mirror.lock();
        let mut run = PageRange::default();
        let flush = |state: &mut _, run: PageRange| {
            mirror.take_away(state, run, true);
            for page in run.iter() {
                // Home is the truth now; who maps the home page itself may go on.
                pages.set_state(page, evicted(pages.state(page), PageState::Device(mirror.number())));
            }
        };
        for (&placement, page) in self.placements.iter().zip(pages_of(parts)) {
            if !sheds(state.table.load(page), placement) {
                continue;
            }
            if run.end != page {
                flush(&mut state, run);
                run = PageRange::single(page);
            } else {
                run.end = page.plus(1);
            }
        }
        flush(&mut state, run);
    }

    /// Gives home pages of `parts` memory that have none and that the device is to map: its accesses must not fail. Where the device goes through the
    /// runtime's own mapping, longer runs are filled in there, which costs a fraction of what its faults would.
    pub(super) fn give_memory(&self, parts: &[Part]) -> Result<(), ServiceError> {
        let Some(import) = self.mirror.device.info().import else { return Ok(()) };
        let home = &self.mirror.home;
        let (mut lacking, mut written, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
        for (&placement, page) in self.placements.iter().zip(pages_of(parts)) {
            if placement == Placement::Remote {
                let has_data = self.contents.has(&home.pages, page);
                if !has_data {
                    extend_runs(&mut lacking, page);
                }
                if import.follows && home.pages.state(page) != PageState::Remote {
                    extend_runs(if has_data { &mut written } else { &mut fresh }, page);
                }
            }
        }
        lacking.into_iter().try_for_each(|run| home.views.allocate(run))?;
        for (runs, fresh) in [(written, false), (fresh, true)] {
            runs.into_iter().filter(|run| run.len() >= POPULATED).for_each(|run| home.views.populate(run, fresh));
        }
        Ok(())
    }
}
