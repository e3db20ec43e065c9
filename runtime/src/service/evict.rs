//! Eviction: making room for pages that are needed now.
//!
//! Victims come from a queue of granules, ordered by the forecast of [`Replacement`]; the queue is made anew when it has run out or a
//! period has ended. Passed over are pages that a kernel used since accessed bits were last collected, and pages serviced for work that
//! still waits (I7). Of what is left of a granule all goes, and neighbouring granules with it where the forecast makes no difference between
//! them, so that dense data leaves in long runs. A victim whose page lock is not free at once is passed over: somebody is changing it. In
//! replay mode no dispatch is in flight, since the caller is the thread that dispatches; in live mode taking pages away waits for the
//! kernels that use them, with the victims' page locks held and no lock of the device (`taking.rs`).
//!
//! While the device has nothing to do, dirty pages that would go next are written home, so that they are clean when they go.

use super::fault::Service;
use super::mirror::{CopyList, MirrorState};
use super::taking::Locks;
use crate::addr::{PageIndex, PageRange};
use crate::device::layout::pte;
use crate::mm::pages::PageState;
use crate::mm::state::{comes_home, evicted};
use crate::observe::Counters;
use crate::policy::{GRANULE_PAGES, Granule, Replacement};
use std::collections::VecDeque;

/// The part of the frames that are ordered at a time.
const ORDERED: u32 = 16;
/// The part of the frames that are kept clean ahead of need.
const AHEAD: u32 = 8;
/// Granules that are ordered at least.
const FEWEST: usize = 64;
/// Pages written home together while there is nothing else to do.
const AHEAD_BATCH: usize = 256;

/// What came of an eviction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evicted {
    /// Frames that came free.
    pub(super) pages: usize,
    /// Whether there were victims that somebody else was changing: later there may be frames.
    pub(super) busy: bool,
}

/// What eviction remembers.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    replacement: Replacement,
    /// Pages to evict next. Each is tried once.
    queue: VecDeque<PageIndex>,
    /// There was nothing to evict; nothing changes that in this round.
    exhausted: bool,
    /// Granules to be written home ahead of need.
    ahead: VecDeque<Granule>,
    /// Frames were short in the last launch.
    pressed: bool,
    /// Without a policy: where the hand is.
    hand: Option<Granule>,
}

impl Service {
    /// Victims are forecast, or, without policy, taken going round.
    #[must_use]
    pub(crate) fn with_eviction_policy(mut self, on: bool) -> Self {
        self.eviction.hand = (!on).then_some(Granule(0));
        self
    }

    /// Takes up to `count` frames from pages nobody waits for. Passes over `span`, whose page locks the caller holds.
    pub(super) fn evict(&mut self, count: usize, span: PageRange) -> Evicted {
        // From here on it matters what was used since when.
        self.tight = true;
        self.eviction.pressed = true;
        let mut done = Evicted::default();
        let mut renewed = false;
        while done.pages < count && !self.eviction.exhausted {
            let victims = self.next_victims(count - done.pages, span);
            if victims.is_empty() {
                if renewed {
                    self.eviction.exhausted = !done.busy;
                    break;
                }
                renewed = true;
                if !self.fill_queue(count, span) && (self.live || self.strict) {
                    // Kernels that run need only the pages of one access at a time: what they used before may go. One that is run
                    // strictly asks again for what it needs, and then it stays.
                    self.collect_uses();
                    self.fill_queue(count, span);
                }
                continue;
            }
            let pages = self.evict_pages(&victims);
            done.busy |= pages < victims.len();
            done.pages += pages;
        }
        Counters::add(&self.mirror.counters.evictions, done.pages as u64);
        done
    }

    /// Whether a page may go: it has a frame, and nobody is known to need it.
    fn may_go(&self, state: &MirrorState, page: PageIndex, span: PageRange) -> bool {
        let entry = state.table.load(page);
        entry & (pte::VALID | pte::ACCESSED | pte::ZERO | pte::HOME) == pte::VALID
            && !self.protected.contains(&page)
            && !span.contains(page)
    }

