//! Servicing device faults: the range protocol's other end.
//!
//! Spans are serviced in batches: what can be done for many at once (one range over all of them, one list of protection changes, one
//! of copies, one commit) costs as much as for one. With the page locks of all spans held throughout:
//!
//! 1. look up VMAs and states (under `mm`, read);
//! 2. make the CPU side let go: write-protect what will be shared, unmap what the device will own, and have other devices
//!    let go; from here on the home pages do not change, except those that the device is to map themselves;
//! 3. find out which pages have contents at all, and take frames (under the update lock);
//! 4. copy in, without any lock a notifier callback takes;
//! 5. under the update lock: if the range says retry, give the frames back and start over; else write the entries.
//!
//! A batch that collides, fails or finds too few frames is undone and its spans are serviced one by one, so that none holds up the
//! others. Steps 2 to 5 are in `steps.rs`.
//!
//! The page locks alone exclude every state change of our own making. The range catches what comes from elsewhere: invalidations
//! by users of the `hmm` API, and by the kernel's events. After several collisions the span is serviced under `mm`'s write
//! side, which holds all of these off.

use super::advice::Followed;
use super::batch::{Batch, Part, Room, batch_length, count_of, still_there};
use super::coalesce::{PageFault, deduplicate, spans};
use super::contents::Contents;
use super::evict::Eviction;
use super::mirror::{CopyList, DeviceMirror};
use super::place::Sparse;
use super::steps::Action;
use crate::addr::{Access, PageIndex, PageRange};
use crate::device::DeviceError;
use crate::device::layout::pte;
use crate::hmm::{Attempt, CollisionRetry, Deadline, Event, Mirror, OutOfTime, RealClock};
use crate::mm::space::AddressSpace;
use crate::mm::state::Placement;
use crate::mm::views::ViewsError;
use crate::mm::vma::Permission;
use crate::observe::Counters;
use crate::policy::{Fills, Guards, Habit, Prefetch, Writes};
use crate::track::TrackError;
use hashbrown::HashSet;
use parking_lot::Mutex;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a span may collide before the service gives up. Far beyond what a working system needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Parts of fewer pages on average lie here and there.
const SCATTERED: usize = 8;

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
    /// Pages that no VMA covers, whose faults cannot be served, or that may not be written, which are served for reading.
    pub refused: HashSet<PageIndex>,
    /// Pages that found no frame.
    pub short: usize,
    /// Pages that their owner keeps for so much longer, ascending: their faults are to be served then.
    pub held: Vec<(PageIndex, Duration)>,
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
    pub(super) filling: bool,
    pub(super) eviction: Eviction,
    /// Whether kernels run meanwhile.
    pub(super) live: bool,
    /// Whether marks of use do not keep a page from being evicted.
    pub(super) strict: bool,
    /// What others are told when they must let go: `Migrate`, or `Exclusive`, then even if they have nothing.
    pub(crate) taking: Event,
    /// Whether pages are mapped that nobody asked for.
    pub(super) prefetch: bool,
    pub(super) streams: Prefetch,
    /// Whether neighbours of what is asked for are brought along.
    pub(super) fills: Fills,
    pub(super) brought: Vec<PageRange>,
    /// Stores that follow each other while kernels run.
    pub(super) writes: Writes,
    /// How far around them pages are write-protected while kernels run.
    pub(super) guards: Guards,
    /// Where pages are to be for which nothing says otherwise.
    pub(super) habit: Habit,
    /// Pages that were placed at home for being read here and there.
    pub(super) sparse: Vec<Sparse>,
    /// Whether what is serviced comes to the device because the program said so.
    pub(super) moving: bool,
    pub(super) followed: Followed,
    /// Of the batch at hand, page by page in order: the access asked for, where it is to be, what it needs.
    pub(super) access: Vec<Option<Access>>,
    pub(super) placements: Vec<Placement>,
    pub(super) actions: Vec<Action>,
    pub(super) copies: CopyList,
    pub(super) zeros: CopyList,
    pub(super) contents: Contents,
    pub(super) lose_stores: Vec<PageRange>,
    pub(super) lose_all: Vec<PageRange>,
    pub(super) asked: Vec<PageIndex>,
    list: Vec<Part>,
    spans: Vec<PageRange>,
    /// Takes batches from the same queue on a second thread: while one copies, which keeps the memory busy, the other plans, which keeps
    /// a processor busy.
    pub(super) helper: Option<Box<Service>>,
}

impl Service {
    /// A service that fills `mirror`, registered as `registration`, from `space`.
    /// It maps neighbours of what is asked for only if `prefetch`, and pages of which nothing is said as `habit` has it.
    pub fn new(
        space: Arc<AddressSpace>,
        mirror: Arc<DeviceMirror>,
        registration: Arc<Mirror>,
        prefetch: bool,
        habit: Habit,
    ) -> Self {
        let several = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        let bare = || Self::bare(space.clone(), mirror.clone(), registration.clone(), prefetch, habit);
        Self { helper: several.then(|| Box::new(bare())), ..bare() }
    }

