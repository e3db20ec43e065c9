//! The address space: VMAs, page states, and the one way in for CPU touches.
//!
//! A page's state changes in few places, each holding the page's lock: here, on a CPU fault, unmap or discard; in
//! `service`, when a device needs the page; in `service/evict.rs`, when a frame is needed. Everyone who takes something
//! away from devices does it inside a notifier bracket ([`Notifiers::invalidate`]).
//!
//! | CPU touches | in state | bracket | becomes | CPU mapping |
//! |---|---|---|---|---|
//! | read or write | `Cpu` | none | `Cpu` | read-write |
//! | read | `Shared` | none | `Shared` | read-only |
//! | write | `Shared` | `Migrate` | `Cpu` | read-write |
//! | read | `Device` | `ProtectionPage` (dirty data comes home, the frame stays readable) | `Shared` | read-only |
//! | write | `Device` | `Migrate` (dirty data comes home, the frame goes) | `Cpu` | read-write |
//! | read or write | `Remote` | none | `Remote` | read-write |
//!
//! The mapping is changed only after the bracket has started, and before it ends: what the device wrote is at home before the
//! CPU can read it (I3), and no device entry to a copy is left when the CPU may write (I2).

use super::background::Background;
use super::heap::{HeapError, PageSource};
use super::lacking::Lacking;
use super::pages::{DeviceNumber, PageInfo, PageRecords, PageState, PagesGuard, PinnedBy};
use super::state::{self, Touch};
use super::thrash::ThrashWatch;
use super::views::OwnedViews;
use super::vma::{Permission, VmaAttributes, VmaMap};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange, VirtAddr};
use crate::hmm::{Blocking, Clock, Event, InvalidateError, Notifiers};
use crate::observe::Counters;
use crate::policy::thrash::Verdict;
use crate::policy::{MAX_WINDOW, Readahead, ThrashOptions, may_pin};
use crate::rank::{Rank, RankedMutex, RankedRwLock};
use crate::track::{CpuFault, FaultHandler, FaultOutcome, ForeignChange, Protection, TrackError, Tracker};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The home side of memory: the two views and the page records. Shared by the address space and by mirrors, so that a
/// mirror can bring pages home without knowing the address space.
/// Linux: the page cache behind a shared mapping.
#[derive(Debug)]
pub struct Home {
    /// The memory.
    pub views: OwnedViews,
    /// What is known of each page.
    pub pages: PageRecords,
}

/// A CPU process's side of shared virtual memory. Linux: `struct mm_struct`.
pub struct AddressSpace {
    home: Arc<Home>,
    tracker: Arc<dyn Tracker>,
    notifiers: Arc<Notifiers>,
    vmas: RankedRwLock<VmaMap>,
    counters: Arc<Counters>,
    /// How far CPU faults look ahead.
    readahead: Readahead,
    /// Who fights over which granules.
    thrash: ThrashWatch,
    background: Background,
    /// Held by who protects pages whose locks it does not hold, until they are: what is noted of a page must not be another's, and older.
    guards: RankedMutex<()>,
    /// CPU stores to pages that were protected although no device wanted them.
    needless: AtomicU64,
    /// Threads of devices' drivers, by kernel id.
    driver_threads: RwLock<Vec<u32>>,
    /// Numbers of devices that are in use, one bit each.
    devices: Mutex<[u64; 4]>,
    /// Taken before everything else by whoever handles a CPU fault; see [`AddressSpace::hold_cpu_faults`].
    cpu_faults: RwLock<()>,
    /// Opened to a driver's thread without regard to their state.
    trespassed: Mutex<Vec<PageRange>>,
    /// Pages on which an access was refused. A leaf.
    refused: Mutex<BTreeSet<PageIndex>>,
    lacking: Lacking,
}