    /// Up to `count` pages of the queue that may go still.
    fn next_victims(&mut self, count: usize, span: PageRange) -> Vec<PageIndex> {
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        let mut victims = Vec::with_capacity(count);
        while victims.len() < count
            && let Some(page) = self.eviction.queue.pop_front()
        {
            if self.may_go(&state, page, span) {
                victims.push(page);
            }
        }
        victims
    }

    /// Orders what may go anew. False if there is nothing.
    fn fill_queue(&mut self, count: usize, span: PageRange) -> bool {
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        let mut granules: Vec<(Granule, bool)> = Vec::new();
        for page in state.frames.pages().filter(|&page| self.may_go(&state, page, span)) {
            let (granule, dirty) = (Granule::of(page), comes_home(state.table.load(page)));
            match granules.last_mut() {
                Some(last) if last.0 == granule => last.1 |= dirty,
                _ => granules.push((granule, dirty)),
            }
        }
        merge(&mut granules);
        let about = ((state.frames.usage().limit / ORDERED / GRANULE_PAGES) as usize).max(FEWEST).max(count);
        if let Some(hand) = &mut self.eviction.hand {
            let passed = granules.partition_point(|&(granule, _)| granule < *hand);
            granules.rotate_left(passed);
            granules.truncate(about);
            *hand = granules.last().map_or(Granule(0), |&(granule, _)| Granule(granule.0 + 1));
        } else {
            let groups = self.by_preference(std::mem::take(&mut granules));
            for mut group in groups {
                let lacking = about.saturating_sub(granules.len());
                self.eviction.replacement.order(&mut group, lacking);
                granules.append(&mut group);
            }
        }
        let thrash = self.space.thrash();
        if thrash.is_on() && self.eviction.hand.is_some() {
            // What was evicted and asked for again of late goes last. The forecast knows of refaults itself, and sorted so it would be
            // least recently used again.
            granules.sort_by_key(|&(granule, _)| thrash.spares(granule));
        }
        let pages = granules.iter().flat_map(|&(granule, _)| state.table.clip(granule.pages()).iter());
        let queue = pages.filter(|&page| self.may_go(&state, page, span)).collect();
        self.eviction.queue = queue;
        !self.eviction.queue.is_empty()
    }

    /// Evicts pages; returns how many. Passes over those that somebody else is changing, or has taken the frames of.
    fn evict_pages(&self, victims: &[PageIndex]) -> usize {
        let mirror = &self.mirror;
        let pages = &mirror.home.pages;
        let mut victims: Vec<_> = victims.iter().filter_map(|&page| Some((page, pages.try_lock(page)?))).collect();
        victims.sort_unstable_by_key(|&(page, _)| page);
        let locks = Locks { state: mirror.lock(), _gate: None };
        victims.retain(|&(page, _)| mirror.can_evict(&locks.state, page));
        mirror.take_home(locks, victims.iter().map(|&(page, _)| page));
        for &(page, _) in &victims {
            // Home is the truth; the CPU's next touch maps it.
            pages.set_state(page, evicted(pages.state(page), PageState::Device(mirror.number())));
            self.space.thrash().evicted(page);
        }
        victims.len()
    }

    /// Starts a round of service.
    pub(super) fn begin_round(&mut self) {
        self.eviction.exhausted = false;
    }

    /// Starts a launch: nothing waits yet, and frames are not known to be short.
    pub fn begin_launch(&mut self) {
        self.unprotect();
        self.tight = false;
        self.eviction.pressed = false;
        self.revisit_sparse();
        self.mirror.lock().frames.ask_again();
        self.mirror.follow_device_budget(true);
    }

    /// A live dispatch starts: pages are protected from eviction only while the faults they came with are served.
    pub fn begin_live(&mut self) {
        self.live = true;
    }

    /// The live dispatch has ended.
    pub fn end_live(&mut self) {
        self.live = false;
    }

    /// Whether from now on only what is asked for keeps its frames, and not what bears the marks of having been used.
    pub fn be_strict(&mut self, strict: bool) {
        self.strict = strict;
    }

    /// Keeps `pages` from being evicted until [`unprotect`](Self::unprotect).
    pub fn protect(&mut self, pages: PageRange) {
        self.protected.extend(pages.iter());
    }

