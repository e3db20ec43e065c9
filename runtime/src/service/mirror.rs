//! One device's view of the address space: its page table, its frames, and how it lets go of pages.
//!
//! # Locks
//!
//! - The *gate* is held while a dispatch is in flight, and by whoever takes translations away. So in replay mode a
//!   shootdown is simply taking the gate: no invocation runs, none can use an entry that is taken, and none can set an
//!   accessed or dirty bit after it was collected (I8).
//! - In live mode the gate is open while a dispatch is in flight, and a shootdown waits until the epoch has changed for every unit
//!   that runs (`epochs.rs`); what kernels set meanwhile is collected after it. An invalidation holds neither gate nor update lock
//!   while it waits (`flying.rs`), so that several share a grace period.
//! - The *update lock* guards page table and frame pool. An entry's frame and permission change only under it, by someone who
//!   also holds the page's lock; callbacks run for someone who holds it.

use super::budget::Budget;
use super::epochs::{Epochs, Wait};
use super::fills::Filled;
use super::flying::{Flight, Flying};
use super::guesses::Guesses;
use super::windows::Windows;
use crate::addr::{Access, DeviceAddress, FrameIndex, PAGE_SHIFT, PAGE_SIZE, PageIndex, PageRange};
use crate::device::layout::pte;
use crate::device::{Device, DeviceError, FramePool, PageCopy, PageTable, SharedMemory, SharedUse, frame_of};
use crate::hmm::{Blocking, Event, InvalidateInfo, MirrorOps, OwnerId, PageEntry, PageWalk, Walked, WouldBlock};
use crate::mm::pages::{DeviceNumber, PageState};
use crate::mm::space::Home;
use crate::mm::state::{LetGo, comes_home, evicted, let_go};
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
    lists: Lists,
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
    gate: RankedMutex<()>,
    update: RankedMutex<MirrorState>,
    pub(super) budget: Mutex<Budget>,
    pub(super) resized: AtomicU64,
    /// Pages that dispatches used, one list each, where that is asked for. A leaf.
    pub(crate) trace: Mutex<Vec<Vec<PageIndex>>>,
    zeros: Box<dyn SharedMemory>,
    pub(super) guesses: Guesses,
    pub(super) filled: Filled,
    pub(super) epochs: Epochs,
    flying: Flying,
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

    /// Takes this device's translations of `range` away, brings home what is dirty if `bring_home`, and gives the frames
    /// back. Gate and update lock are held; so are the page locks, by the caller or by whom the caller works for.
    pub(super) fn take_away(&self, state: &mut MirrorState, range: PageRange, bring_home: bool) {
        let pages = state.table.clip(range).iter();
        self.take_pages(state, pages, bring_home);
    }

    /// As [`take_away`](Self::take_away), for pages of the table anywhere. Ascending ones are copied together.
    pub(super) fn take_pages(&self, state: &mut MirrorState, pages: impl Iterator<Item = PageIndex>, bring_home: bool) {
        let lists = self.begin_taking(state, pages);
        self.shootdown(&lists);
        self.end_taking(state, lists, bring_home);
    }

    /// The first half of [`take_pages`](Self::take_pages): no kernel finds a translation from here on, but some may be using one.
    fn begin_taking(&self, state: &mut MirrorState, pages: impl Iterator<Item = PageIndex>) -> Lists {
        let mut lists = std::mem::take(&mut state.lists);
        lists.clear();
        for page in pages {
            let entry = state.table.load(page);
            if entry & pte::VALID == 0 {
                if entry & pte::PENDING != 0 {
                    state.table.take(page);
                }
                continue;
            }
            lists.taken.push((page, state.table.take(page)));
        }
        lists
    }

    /// The other half, after the shootdown: what was dirty comes home, frames are given back.
    fn end_taking(&self, state: &mut MirrorState, mut lists: Lists, bring_home: bool) {
        for &(page, entry) in &lists.taken {
            // Set by kernels between the taking and the end of the shootdown (I8).
            let late = state.table.clear_flags(page, pte::ACCESSED | pte::DIRTY) & (pte::ACCESSED | pte::DIRTY);
            let entry = entry | late;
            self.collect(page, entry);
            if entry & pte::ZERO != 0 {
                continue;
            }
            if comes_home(entry) && bring_home {
                lists.home.add_home(self, state, page, entry);
            }
            if entry & pte::HOME == 0 {
                lists.frames.extend(state.frames.at(frame_of(entry)));
            }
        }
        self.copy_home(state, &lists.home);
        for &frame in &lists.frames {
            state.frames.release(frame);
        }
        state.lists = lists;
    }

    /// Makes this device's translations of `range` read-only; frames stay. What is dirty stays so until
    /// [`end_downgrade`](Self::end_downgrade). Locks as for `take_away`.
    fn begin_downgrade(&self, state: &mut MirrorState, range: PageRange) -> Lists {
        let mut lists = std::mem::take(&mut state.lists);
        lists.clear();
        for page in state.table.clip(range).iter() {
            if state.table.load(page) & pte::WRITABLE != 0 {
                lists.taken.push((page, state.table.clear_flags(page, pte::WRITABLE)));
            }
        }
        lists
    }

    /// The other half, after the shootdown: what is dirty comes home. Who took a page away in between has done that.
    fn end_downgrade(&self, state: &mut MirrorState, mut lists: Lists) {
        for &(page, before) in &lists.taken {
            let entry = state.table.load(page);
            if entry & pte::VALID == 0 || frame_of(entry) != frame_of(before) {
                continue;
            }
            let entry = state.table.clear_flags(page, pte::DIRTY | pte::ACCESSED);
            self.collect(page, entry);
            if comes_home(entry) {
                lists.home.add_home(self, state, page, entry);
            }
        }
        self.copy_home(state, &lists.home);
        state.lists = lists;
    }

    /// Waits until no running kernel uses translations that were taken.
    fn shootdown(&self, lists: &Lists) {
        if lists.taken.is_empty() {
            return;
        }
        let start = Instant::now();
        let wait = self.epochs.shootdown(self.device.as_ref());
        if wait != Wait::None {
            Counters::add(&self.counters.shootdowns, 1);
            Counters::add(&self.counters.epochs, u64::from(wait == Wait::Ran));
            Counters::add_time(&self.counters.shootdown_nanos, start.elapsed());
        }
    }

    /// Gate and update lock, once no other invalidation has taken, and not brought home, pages that overlap `pages`.
    fn lock_for(&self, pages: PageRange) -> (GateGuard<'_>, RankedMutexGuard<'_, MirrorState>) {
        loop {
            let locks = (self.gate.lock(), self.update.lock());
            if !self.flying.overlaps(pages) {
                return locks;
            }
            drop(locks);
            self.flying.wait_for(pages);
        }
    }

    /// The locks, after a shootdown of what `lists` holds. While a kernel runs others may take pages away meanwhile, so that they share the
    /// grace period. The gate stays open then, unless more than those pages is to be taken away (`closed`): the live pass may have ended while
    /// this waited, and a dispatch of replay mode have begun, which goes by the gate alone.
    fn shoot_down<'m>(
        &'m self,
        (gate, state): (GateGuard<'m>, RankedMutexGuard<'m, MirrorState>),
        lists: &Lists,
        pages: PageRange,
        closed: bool,
    ) -> (Option<GateGuard<'m>>, RankedMutexGuard<'m, MirrorState>, Option<Flight<'m>>) {
        if lists.taken.is_empty() || !self.epochs.running() {
            return (Some(gate), state, None);
        }
        let flight = self.flying.begin(pages);
        drop((state, gate));
        self.shootdown(lists);
        // No live pass holds it, so this waits for dispatches of replay mode only.
        let gate = closed.then(|| self.gate.lock());
        (gate, self.update.lock(), Some(flight))
    }

    /// Carries accessed and dirty bits over to the page's record (I4).
    pub(super) fn collect(&self, page: PageIndex, entry: u64) {
        self.home.pages.mark(page, entry & pte::ACCESSED != 0, entry & pte::DIRTY != 0);
        if entry & pte::ACCESSED != 0 {
            self.guesses.used(page);
            self.filled.used(page);
        }
    }

    /// Copies frames home. Pages not known to have memory are written into the file, which gives it to them at less cost than faults
    /// through the alias.
    pub(super) fn copy_home(&self, state: &mut MirrorState, copies: &CopyList) {
        if copies.copies.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut filled = std::mem::take(&mut state.filled);
        filled.clear();
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
            // SAFETY: the frames are this mirror's, held under the update lock, and no kernel uses them any more. The pages are locked, so
            // nobody else writes them.
            let written = unsafe { self.home.views.write(run, frames.as_ptr()) };
            match written {
                Ok(()) => self.came_home(state, pages, Ok(())),
                // Another way is through the alias, once the pages have memory: without, touching them there is a SIGBUS.
                Err(_) if self.home.views.allocate(run).is_ok() => {
                    filled.copies.push(*copy);
                    filled.pages.extend(pages);
                }
                Err(error) => self.came_home(state, pages, Err(error.to_string())),
            }
        }
        // SAFETY: as above; the alias is always writable.
        let copied = unsafe { self.device.copy_out(&filled.copies) };
        self.came_home(state, &filled.pages, copied.map_err(|error| error.to_string()));
        state.filled = filled;
        Counters::add_time(&self.counters.copy_nanos, start.elapsed());
    }

    fn came_home(&self, state: &mut MirrorState, pages: &[PageIndex], outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                Counters::add(&self.counters.pages_out, pages.len() as u64);
                pages.iter().for_each(|&page| self.home.pages.set_filled(page));
            }
            Err(error) => {
                tracing::error!(pages = pages.len(), "what the device wrote is lost: {error}");
                state.lost.extend(pages);
            }
        }
    }

    /// Brings everything home: dirty pages are copied, all states go back to the CPU. For shutting down.
    pub fn bring_all_home(&self) {
        let mut pages: Vec<PageIndex> = {
            let state = self.update.lock();
            state.frames.pages().collect()
        };
        pages.sort_unstable();
        for page in pages {
            let _page = self.home.pages.lock(PageRange::single(page));
            // What an invalidation has taken, and not brought home yet, is in its frame only.
            let (_gate, mut state) = self.lock_for(PageRange::single(page));
            self.take_away(&mut state, PageRange::single(page), true);
            let becomes = evicted(self.home.pages.state(page), PageState::Device(self.number));
            self.home.pages.set_state(page, becomes);
        }
    }
}