/// A CPU fault that could not be resolved.
#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error(transparent)]
    Device(#[from] InvalidateError),
    #[error(transparent)]
    Track(#[from] TrackError),
}

impl Unresolved {
    fn would_block(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_would_block())
    }

    /// Whether something was lacking that may be there later.
    fn may_pass(&self) -> bool {
        let Self::Track(TrackError { source, .. }) = self else { return false };
        matches!(
            source.kind(),
            ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::WouldBlock | ErrorKind::Interrupted
        )
    }
}

/// The longest that a CPU fault is put off before it is looked at again.
const ASK_AGAIN: Duration = Duration::from_micros(250);

/// Hands CPU faults to the address space, without keeping it alive.
struct CpuFaults(Weak<AddressSpace>);

impl FaultHandler for CpuFaults {
    fn cpu_fault(&self, fault: CpuFault) -> FaultOutcome {
        let outcome = self.0.upgrade().map(|space| space.cpu_fault(fault, Blocking::Yes));
        // Who may wait always decides.
        outcome.flatten().unwrap_or(FaultOutcome::Refused)
    }

    fn cpu_fault_at_once(&self, fault: CpuFault) -> Option<FaultOutcome> {
        self.0.upgrade().map_or(Some(FaultOutcome::Refused), |space| space.cpu_fault(fault, Blocking::No))
    }

    fn foreign_change(&self, change: ForeignChange) {
        if let Some(space) = self.0.upgrade() {
            space.follow(change);
        }
    }
}

impl AddressSpace {
    /// An address space over `views`, whose app view `tracker` watches, and whose granules `thrash` is for, going by `clock`. Starts the
    /// tracker.
    pub fn new(
        views: OwnedViews,
        tracker: Arc<dyn Tracker>,
        counters: Arc<Counters>,
        thrash: ThrashOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, TrackError> {
        let pages = views.pages();
        let no_room = |source| TrackError {
            operation: "reserving page records",
            pages: PageRange::of_len(PageIndex(0), pages),
            source,
            remedy: "Lower the heap's reservation or raise the limit of address space (ulimit -v)",
        };
        let records = PageRecords::new(pages).map_err(no_room)?;
        let home = Arc::new(Home { views, pages: records });
        let thrash = ThrashWatch::new(home.clone(), thrash, clock, counters.clone()).map_err(no_room)?;
        let space = Arc::new(Self {
            home,
            tracker: tracker.clone(),
            notifiers: Notifiers::new(),
            vmas: RankedRwLock::new(Rank::Mm, VmaMap::new(pages)),
            counters,
            readahead: Readahead::default(),
            thrash,
            background: Background::default(),
            guards: RankedMutex::new(Rank::Guards, ()),
            needless: AtomicU64::new(0),
            driver_threads: RwLock::new(Vec::new()),
            devices: Mutex::default(),
            cpu_faults: RwLock::new(()),
            trespassed: Mutex::new(Vec::new()),
            refused: Mutex::default(),
            lacking: Lacking::new(),
        });
        tracker.start(Arc::new(CpuFaults(Arc::downgrade(&space))))?;
        Ok(space)
    }

    /// Memory and page records.
    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Where mirrors subscribe.
    pub fn notifiers(&self) -> &Arc<Notifiers> {
        &self.notifiers
    }

    /// The VMAs, under the address space's lock.
    pub fn vmas(&self) -> &RankedRwLock<VmaMap> {
        &self.vmas
    }

    /// Who fights over which granules.
    pub fn thrash(&self) -> &ThrashWatch {
        &self.thrash
    }

    /// What catches CPU accesses.
    pub fn tracker(&self) -> &Arc<dyn Tracker> {
        &self.tracker
    }

    /// What is known of the page that `address` lies in; `None` outside the heap.
    pub fn page_info(&self, address: VirtAddr) -> Option<PageInfo> {
        self.home.views.page_of(address).map(|page| self.home.pages.info(page))
    }

    /// Says which threads belong to a device's driver; CPU faults of theirs are counted apart.
    pub(crate) fn add_driver_threads(&self, threads: &[u32]) {
        self.driver_threads.write().extend_from_slice(threads);
    }

    /// The driver is going away: the ids may come back as those of other threads.
    pub(crate) fn remove_driver_threads(&self, threads: &[u32]) {
        self.driver_threads.write().retain(|thread| !threads.contains(thread));
    }

    /// CPU faults of driver threads so far.
    pub(crate) fn driver_cpu_faults(&self) -> u64 {
        self.counters.driver_cpu_faults.load(Ordering::Relaxed)
    }

    /// A number for another device; none is left while 256 are in use.
    pub(crate) fn new_device(&self) -> Option<DeviceNumber> {
        let mut devices = self.devices.lock();
        let number = (0..=u8::MAX).find(|&number| devices[usize::from(number / 64)] >> (number % 64) & 1 == 0)?;
        devices[usize::from(number / 64)] |= 1 << (number % 64);
        Some(DeviceNumber(number))
    }

    /// The device is gone, its mirror unregistered: another may get its number. A page that still names it has its truth at home
    /// and no mapping on the CPU, which is right for any owner.
    pub(crate) fn retire_device(&self, DeviceNumber(number): DeviceNumber) {
        self.devices.lock()[usize::from(number / 64)] &= !(1 << (number % 64));
    }

    /// Takes every mapped page out of the app view, so that each is seen again when it is next touched. For
    /// finding kernels that do not translate.
    pub(crate) fn unmap_app_view(&self) -> Result<(), TrackError> {
        let vmas = self.vmas.read();
        for vma in vmas.iter() {
            let _pages = self.home.pages.lock(vma.range);
            self.tracker.watch(vma.range)?;
            self.tracker.unmap(vma.range)?;
        }
        Ok(())
    }

    /// Keeps CPU faults waiting until the guard is dropped, so that a device that loses every race for its pages gets one
    /// round for itself. Taken before the address space's lock; the holder must not touch the app view.
    pub(crate) fn hold_cpu_faults(&self) -> RwLockWriteGuard<'_, ()> {
        self.cpu_faults.write()
    }

