//! One device's view of the address space: its page table, its frames, and how it lets go of pages.
//!
//! # Locks
//!
//! - The *gate* is held while a dispatch is in flight, and by whoever takes translations away. So in replay mode a
//!   shootdown is simply taking the gate: no invocation runs, none can use an entry that is taken, and none can set an
//!   accessed or dirty bit after it was collected (I8).
//! - In live mode the gate is open while a dispatch is in flight, and a shootdown waits until the epoch has changed for every unit
//!   that runs (`epochs.rs`); what kernels set meanwhile is collected after it. Invalidations and evictions hold neither gate nor update lock
//!   while they wait (`taking.rs`), so that several share a grace period.
//! - The *update lock* guards page table and frame pool. An entry's frame and permission change only under it, by someone who
//!   also holds the page's lock; callbacks run for someone who holds it.

use super::budget::Budget;
use super::epochs::Epochs;
use super::fills::Filled;
use super::flying::Flying;
use super::guesses::Guesses;
use super::taking::{Lists, Locks};
use super::windows::Windows;
use crate::addr::{Access, DeviceAddress, PAGE_SHIFT, PAGE_SIZE, PageIndex, PageRange};
use crate::device::layout::pte;
use crate::device::{Device, DeviceError, FramePool, PageCopy, PageTable, SharedMemory, SharedUse, frame_of};
use crate::hmm::{Blocking, Event, InvalidateInfo, MirrorOps, OwnerId, PageEntry, PageWalk, Walked, WouldBlock};
use crate::mm::pages::DeviceNumber;
use crate::mm::space::Home;
use crate::mm::state::{LetGo, let_go};
use crate::observe::Counters;
use crate::rank::{Rank, RankedMutex, RankedMutexGuard};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// What the update lock guards.
pub(super) struct MirrorState {
    pub(super) table: PageTable,
    pub(super) frames: FramePool,
    pub(super) windows: Windows,
    /// Kept between calls, so that taking pages away allocates nothing.
    pub(super) lists: Lists,
    /// Of what is copied home, what goes to pages that have memory.
    filled: CopyList,
    /// Pages whose newest contents went down with the device.
    lost: Vec<PageIndex>,
}

/// Pages whose newest contents were only on a device that is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostPages(pub Vec<PageRange>);

/// A device's mirror of an address space. Linux: `struct hmm_mirror`.
pub struct DeviceMirror {
    pub(super) device: Arc<dyn Device>,
    pub(super) home: Arc<Home>,
    pub(super) counters: Arc<Counters>,
    number: DeviceNumber,
    owner: OwnerId,
    pub(super) gate: RankedMutex<()>,
    update: RankedMutex<MirrorState>,
    pub(super) budget: Mutex<Budget>,
    pub(super) resized: AtomicU64,
    /// Pages that dispatches used, one list each, where that is asked for. A leaf.
    pub(crate) trace: Mutex<Vec<Vec<PageIndex>>>,
    zeros: Box<dyn SharedMemory>,
    pub(super) guesses: Guesses,
    pub(super) filled: Filled,
    pub(super) epochs: Epochs,
    pub(super) flying: Flying,
}

/// Where a device finds a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    /// In this frame.
    Frame(DeviceAddress),
    /// Nobody ever wrote it: it reads as zeros.
    Zero,
    /// At home, here in the alias.
    Home(*mut u8),
}

/// The gate, held: no dispatch starts, none is in flight.
pub type GateGuard<'a> = RankedMutexGuard<'a, ()>;

