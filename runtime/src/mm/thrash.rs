//! Thrash accounting: what is known of each granule, and what the policy makes of a touch.
//!
//! The CPU fault path and the fault services ask here before they take a page from the other side. Nobody waits here: a
//! verdict to wait is handed up, to the tracker, which leaves the toucher asleep, or to the executor, which serves the fault later.
//! Whoever is told to wait holds no lock by then.
//!
//! Only fights count. While no kernel runs, and when none ran since the granule's last change, ownership is handed over: a program
//! that launches, reads the result and launches again is never held up.
//!
//! A record is a word, changed by compare-and-swap; nothing here takes a lock, except for the list of pinned granules, a leaf.

use super::pages::{DeviceNumber, PageState, PinnedBy};
use super::space::Home;
use crate::addr::{GRANULE_PAGES, PageIndex, PageRange};
use crate::hmm::Clock;
use crate::observe::Counters;
use crate::policy::Granule;
use crate::policy::thrash::{Decision, GranuleRecord, Side, ThrashOptions, ThrashPolicy, Verdict};
use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Pages whose last eviction is remembered, by the low bits of their number.
const EVICTIONS: usize = 4096;

/// The granules' records.
pub struct ThrashWatch {
    options: ThrashOptions,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    home: Arc<Home>,
    records: NonNull<AtomicU64>,
    granules: u32,
    /// Page and time, in microseconds, of recent evictions: the time's low 32 bits below the page.
    evictions: Box<[AtomicU64]>,
    /// A bit for each device that runs a launch.
    running: [AtomicU64; 4],
    /// Devices that run a launch.
    launches: AtomicU32,
    /// When the first of them began, in microseconds.
    since: AtomicU64,
    /// Devices, and those of them that reach home pages.
    devices: AtomicU32,
    reach_home: AtomicU32,
    /// Granules that are pinned, and until when. A leaf.
    pinned: Mutex<Vec<(Duration, Granule)>>,
    /// When the first pin ends, in microseconds.
    due: AtomicU64,
}

// SAFETY: the records are plain atomics, owned by this structure until it is dropped.
unsafe impl Send for ThrashWatch {}
// SAFETY: as above.
unsafe impl Sync for ThrashWatch {}

impl ThrashWatch {
    /// Records for a heap: anonymous memory that costs nothing until a granule is fought over.
    pub(super) fn new(
        home: Arc<Home>,
        options: ThrashOptions,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let granules = home.views.pages().div_ceil(GRANULE_PAGES);
        crate::scarce::ask("reserving thrash records", rustix::io::Errno::NOMEM)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let records = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                granules as usize * size_of::<AtomicU64>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let records = NonNull::new(records.cast()).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
        Ok(Self {
            options,
            clock,
            counters,
            home,
            records,
            granules,
            evictions: (0..EVICTIONS).map(|_| AtomicU64::new(0)).collect(),
            running: Default::default(),
            launches: AtomicU32::new(0),
            since: AtomicU64::new(0),
            devices: AtomicU32::new(0),
            reach_home: AtomicU32::new(0),
            pinned: Mutex::default(),
            due: AtomicU64::new(u64::MAX),
        })
    }

    /// The policy's constants.
    pub fn options(&self) -> &ThrashOptions {
        &self.options
    }

    /// Whether anything is watched at all.
    pub(crate) fn is_on(&self) -> bool {
        self.options.policy != ThrashPolicy::Off
    }

    fn record(&self, granule: Granule) -> &AtomicU64 {
        assert!(granule.0 < self.granules, "{granule:?} is beyond the heap's {}", self.granules);
        // SAFETY: in bounds by the assertion; zeroed memory is a valid AtomicU64; lives as long as self.
        unsafe { self.records.add(granule.0 as usize).as_ref() }
    }

    /// What is known of a granule.
    pub fn granule(&self, granule: Granule) -> GranuleRecord {
        GranuleRecord::unpack(self.record(granule).load(Ordering::Acquire))
    }

