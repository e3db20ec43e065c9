//! The executor: runs launches one after the other, in replay mode.
//!
//! A launch is a work list of workgroup ids, cut into slices so that shootdowns, which wait for the dispatch in flight, stay
//! short. Each slice goes through passes until no workgroup is left:
//!
//! ```text
//! idempotent:      real pass ──▶ faults? ──▶ service ──▶ real pass over the replay list …
//! not idempotent:  probe (stores vanish) ──▶ faults? ──▶ service ──▶ probe again …
//!                  └─ none: real pass, the gate still closed, so that nothing was taken away in between
//! ```
//!
//! A workgroup that faults in the real pass after it stored cannot be run again: late fault, an error (I6). One that faulted and
//! stored nothing is replayed.
//!
//! Progress (I7): what was serviced for the current list is not evicted, nor what it used. If frames run out all the same,
//! the list is cut in half, in the end to one workgroup. If that does not fit, poisoned invocations may be why: what they guess from the
//! zeros that they load, and what they mark as used, takes frames as well. So the workgroup is run again *strictly*: only what invocations
//! asked for before they were poisoned is serviced, and kept. The first miss of a round is such a one, so each round is progress; if
//! frames run out now, the workgroup itself needs more, and the launch fails and says so. If the CPU keeps taking
//! pages away faster than a list can use them, the next round holds the address space's lock, which holds CPU faults off until
//! the dispatch is done.

use super::KernelModule;
use super::arrays::ArrayArgument;
use super::dispatch::Pass;
use super::error::LaunchError;
use super::fast::PointerArgument;
use super::requests::{Beside, Request, Work};
use super::worklist::{WorkList, coordinates};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange};
use crate::device::layout::{Control, FaultEntry, area, variant};
use crate::device::{DeviceError, FaultQueue, LiveUnit, SharedMemory, SharedUse};
use crate::hmm::Mirror;
use crate::mm::heap::Heap;
use crate::mm::space::AddressSpace;
use crate::observe::{Counters, Stats};
use crate::policy::Habit;
use crate::service::{DeviceMirror, PageFault, Service};
use crossbeam_channel::{Receiver, Sender};
use hashbrown::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most workgroups of one slice: bounds the work list and the replay map.
pub(super) const MAX_SLICE: u32 = 1 << 18;
const _: () = assert!(MAX_SLICE as usize == area::SLOTS);
/// Slices that miss pages are shortened, but not below this many workgroups.
const SCOUT: u32 = 1024;
/// Copies of straddling objects, per dispatch.
pub(super) const BOUNCE_BYTES: u32 = 4 << 20;
/// Rounds without a finished workgroup before CPU faults are held off.
const PATIENCE: u32 = 4;

/// Slices that a launch is cut into where its uses are traced.
const TRACED_SLICES: u32 = 64;

/// What a launch did.
pub type LaunchReport = Stats;

/// A launch as the executor sees it.
pub(crate) struct Job {
    pub(crate) kernel: Arc<KernelModule>,
    pub(crate) idempotent: bool,
    pub(crate) confined: bool,
    pub(crate) grid: [u32; 3],
    pub(crate) arguments: Vec<u8>,
    pub(crate) arrays: Vec<ArrayArgument>,
    /// What the launch was given by reference.
    pub(crate) spans: Vec<(PageRange, Access)>,
    pub(crate) places: Vec<PointerArgument>,
    pub(crate) done: Sender<Result<LaunchReport, LaunchError>>,
}

/// Options that concern execution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecutorOptions {
    pub(crate) queue_capacity: u32,
    pub(crate) count_translations: bool,
    pub(crate) trap_untranslated: bool,
    pub(crate) prefetch: bool,
    /// Where pages are to be of which nothing is said.
    pub(crate) habit: Habit,
    /// Evict by forecast, part by part and ahead of need.
    pub(crate) eviction_policy: bool,
    /// Note which pages each dispatch uses.
    pub(crate) trace_uses: bool,
    pub(crate) direct_arrays: bool,
    /// Use variants without the slow path where nothing is expected to be missing.
    pub(crate) fast_passes: bool,
    /// Wait for pages inside kernels, in these units.
    pub(crate) live: Option<LiveUnit>,
    /// Whether the service thread spins for a while after it found something; otherwise it naps at once.
    pub(crate) spin: bool,
    /// Polls before a waiting invocation gives up.
    pub(crate) poll_limit: u32,
    /// How long a live launch may take.
    pub(crate) time_limit: Option<Duration>,
}

