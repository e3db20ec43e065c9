//! Servicing device faults: the range protocol's other end.
//!
//! For one span, with its page locks held throughout:
//!
//! 1. look up VMA and states (under `mm`, read);
//! 2. make the CPU side let go: write-protect what will be shared, unmap what the device will own, and have other devices
//!    let go; from here on the home pages do not change, except those that the device is to map themselves;
//! 3. find out which pages have contents at all, and take frames (under the update lock);
//! 4. copy in, without any lock a notifier callback takes;
//! 5. under the update lock: if the range says retry, give the frames back and start over; else write the entries.
//!
//! The page locks alone exclude every state change of our own making. The range catches what comes from elsewhere: invalidations
//! by users of the `hmm` API, and by the kernel's events. After several collisions the span is serviced under `mm`'s write
//! side, which holds all of these off.

use super::coalesce::{PageFault, Span, deduplicate, spans};
use super::contents::Contents;
use super::evict::Eviction;
use super::mirror::{CopyList, DeviceMirror, MirrorState};
use crate::addr::{Access, DeviceAddress, FrameIndex, PageIndex, PageRange};
use crate::device::DeviceError;
use crate::device::layout::pte;
use crate::hmm::{
    Attempt, Blocking, CollisionRetry, Deadline, Event, Invalidation, Mirror, OutOfTime, Range, RealClock,
};
use crate::mm::pages::PageState;
use crate::mm::space::AddressSpace;
use crate::mm::state::{Fill, Lose, Placement, Quiet, commit, fill, quiet};
use crate::mm::views::ViewsError;
use crate::mm::vma::{Permission, Vma};
use crate::observe::Counters;
use crate::policy::Prefetch;
use crate::track::TrackError;
use hashbrown::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a span may collide before the service gives up. Far beyond what a working system needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A span could not be serviced for a reason that is nobody's fault but the system's.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The CPU side could not be protected.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Home pages that the device was to map could not be given memory.
    #[error(transparent)]
    Memory(#[from] ViewsError),
    /// Another device, or the address space, is going away.
    #[error("the range protocol refused {pages:?}: {reason}")]
    Range {
        /// The span.
        pages: PageRange,
        /// Why.
        reason: String,
    },
}

impl From<OutOfTime> for ServiceError {
    fn from(error: OutOfTime) -> Self {
        Self::Range { pages: PageRange::default(), reason: error.to_string() }
    }
}

/// What became of a list of faults.
#[derive(Debug, Default)]
pub struct Served {
    /// Entries that named a page already named.
    pub duplicates: usize,
    /// Pages that no VMA covers, or that may not be written: the faults cannot be served.
    pub refused: HashSet<PageIndex>,
    /// Pages that found no frame.
    pub short: usize,
    /// Pages that their owner keeps for so much longer, ascending: their faults are to be served then.
    pub held: Vec<(PageIndex, Duration)>,
}

/// What a page of a span needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// It is mapped as asked.
    Nothing,
    /// The entry becomes writable where it stands.
    Upgrade,
    /// A frame is filled from home.
    Copy(FrameIndex),
    /// A frame is filled with zeros.
    Zero(FrameIndex),
    /// The shared zero frame.
    ZeroFrame,
    /// The home page itself, at this address.
    Home(DeviceAddress),
    /// No frame was left.
    Short,
    /// No frame was left that was not being changed by somebody else at the moment: the page is left to the next round.
    Busy,
}

/// What came of looking for a frame.
enum Taken {
    Frame(FrameIndex),
    Nothing,
    Busy,
}

/// Pages that begin to be watched together: 16 MiB.
const WATCH_PAGES: u32 = 4096;

/// What is watched along with `span`. Watching is a system call that splits and joins mappings of the kernel, and costs the pages around
/// nothing until they lose something: single pages all over a VMA must not pay for it one by one.
fn neighbourhood(span: PageRange, vma: PageRange) -> PageRange {
    let start = PageIndex(span.start.0 / WATCH_PAGES * WATCH_PAGES);
    let end = PageIndex(span.end.0.div_ceil(WATCH_PAGES).saturating_mul(WATCH_PAGES));
    PageRange::new(start.max(vma.start), end.min(vma.end))
}