impl DeviceMirror {
    /// A mirror with an empty page table and at most `frame_limit` frames.
    pub fn new(
        device: Arc<dyn Device>,
        home: Arc<Home>,
        counters: Arc<Counters>,
        number: DeviceNumber,
        frame_limit: u32,
    ) -> Result<Self, DeviceError> {
        let zeros = device.shared_memory(2 * PAGE_SIZE, SharedUse::HostWrites)?;
        let epochs = Epochs::new(device.as_ref())?;
        let table = PageTable::new(device.as_ref(), home.views.grown().next_power_of_two().max(1024))?;
        Ok(Self {
            device,
            home,
            counters,
            number,
            owner: OwnerId::unique(),
            gate: RankedMutex::new(Rank::DeviceGate, ()),
            update: RankedMutex::new(
                Rank::MirrorUpdate,
                MirrorState {
                    table,
                    frames: FramePool::new(frame_limit),
                    windows: Windows::default(),
                    lists: Lists::default(),
                    filled: CopyList::default(),
                    lost: Vec::new(),
                },
            ),
            budget: Budget::new(frame_limit),
            resized: AtomicU64::new(0),
            trace: Mutex::default(),
            zeros,
            guesses: Guesses::default(),
            filled: Filled::default(),
            epochs,
            flying: Flying::new(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The device's number in page states.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Whom invalidations name that this mirror causes.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// A page-aligned run of zeros.
    pub fn zero_frame(&self) -> DeviceAddress {
        DeviceAddress(self.zeros.address().0.next_multiple_of(PAGE_SIZE as u64))
    }

    /// The device's control block and the epochs in it.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Opens live mode for a dispatch about to start: from here on shootdowns go by epochs.
    pub(crate) fn begin_live(&self) {
        let _state = self.update.lock();
        self.epochs.begin();
    }

    /// The live dispatch has ended.
    pub(crate) fn end_live(&self) {
        let _state = self.update.lock();
        self.epochs.end();
    }

    /// Waits until no dispatch of replay mode is in flight and keeps others from starting.
    pub fn close_gate(&self) -> GateGuard<'_> {
        self.gate.lock()
    }

    pub(super) fn lock(&self) -> RankedMutexGuard<'_, MirrorState> {
        self.update.lock()
    }

    /// The page table's address and entries, grown to cover all of the heap that is in use. The gate is held: no
    /// kernel walks the old table.
    pub fn table(&self, _gate: &GateGuard<'_>) -> Result<(DeviceAddress, u32), DeviceError> {
        let mut state = self.update.lock();
        let wanted = self.home.views.grown();
        if state.table.pages() < wanted {
            let table = PageTable::new(self.device.as_ref(), wanted.next_power_of_two())?;
            table.copy_from(&state.table);
            state.table = table;
        }
        Ok((state.table.address(), state.table.pages()))
    }

    /// The device address of `pages` if all of them are mapped for `access`, in frames of their own, one after the other. Holds
    /// while the gate is held.
    pub(crate) fn contiguous(&self, _gate: &GateGuard<'_>, pages: PageRange, access: Access) -> Option<DeviceAddress> {
        let state = self.update.lock();
        let want = wanted_flags(access);
        let start = frame_of(state.table.load(pages.start));
        let fits = pages.iter().zip((start.0..).step_by(PAGE_SIZE)).all(|(page, frame)| {
            let entry = state.table.load(page);
            entry & (want | pte::ZERO) == want && frame_of(entry).0 == frame
        });
        fits.then_some(start)
    }

    /// The longest run of pages in `within` around `at` that kernels need not translate: mapped for `access`, in contiguous frames, and
    /// marked already with what that access would set; and where it starts on the device. Holds while the gate is held.
    pub(crate) fn run_around(
        &self,
        _gate: &GateGuard<'_>,
        within: PageRange,
        at: PageIndex,
        access: Access,
    ) -> Option<(PageRange, DeviceAddress)> {
        let state = self.update.lock();
        let within = state.table.clip(within);
        let want = wanted_flags(access) | used_flags(access);
        let frame = |page: PageIndex| {
            let entry = within.contains(page).then(|| state.table.load(page))?;
            (entry & want == want).then(|| frame_of(entry).0)
        };
        let (mut range, mut start) = (PageRange::single(at), frame(at)?);
        let mut last = start;
        while let Some(before) = range.start.0.checked_sub(1).map(PageIndex)
            && frame(before) == Some(start - PAGE_SIZE as u64)
        {
            (range.start, start) = (before, start - PAGE_SIZE as u64);
        }
        while frame(range.end) == Some(last + PAGE_SIZE as u64) {
            (range.end, last) = (range.end.plus(1), last + PAGE_SIZE as u64);
        }
        Some((range, DeviceAddress(start)))
    }

    /// The longest run of pages in `within` that are mapped for `access` in contiguous frames, and, if it is to be `marked`, have the marks
    /// that such accesses set; and where it starts on the device. Holds while the gate is held.
    pub(crate) fn longest_run(
        &self,
        _gate: &GateGuard<'_>,
        within: PageRange,
        access: Access,
        marked: bool,
    ) -> Option<(PageRange, DeviceAddress)> {
        let state = self.update.lock();
        let want = wanted_flags(access) | if marked { used_flags(access) } else { 0 };
        let mut best: Option<(PageRange, DeviceAddress)> = None;
        let mut run: Option<(PageRange, DeviceAddress)> = None;
        for page in state.table.clip(within).iter() {
            let entry = state.table.load(page);
            let frame = frame_of(entry);
            run = match run {
                _ if entry & (want | pte::ZERO) != want => None,
                Some((pages, start)) if start.plus(pages.bytes() as u64) == frame => {
                    Some((PageRange::new(pages.start, page.plus(1)), start))
                }
                _ => Some((PageRange::single(page), frame)),
            };
            if run.map_or(0, |(pages, _)| pages.len()) > best.map_or(0, |(pages, _)| pages.len()) {
                best = run;
            }
        }
        best
    }

    /// Sets accessed, and dirty for writing, on pages that a dispatch uses without translating.
    pub(crate) fn mark_used(&self, _gate: &GateGuard<'_>, pages: PageRange, access: Access) {
        let state = self.update.lock();
        let used = used_flags(access);
        for page in pages.iter().filter(|&page| state.table.load(page) & used != used) {
            state.table.set_flags(page, used);
        }
    }

    /// Marks those of `pages` as used that are mapped for `access`, for a kernel that is expected to use them all.
    pub(crate) fn mark_mapped(&self, _gate: &GateGuard<'_>, pages: PageRange, access: Access) {
        let state = self.update.lock();
        let (want, used) = (wanted_flags(access), used_flags(access));
        for page in state.table.clip(pages).iter() {
            let entry = state.table.load(page);
            if entry & want == want && entry & used != used {
                state.table.set_flags(page, used);
            }
        }
    }

    /// Shows `each` where the device finds every page of `pages`, if all of them are mapped for `access`; false, and nothing done, if
    /// not. For a device that is driven page by page; see [`mark_used`](Self::mark_used).
    pub(crate) fn visit<E>(
        &self,
        _gate: &GateGuard<'_>,
        pages: PageRange,
        access: Access,
        mut each: impl FnMut(PageIndex, Found) -> Result<(), E>,
    ) -> Result<bool, E> {
        let state = self.update.lock();
        let want = wanted_flags(access);
        if pages.iter().any(|page| state.table.load(page) & want != want) {
            return Ok(false);
        }
        for page in pages.iter() {
            let entry = state.table.load(page);
            let found = match () {
                () if entry & pte::ZERO != 0 => Found::Zero,
                () if entry & pte::HOME != 0 => Found::Home(self.home.views.alias_ptr(page)),
                () => Found::Frame(frame_of(entry)),
            };
            each(page, found)?;
        }
        Ok(true)
    }

    /// The entries of `pages`, which the table covers; a snapshot.
    pub(crate) fn entries(&self, pages: PageRange) -> Vec<u64> {
        let state = self.update.lock();
        pages.iter().map(|page| state.table.load(page)).collect()
    }

    /// The pages of `pages` that are not mapped for `access`; a snapshot.
    pub(crate) fn missing(&self, pages: PageRange, access: Access) -> impl Iterator<Item = PageIndex> {
        let state = self.update.lock();
        let want = wanted_flags(access);
        pages.iter().filter(move |&page| state.table.load(page) & want != want)
    }

    /// How many of `pages` have frames, and how many of these were used since accessed bits were last collected.
    pub(crate) fn used(&self, pages: PageRange) -> (u32, u32) {
        let state = self.update.lock();
        let entries = state.table.clip(pages).iter().map(|page| state.table.load(page));
        let resident = entries.filter(|entry| entry & (pte::VALID | pte::ZERO) == pte::VALID);
        resident.fold((0, 0), |(all, used), entry| (all + 1, used + u32::from(entry & pte::ACCESSED != 0)))
    }

    /// Frames in use, taken and allowed.
    pub fn frames(&self) -> crate::device::FrameUse {
        self.update.lock().frames.usage()
    }

    /// Whether the device refused memory for frames that the limit would allow.
    pub(crate) fn is_refused(&self) -> bool {
        self.update.lock().frames.is_refused()
    }

    /// Bytes of the page table.
    pub fn table_bytes(&self) -> usize {
        self.update.lock().table.bytes()
    }

    /// Pages whose newest contents were lost with the device.
    pub fn lost(&self) -> LostPages {
        let mut pages = self.update.lock().lost.clone();
        pages.sort_unstable();
        pages.dedup();
        let mut ranges: Vec<PageRange> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end = page.plus(1),
                _ => ranges.push(PageRange::single(page)),
            }
        }
        LostPages(ranges)
    }

