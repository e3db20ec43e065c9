//! Eviction: making room for pages that are needed now.
//!
//! Victims come from a queue of granules, ordered by the forecast of [`Replacement`]; the queue is made anew when it has run out or a
//! period has ended. Passed over are pages that a kernel used since accessed bits were last collected, and pages serviced for work that
//! still waits (I7). How many go at once is decided by `policy/victims.rs`: whole blocks where access is dense, no page more than
//! is needed where it is sparse. A victim whose page lock is not free at once is passed over: somebody is changing it. In
//! replay mode no dispatch is in flight, since the caller is the thread that dispatches; in live mode taking pages away waits for the
//! kernels that use them, with the victims' page locks held and no lock of the device (`taking.rs`).
//!
//! Dirty pages that would go next are written home ahead of need (`clean.rs`), so that they are clean when they go.

use super::clean::Writer;
use super::coalesce::PageFault;
use super::fault::Service;
use super::mirror::MirrorState;
use super::taking::Locks;
use crate::addr::{PageIndex, PageRange};
use crate::device::layout::pte;
use crate::mm::pages::PageState;
use crate::mm::state::{comes_home, evicted};
use crate::observe::Counters;
use crate::policy::{Credit, GRANULE_PAGES, Granule, Replacement, Resident, VictimQueue, Watermarks};