/// Fault service for one mirror. One thread uses it at a time; its buffers are kept between calls.
pub struct Service {
    pub(super) space: Arc<AddressSpace>,
    pub(super) mirror: Arc<DeviceMirror>,
    registration: Arc<Mirror>,
    clock: RealClock,
    /// Pages that must not be evicted: serviced for work that still waits.
    pub(super) protected: HashSet<PageIndex>,
    /// Whether pages were evicted since the protection was last reset.
    pub(super) tight: bool,
    /// Whether this round's pages fill the frames.
    filling: bool,
    pub(super) eviction: Eviction,
    /// Whether kernels run meanwhile.
    pub(super) live: bool,
    /// What others are told when they must let go: `Migrate`, or `Exclusive`, then even if they have nothing.
    pub(crate) taking: Event,
    /// Whether pages are mapped that nobody asked for.
    pub(super) prefetch: bool,
    pub(super) streams: Prefetch,
    /// Where pages are to be for which nothing says otherwise.
    pub(super) placement: Placement,
    access: Vec<Option<Access>>,
    pub(super) placements: Vec<Placement>,
    actions: Vec<Action>,
    copies: CopyList,
    zeros: CopyList,
    pub(super) contents: Contents,
    runs: Vec<(Lose, PageRange)>,
}

impl Service {
    /// A service that fills `mirror`, registered as `registration`, from `space`.
    /// It maps neighbours of what is asked for only if `prefetch`, and pages without a wish of their own as `placement` says.
    pub fn new(
        space: Arc<AddressSpace>,
        mirror: Arc<DeviceMirror>,
        registration: Arc<Mirror>,
        prefetch: bool,
        placement: Placement,
    ) -> Self {
        Self {
            taking: Event::Migrate,
            prefetch,
            placement,
            placements: Vec::new(),
            streams: Prefetch::default(),
            space,
            mirror,
            registration,
            clock: RealClock::new(),
            protected: HashSet::new(),
            tight: false,
            filling: false,
            eviction: Eviction::default(),
            live: false,
            access: Vec::new(),
            actions: Vec::new(),
            copies: CopyList::default(),
            zeros: CopyList::default(),
            contents: Contents::default(),
            runs: Vec::new(),
        }
    }

    /// Services `faults`. A span that fails does not hold up the others; the first error is returned at the end. If `throttle`, pages
    /// that the CPU or another device is to keep for a while are left out.
    pub fn serve(&mut self, faults: &mut Vec<PageFault>, throttle: bool) -> Result<Served, ServiceError> {
        let start = Instant::now();
        let mut served = Served { duplicates: deduplicate(faults), ..Served::default() };
        Counters::add(&self.mirror.counters.duplicates, served.duplicates as u64);
        if self.live {
            self.protected.clear();
        }
        self.mirror.follow_device_budget(false);
        self.begin_round();
        let usage = self.mirror.frames();
        self.filling = usage.limit.saturating_sub(usage.used) as usize <= 2 * faults.len();
        self.upgrade_to_pending(faults);
        self.hold_off(faults, throttle, &mut served);
        self.contents.forget();
        let mut list = Vec::new();
        self.split_by_vma(faults, &mut list, &mut served);
        self.look_ahead(faults, &mut list);
        let mut result = Ok(());
        for (span, vma) in list {
            if let Err(error) = self.serve_span(&span, &faults[span.faults.clone()], &vma, &mut served) {
                tracing::error!(?span, "span not serviced: {error}");
                if result.is_ok() {
                    result = Err(error);
                }
            }
        }
        Counters::add_time(&self.mirror.counters.service_nanos, start.elapsed());
        result.map(|()| served)
    }

    /// A kernel that reads a page first and writes it then appends once: the entry's pending bits say the rest.
    fn upgrade_to_pending(&self, faults: &mut [PageFault]) {
        let state = self.mirror.lock();
        for fault in faults {
            if state.table.load(fault.page) & pte::PENDING_WRITE != 0 {
                fault.access = Access::Write;
            }
        }
    }

