//! What the app view should allow, what it does allow, and how to get from one to the other without running out of
//! kernel mappings.
//!
//! Three maps over the pages: *wanted* is what callers asked for, page by page; *actual* is what the kernel was told;
//! *watched* bounds what may be touched. A zone (32 MiB) is *exact*, then actual follows wanted; or it is coarse, with a
//! grain of 64 KiB, 2 MiB or the zone. In a coarse zone a **unit**, an aligned group of pages clipped to the watched
//! run, is uniform: it allows what the strictest of its pages wants.
//!
//! Invariants:
//! - no page ever allows more than wanted (stricter is fine: it costs a spurious fault, and the handler then maps the unit);
//! - an operation on pages of a coarse zone brings their whole units into line;
//! - pages never watched are never protected;
//! - after a failed mprotect, whose extent is unknown, the pages' actual state counts as unknown until set again.

use super::super::runs::RunMap;
use crate::addr::{PageIndex, PageRange};
use rustix::io::Errno;
use std::collections::BTreeMap;

/// Pages in a zone.
const ZONE_PAGES: u32 = 8192;
/// Units that a coarse zone goes through.
const GRAINS: [u32; 3] = [16, 512, ZONE_PAGES];
/// A coarse zone with so few wanted runs becomes exact again.
const CALM_RUNS: usize = 2;

/// What the app view allows for a page, strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Allowed {
    /// Every access faults.
    Nothing,
    /// Stores fault.
    Load,
    /// Nothing faults.
    LoadAndStore,
}

/// Tells the kernel: `mprotect`.
pub(super) type Protect<'a> = &'a dyn Fn(PageRange, Allowed) -> Result<(), Errno>;

/// The protections of one app view.
pub(super) struct Plan {
    wanted: RunMap<Allowed>,
    /// `None` where a failed call left it open.
    actual: RunMap<Option<Allowed>>,
    watched: RunMap<bool>,
    /// Coarse zones by number, each with an index into [`GRAINS`].
    coarse: BTreeMap<u32, usize>,
    /// How many runs `actual` should have at most.
    budget: usize,
    pages: u32,
    /// Kept for its capacity.
    changes: Vec<(PageRange, Allowed)>,
}

impl Plan {
    /// Everything is accessible and nothing watched.
    pub(super) fn new(pages: u32, budget: usize) -> Self {
        Self {
            wanted: RunMap::new(pages, Allowed::LoadAndStore),
            actual: RunMap::new(pages, Some(Allowed::LoadAndStore)),
            watched: RunMap::new(pages, false),
            coarse: BTreeMap::new(),
            budget,
            pages,
            changes: Vec::new(),
        }
    }

    /// Allows `pages` to be protected.
    pub(super) fn watch(&mut self, pages: PageRange) {
        self.watched.set(pages, true);
    }

    /// Whether all of `pages` is watched.
    pub(super) fn is_watched(&self, pages: PageRange) -> bool {
        self.watched.all(pages, true)
    }

    /// Whether some unit is larger than a page.
    pub(super) fn is_coarse(&self) -> bool {
        !self.coarse.is_empty()
    }

    /// How many zones are coarse.
    pub(super) fn coarse_zones(&self) -> usize {
        self.coarse.len()
    }