/// Runs jobs on a thread of its own.
pub(crate) struct Executor {
    pub(super) space: Arc<AddressSpace>,
    pub(super) heap: Heap,
    pub(super) mirror: Arc<DeviceMirror>,
    pub(super) service: Service,
    pub(super) counters: Arc<Counters>,
    pub(super) options: ExecutorOptions,
    pub(super) queue: FaultQueue,
    pub(super) list: Box<dyn SharedMemory>,
    pub(super) units: Box<dyn SharedMemory>,
    // Kept alive for the control block, which points to it.
    _bounce: Box<dyn SharedMemory>,
    pub(super) slice: u32,
    /// Whether pages were missed since this was last reset.
    pub(super) missed: bool,
    pub(super) entries: Vec<FaultEntry>,
    pub(super) faults: Vec<PageFault>,
    /// Pages that faulted since the attempt began: new ones are progress.
    pub(super) seen: HashSet<PageIndex>,
    /// What was brought for the slice of a launch that runs part by part, marked as used.
    pub(super) parts: Option<Vec<PageRange>>,
    /// Kernels whose needs are not guessed; see `parts.rs`.
    pub(super) unguessable: HashSet<u32>,
    /// Faults to be served later, and when: somebody else is to keep their pages for a while.
    pub(super) held: Vec<(Duration, FaultEntry)>,
    /// Whether faults may be held.
    pub(super) throttle: bool,
    /// What the program sends, and what of it was received and not done yet.
    pub(super) work: Receiver<Work>,
    pub(super) jobs: VecDeque<Job>,
    pub(super) requests: VecDeque<Request>,
    /// Whether what poisoned invocations guess is left alone.
    pub(super) strict: bool,
    /// Whether a fast pass may hit.
    pub(super) try_fast: bool,
}

/// What there was not enough of.
#[derive(Clone, Copy, Debug)]
enum Shortage {
    Frames,
    Bounce,
}

/// How running a list ended.
enum Attempt {
    Done,
    /// What is left does not fit all at once.
    Short(WorkList, Shortage),
}

impl Executor {
    pub(crate) fn new(
        space: Arc<AddressSpace>,
        heap: Heap,
        mirror: Arc<DeviceMirror>,
        registration: Arc<Mirror>,
        counters: Arc<Counters>,
        options: ExecutorOptions,
        work: Receiver<Work>,
    ) -> Result<Self, DeviceError> {
        let device = mirror.device().clone();
        let queue = FaultQueue::new(device.as_ref(), options.queue_capacity)?;
        let list = device.shared_memory(MAX_SLICE as usize * 4, SharedUse::HostWrites)?;
        let bounce = device.shared_memory(BOUNCE_BYTES as usize, SharedUse::HostReads)?;
        let units = device
            .shared_memory(if options.live.is_some() { MAX_SLICE as usize * 16 } else { 64 }, SharedUse::HostReads)?;
        let block = Control {
            queue: queue.address(),
            list: list.address(),
            bounce: bounce.address(),
            queue_capacity: queue.capacity(),
            bounce_bytes: BOUNCE_BYTES,
            poll_limit: options.poll_limit,
            units: units.address(),
            epoch: 1,
            ..bytemuck::Zeroable::zeroed()
        };
        // SAFETY: the control block has this size and no dispatch uses it yet.
        unsafe { mirror.epochs().control().host().cast::<Control>().write(block) };
        Ok(Self {
            service: Service::new(space.clone(), mirror.clone(), registration, options.prefetch, options.habit)
                .with_eviction_policy(options.eviction_policy),
            space,
            heap,
            mirror,
            counters,
            options,
            queue,
            list,
            units,
            _bounce: bounce,
            slice: 1 << 14,
            missed: false,
            entries: Vec::new(),
            faults: Vec::new(),
            seen: HashSet::new(),
            parts: None,
            unguessable: HashSet::new(),
            held: Vec::new(),
            throttle: true,
            work,
            jobs: VecDeque::new(),
            requests: VecDeque::new(),
            strict: false,
            try_fast: true,
        })
    }

    /// Runs jobs until nobody can send any more; then brings all pages home.
    pub(crate) fn run(mut self) {
        while let Some(job) = self.next() {
            let before = self.counters.snapshot();
            let result = self.launch(&job);
            Counters::add(&self.counters.launches, 1);
            let report = self.counters.snapshot().since(&before);
            // Whoever does not wait for the result does not want it.
            let _ = job.done.send(result.map(|()| report));
        }
        self.mirror.bring_all_home();
    }