    /// Nothing if it would have to wait and `blocking` forbids it; then nothing was decided.
    fn cpu_fault(self: &Arc<Self>, fault: CpuFault, blocking: Blocking) -> Option<FaultOutcome> {
        // Waits for nobody: the dispatch that the thread is part of may hold the gate that others wait for.
        if self.driver_threads.read().contains(&fault.thread) {
            Counters::add(&self.counters.cpu_faults, 1);
            Counters::add(&self.counters.driver_cpu_faults, 1);
            return Some(self.trespass(fault.page));
        }
        let waits = blocking == Blocking::Yes;
        let _touching = if waits { self.cpu_faults.read() } else { self.cpu_faults.try_read()? };
        let vmas = if waits { self.vmas.read() } else { self.vmas.try_read()? };
        let outcome = self.touch(&vmas, fault, blocking)?;
        Counters::add(&self.counters.cpu_faults, u64::from(!matches!(outcome, FaultOutcome::Later(_))));
        Some(outcome)
    }

    /// A fault under the address space's lock.
    fn touch(self: &Arc<Self>, vmas: &VmaMap, fault: CpuFault, blocking: Blocking) -> Option<FaultOutcome> {
        let Some(vma) = vmas.find(fault.page) else { return Some(self.refuse(fault.page)) };
        if fault.access == Access::Write && vma.permission() == Permission::ReadOnly {
            return Some(self.refuse(fault.page));
        }
        let state = self.home.pages.state(fault.page);
        if state::takes_away(state, fault.access)
            && let Verdict::Wait(time) = self.thrash.cpu_takes(fault.page, state, may_pin(vma.advice()))
        {
            // Asked again early, since the launch that it waits for may end before.
            return Some(FaultOutcome::Later(time.min(ASK_AGAIN)));
        }
        let unit = self.tracker.unit(fault.page);
        // In a unit of several pages a permitted store opens them all, or it would fault for ever; loads open none too far.
        let read_only = fault.access == Access::Read
            && vmas.find_overlapping(unit).any(|vma| vma.permission() == Permission::ReadOnly);
        let allowed = if read_only { Protection::ReadOnly } else { Protection::ReadWrite };
        let pages = &self.home.pages;
        let on_device = |page| matches!(pages.state(page), PageState::Device(_));
        let was_on_device = on_device(fault.page);
        let held = match blocking {
            Blocking::Yes => pages.lock(unit),
            Blocking::No => pages.try_lock_all(unit)?,
        };
        // A store takes pages away from devices, which those ahead may never need: only loads, and what no device has, go ahead.
        let copied = matches!(pages.state(fault.page), PageState::Shared | PageState::Device(_));
        let takes_away = fault.access == Access::Write && copied;
        // Somebody brought it home while this fault waited, and what lies ahead along with it.
        let overtaken = was_on_device && !on_device(fault.page);
        // What a device wrote is worth fetching while the program reads what came before.
        let background = fault.access == Access::Read && on_device(fault.page);
        let limit = vma.range.end.0.saturating_sub(fault.page.0);
        let window = self.readahead.window(fault.page, limit, background);
        let most = PageIndex(fault.page.0.saturating_add(window.pages));
        let random = vma.advice().is_random();
        let (span, ahead) = if takes_away || overtaken || random { (unit, None) } else { self.alike(unit, most) };
        let resolved = match self.resolve(span, fault.access, allowed, blocking) {
            // What lies ahead may not be watched at all.
            Err(error) if span != unit && !error.would_block() => self.resolve(unit, fault.access, allowed, blocking),
            resolved => resolved,
        };
        drop((ahead, held));
        if resolved.is_ok() && !random {
            self.readahead.went(window);
            if let Some(ahead) = window.ahead {
                self.background.fetch(self, ahead);
            }
        }
        match resolved {
            Ok(()) => {
                self.lacking.ended(fault.page);
                Some(FaultOutcome::Resolved)
            }
            Err(error) if error.would_block() => None,
            // An access cannot be told that memory is short: it waits a while for some, as it would in the kernel.
            Err(error) if error.may_pass() && self.lacking.puts_off(fault.page, Instant::now()) => {
                Some(FaultOutcome::Later(ASK_AGAIN))
            }
            Err(error) => {
                self.lacking.ended(fault.page);
                tracing::error!(page = fault.page.0, access = %fault.access, "CPU fault not resolved: {error}");
                Some(FaultOutcome::Refused)
            }
        }
    }