    /// Kernel mappings in use, and how many there may be.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.actual.len(), self.budget)
    }

    /// The pages whose protection goes together with that of `page`.
    pub(super) fn unit(&self, page: PageIndex) -> PageRange {
        let single = PageRange::single(page);
        let Some(&grain) = self.coarse.get(&zone_of(page)) else { return single };
        match self.watched.run(page) {
            (run, true) => self.aligned(page, GRAINS[grain]).intersect(run),
            _ => single,
        }
    }

    /// Makes `pages` allow `allowed`, or less where a unit has stricter pages.
    ///
    /// # Errors
    /// `protect`'s, when coarser units did not help.
    pub(super) fn set(&mut self, pages: PageRange, allowed: Allowed, protect: Protect<'_>) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        self.wanted.set(pages, allowed);
        self.enforce(pages, protect)
    }

    /// Makes stores to `pages` fault; pages that allow nothing stay so.
    ///
    /// # Errors
    /// As for [`set`](Self::set).
    pub(super) fn forbid_stores(&mut self, pages: PageRange, protect: Protect<'_>) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        let mut rest = pages;
        loop {
            let next = self.wanted.iter(rest).find(|&(_, wanted)| wanted == Allowed::LoadAndStore);
            let Some((run, _)) = next else { break };
            self.wanted.set(run, Allowed::Load);
            rest.start = run.end;
        }
        self.enforce(pages, protect)
    }

    fn enforce(&mut self, pages: PageRange, protect: Protect<'_>) -> Result<(), Errno> {
        self.calm(pages);
        while let Err(error) = self.bring_into_line(pages, protect) {
            let before = self.actual.len();
            if error != Errno::NOMEM || !self.coarsen(before / 2, protect) {
                return Err(error);
            }
        }
        if self.actual.len() > self.budget {
            self.coarsen(self.budget / 2, protect);
        }
        Ok(())
    }

    /// Makes every page accessible for good.
    pub(super) fn open_all(&mut self, protect: Protect<'_>) -> Result<(), Errno> {
        let everything = PageRange::of_len(PageIndex(0), self.pages);
        self.coarse.clear();
        self.wanted.set(everything, Allowed::LoadAndStore);
        self.bring_into_line(everything, protect)
    }

    /// Tells the kernel where actual differs from what the units of `pages` should allow.
    fn bring_into_line(&mut self, pages: PageRange, protect: Protect<'_>) -> Result<(), Errno> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.clear();
        self.collect_changes(pages, &mut changes);
        let mut done = Ok(());
        for &(run, allowed) in &changes {
            done = protect(run, allowed);
            self.actual.set(run, done.is_ok().then_some(allowed));
            if done.is_err() {
                break;
            }
        }
        self.changes = changes;
        done
    }

    fn collect_changes(&self, pages: PageRange, changes: &mut Vec<(PageRange, Allowed)>) {
        if self.coarse.is_empty() {
            self.collect_exact(pages, changes);
            return;
        }
        let mut page = pages.start;
        while page < pages.end {
            let zone_end = self.aligned(page, ZONE_PAGES).end;
            if self.coarse.contains_key(&zone_of(page)) {
                let unit = self.unit(page);
                let strictest = self.wanted.iter(unit).map(|(_, wanted)| wanted).min();
                self.collect_uniform(unit, strictest.unwrap_or(Allowed::Nothing), changes);
                page = unit.end;
            } else {
                let exact = PageRange::new(page, zone_end.min(pages.end));
                self.collect_exact(exact, changes);
                page = exact.end;
            }
        }
    }

    fn collect_exact(&self, pages: PageRange, changes: &mut Vec<(PageRange, Allowed)>) {
        for (run, wanted) in self.wanted.iter(pages) {
            self.collect_uniform(run, wanted, changes);
        }
    }

    /// One call for all of `run` if any page of it differs: fewer calls beat fewer pages.
    fn collect_uniform(&self, run: PageRange, allowed: Allowed, changes: &mut Vec<(PageRange, Allowed)>) {
        if self.actual.all(run, Some(allowed)) {
            return;
        }
        match changes.last_mut() {
            Some((last, same)) if last.end == run.start && *same == allowed => last.end = run.end,
            _ => changes.push((run, allowed)),
        }
    }

    /// Lets coarse zones under `pages` be exact again if they have become simple. Their actual state may stay stricter
    /// than wanted; faults will show where.
    fn calm(&mut self, pages: PageRange) {
        if self.coarse.is_empty() {
            return;
        }
        for zone in zone_of(pages.start)..=zone_of(PageIndex(pages.end.0 - 1)) {
            let span = self.aligned(PageIndex(zone * ZONE_PAGES), ZONE_PAGES);
            if self.coarse.contains_key(&zone) && self.wanted.iter(span).take(CALM_RUNS + 1).count() <= CALM_RUNS {
                self.coarse.remove(&zone);
            }
        }
    }

    /// Makes the most fragmented zones coarser until at most `target` runs are left. Returns whether
    /// anything was gained.
    fn coarsen(&mut self, target: usize, protect: Protect<'_>) -> bool {
        let before = self.actual.len();
        for _ in GRAINS {
            for zone in self.fragmented_zones() {
                let grain = self.coarse.get(&zone).map_or(0, |grain| grain + 1);
                if grain == GRAINS.len() {
                    continue;
                }
                self.coarse.insert(zone, grain);
                // A failure leaves pages unknown, to be set again by the next operation on them. That is
                // safe here: the units only become stricter than they were, never laxer than wanted.
                let _ = self.bring_into_line(self.aligned(PageIndex(zone * ZONE_PAGES), ZONE_PAGES), protect);
                if self.actual.len() <= target {
                    return true;
                }
            }
        }
        self.actual.len() < before
    }

    /// Zones of more than two actual runs, those with most runs first.
    fn fragmented_zones(&self) -> Vec<u32> {
        let mut runs: BTreeMap<u32, u32> = BTreeMap::new();
        for (run, _) in self.actual.iter(PageRange::of_len(PageIndex(0), self.pages)) {
            *runs.entry(zone_of(run.start)).or_default() += 1;
        }
        let mut zones: Vec<(u32, u32)> = runs.into_iter().filter(|&(_, runs)| runs > 2).collect();
        zones.sort_by_key(|&(_, runs)| std::cmp::Reverse(runs));
        zones.into_iter().map(|(zone, _)| zone).collect()
    }

    /// The aligned group of `grain` pages around `page`, within the reservation.
    fn aligned(&self, page: PageIndex, grain: u32) -> PageRange {
        let start = page.0 / grain * grain;
        PageRange::new(PageIndex(start), PageIndex(start.saturating_add(grain).min(self.pages)))
    }
}