    /// A slice of a launch that is larger than the frames has run: nothing waits, and what it used is known.
    pub fn end_slice(&mut self) {
        self.tight = true;
        self.unprotect();
    }

    /// Forgets what earlier work waited for: everything may be evicted again. Accessed bits are collected, so that those set from
    /// now on tell what the next dispatches use.
    pub fn unprotect(&mut self) {
        self.protected.clear();
        self.eviction.exhausted = false;
        if self.tight {
            self.collect_uses();
        }
    }

    /// Collects all accessed bits: a period of use ends.
    fn collect_uses(&mut self) {
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        let replacement = &mut self.eviction.replacement;
        replacement.set_capacity(state.frames.usage().limit.div_ceil(GRANULE_PAGES));
        for page in state.frames.pages() {
            let entry = state.table.load(page);
            if entry & pte::ACCESSED != 0 {
                state.table.clear_flags(page, pte::ACCESSED);
                mirror.collect(page, pte::ACCESSED);
                replacement.record(Granule::of(page));
            }
        }
        replacement.end_period();
        self.eviction.queue.clear();
    }

    /// Notes the pages in frames that were used since this was called last, by ascending page.
    pub fn trace_uses(&mut self) {
        let state = self.mirror.lock();
        let accessed = |page: &PageIndex| state.table.load(*page) & pte::ACCESSED != 0;
        let mut uses: Vec<PageIndex> = state.frames.pages().filter(accessed).collect();
        uses.sort_unstable();
        for &page in &uses {
            state.table.clear_flags(page, pte::ACCESSED);
            self.mirror.collect(page, pte::ACCESSED);
        }
        self.mirror.trace.lock().push(uses);
    }

    /// Whether frames are so short that eviction was needed.
    pub fn is_tight(&self) -> bool {
        self.tight
    }

    /// The device has nothing to do: if frames are short, some dirty pages that would go next are written home. False if there is
    /// nothing to write. No dispatch is in flight.
    pub fn write_ahead(&mut self) -> bool {
        if !self.eviction.pressed || self.eviction.hand.is_some() {
            return false;
        }
        if self.eviction.ahead.is_empty() && !self.plan_ahead() {
            self.eviction.pressed = false;
            return false;
        }
        let mirror = self.mirror.clone();
        let pages = &mirror.home.pages;
        let mut dirty = Vec::new();
        while dirty.len() < AHEAD_BATCH
            && let Some(granule) = self.eviction.ahead.pop_front()
        {
            dirty.extend(granule.pages().iter().filter_map(|page| Some((page, pages.try_lock(page)?))));
        }
        let mut state = mirror.lock();
        let mut copies = CopyList::default();
        for &(page, _) in &dirty {
            let entry = state.table.load(page);
            if entry & pte::VALID != 0 && comes_home(entry) {
                state.table.clear_flags(page, pte::DIRTY);
                mirror.collect(page, entry & pte::DIRTY);
                copies.add_home(&mirror, &state, page, entry);
            }
        }
        Counters::add(&mirror.counters.written_ahead, copies.pages.len() as u64);
        mirror.copy_home(&mut state, &copies);
        // Once is enough until something is evicted again.
        if self.eviction.ahead.is_empty() {
            self.eviction.pressed = false;
        }
        true
    }

    /// Notes the granules with dirty pages among those that would go next.
    fn plan_ahead(&mut self) -> bool {
        if self.tight {
            self.collect_uses();
            self.tight = false;
        }
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        let mut granules: Vec<(Granule, bool)> =
            state.frames.pages().map(|page| (Granule::of(page), comes_home(state.table.load(page)))).collect();
        let limit = state.frames.usage().limit;
        drop(state);
        merge(&mut granules);
        self.eviction.replacement.order(&mut granules, (limit / AHEAD / GRANULE_PAGES) as usize);
        self.eviction.ahead = granules.into_iter().filter(|&(_, dirty)| dirty).map(|(granule, _)| granule).collect();
        !self.eviction.ahead.is_empty()
    }
}

/// One entry for each granule, dirty if any is.
fn merge(granules: &mut Vec<(Granule, bool)>) {
    granules.sort_unstable();
    granules.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 |= same && next.1;
        same
    });
}