    /// Brings home, for reading, what of `range` a device holds, as far as it lies in one VMA and state from its start on.
    pub(super) fn fetch_ahead(&self, range: PageRange) {
        let _touching = self.cpu_faults.read();
        let vmas = self.vmas.read();
        let Some(vma) = vmas.find(range.start) else { return };
        let range = range.intersect(vma.range);
        let first = self.tracker.unit(range.start);
        // Coarse units reach beyond the range, and may hold pages of other VMAs.
        if first.len() > 1 {
            return;
        }
        let _first = self.home.pages.lock(first);
        if !matches!(self.home.pages.state(range.start), PageState::Device(_)) {
            return;
        }
        let (span, _ahead) = self.alike(first, range.end);
        if let Err(error) = self.resolve(span, Access::Read, Protection::ReadOnly, Blocking::Yes) {
            // Whoever touches the pages finds out.
            tracing::debug!(?range, "not read ahead: {error}");
        }
    }

    /// Has `errand` done on a thread of the address space.
    pub(crate) fn send(self: &Arc<Self>, errand: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.background.send(self, Box::new(errand));
    }

    /// Brings home what devices hold of the first part of `range` and opens it to the CPU. Returns what is left to do, and how many pages this
    /// did. Devices keep copies of what may only be read, or mostly is.
    pub(crate) fn fetch_back(
        &self,
        range: PageRange,
    ) -> Result<(PageRange, u64), Box<dyn std::error::Error + Send + Sync>> {
        let nothing = (PageRange::new(range.end, range.end), 0);
        let _touching = self.cpu_faults.read();
        let vmas = self.vmas.read();
        let pages = &self.home.pages;
        let Some(vma) = vmas.find_overlapping(range).next() else { return Ok(nothing) };
        let part = vma.range.intersect(range);
        let keep = vma.permission() == Permission::ReadOnly || vma.advice().is_read_mostly();
        let away = |state| matches!(state, PageState::Device(_)) || (state == PageState::Shared && !keep);
        let Some(first) = part.iter().find(|&page| away(pages.state(page))) else {
            return Ok((PageRange::new(part.end, range.end), 0));
        };
        let unit = self.tracker.unit(first);
        let mut span = unit;
        let state = pages.state(first);
        let alike = |page| pages.state(page) == state && self.tracker.unit(page).len() == 1;
        while unit.len() == 1 && span.end < part.end && span.len() < MAX_WINDOW && alike(span.end) {
            span.end = span.end.plus(1);
        }
        let _span = pages.lock(span);
        let read_only = vmas.find_overlapping(span).any(|vma| vma.permission() == Permission::ReadOnly);
        let (access, allowed) = match keep || read_only {
            true => (Access::Read, Protection::ReadOnly),
            false => (Access::Write, Protection::ReadWrite),
        };
        let brought = span.iter().filter(|&page| away(pages.state(page))).count() as u64;
        self.resolve(span, access, allowed, Blocking::Yes)?;
        Ok((PageRange::new(span.end.min(range.end), range.end), brought))
    }