    /// Carries accessed and dirty bits over to the page's record (I4).
    pub(super) fn collect(&self, page: PageIndex, entry: u64) {
        self.home.pages.mark(page, entry & pte::ACCESSED != 0, entry & pte::DIRTY != 0);
        if entry & pte::ACCESSED != 0 {
            self.guesses.used(page);
            self.filled.used(page);
        }
    }

    /// Copies frames home, under the update lock.
    pub(super) fn copy_home(&self, state: &mut MirrorState, copies: &CopyList) {
        let mut filled = std::mem::take(&mut state.filled);
        // SAFETY: the frames are this mirror's, held under the update lock, and no kernel uses them any more. The pages are locked, so
        // nobody else writes them.
        unsafe {
            self.write_home(copies, &mut filled, |pages, outcome| {
                if let Err(error) = outcome {
                    tracing::error!(pages = pages.len(), "what the device wrote is lost: {error}");
                    state.lost.extend(pages);
                }
            });
        }
        state.filled = filled;
    }

    /// Copies frames home and says what became of which pages. Pages not known to have memory are written into the file, which gives it to
    /// them at less cost than faults through the alias. `filled` is room for a list.
    ///
    /// # Safety
    /// Until this returns nobody stores to the frames or uses them for anything else, and nobody else writes the home pages.
    pub(super) unsafe fn write_home(
        &self,
        copies: &CopyList,
        filled: &mut CopyList,
        mut done: impl FnMut(&[PageIndex], Result<(), String>),
    ) {
        if copies.copies.is_empty() {
            return;
        }
        let start = Instant::now();
        filled.clear();
        let mut came_home = |pages: &[PageIndex], outcome: Result<(), String>| {
            if outcome.is_ok() {
                Counters::add(&self.counters.pages_out, pages.len() as u64);
                pages.iter().for_each(|&page| self.home.pages.set_filled(page));
            }
            done(pages, outcome);
        };
        let mut covered = copies.pages.as_slice();
        for copy in &copies.copies {
            let (pages, rest) = covered.split_at(copy.bytes / PAGE_SIZE);
            covered = rest;
            let fresh = !pages.iter().all(|&page| self.home.pages.is_filled(page));
            let Some(frames) = fresh.then(|| self.device.host_frames(copy.device, copy.bytes)).flatten() else {
                filled.copies.push(*copy);
                filled.pages.extend(pages);
                continue;
            };
            let run = PageRange::of_len(pages[0], pages.len() as u32);
            // SAFETY: the caller's contract.
            let written = unsafe { self.home.views.write(run, frames.as_ptr()) };
            match written {
                Ok(()) => came_home(pages, Ok(())),
                // Another way is through the alias, once the pages have memory: without, touching them there is a SIGBUS.
                Err(_) if self.home.views.allocate(run).is_ok() => {
                    filled.copies.push(*copy);
                    filled.pages.extend(pages);
                }
                Err(error) => came_home(pages, Err(error.to_string())),
            }
        }
        // SAFETY: the caller's contract; the alias is always writable.
        let copied = unsafe { self.device.copy_out(&filled.copies) };
        came_home(&filled.pages, copied.map_err(|error| error.to_string()));
        Counters::add_time(&self.counters.copy_nanos, start.elapsed());
    }
}