    fn split_by_vma(&self, faults: &[PageFault], list: &mut Vec<(Span, Vma)>, served: &mut Served) {
        let vmas = self.space.vmas().read();
        let mut refused = Vec::new();
        let mut at = 0;
        while at < faults.len() {
            let Some(vma) = vmas.find(faults[at].page) else {
                refused.push(faults[at].page);
                at += 1;
                continue;
            };
            let end = at + faults[at..].partition_point(|fault| vma.range.contains(fault.page));
            let read_only = vma.permission() == Permission::ReadOnly;
            let mut from = at;
            for (index, fault) in faults.iter().enumerate().take(end).skip(at) {
                if read_only && fault.access == Access::Write {
                    refused.push(fault.page);
                    list.extend(
                        spans(&faults[from..index], from, vma.range, false).into_iter().map(|s| (s, vma.clone())),
                    );
                    from = index + 1;
                }
            }
            let fill = self.prefetch && !self.tight;
            list.extend(spans(&faults[from..end], from, vma.range, fill).into_iter().map(|s| (s, vma.clone())));
            at = end;
        }
        drop(vmas);
        let state = self.mirror.lock();
        for &page in &refused {
            if state.table.clip(PageRange::single(page)).len() == 1 {
                state.table.clear_flags(page, pte::PENDING);
            }
        }
        served.refused.extend(refused);
    }

    fn serve_span(
        &mut self,
        span: &Span,
        faults: &[PageFault],
        vma: &Vma,
        served: &mut Served,
    ) -> Result<(), ServiceError> {
        let registration = self.registration.clone();
        let refuse = |reason: String| ServiceError::Range { pages: span.pages, reason };
        let range = registration.range(span.pages).map_err(|error| refuse(error.to_string()))?;
        let clock = self.clock;
        let mut retry = CollisionRetry::new(Deadline::after(&clock, PATIENCE));
        let (space, mirror) = (self.space.clone(), self.mirror.clone());
        let home = space.home().clone();
        Counters::add(&self.mirror.counters.ranges, 1);
        loop {
            let attempt = retry.next()?;
            if attempt == Attempt::Fast {
                range.wait_until_valid(retry.deadline()).map_err(|error| refuse(error.to_string()))?;
            }
            let slow = (attempt == Attempt::Slow).then(|| space.vmas().write());
            let fast = slow.is_none().then(|| space.vmas().read());
            let vmas = slow.as_deref().or(fast.as_deref());
            let current = vmas.and_then(|vmas| vmas.find(span.pages.start).cloned());
            // The VMA may have changed since the faults were sorted: then they are looked at afresh when they recur.
            let same = |now: &Vma| {
                now.id == vma.id && now.permission() == vma.permission() && now.range.contains_range(span.pages)
            };
            let Some(current) = current.filter(same) else {
                self.clear_pending(span.pages);
                return Ok(());
            };
            let ends = !vmas.is_some_and(|vmas| vmas.continues(&current));
            let pages = home.pages.lock(span.pages);
            let seq = range.begin();
            drop(fast);
            self.want(span, faults);
            self.place(span.pages);
            self.shed(span.pages);
            let bracket = self.quiet_cpu_side(span.pages, current.range, &range)?;
            self.plan(span.pages, &current)?;
            self.copy_in()?;

            let mut state = mirror.lock();
            if range.retry(seq) {
                self.give_frames_back(&mut state);
                drop(state);
                drop(bracket);
                drop(pages);
                drop(slow);
                Counters::add(&self.mirror.counters.collisions, 1);
                retry.collided();
                continue;
            }
            served.short += self.commit(&mut state, span.pages, &current, ends);
            drop(state);
            drop(bracket);
            drop(pages);
            drop(slow);
            return Ok(());
        }
    }

    /// Lets kernels report these pages again: their faults are not going to be served.
    pub fn abandon(&self, pages: impl Iterator<Item = PageIndex>) {
        let state = self.mirror.lock();
        for page in pages.flat_map(|page| state.table.clip(PageRange::single(page)).iter()) {
            state.table.clear_flags(page, pte::PENDING);
        }
    }

    fn clear_pending(&self, pages: PageRange) {
        let state = self.mirror.lock();
        for page in state.table.clip(pages).iter() {
            state.table.clear_flags(page, pte::PENDING);
        }
    }

    /// Notes which access each page of the span needs: holes are read.
    fn want(&mut self, span: &Span, faults: &[PageFault]) {
        self.access.clear();
        self.access.resize(span.pages.len() as usize, None);
        for fault in faults {
            self.access[(fault.page.0 - span.pages.start.0) as usize] = Some(fault.access);
        }
    }