    /// The next job. Until there is one, pages are brought that were asked for, and those cleaned that will be evicted.
    fn next(&mut self) -> Option<Job> {
        loop {
            let open = self.sort_work();
            if self.serve_request(Beside::Nothing) {
                continue;
            }
            if let Some(job) = self.jobs.pop_front() {
                return Some(job);
            }
            if !open {
                return None;
            }
            self.service.rest();
            let work = self.work.recv().ok()?;
            self.sort(work);
        }
    }

    fn launch(&mut self, job: &Job) -> Result<(), LaunchError> {
        let driver_faults = self.space.driver_cpu_faults();
        if self.options.trap_untranslated {
            self.space.unmap_app_view().map_err(|error| self.failed(job, error.into()))?;
        }
        self.service.begin_launch();
        let (space, number) = (self.space.clone(), self.mirror.number());
        space.thrash().launch_begins(number);
        let brought = self.bring_arrays(job).and_then(|()| self.complete(job));
        let result = brought.and_then(|()| self.run_slices(job));
        space.thrash().launch_ends(number);
        self.abandon_held();
        if self.space.driver_cpu_faults() != driver_faults {
            self.space.expel_trespassers();
            return Err(LaunchError::Untranslated { kernel: job.kernel.name.clone() });
        }
        result
    }

    fn run_slices(&mut self, job: &Job) -> Result<(), LaunchError> {
        let total: u32 = job.grid.iter().product();
        let mut first = 0;
        // A trace is to say in which order pages are used.
        let finest = if self.options.trace_uses { total.div_ceil(TRACED_SLICES) } else { MAX_SLICE };
        let part = self.part_size(job, total);
        while first < total {
            let count = self.slice.min(finest).min(part.unwrap_or(u32::MAX)).min(total - first);
            let list = WorkList::Span { first, count };
            self.missed = false;
            if part.is_some() {
                let parts = self.bring_part(job, first, count, total)?;
                let before = self.counters.device_faults.load(Ordering::Relaxed);
                self.try_fast = self.marks_parts(job);
                self.parts = Some(if self.try_fast { parts.clone() } else { Vec::new() });
                let run = self.run_list(job, list);
                self.try_fast = true;
                self.parts = None;
                run?;
                let missed = self.counters.device_faults.load(Ordering::Relaxed) - before;
                self.end_part(job, &parts, missed);
            } else {
                self.run_list(job, list)?;
            }
            first += count;
            if self.missed && count > SCOUT {
                // What misses is run twice, slowly the first time. A short slice tells as well as a long one where the kernel is going, and
                // what comes next can be there before it.
                self.slice = (count / 4).max(SCOUT);
            }
        }
        Ok(())
    }

    pub(super) fn failed(&self, job: &Job, source: crate::service::ServiceError) -> LaunchError {
        LaunchError::Service { kernel: job.kernel.name.clone(), source, lost: self.mirror.lost() }
    }

    pub(super) fn device_failed(&self, job: &Job, source: DeviceError) -> LaunchError {
        self.failed(job, source.into())
    }

    /// Runs a list to its end, cutting it where frames are short.
    fn run_list(&mut self, job: &Job, list: WorkList) -> Result<(), LaunchError> {
        let mut waiting = vec![list];
        // The length that fitted last, once something was short.
        let mut fits = u32::MAX;
        while let Some(mut list) = waiting.pop() {
            if list.len() > fits {
                waiting.push(list.split_off(fits));
            }
            let length = list.len();
            let resized = self.mirror.resized();
            let attempt = self.run_attempt(job, list);
            let strict = self.strict;
            self.be_strict(false);
            match attempt? {
                Attempt::Done => {
                    if fits != u32::MAX {
                        fits = length.max(fits / 2).saturating_mul(2);
                        self.service.unprotect();
                    }
                }
                Attempt::Short(mut unfinished, shortage) => {
                    let left = unfinished.len();
                    if left == 1 && self.mirror.resized() != resized {
                        waiting.push(unfinished);
                        self.service.unprotect();
                        continue;
                    }
                    if left == 1 && matches!(shortage, Shortage::Frames) && !strict {
                        waiting.push(unfinished);
                        self.service.unprotect();
                        self.be_strict(true);
                        continue;
                    }
                    if left == 1 && matches!(shortage, Shortage::Frames) && self.mirror.is_refused() {
                        let bytes = PAGE_SIZE as u64;
                        return Err(self.device_failed(job, DeviceError::OutOfMemory { what: "frames", bytes }));
                    }
                    if left == 1 {
                        return Err(self.too_large(job, unfinished.id(0), shortage));
                    }
                    fits = left / 2;
                    waiting.push(unfinished.split_off(fits));
                    waiting.push(unfinished);
                    self.service.unprotect();
                }
            }
        }
        Ok(())
    }