impl MirrorOps for DeviceMirror {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        let mut locks = match info.blocking {
            Blocking::Yes => self.lock_for(info.pages),
            Blocking::No => {
                let gate = self.gate.try_lock().ok_or(WouldBlock)?;
                Locks { state: self.update.try_lock().ok_or(WouldBlock)?, _gate: Some(gate) }
            }
        };
        if info.blocking == Blocking::No && (self.epochs.running() || self.flying.overlaps(info.pages)) {
            // A shootdown waits for kernels that run.
            return Err(WouldBlock);
        }
        let what = let_go(info.event);
        let lists = match what {
            LetGo::Downgrade => self.begin_downgrade(&mut locks.state, info.pages),
            LetGo::BringHome | LetGo::Drop => {
                let pages = locks.state.table.clip(info.pages).iter();
                self.begin_taking(&mut locks.state, pages)
            }
        };
        // The flight ends first, the lock still held.
        let (mut locks, _flight) = self.shoot_down(locks, &lists, Some(info.pages), what == LetGo::Drop);
        let state = &mut locks.state;
        match what {
            LetGo::Downgrade => self.end_downgrade(state, lists),
            LetGo::BringHome => self.end_taking(state, lists, true),
            LetGo::Drop => self.end_taking(state, lists, false),
        }
        if info.event == Event::Unmap {
            state.frames.forget(info.pages);
        }
        if what == LetGo::Drop {
            self.forget_home(state, info.pages);
        }
        Ok(())
    }

    fn release(&self) {
        let _gate = self.gate.lock();
        let mut state = self.update.lock();
        let all = PageRange::of_len(PageIndex(0), state.table.pages());
        self.take_away(&mut state, all, true);
        state.windows.close();
    }
}