    /// Lets a driver's thread, which runs a kernel that does not translate, go on without an invalidation: that would wait for the
    /// dispatch, and the dispatch for it. The launch fails, and [`expel_trespassers`](Self::expel_trespassers) closes the page again.
    fn trespass(&self, page: PageIndex) -> FaultOutcome {
        let unit = self.tracker.unit(page);
        self.trespassed.lock().push(unit);
        let opened = || {
            for page in unit.iter() {
                self.home.pages.opened(page);
            }
        };
        // Before as well: the page's lock is not held, and another device's service, which holds it, must not take the page for guarded still
        // when it no longer is. Whoever guards it in between serves a launch beside one that fails, and may copy what that one stores.
        opened();
        let mapped = self.tracker.map(unit, Protection::ReadWrite);
        opened();
        match mapped {
            Ok(()) => FaultOutcome::Resolved,
            Err(_) => FaultOutcome::Refused,
        }
    }

    /// Write-protects ascending `runs`, the locks of whose pages need not be held: the CPU loses the permission to store, which a fault
    /// gives back.
    pub(crate) fn guard(&self, runs: &[PageRange]) -> Result<(), TrackError> {
        let _one = self.guards.lock();
        let pages = &self.home.pages;
        runs.iter().for_each(|&run| pages.guard(run));
        self.tracker.write_protect_all(runs)?;
        runs.iter().for_each(|&run| pages.guarded(run));
        Ok(())
    }

    /// How often the CPU stored to a page that had been [guarded](Self::guard) and that no device had.
    pub(crate) fn needless_guards(&self) -> u64 {
        self.needless.load(Ordering::Relaxed)
    }

    /// Closes the pages that were opened to a driver's thread. No dispatch is in flight.
    pub(crate) fn expel_trespassers(&self) {
        for unit in std::mem::take(&mut *self.trespassed.lock()) {
            let _pages = self.home.pages.lock(unit);
            if let Err(error) = self.tracker.unmap(unit) {
                tracing::error!("pages stay open after an untranslated access: {error}");
            }
        }
    }