fn zone_of(page: PageIndex) -> u32 {
    page.0 / ZONE_PAGES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    const PAGES: u32 = 3 * ZONE_PAGES + 100;

    /// A kernel with a bound on mappings, and what it was told.
    struct Kernel {
        told: RefCell<RunMap<Allowed>>,
        limit: usize,
    }

    impl Kernel {
        fn protect(&self, pages: PageRange, allowed: Allowed) -> Result<(), Errno> {
            let mut told = self.told.borrow_mut();
            let before: Vec<_> = told.iter(pages).collect();
            told.set(pages, allowed);
            if told.len() <= self.limit {
                return Ok(());
            }
            // Half of it stays done, as mprotect may leave it.
            for &(run, old) in before.iter().skip(before.len() / 2) {
                told.set(run, old);
            }
            Err(Errno::NOMEM)
        }
    }

    fn allowed() -> impl Strategy<Value = Allowed> {
        prop_oneof![Just(Allowed::Nothing), Just(Allowed::Load), Just(Allowed::LoadAndStore)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_kernel_never_allows_more_than_wanted_and_mapping_a_unit_opens_it(
            ops in prop::collection::vec((0..PAGES, 1u32..40, allowed()), 1..300),
            budget in 8usize..64,
            headroom in 0usize..64,
        ) {
            let kernel = Kernel { told: RefCell::new(RunMap::new(PAGES, Allowed::LoadAndStore)), limit: budget + headroom };
            let protect = |pages: PageRange, allowed| kernel.protect(pages, allowed);
            let mut plan = Plan::new(PAGES, budget);
            let watched = PageRange::new(PageIndex(5), PageIndex(PAGES - 5));
            plan.watch(watched);
            let mut oracle = vec![Allowed::LoadAndStore; PAGES as usize];
            for (start, len, allowed) in ops {
                let pages = PageRange::new(PageIndex(start), PageIndex((start + len).min(PAGES))).intersect(watched);
                let failed = plan.set(pages, allowed, &protect).is_err();
                oracle[pages.indices()].fill(allowed);
                if failed {
                    continue; // the guarantee is given only when the call succeeds
                }
                for (run, told) in kernel.told.borrow().iter(pages) {
                    prop_assert!(run.iter().all(|page| told <= oracle[page.index()]), "{run:?} allows {told:?}");
                }
                if pages.is_empty() {
                    continue;
                }
                let unit = plan.unit(pages.start);
                prop_assert!(unit.contains(pages.start) && watched.contains_range(unit));
                if plan.set(unit, Allowed::LoadAndStore, &protect).is_ok() {
                    oracle[unit.indices()].fill(Allowed::LoadAndStore);
                    let told = kernel.told.borrow().all(unit, Allowed::LoadAndStore);
                    prop_assert!(told || plan.unit(pages.start) != unit);
                }
            }
            prop_assert!(kernel.told.borrow().all(PageRange::new(PageIndex(0), PageIndex(5)), Allowed::LoadAndStore));
        }
    }

    #[test]
    fn a_tiny_budget_is_kept_by_coarser_units() {
        let kernel = Kernel { told: RefCell::new(RunMap::new(PAGES, Allowed::LoadAndStore)), limit: 40 };
        let protect = |pages: PageRange, allowed| kernel.protect(pages, allowed);
        let mut plan = Plan::new(PAGES, 16);
        plan.watch(PageRange::of_len(PageIndex(0), PAGES));
        for page in (0..PAGES).step_by(2) {
            plan.set(PageRange::single(PageIndex(page)), Allowed::Nothing, &protect).unwrap();
            assert!(kernel.told.borrow().len() <= 40);
        }
        assert!(plan.is_coarse() && plan.unit(PageIndex(1000)).len() > 1);
        plan.set(PageRange::of_len(PageIndex(0), PAGES), Allowed::LoadAndStore, &protect).unwrap();
        assert!(!plan.is_coarse(), "a calm zone becomes exact again");
        assert_eq!(kernel.told.borrow().len(), 1);
    }
}