    /// The time on the watch's clock.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now() + self.origin()
    }

    /// What the records' time is ahead of the clock. Zero is where records start; the first touch must not look like one just after another.
    pub fn origin(&self) -> Duration {
        self.options.quiet * 2
    }

    /// How long, in real time, to sleep until `due` on the watch's clock, or before it is looked at again.
    pub(crate) fn nap(&self, due: Duration) -> Duration {
        self.clock.nap(due.saturating_sub(self.now()))
    }

    /// A launch begins on `device`.
    pub(crate) fn launch_begins(&self, device: DeviceNumber) {
        if self.launches.fetch_add(1, Ordering::AcqRel) == 0 {
            self.since.store(self.now().as_micros() as u64, Ordering::Release);
        }
        self.running[usize::from(device.0) / 64].fetch_or(1 << (device.0 % 64), Ordering::AcqRel);
    }

    /// The launch on `device` has ended.
    pub(crate) fn launch_ends(&self, device: DeviceNumber) {
        self.running[usize::from(device.0) / 64].fetch_and(!(1 << (device.0 % 64)), Ordering::AcqRel);
        self.launches.fetch_sub(1, Ordering::AcqRel);
    }

    fn runs(&self, device: DeviceNumber) -> bool {
        self.running[usize::from(device.0) / 64].load(Ordering::Acquire) & 1 << (device.0 % 64) != 0
    }

    /// A CPU thread is about to take `page`, which is in `state`, from devices. `may_pin`: whether it may be pinned at home.
    pub(crate) fn cpu_takes(&self, page: PageIndex, state: PageState, may_pin: bool) -> Verdict {
        let fights = match state {
            PageState::Device(device) => self.runs(device),
            _ => self.launches.load(Ordering::Acquire) > 0,
        };
        self.touch(Granule::of(page), Side::CPU, fights, may_pin)
    }

    /// `device` is about to take pages of `granule` from the CPU or another device, which is a fight if a kernel of its runs. `may_pin` as above.
    pub(crate) fn device_takes(&self, granule: Granule, device: DeviceNumber, may_pin: bool) -> Verdict {
        self.touch(granule, Side::device(device.0), self.runs(device), may_pin)
    }

    /// A page was evicted to make room.
    pub(crate) fn evicted(&self, page: PageIndex) {
        if self.is_on() {
            let now = self.now().as_micros() as u32;
            self.eviction(page).store(u64::from(page.0) << 32 | u64::from(now), Ordering::Release);
        }
    }

    /// A kernel of `device` asks for `page` again: if it was evicted just now, that is a bounce.
    pub(crate) fn refaulted(&self, page: PageIndex, device: DeviceNumber) {
        let word = self.eviction(page).load(Ordering::Acquire);
        if word >> 32 != u64::from(page.0) || word == 0 {
            return;
        }
        let now = self.now();
        let age = (now.as_micros() as u32).wrapping_sub(word as u32);
        if Duration::from_micros(age.into()) <= self.options.lapse {
            let granule = Granule::of(page);
            let side = Side::device(device.0);
            // It is spared by eviction for a while, and stays on the device: only fights with the CPU are settled at home.
            self.update(granule, |record| self.options.refault(record, side, now, false, granule.0));
        }
    }

    /// Whether eviction should take others before `granule`, which was refaulted of late.
    pub(crate) fn spares(&self, granule: Granule) -> bool {
        self.is_on() && self.options.spares(self.granule(granule), self.now(), granule.0)
    }

    /// The pages of `range` are not what they were: nothing is known of their granules, and nothing is pinned in them.
    pub(super) fn forget(&self, range: PageRange) {
        if !self.is_on() || range.is_empty() {
            return;
        }
        for granule in Granule::of(range.start).0..=Granule::of(PageIndex(range.end.0 - 1)).0 {
            let record = self.record(Granule(granule));
            // A load first: most granules were never fought over, and their records need no memory.
            if record.load(Ordering::Acquire) != 0 {
                record.store(0, Ordering::Release);
            }
        }
    }

    fn eviction(&self, page: PageIndex) -> &AtomicU64 {
        &self.evictions[page.index() % EVICTIONS]
    }

    /// A device joins. Granules are pinned only while all devices reach home pages.
    pub(crate) fn add_device(&self, reaches_home: bool) {
        self.reach_home.fetch_add(u32::from(reaches_home), Ordering::AcqRel);
        self.devices.fetch_add(1, Ordering::AcqRel);
    }

    /// A device leaves.
    pub(crate) fn remove_device(&self, reaches_home: bool) {
        self.devices.fetch_sub(1, Ordering::AcqRel);
        self.reach_home.fetch_sub(u32::from(reaches_home), Ordering::AcqRel);
    }

    fn can_pin(&self) -> bool {
        self.reach_home.load(Ordering::Acquire) == self.devices.load(Ordering::Acquire)
    }

    fn pin(&self, granule: Granule, record: GranuleRecord) {
        granule.pages().iter().for_each(|page| self.home.pages.pin_home(page, PinnedBy::Policy));
        Counters::add(&self.counters.pins, 1);
        let until = self.now() + self.options.pin_time(record, granule.0);
        let mut pinned = self.pinned.lock();
        pinned.push((until, granule));
        self.due.fetch_min(until.as_micros() as u64, Ordering::AcqRel);
    }

    /// The granules whose pins have ended, which are watched again from now on. Costs a load while none is pinned.
    pub(super) fn take_due_pins(&self) -> Vec<Granule> {
        if self.due.load(Ordering::Acquire) == u64::MAX {
            return Vec::new();
        }
        let now = self.now();
        if (now.as_micros() as u64) < self.due.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        let mut pinned = self.pinned.lock();
        pinned.retain(|&(until, granule)| {
            if until <= now {
                ended.push(granule);
            }
            until > now
        });
        let next = pinned.iter().map(|(until, _)| until.as_micros() as u64).min();
        self.due.store(next.unwrap_or(u64::MAX), Ordering::Release);
        drop(pinned);
        for &granule in &ended {
            self.update(granule, |record| Decision {
                record: self.options.unpin(record, now),
                verdict: Verdict::Go,
                bounced: false,
            });
        }
        ended
    }

    /// Whether the granule before or behind `granule` is pinned. Memory that is fought over lies together, whatever VMAs it is part of.
    fn has_pinned_neighbour(&self, granule: Granule) -> bool {
        let (before, behind) = (granule.0.checked_sub(1), Some(granule.0 + 1).filter(|&behind| behind < self.granules));
        [before, behind].into_iter().flatten().any(|granule| self.granule(Granule(granule)).is_pinned())
    }

    /// Whether CPU and devices fight over `granule`, or over one beside it that is pinned.
    pub(crate) fn is_contested(&self, granule: Granule) -> bool {
        self.is_on() && (self.granule(granule).is_contested() || self.has_pinned_neighbour(granule))
    }

    fn touch(&self, granule: Granule, side: Side, fights: bool, may_pin: bool) -> Verdict {
        if !self.is_on() {
            return Verdict::Go;
        }
        let now = self.now();
        let since = Duration::from_micros(self.since.load(Ordering::Acquire));
        self.update(granule, |record| {
            if fights && record.age(now) <= now.saturating_sub(since) {
                let near = self.has_pinned_neighbour(granule);
                self.options.touch(record, side, now, may_pin && self.can_pin(), near, granule.0)
            } else {
                let record = self.options.hand_over(record, side, now);
                Decision { record, verdict: Verdict::Go, bounced: false }
            }
        })
    }

    fn update(&self, granule: Granule, decide: impl Fn(GranuleRecord) -> Decision) -> Verdict {
        let word = self.record(granule);
        let mut old = word.load(Ordering::Acquire);
        let decision = loop {
            let decision = decide(GranuleRecord::unpack(old));
            let new = decision.record.pack();
            if new == old {
                break decision;
            }
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break decision,
                Err(now) => old = now,
            }
        };
        Counters::add(&self.counters.bounces, u64::from(decision.bounced));
        match decision.verdict {
            Verdict::Go => {}
            // Whoever asks again finds itself next, and changes nothing.
            Verdict::Wait(_) => Counters::add(&self.counters.throttles, u64::from(decision.record.pack() != old)),
            Verdict::Pin => self.pin(granule, decision.record),
        }
        decision.verdict
    }
}

impl Drop for ThrashWatch {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; nothing borrows from it any more. Failure would leak, no more.
        let _ = unsafe {
            rustix::mm::munmap(self.records.as_ptr().cast(), self.granules as usize * size_of::<AtomicU64>())
        };
    }
}