    /// `unit`, whose page locks are held, and what follows it up to `most` in the same state: what can be resolved in one go. Locks
    /// what follows, as far as nobody has it: nobody asked for it yet. Ends at a border of protection units, so that none is opened in part.
    fn alike(&self, unit: PageRange, most: PageIndex) -> (PageRange, Option<PagesGuard<'_>>) {
        if most <= unit.end {
            return (unit, None);
        }
        let pages = &self.home.pages;
        let state = pages.state(unit.start);
        let like = |page| pages.state(page) == state && self.tracker.unit(page).len() == 1;
        let ahead = pages.try_lock_while(PageRange::new(unit.end, most), like);
        (PageRange::new(unit.start, ahead.range().end), Some(ahead))
    }

    /// Makes home the truth of `page` for `access`, and gives it memory, as a CPU touch would but without one. The caller holds
    /// the address space's lock and has checked the permission.
    pub(super) fn bring_home(
        &self,
        page: PageIndex,
        access: Access,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let page = PageRange::single(page);
        let _page = self.home.pages.lock(page);
        self.home.views.allocate(page)?;
        // SAFETY: the alias is always readable, and the page has memory. Reading makes the kernel count it as data, which memory
        // that was allocated ahead does not.
        unsafe { self.home.views.alias_ptr(page.start).read_volatile() };
        let state = self.home.pages.state(page.start);
        let (event, becomes) = match (access, state) {
            (_, PageState::Cpu | PageState::Remote) | (Access::Read, PageState::Shared) => return Ok(()),
            (Access::Read, PageState::Device(_)) => (Event::ProtectionPage, PageState::Shared),
            (Access::Write, PageState::Shared | PageState::Device(_)) => (Event::Migrate, PageState::Cpu),
        };
        let bracket = self.notifiers.invalidate(page, event, None, Blocking::Yes)?;
        self.home.pages.set_state(page.start, becomes);
        drop(bracket);
        Ok(())
    }

    /// Ends the pins of granules whose time is up: devices let go of the home pages, and what they ask for next is placed as usual.
    /// For executors, between pieces of work and holding nothing.
    pub(crate) fn end_pins(&self) {
        for granule in self.thrash.take_due_pins() {
            let range = granule.pages();
            let _vmas = self.vmas.read();
            let pages = &self.home.pages;
            let _pages = pages.lock(range);
            range.iter().for_each(|page| pages.unpin_home(page, PinnedBy::Policy));
            Counters::add(&self.counters.unpins, 1);
            if range.iter().all(|page| pages.state(page) != PageState::Remote) {
                continue;
            }
            match self.notifiers.invalidate(range, Event::Migrate, None, Blocking::Yes) {
                Ok(bracket) => {
                    range.iter().for_each(|page| pages.set_state(page, PageState::Cpu));
                    drop(bracket);
                }
                Err(error) => tracing::warn!(?range, "a device keeps reaching pages at home: {error}"),
            }
        }
    }

    /// An access that no VMA allows: the thread gets its SIGSEGV.
    fn refuse(&self, page: PageIndex) -> FaultOutcome {
        self.refused.lock().insert(page);
        FaultOutcome::Refused
    }

    /// Lets accesses to `range` be reported again where one was refused: a tracker may keep a refused page shut. Called
    /// when `range` allows more than it did.
    pub(super) fn readmit(&self, range: PageRange) -> Result<(), TrackError> {
        let mut refused = self.refused.lock();
        while let Some(&page) = refused.range(range.start..range.end).next() {
            self.tracker.unmap(PageRange::single(page))?;
            refused.remove(&page);
        }
        Ok(())
    }