    /// Step 2: after this, neither the CPU nor another device changes the home pages. The bracket, if other devices had to let
    /// go, is to be kept until the entries are written.
    fn quiet_cpu_side<'r>(
        &mut self,
        span: PageRange,
        vma: PageRange,
        range: &'r Range<'_>,
    ) -> Result<Option<Invalidation<'r>>, ServiceError> {
        let Self { space, mirror, access, placements, runs, .. } = self;
        let pages = &space.home().pages;
        let own = PageState::Device(mirror.number());
        let tracker = space.tracker();
        // What others are told, and of which pages: readers keep their copies unless somebody writes.
        let mut told: Option<(Event, PageRange)> = None;
        runs.clear();
        for (index, page) in span.iter().enumerate() {
            let state = pages.state(page);
            let write = access[index] == Some(Access::Write);
            let Quiet { lose, others } = quiet(state, own, write, placements[index]);
            if let Some(event) = others {
                let (strongest, hull) = told.get_or_insert((event, PageRange::single(page)));
                hull.end = page.plus(1);
                if event == Event::Migrate {
                    *strongest = Event::Migrate;
                }
            }
            match runs.last_mut() {
                Some((last, run)) if *last == lose => run.end = page.plus(1),
                _ => runs.push((lose, PageRange::single(page))),
            }
        }
        if runs.iter().any(|(lose, _)| *lose != Lose::Nothing) {
            tracker.watch(neighbourhood(span, vma))?;
        }
        for &(lose, run) in runs.iter() {
            match lose {
                Lose::Nothing => {}
                Lose::Stores => tracker.write_protect(run)?,
                Lose::All => tracker.unmap(run)?,
            }
        }
        if self.taking == Event::Exclusive {
            told = Some((Event::Exclusive, span));
        }
        // One bracket; this mirror's own callback is skipped, the other devices bring their data home.
        told.map(|(event, pages)| range.invalidate_others(pages, event, Blocking::Yes))
            .transpose()
            .map_err(|error| ServiceError::Range { pages: span, reason: error.to_string() })
    }

    /// Step 3: decides what each page needs and takes frames, under one hold of the update lock unless pages must be evicted.
    fn plan(&mut self, span: PageRange, vma: &Vma) -> Result<(), ServiceError> {
        let home = self.space.home().clone();
        let mirror = self.mirror.clone();
        let own = PageState::Device(mirror.number());
        self.actions.clear();
        self.copies.clear();
        self.zeros.clear();
        self.contents.look(&home.views, span);
        self.give_memory(span)?;
        let mut state = mirror.lock();
        for page in span.iter() {
            let has_data = self.contents.has(page);
            let access = self.access[self.actions.len()];
            let placement = self.placements[self.actions.len()];
            let write = access == Some(Access::Write);
            let entry = state.table.load(page);
            let owned = home.pages.state(page) == own;
            let action = match fill(entry, owned, write, has_data, placement) {
                Fill::Nothing => Action::Nothing,
                Fill::Upgrade => Action::Upgrade,
                Fill::ZeroFrame => Action::ZeroFrame,
                Fill::Home => match mirror.home_address(&mut state, page) {
                    Some(address) => Action::Home(address),
                    // It was there when the placement was chosen, and somebody forgot it: the page is left to the next round.
                    None => Action::Busy,
                },
                Fill::Frame => {
                    let mut taken = match state.frames.place(mirror.device.as_ref(), vma.range, page) {
                        Ok(frame) => Ok(frame.map_or(Taken::Nothing, Taken::Frame)),
                        Err(error) => Err(error),
                    };
                    if access.is_some() && matches!(taken, Ok(Taken::Nothing)) {
                        // Evicting takes the update lock page by page.
                        drop(state);
                        taken = self.evict_for(vma.range, span, page);
                        state = mirror.lock();
                    }
                    match taken {
                        Ok(Taken::Nothing) => Action::Short,
                        Ok(Taken::Busy) => Action::Busy,
                        Ok(Taken::Frame(frame)) => {
                            let address = state.frames.address(frame);
                            let list = if has_data { &mut self.copies } else { &mut self.zeros };
                            list.push(page, home.views.alias_ptr(page), address, &state.frames);
                            if has_data { Action::Copy(frame) } else { Action::Zero(frame) }
                        }
                        Err(error) => {
                            self.give_frames_back(&mut state);
                            return Err(error.into());
                        }
                    }
                }
            };
            self.actions.push(action);
        }
        Ok(())
    }

    /// Undoes what planning took.
    fn give_frames_back(&self, state: &mut MirrorState) {
        for action in &self.actions {
            if let Action::Copy(frame) | Action::Zero(frame) = action {
                state.frames.release(*frame);
            }
        }
    }

    /// A frame for `page` of `span`, whose page locks are held, from pages nobody waits for.
    fn evict_for(&mut self, vma: PageRange, span: PageRange, page: PageIndex) -> Result<Taken, DeviceError> {
        let first = (page.0 - span.start.0) as usize;
        let needed = self.access[first..].iter().flatten().count();
        let evicted = self.evict(needed, span);
        if evicted.pages > 0
            && let Some(frame) = self.mirror.lock().frames.place(self.mirror.device.as_ref(), vma, page)?
        {
            return Ok(Taken::Frame(frame));
        }
        let closing = self.mirror.lock().frames.is_closing();
        Ok(if evicted.busy || closing { Taken::Busy } else { Taken::Nothing })
    }

    /// Step 4.
    fn copy_in(&self) -> Result<(), ServiceError> {
        let start = Instant::now();
        // SAFETY: the alias is always readable; step 2 made the home pages quiet, the page locks keep them so. The frames were
        // just taken, so no kernel and no other copy uses them.
        let copied = unsafe { self.mirror.device.copy_in(&self.copies.copies) };
        // SAFETY: as above.
        let result = copied.and_then(|()| unsafe { self.mirror.device.fill_zero(&self.zeros.copies) });
        Counters::add_time(&self.mirror.counters.copy_nanos, start.elapsed());
        if let Err(error) = result {
            self.give_frames_back(&mut self.mirror.lock());
            return Err(error.into());
        }
        Ok(())
    }

    /// Step 5: writes entries and states. If the VMA `ends` a mapping, no object may straddle its end. Returns how many pages
    /// found no frame.
    fn commit(&mut self, state: &mut MirrorState, span: PageRange, vma: &Vma, ends: bool) -> usize {
        let end = ends.then_some(vma.range.end);
        let permitted = vma.permission() == Permission::ReadWrite;
        let pages = &self.space.home().pages;
        let counters = &self.mirror.counters;
        let own = PageState::Device(self.mirror.number());
        let (mut short, mut faulted, mut filled, mut zero, mut remote) = (0, 0, 0, 0, 0);
        for (index, page) in span.iter().enumerate() {
            let asked = self.access[index];
            let write = asked == Some(Access::Write);
            let (becomes, writable) = commit(pages.state(page), own, write, self.placements[index]);
            let mut flags = pte::VALID;
            if writable && permitted {
                flags |= pte::WRITABLE;
            }
            if Some(page.plus(1)) == end {
                flags |= pte::LAST;
            }
            match self.actions[index] {
                Action::Short | Action::Busy => {
                    state.table.clear_flags(page, pte::PENDING);
                    short += usize::from(asked.is_some() && self.actions[index] == Action::Short);
                    // The CPU side was quieted, but no translation exists: its next touch finds the old state.
                    continue;
                }
                Action::Nothing => {
                    state.table.clear_flags(page, pte::PENDING);
                }
                Action::Upgrade => {
                    let entry = state.table.clear_flags(page, pte::PENDING);
                    state.table.set_flags(page, pte::WRITABLE);
                    debug_assert!(entry & pte::VALID != 0);
                }
                Action::Copy(frame) | Action::Zero(frame) => {
                    // It may have been mapped to the zero frame, and read there. No dispatch is in flight.
                    self.mirror.collect(page, state.table.load(page));
                    state.table.store(page, state.frames.address(frame), flags);
                }
                Action::ZeroFrame => {
                    let zero_frame = self.mirror.zero_frame();
                    state.table.store(page, zero_frame, pte::ZERO | (flags & !pte::WRITABLE));
                    zero += 1;
                }
                Action::Home(address) => {
                    state.table.store(page, address, pte::HOME | flags);
                    remote += 1;
                }
            }
            pages.set_state(page, becomes);
            if asked.is_some() {
                pages.count_fault(page);
                faulted += 1;
                if self.tight || self.filling {
                    self.protected.insert(page);
                }
            } else {
                filled += 1;
            }
        }
        Counters::add(&counters.pages_faulted, faulted);
        Counters::add(&counters.pages_filled, filled);
        Counters::add(&counters.pages_zero, zero);
        Counters::add(&counters.pages_remote, remote);
        Counters::add(&counters.pages_in, self.copies.pages.len() as u64);
        short
    }
}