    fn bare(
        space: Arc<AddressSpace>,
        mirror: Arc<DeviceMirror>,
        registration: Arc<Mirror>,
        prefetch: bool,
        habit: Habit,
    ) -> Self {
        Self {
            taking: Event::Migrate,
            prefetch,
            habit,
            sparse: Vec::new(),
            moving: false,
            followed: Followed::default(),
            placements: Vec::new(),
            streams: Prefetch::default(),
            fills: Fills::default(),
            brought: Vec::new(),
            writes: Writes::default(),
            guards: Guards::default(),
            space,
            mirror,
            registration,
            clock: RealClock::new(),
            protected: HashSet::new(),
            tight: false,
            filling: false,
            eviction: Eviction::default(),
            live: false,
            strict: false,
            access: Vec::new(),
            actions: Vec::new(),
            copies: CopyList::default(),
            zeros: CopyList::default(),
            contents: Contents::default(),
            lose_stores: Vec::new(),
            lose_all: Vec::new(),
            asked: Vec::new(),
            list: Vec::new(),
            spans: Vec::new(),
            helper: None,
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
        self.note_refaults(faults);
        self.follow_advice();
        self.hold_off(faults, throttle, &mut served);
        self.follow_writes(faults);
        self.contents.forget();
        let mut list = std::mem::take(&mut self.list);
        self.split_by_vma(faults, &mut list, &mut served);
        // What was asked for comes first: guesses take what is left.
        let asked = list.len();
        self.look_ahead(faults, &mut list);
        let (asked, ahead) = list.split_at_mut(asked);
        let result = self.serve_parts(asked, faults, &mut served);
        let result = result.and(self.serve_parts(ahead, faults, &mut served));
        list.clear();
        self.list = list;
        self.write_ahead();
        Counters::add_time(&self.mirror.counters.service_nanos, start.elapsed());
        result.map(|()| served)
    }

    /// Services parts in batches. A batch that does not get through as a whole is taken apart.
    fn serve_parts(
        &mut self,
        parts: &mut [Part],
        faults: &[PageFault],
        served: &mut Served,
    ) -> Result<(), ServiceError> {
        let mut result = Ok(());
        let mut apart = Vec::new();
        if !self.tight {
            // What only this thread knows matters while frames are short or kernels run.
            let alone = self.live || self.filling || self.taking != Event::Migrate || self.is_scattered(parts);
            // Starting a thread costs some ten microseconds, or a scheduler's tick where processors are busy: not for a single batch.
            let several = batch_length(parts) < parts.len() && !alone;
            let queue = Mutex::new(&mut *parts);
            let helper = if several { self.helper.take() } else { None };
            match helper {
                Some(mut helper) => {
                    helper.contents.forget();
                    let helped = std::thread::scope(|scope| {
                        let helping = std::thread::Builder::new()
                            .name("vksvm-service".into())
                            .spawn_scoped(scope, || helper.serve_queue(&queue, faults));
                        let own = self.serve_queue(&queue, faults);
                        // Without the thread, this one has done it all. A panic goes on here.
                        let helped = helping.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                        [own, helped.unwrap_or_default()]
                    });
                    apart.extend(helped.into_iter().flatten());
                    self.sparse.append(&mut helper.sparse);
                    self.helper = Some(helper);
                }
                None => apart = self.serve_queue(&queue, faults),
            }
        } else {
            apart.extend(parts.iter_mut());
        }
        for part in apart {
            if let Err(error) = self.serve_one(part, faults, served) {
                tracing::error!(pages = ?part.span.pages, "span not serviced: {error}");
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Whether servicing `parts` takes protections from the CPU page by page. Each call that does interrupts the processors that run threads of this process,
    /// which costs several times the call: the second thread would do that to the first, and the other way round.
    fn is_scattered(&self, parts: &[Part]) -> bool {
        let copied = self.habit.placement == Placement::Copy && !self.habit.sparse_at_home;
        copied && count_of(parts) < parts.len() * SCATTERED
    }

    /// Takes batches from `queue` until it is empty. Returns the parts that are to be serviced one by one.
    fn serve_queue<'p>(&mut self, queue: &Mutex<&'p mut [Part]>, faults: &[PageFault]) -> Vec<&'p mut Part> {
        let mut apart = Vec::new();
        loop {
            let batch = {
                let mut queue = queue.lock();
                let length = batch_length(&queue);
                let (batch, rest) = std::mem::take(&mut *queue).split_at_mut(length);
                *queue = rest;
                batch
            };
            if batch.is_empty() {
                return apart;
            }
            if !matches!(self.serve_batch(batch, faults), Ok(Batch::Done)) {
                apart.extend(batch);
            }
        }
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

    fn split_by_vma(&mut self, faults: &mut [PageFault], list: &mut Vec<Part>, served: &mut Served) {
        let space = self.space.clone();
        let vmas = space.vmas().read();
        let mut refused = Vec::new();
        let mut at = 0;
        while at < faults.len() {
            let Some(vma) = vmas.find(faults[at].page) else {
                refused.push(faults[at].page);
                at += 1;
                continue;
            };
            let end = at + faults[at..].partition_point(|fault| vma.range.contains(fault.page));
            let part = |span| Part { span, vma: vma.clone(), ends: false };
            let fill = self.prefetch && !self.tight && !vma.advice().is_random();
            let whole = end - at == vma.range.len() as usize;
            let holes = if fill && !whole { self.longest_hole(vma, end - at) } else { 0 };
            if vma.permission() == Permission::ReadOnly {
                // Who asked first may have been guessing, and others wait for the same page to read it.
                for fault in faults[at..end].iter_mut().filter(|fault| fault.access == Access::Write) {
                    refused.push(fault.page);
                    fault.access = Access::Read;
                }
            }
            list.extend(spans(&faults[at..end], at, vma.range, holes).map(part));
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

    /// Tries once to service the parts of a batch, with one hold of all their page locks. Evicts nothing.
    fn serve_batch(&mut self, parts: &mut [Part], faults: &[PageFault]) -> Result<Batch, ServiceError> {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(Batch::Done) };
        let cover = PageRange::new(first.span.pages.start, last.span.pages.end);
        let registration = self.registration.clone();
        let refuse = |reason: String| ServiceError::Range { pages: cover, reason };
        let range = registration.range(cover).map_err(|error| refuse(error.to_string()))?;
        let clock = self.clock;
        range.wait_until_valid(Deadline::after(&clock, PATIENCE)).map_err(|error| refuse(error.to_string()))?;
        let (space, mirror) = (self.space.clone(), self.mirror.clone());
        let vmas = space.vmas().read();
        if !still_there(parts, &vmas) {
            return Ok(Batch::Apart);
        }
        // Not all pages of the range are going to be locked: so nothing is waited for once some are. What comes between makes the
        // attempt stale.
        let seq = range.begin();
        let spans = self.take_spans(parts);
        let pages = space.home().pages.lock_all(&spans);
        drop(vmas);
        let outcome = self.prepare(parts, faults, &range, Room::Find).map(|prepared| {
            let Some(brackets) = prepared else { return Batch::Apart };
            let mut state = mirror.lock();
            if range.retry(seq) {
                self.give_frames_back(&mut state);
                Counters::add(&self.mirror.counters.collisions, 1);
                return Batch::Apart;
            }
            self.commit(&mut state, parts);
            drop(state);
            drop(brackets);
            Counters::add(&self.mirror.counters.ranges, 1);
            Batch::Done
        });
        drop(pages);
        self.spans = spans;
        outcome
    }

    /// Services a part, trying until it gets through.
    fn serve_one(&mut self, part: &mut Part, faults: &[PageFault], served: &mut Served) -> Result<(), ServiceError> {
        let span = part.span.pages;
        let parts = std::slice::from_mut(part);
        let registration = self.registration.clone();
        let refuse = |reason: String| ServiceError::Range { pages: span, reason };
        let range = registration.range(span).map_err(|error| refuse(error.to_string()))?;
        let clock = self.clock;
        let mut retry = CollisionRetry::new(Deadline::after(&clock, PATIENCE));
        let (space, mirror) = (self.space.clone(), self.mirror.clone());
        Counters::add(&self.mirror.counters.ranges, 1);
        loop {
            let attempt = retry.next()?;
            if attempt == Attempt::Fast {
                range.wait_until_valid(retry.deadline()).map_err(|error| refuse(error.to_string()))?;
            }
            let slow = (attempt == Attempt::Slow).then(|| space.vmas().write());
            let fast = slow.is_none().then(|| space.vmas().read());
            // The VMA may have changed since the faults were sorted: then they are looked at afresh when they recur.
            if !slow.as_deref().or(fast.as_deref()).is_some_and(|vmas| still_there(parts, vmas)) {
                self.clear_pending(span);
                return Ok(());
            }
            let pages = space.home().pages.lock(span);
            let seq = range.begin();
            drop(fast);
            let Some(brackets) = self.prepare(parts, faults, &range, Room::Make)? else {
                self.clear_pending(span);
                return Ok(());
            };

            let mut state = mirror.lock();
            if range.retry(seq) {
                self.give_frames_back(&mut state);
                drop(state);
                drop(brackets);
                drop(pages);
                drop(slow);
                Counters::add(&self.mirror.counters.collisions, 1);
                retry.collided();
                continue;
            }
            served.short += self.commit(&mut state, parts);
            drop(state);
            drop(brackets);
            drop(pages);
            drop(slow);
            return Ok(());
        }
    }

    fn take_spans(&mut self, parts: &[Part]) -> Vec<PageRange> {
        let mut spans = std::mem::take(&mut self.spans);
        spans.clear();
        spans.extend(parts.iter().map(|part| part.span.pages));
        spans
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
}