/// What an entry must have for an access.
/// The flags that a kernel sets for an access.
fn used_flags(access: Access) -> u64 {
    if access == Access::Write { pte::ACCESSED | pte::DIRTY } else { pte::ACCESSED }
}

fn wanted_flags(access: Access) -> u64 {
    if access == Access::Write { pte::VALID | pte::WRITABLE } else { pte::VALID }
}

/// What this device has mapped: frames instead of home pages, so that a leaf's order says how far they are contiguous.
impl PageWalk for DeviceMirror {
    fn extent(&self) -> PageRange {
        PageRange::of_len(PageIndex(0), self.update.lock().table.pages())
    }

    fn walk(&self, pages: PageRange, each: &mut dyn FnMut(Walked)) {
        let state = self.update.lock();
        for page in pages.iter() {
            let entry = state.table.load(page);
            let flag = |flag| entry & flag != 0;
            let what = PageEntry {
                valid: flag(pte::VALID),
                write: flag(pte::WRITABLE),
                accessed: flag(pte::ACCESSED),
                dirty: flag(pte::DIRTY),
                ..PageEntry::default()
            };
            // The zero frame stands for many pages and is no part of a leaf.
            let group = if flag(pte::ZERO) { u64::from(page.0) + 1 } else { 0 };
            each(Walked { entry: what, place: frame_of(entry).0 >> PAGE_SHIFT, group });
        }
    }
}

/// Copies with neighbours on both sides merged, and the pages they cover, in the same order.
#[derive(Default)]
pub(super) struct CopyList {
    pub(super) copies: Vec<PageCopy>,
    pub(super) pages: Vec<PageIndex>,
}

impl CopyList {
    /// Adds a page at `host` and in the frame at `device`.
    pub(super) fn push(&mut self, page: PageIndex, host: *mut u8, device: DeviceAddress, frames: &FramePool) {
        self.pages.push(page);
        match self.copies.last_mut() {
            Some(last)
                if last.host.wrapping_add(last.bytes) == host
                    && last.device.plus(last.bytes as u64) == device
                    && !frames.starts_slab(device) =>
            {
                last.bytes += PAGE_SIZE;
            }
            _ => self.copies.push(PageCopy { host, device, bytes: PAGE_SIZE }),
        }
    }

    /// Adds the page of an entry, to be copied home.
    pub(super) fn add_home(&mut self, mirror: &DeviceMirror, state: &MirrorState, page: PageIndex, entry: u64) {
        self.push(page, mirror.home.views.alias_ptr(page), frame_of(entry), &state.frames);
    }

    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.pages.clear();
    }
}