    /// Makes `unit`, whose page locks are held, accessible to the CPU, at most as `allowed`. See the table at the top.
    fn resolve(
        &self,
        unit: PageRange,
        access: Access,
        allowed: Protection,
        blocking: Blocking,
    ) -> Result<(), Unresolved> {
        let pages = &self.home.pages;
        let states = unit.iter().map(|page| pages.state(page));
        let touch = state::touch(states, access, allowed);
        let Touch { event, protection, .. } = touch;
        let bracket = event.map(|event| self.notifiers.invalidate(unit, event, None, blocking)).transpose()?;
        let mut untouched = true;
        for page in unit.iter() {
            let (old, new) = (pages.state(page), state::touched(pages.state(page), &touch));
            untouched &= old == PageState::Cpu;
            if old != new {
                pages.set_state(page, new);
            }
        }
        let mapped = self.tracker.map(unit, protection);
        if protection == Protection::ReadWrite {
            let guarded = unit.iter().filter(|&page| pages.opened(page)).count();
            if untouched && guarded > 0 && access == Access::Write {
                self.needless.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(bracket);
        Ok(mapped?)
    }

    /// Takes `range`, whose contents no longer matter, away from devices and gives its memory back.
    fn drop_contents(&self, range: PageRange, event: Event) {
        let _pages = self.home.pages.lock(range);
        let bracket =
            self.notifiers.is_subscribed().then(|| self.notifiers.invalidate(range, event, None, Blocking::Yes));
        if let Some(Err(error)) = &bracket {
            tracing::error!(?range, "a device keeps pages that are given back: {error}");
        }
        self.erase(range);
        drop(bracket);
    }

    /// Forgets the history of `range`, whose page locks are held, and gives its memory back: it reads as zeros.
    pub(super) fn erase(&self, range: PageRange) {
        let Home { views, pages } = &*self.home;
        range.iter().for_each(|page| pages.reset(page));
        self.thrash.forget(range);
        if let Err(error) = views.punch(range) {
            tracing::warn!("memory is not given back: {error}");
            // What is mapped there next must not see it all the same.
            for run in views.has_data(range) {
                // SAFETY: the alias is always writable; no device has the pages any more, and their locks are held.
                unsafe { views.alias_ptr(run.start).write_bytes(0, run.bytes()) };
            }
        }
    }
}

impl PageSource for AddressSpace {
    fn map(&self, pages: u32, align: u32) -> Result<PageIndex, HeapError> {
        let mut vmas = self.vmas.write();
        let in_use = u64::from(vmas.mapped_pages()) * PAGE_SIZE as u64;
        let range = match vmas.insert_lowest(pages, align, VmaAttributes::default()) {
            Ok(vma) => vma.range,
            Err(_) => {
                return Err(HeapError::Exhausted {
                    asked: u64::from(pages) * PAGE_SIZE as u64,
                    in_use,
                    limit: u64::from(self.home.views.pages()) * PAGE_SIZE as u64,
                });
            }
        };
        if let Err(error) = self.home.views.grow_to(range.end.0) {
            // Just inserted, so removing it cannot fail.
            let _ = vmas.remove(range);
            return Err(error.into());
        }
        if let Err(error) = self.readmit(range) {
            let _ = vmas.remove(range);
            return Err(HeapError::Tracking(error));
        }
        Ok(range.start)
    }

    fn unmap(&self, range: PageRange) {
        let mut vmas = self.vmas.write();
        if let Err(error) = vmas.remove(range) {
            tracing::error!("unmapping pages that are not mapped: {error}");
            return;
        }
        self.drop_contents(range, Event::Unmap);
    }

    fn discard(&self, range: PageRange) {
        let _vmas = self.vmas.read();
        self.drop_contents(range, Event::Clear);
    }

    fn addr_of(&self, page: PageIndex) -> VirtAddr {
        self.home.views.addr_of(page)
    }

    fn page_info(&self, address: VirtAddr) -> Option<PageInfo> {
        AddressSpace::page_info(self, address)
    }

    fn page_of(&self, address: VirtAddr) -> Option<PageIndex> {
        self.home.views.page_of(address)
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        if let Err(error) = self.notifiers.release() {
            tracing::error!("releasing mirrors: {error}");
        }
        self.tracker.stop();
    }
}