    /// Whether poisoned invocations' guesses count from now on.
    fn be_strict(&mut self, strict: bool) {
        self.strict = strict;
        self.service.be_strict(strict);
    }

    fn too_large(&self, job: &Job, workgroup: u32, shortage: Shortage) -> LaunchError {
        let kernel = job.kernel.name.clone();
        let workgroup = coordinates(workgroup, job.grid);
        match shortage {
            Shortage::Frames => LaunchError::OutOfFrames { kernel, workgroup, frames: self.mirror.frames().limit },
            Shortage::Bounce => LaunchError::OutOfBounce { kernel, workgroup, bytes: BOUNCE_BYTES },
        }
    }

    /// Runs a list until it is done or something is short.
    fn run_attempt(&mut self, job: &Job, mut list: WorkList) -> Result<Attempt, LaunchError> {
        let mut fruitless = 0;
        let mut harvested = false;
        // Live waiting is tried once; what gives up is replayed.
        let mut waited = false;
        // Nothing of the list has missed yet.
        let mut fresh = true;
        self.seen.clear();
        loop {
            self.space.end_pins();
            self.sort_work();
            self.serve_request(Beside::Launch);
            // Held while CPU faults are kept off.
            let space = self.space.clone();
            let exclusive = (fruitless > PATIENCE).then(|| space.hold_cpu_faults());
            let seen = self.seen.len();
            // Arrays stay where they are while the gate is closed, which live passes leave open.
            let may_wait = !self.passes_arrays(job) && !std::mem::replace(&mut waited, true);
            let live = self.options.live.filter(|_| may_wait);
            if fresh && self.direct_pass(job, &list)? {
                return Ok(Attempt::Done);
            }
            if live.is_none() && fruitless == 0 && self.expects_hits(job, &list) {
                match self.fast_pass(job, list)? {
                    Some(missed) => list = missed,
                    None => return Ok(Attempt::Done),
                }
            }
            let left = list.len();
            let pass = if let Some(unit) = live {
                self.live_pass(job, &list, unit)?
            } else if job.idempotent {
                self.pass(job, &list, variant::IDEMPOTENT)?
            } else {
                self.probe_then_run(job, &list)?
            };
            if self.options.trace_uses {
                self.service.trace_uses();
            }
            if pass.replay.is_empty() {
                job.kernel.hits.store(fresh, Ordering::Relaxed);
                return Ok(Attempt::Done);
            }
            fresh = false;
            let shrank = (pass.replay.len() as u32) < left;
            list = WorkList::Ids(pass.replay);
            // Who was promised a round for itself does not wait for others.
            self.throttle = exclusive.is_none();
            let served = self.serve(job, pass.late);
            drop(exclusive);
            let short = served? | self.serve_held(job)?;
            fruitless = if shrank || self.seen.len() > seen { 0 } else { fruitless + 1 };
            if pass.bounce_full && !shrank {
                return Ok(Attempt::Short(list, Shortage::Bounce));
            }
            if short {
                if harvested || self.strict || !self.service.is_tight() {
                    return Ok(Attempt::Short(list, Shortage::Frames));
                }
                // The first time, what earlier launches used may still count as in use.
                harvested = true;
                self.service.unprotect();
            }
        }
    }

    /// For kernels whose stores must not be repeated. The gate stays closed from the last probe to the real pass.
    fn probe_then_run(&mut self, job: &Job, list: &WorkList) -> Result<Pass, LaunchError> {
        let mirror = self.mirror.clone();
        let gate = mirror.close_gate();
        let probed = self.dispatch(job, list, variant::PROBE, &gate)?;
        if !probed.replay.is_empty() {
            // All must be probed again: the real pass starts only when nothing of the list faults.
            return Ok(Pass {
                replay: (0..list.len()).map(|slot| list.id(slot)).collect(),
                late: None,
                bounce_full: probed.bounce_full,
            });
        }
        self.dispatch(job, list, 0, &gate)
    }

    pub(super) fn pass(&mut self, job: &Job, list: &WorkList, bits: u32) -> Result<Pass, LaunchError> {
        let mirror = self.mirror.clone();
        let gate = mirror.close_gate();
        self.dispatch(job, list, bits, &gate)
    }
}