/// The part of the frames within which clean granules go before dirty ones that would go sooner.
const ORDERED: u32 = 8;
/// Granules of such a part at least.
const FEWEST: usize = 8;

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
    pub(super) queue: VictimQueue,
    /// How many more may go than are needed.
    credit: Credit,
    /// There was nothing to evict; nothing changes that in this round.
    exhausted: bool,
    /// Cleans pages ahead of need; started when that is first to be done.
    pub(super) writer: Option<Writer>,
    /// Clean pages among those that go next.
    pub(super) clean: u32,
    /// Pages to be evicted before it is looked again what is to be cleaned, where nothing was found.
    pub(super) unlooked: u32,
    /// The writer was given pages, and what became of them was not looked at.
    pub(super) sent: bool,
    /// Frames were short in the last launch.
    pub(super) pressed: bool,
    /// Without a policy: where the hand is.
    pub(super) hand: Option<Granule>,
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
            let needed = (count - done.pages).min(victims.len());
            self.eviction.credit.evicted(&victims, needed);
            let pages = self.evict_pages(&victims);
            let counters = &self.mirror.counters;
            Counters::add(&counters.eviction_rounds, 1);
            Counters::add(&counters.evicted_early, (victims.len() - needed) as u64);
            done.busy |= pages < victims.len();
            done.pages += pages;
        }
        self.eviction.unlooked = self.eviction.unlooked.saturating_sub(done.pages as u32);
        Counters::add(&self.mirror.counters.evictions, done.pages as u64);
        done
    }

    /// Notes which of the pages that kernels ask for were evicted too early.
    pub(super) fn note_refaults(&mut self, faults: &[PageFault]) {
        if self.eviction.credit.is_open() {
            let early = faults.iter().filter(|fault| self.eviction.credit.asked(fault.page)).count();
            Counters::add(&self.mirror.counters.evicted_too_early, early as u64);
        }
    }

    /// Whether a page may go: it has a frame, and nobody is known to need it.
    pub(super) fn may_go(&self, state: &MirrorState, page: PageIndex, span: PageRange) -> bool {
        let entry = state.table.load(page);
        entry & (pte::VALID | pte::ACCESSED | pte::ZERO | pte::HOME) == pte::VALID
            && !self.protected.contains(&page)
            && !span.contains(page)
    }

    /// Pages of the queue that may go still: up to `count`, or with what goes together with them, more.
    fn next_victims(&mut self, count: usize, span: PageRange) -> Vec<PageIndex> {
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        // Who is run strictly is to get through with exactly its own pages; who goes round does without policies.
        let exact = self.strict || self.eviction.hand.is_some();
        let early = if exact { 0 } else { self.eviction.credit.allowance(state.frames.usage().limit) };
        let mut victims = Vec::with_capacity(count);
        let mut queue = std::mem::take(&mut self.eviction.queue);
        queue.next(count, early, |page| self.may_go(&state, page, span), &mut victims);
        self.eviction.queue = queue;
        victims
    }

    /// Orders what may go anew. False if there is nothing.
    pub(super) fn fill_queue(&mut self, count: usize, span: PageRange) -> bool {
        let mirror = self.mirror.clone();
        let state = mirror.lock();
        let mut granules: Vec<Resident> = Vec::new();
        for page in state.frames.pages().filter(|&page| self.may_go(&state, page, span)) {
            let one = Resident { granule: Granule::of(page), dirty: comes_home(state.table.load(page)), pages: 1 };
            if !granules.last_mut().is_some_and(|last| last.joined(one)) {
                granules.push(one);
            }
        }
        granules.sort_unstable_by_key(|one| one.granule);
        granules.dedup_by(|next, kept| kept.joined(*next));
        let limit = state.frames.usage().limit;
        let batch =
            ((limit / ORDERED / GRANULE_PAGES) as usize).max(FEWEST).max(count.div_ceil(GRANULE_PAGES as usize));
        if let Some(hand) = &mut self.eviction.hand {
            let passed = granules.partition_point(|one| one.granule < *hand);
            granules.rotate_left(passed);
            granules.truncate(batch);
            *hand = granules.last().map_or(Granule(0), |last| Granule(last.granule.0 + 1));
        } else {
            // As many as the writer looks at, and as are needed.
            let pages = count.max(Watermarks::of(limit).high as usize);
            let mut ordered = 0;
            for mut group in self.by_preference(std::mem::take(&mut granules)) {
                if ordered < pages.max(1) {
                    self.eviction.replacement.order(&mut group, pages - ordered, batch);
                    ordered += group.iter().map(|one| one.pages as usize).sum::<usize>();
                    granules.append(&mut group);
                }
            }
        }
        let thrash = self.space.thrash();
        if thrash.is_on() && self.eviction.hand.is_some() {
            // What was evicted and asked for again of late goes last. The forecast knows of refaults itself, and sorted so it would be
            // least recently used again.
            granules.sort_by_key(|one| thrash.spares(one.granule));
        }
        let pages = granules.iter().flat_map(|one| state.table.clip(one.granule.pages()).iter());
        let mut queue = std::mem::take(&mut self.eviction.queue);
        let used = |granule| self.eviction.replacement.used_together(granule);
        queue.fill(pages.filter(|&page| self.may_go(&state, page, span)), used);
        self.eviction.queue = queue;
        !self.eviction.queue.is_empty()
    }

    /// Evicts pages; returns how many. Passes over those that somebody else is changing, or has taken the frames of.
    fn evict_pages(&mut self, victims: &[PageIndex]) -> usize {
        let mirror = self.mirror.clone();
        let pages = &mirror.home.pages;
        let mut victims: Vec<_> = victims.iter().filter_map(|&page| Some((page, pages.try_lock(page)?))).collect();
        victims.sort_unstable_by_key(|&(page, _)| page);
        let locks = Locks { state: mirror.lock(), _gate: None };
        let mut dirty = 0;
        victims.retain(|&(page, _)| {
            let goes = mirror.can_evict(&locks.state, page);
            dirty += u32::from(goes && comes_home(locks.state.table.load(page)));
            goes
        });
        Counters::add(&mirror.counters.evicted_dirty, dirty.into());
        self.eviction.clean = self.eviction.clean.saturating_sub(victims.len() as u32 - dirty);
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
        self.write_ahead();
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
    pub(super) fn collect_uses(&mut self) {
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
        // Others go next from here on.
        (self.eviction.clean, self.eviction.unlooked) = (0, 0);
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

    /// The device has nothing to do: if frames are short, dirty pages that would go next are cleaned.
    pub fn rest(&mut self) {
        if self.tight {
            self.unprotect();
            self.tight = false;
        }
        self.write_ahead();
        // Once is enough until something is evicted again.
        self.eviction.pressed = false;
    }
}