impl MirrorOps for DeviceMirror {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        let locks = match info.blocking {
            Blocking::Yes => self.lock_for(info.pages),
            Blocking::No => (self.gate.try_lock().ok_or(WouldBlock)?, self.update.try_lock().ok_or(WouldBlock)?),
        };
        if info.blocking == Blocking::No && (self.epochs.running() || self.flying.overlaps(info.pages)) {
            // A shootdown waits for kernels that run.
            return Err(WouldBlock);
        }
        let what = let_go(info.event);
        let (gate, mut state) = locks;
        let lists = match what {
            LetGo::Downgrade => self.begin_downgrade(&mut state, info.pages),
            LetGo::BringHome | LetGo::Drop => {
                let pages = state.table.clip(info.pages).iter();
                self.begin_taking(&mut state, pages)
            }
        };
        // The flight ends first, the lock still held.
        let (_gate, mut state, _flight) = self.shoot_down((gate, state), &lists, info.pages, what == LetGo::Drop);
        match what {
            LetGo::Downgrade => self.end_downgrade(&mut state, lists),
            LetGo::BringHome => self.end_taking(&mut state, lists, true),
            LetGo::Drop => self.end_taking(&mut state, lists, false),
        }
        if info.event == Event::Unmap {
            state.frames.forget(info.pages);
        }
        if what == LetGo::Drop {
            self.forget_home(&mut state, info.pages);
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

/// What taking pages away goes through.
#[derive(Default)]
struct Lists {
    taken: Vec<(PageIndex, u64)>,
    home: CopyList,
    frames: Vec<FrameIndex>,
}

impl Lists {
    fn clear(&mut self) {
        self.taken.clear();
        self.home.clear();
        self.frames.clear();
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
