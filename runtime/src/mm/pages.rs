//! Page records: one word for every page of the heap, with its state, its lock and what devices did to it.
//!
//! The lock bit serialises everything that changes a page's state, its CPU mapping or its page table entries:
//! CPU-fault handling, fault service, eviction, unmapping. Whoever takes several takes them by ascending page
//! (rank [`PageLock`](crate::rank::Rank::PageLock)); trying without waiting is allowed in any order. Waiters park on
//! the record's address, so a lock costs one bit. Who unlocks now and then hands the lock to the one who waits longest, so that
//! nobody who locks in a loop keeps others out. State changes only under the lock; accessed, dirty and the
//! fault count are atomic bits and may be set without it (I4: propagation never takes a page lock).

use crate::addr::{PageIndex, PageRange};
use crate::rank::{self, Held};
use parking_lot_core::{DEFAULT_PARK_TOKEN, DEFAULT_UNPARK_TOKEN, ParkResult, UnparkResult, UnparkToken};
use rustix::mm::{MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const STATE: u32 = 0b11;
const LOCKED: u32 = 1 << 2;
const WAITED_FOR: u32 = 1 << 3;
const ACCESSED: u32 = 1 << 4;
const DIRTY: u32 = 1 << 5;
const PINNED: u32 = 1 << 6;
const FILLED: u32 = 1 << 7;
const OWNER_SHIFT: u32 = 8;
const OWNER: u32 = 0xff << OWNER_SHIFT;
const PINNED_BY_POLICY: u32 = 1 << 16;
const GUARDING: u32 = 1 << 17;
const GUARDED: u32 = 1 << 18;
const FAULTS_SHIFT: u32 = 19;
const FAULTS_MAX: u32 = 0x1fff;
/// Says to a waiter that the lock is its own already.
const HANDED_OVER: UnparkToken = UnparkToken(1);

/// A device, numbered within its address space.
/// Linux: the `pgmap->owner` of device-private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber(pub u8);

/// Who holds the truth about a page, all mirrors together.
/// Linux: whether the page table holds a page, a read-only one, or a device-private entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The home page is the truth; the CPU may read and write, no device has a copy.
    Cpu,
    /// Home page and frames agree; the CPU and any device may read.
    Shared,
    /// One device may read and write its frame; the CPU may do neither.
    Device(DeviceNumber),
    /// The home page is the truth, CPU and devices read and write it where it is; no device has a copy.
    Remote,
}

/// What is known about a page.
/// Linux: flags of `struct page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// Who holds the truth.
    pub state: PageState,
    /// A device used the page; carried over when a translation was last taken away, or downgraded.
    pub accessed: bool,
    /// A device wrote the page; carried over likewise.
    pub dirty: bool,
    /// Device faults serviced on the page, up to 8,191.
    pub faults: u32,
    /// Devices that can are to map the home page itself; see [`PageRecords::pin_home`].
    pub pinned_home: bool,
}

/// Who pins a page at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedBy {
    /// The program, through [`AddressSpace::pin_home`](super::space::AddressSpace::pin_home).
    Program,
    /// The thrash policy, for a time.
    Policy,
}

impl PinnedBy {
    fn bit(self) -> u32 {
        match self {
            Self::Program => PINNED,
            Self::Policy => PINNED_BY_POLICY,
        }
    }
}

/// The records of all pages: anonymous memory that costs nothing until a page is used.
/// Linux: `struct page` and its lock.
#[derive(Debug)]
pub struct PageRecords {
    records: NonNull<AtomicU32>,
    pages: u32,
}

// SAFETY: the memory is plain atomics, owned by this structure until it is dropped.
unsafe impl Send for PageRecords {}
// SAFETY: as above.
unsafe impl Sync for PageRecords {}

impl PageRecords {
    /// Records for `pages` pages, all in state `Cpu`.
    pub fn new(pages: u32) -> std::io::Result<Self> {
        let bytes = pages as usize * size_of::<AtomicU32>();
        crate::scarce::ask("reserving page records", rustix::io::Errno::NOMEM)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let records = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let records = NonNull::new(records.cast()).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
        Ok(Self { records, pages })
    }

    fn record(&self, page: PageIndex) -> &AtomicU32 {
        assert!(page.0 < self.pages, "{page} is beyond the heap's {} pages", self.pages);
        // SAFETY: in bounds by the assertion; zeroed memory is a valid AtomicU32; lives as long as self.
        unsafe { self.records.add(page.index()).as_ref() }
    }

    /// What is known about a page; a snapshot, unless its lock is held.
    pub fn info(&self, page: PageIndex) -> PageInfo {
        let record = self.record(page).load(Ordering::Acquire);
        PageInfo {
            state: state_of(record),
            accessed: record & ACCESSED != 0,
            dirty: record & DIRTY != 0,
            faults: record >> FAULTS_SHIFT,
            pinned_home: record & (PINNED | PINNED_BY_POLICY) != 0,
        }
    }

    /// The page's state; a snapshot, unless its lock is held.
    pub fn state(&self, page: PageIndex) -> PageState {
        state_of(self.record(page).load(Ordering::Acquire))
    }

    /// Changes a page's state. The caller holds its lock.
    pub fn set_state(&self, page: PageIndex, state: PageState) {
        let bits = state_bits(state);
        let record = self.record(page);
        debug_assert!(record.load(Ordering::Relaxed) & LOCKED != 0, "the state of {page} changes without its lock");
        self.update(page, |old| old & !(STATE | OWNER) | bits);
    }

    /// Has devices that can map the home page itself when they next ask for the page, instead of copying it.
    /// What is mapped stays as it is. Needs no lock.
    pub fn pin_home(&self, page: PageIndex, by: PinnedBy) {
        self.record(page).fetch_or(by.bit(), Ordering::AcqRel);
    }

    /// Undoes [`pin_home`](Self::pin_home): a page that both have pinned stays so until both have undone it.
    pub fn unpin_home(&self, page: PageIndex, by: PinnedBy) {
        self.record(page).fetch_and(!by.bit(), Ordering::AcqRel);
    }

    /// Carries a device's accessed and dirty bits over.
    pub fn mark(&self, page: PageIndex, accessed: bool, dirty: bool) {
        let bits = if accessed { ACCESSED } else { 0 } | if dirty { DIRTY } else { 0 };
        if bits != 0 {
            self.record(page).fetch_or(bits, Ordering::AcqRel);
        }
    }

    /// Counts a device fault.
    pub fn count_fault(&self, page: PageIndex) {
        self.update(page, counted);
    }

    /// Whether the home page is known to have contents, and so memory. "No" says nothing.
    pub fn is_filled(&self, page: PageIndex) -> bool {
        self.record(page).load(Ordering::Acquire) & FILLED != 0
    }

    /// The home page was found to have contents, or was given some. Kept until [`reset`](Self::reset). Needs no lock.
    pub fn set_filled(&self, page: PageIndex) {
        if !self.is_filled(page) {
            self.record(page).fetch_or(FILLED, Ordering::AcqRel);
        }
    }

    /// Whether the CPU is known to have no permission to store to the page. "No" says nothing. The caller holds its lock.
    pub(crate) fn is_guarded(&self, page: PageIndex) -> bool {
        self.record(page).load(Ordering::Acquire) & GUARDED != 0
    }

    /// Stores to `pages` are about to be made to fault. Needs no page lock, but one at a time may do this, until
    /// [`guarded`](Self::guarded).
    pub(crate) fn guard(&self, pages: PageRange) {
        for page in pages.iter().filter(|&page| !self.is_guarded(page)) {
            self.record(page).fetch_or(GUARDING, Ordering::AcqRel);
        }
    }

    /// Stores to `pages` fault, other than to those that were [opened](Self::opened) meanwhile, of which it is not known.
    pub(crate) fn guarded(&self, pages: PageRange) {
        for page in pages.iter() {
            let still = |old: u32| (old & GUARDING != 0).then_some(old & !GUARDING | GUARDED);
            let _ = self.record(page).fetch_update(Ordering::AcqRel, Ordering::Acquire, still);
        }
    }

    /// The CPU may store to the page, or may have been given permission: called after that, with the page's lock held. Whether it was
    /// [guarded](Self::is_guarded).
    pub(crate) fn opened(&self, page: PageIndex) -> bool {
        let record = self.record(page);
        record.load(Ordering::Acquire) & (GUARDING | GUARDED) != 0
            && record.fetch_and(!(GUARDING | GUARDED), Ordering::AcqRel) & GUARDED != 0
    }

    /// What a commit changes, in one step: the state, the count of faults if the page was `asked` for, and whether it is known to
    /// have contents. The caller holds the page's lock.
    pub fn settle(&self, page: PageIndex, state: PageState, asked: bool, filled: bool) {
        let bits = state_bits(state) | if filled { FILLED } else { 0 };
        debug_assert!(self.record(page).load(Ordering::Relaxed) & LOCKED != 0, "{page} is settled without its lock");
        self.update(page, |old| {
            let old = if asked { counted(old) } else { old };
            old & !(STATE | OWNER) | bits
        });
    }

    /// Forgets a page's history: it is unmapped or discarded. The caller holds its lock.
    pub fn reset(&self, page: PageIndex) {
        self.update(page, |old| old & (LOCKED | WAITED_FOR));
    }

    fn update(&self, page: PageIndex, change: impl Fn(u32) -> u32) {
        let _ = self.record(page).fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(change(old)));
    }

    /// Locks all pages of a range, waiting for each.
    pub fn lock(&self, range: PageRange) -> PagesGuard<'_> {
        let held = (!range.is_empty()).then(|| rank::page_locked(range.start));
        for page in range.iter() {
            self.lock_one(page);
        }
        PagesGuard { records: self, range, _held: held }
    }

    /// Locks all pages of a range if all of them are free.
    pub fn try_lock_all(&self, range: PageRange) -> Option<PagesGuard<'_>> {
        for page in range.iter() {
            if self.record(page).fetch_or(LOCKED, Ordering::Acquire) & LOCKED != 0 {
                // Gives back what was taken so far.
                drop(PagesGuard { records: self, range: PageRange::new(range.start, page), _held: None });
                return None;
            }
        }
        Some(PagesGuard { records: self, range, _held: None })
    }

    /// Locks pages from the start of `range` on, up to the first that is not free or that `wanted`, asked with its lock held, refuses.
    pub fn try_lock_while(&self, range: PageRange, wanted: impl Fn(PageIndex) -> bool) -> PagesGuard<'_> {
        let mut held = PagesGuard { records: self, range: PageRange::new(range.start, range.start), _held: None };
        for page in range.iter() {
            if self.record(page).fetch_or(LOCKED, Ordering::Acquire) & LOCKED != 0 {
                break;
            }
            if !wanted(page) {
                self.unlock_one(page);
                break;
            }
            held.range.end = page.plus(1);
        }
        held
    }

    /// Locks all pages of several ranges, which ascend and do not overlap, waiting for each.
    pub fn lock_all<'a>(&'a self, ranges: &'a [PageRange]) -> ManyPagesGuard<'a> {
        debug_assert!(
            ranges.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "page locks are taken by ascending page"
        );
        let held = ranges.first().map(|range| rank::page_locked(range.start));
        for page in ranges.iter().flat_map(|range| range.iter()) {
            self.lock_one(page);
        }
        ManyPagesGuard { records: self, ranges, _held: held }
    }

    /// Locks one page if it is free.
    pub fn try_lock(&self, page: PageIndex) -> Option<PagesGuard<'_>> {
        let old = self.record(page).fetch_or(LOCKED, Ordering::Acquire);
        (old & LOCKED == 0).then(|| PagesGuard { records: self, range: PageRange::single(page), _held: None })
    }

    fn lock_one(&self, page: PageIndex) {
        let record = self.record(page);
        loop {
            if record.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0 {
                return;
            }
            // Say that somebody waits, unless it was unlocked in between.
            let said = record.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                (old & LOCKED != 0).then_some(old | WAITED_FOR)
            });
            if said.is_err() {
                continue;
            }
            // SAFETY: the key is the record's own address, used by nobody else; the closures neither panic nor
            // call into parking_lot.
            let woken = unsafe {
                parking_lot_core::park(
                    std::ptr::from_ref(record) as usize,
                    || record.load(Ordering::Relaxed) & (LOCKED | WAITED_FOR) == LOCKED | WAITED_FOR,
                    || {},
                    |_, _| {},
                    DEFAULT_PARK_TOKEN,
                    None,
                )
            };
            if woken == ParkResult::Unparked(HANDED_OVER) {
                return;
            }
        }
    }

    fn unlock_one(&self, page: PageIndex) {
        let record = self.record(page);
        let free = |old: u32| (old & WAITED_FOR == 0).then_some(old & !LOCKED);
        if record.fetch_update(Ordering::Release, Ordering::Relaxed, free).is_ok() {
            return;
        }
        let wake = |result: UnparkResult| {
            let more = if result.have_more_threads { 0 } else { WAITED_FOR };
            if result.unparked_threads > 0 && result.be_fair {
                // The lock passes on, locked. parking_lot_core's own lock orders what this thread did before what that one does.
                record.fetch_and(!more, Ordering::Relaxed);
                return HANDED_OVER;
            }
            record.fetch_and(!(LOCKED | more), Ordering::Release);
            DEFAULT_UNPARK_TOKEN
        };
        // SAFETY: as in `lock_one`.
        unsafe { parking_lot_core::unpark_one(std::ptr::from_ref(record) as usize, wake) };
    }
}

impl Drop for PageRecords {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; nothing borrows from it any more. Failure would leak, no more.
        let _ =
            unsafe { rustix::mm::munmap(self.records.as_ptr().cast(), self.pages as usize * size_of::<AtomicU32>()) };
    }
}

fn state_bits(state: PageState) -> u32 {
    match state {
        PageState::Cpu => 0,
        PageState::Shared => 1,
        PageState::Device(device) => 2 | (u32::from(device.0) << OWNER_SHIFT),
        PageState::Remote => 3,
    }
}

/// The record with one more fault.
fn counted(record: u32) -> u32 {
    if record >> FAULTS_SHIFT == FAULTS_MAX { record } else { record + (1 << FAULTS_SHIFT) }
}

fn state_of(record: u32) -> PageState {
    match record & STATE {
        0 => PageState::Cpu,
        1 => PageState::Shared,
        3 => PageState::Remote,
        _ => PageState::Device(DeviceNumber(((record & OWNER) >> OWNER_SHIFT) as u8)),
    }
}

/// Locked pages; unlocks them when dropped.
/// Linux: pages between `lock_page` and `unlock_page`.
pub struct PagesGuard<'a> {
    records: &'a PageRecords,
    range: PageRange,
    _held: Option<Held>,
}

impl PagesGuard<'_> {
    /// The pages held.
    pub fn range(&self) -> PageRange {
        self.range
    }
}

impl Drop for PagesGuard<'_> {
    fn drop(&mut self) {
        for page in self.range.iter() {
            self.records.unlock_one(page);
        }
    }
}

/// Locked pages of several ranges; unlocks them when dropped.
pub struct ManyPagesGuard<'a> {
    records: &'a PageRecords,
    ranges: &'a [PageRange],
    _held: Option<Held>,
}

impl Drop for ManyPagesGuard<'_> {
    fn drop(&mut self) {
        for page in self.ranges.iter().flat_map(|range| range.iter()) {
            self.records.unlock_one(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_page_that_is_opened_while_it_is_being_guarded_is_not_taken_for_guarded() {
        let records = PageRecords::new(16).unwrap();
        let pages = PageRange::of_len(PageIndex(0), 4);
        assert!(!records.is_guarded(PageIndex(1)));
        records.guard(pages);
        let _page = records.lock(PageRange::single(PageIndex(1)));
        // Not before the call has been made.
        assert!(!records.is_guarded(PageIndex(2)));
        records.opened(PageIndex(1));
        records.guarded(pages);
        assert!(!records.is_guarded(PageIndex(1)));
        assert!(records.is_guarded(PageIndex(2)));
        assert!(!records.opened(PageIndex(1)));
        let _other = records.lock(PageRange::single(PageIndex(2)));
        assert!(records.opened(PageIndex(2)));
        assert!(!records.is_guarded(PageIndex(2)));
    }

    #[test]
    fn a_locked_page_makes_others_wait_and_loses_no_wakeup() {
        let records = Arc::new(PageRecords::new(16).unwrap());
        let total = 4 * 2_000;
        let counter = Arc::new(std::sync::Mutex::new(0u32));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (records, counter) = (records.clone(), counter.clone());
                std::thread::spawn(move || {
                    for round in 0..2_000 {
                        let _pages = records.lock(PageRange::of_len(PageIndex(round % 8), 4));
                        let _common = records.try_lock(PageIndex(15));
                        *counter.lock().unwrap() += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*counter.lock().unwrap(), total);
        for page in 0..16 {
            assert!(records.try_lock(PageIndex(page)).is_some(), "page {page} stayed locked");
        }
    }

    /// Counted in turns of the one that locks in a loop, so that a busy machine changes nothing.
    #[test]
    fn who_locks_in_a_loop_keeps_nobody_out() {
        use std::sync::atomic::{AtomicBool, AtomicU64};
        use std::time::{Duration, Instant};
        const HELD: Duration = Duration::from_micros(50);
        // The lock is handed over at least every millisecond: after some twenty turns.
        const TURNS: u64 = 200;
        let records = PageRecords::new(4).unwrap();
        let page = PageRange::single(PageIndex(1));
        let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut waited: Vec<u64> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _held = records.lock(page);
                    turns.fetch_add(1, Ordering::Relaxed);
                    let since = Instant::now();
                    while since.elapsed() < HELD {
                        std::hint::spin_loop();
                    }
                }
            });
            let waited = (0..21).map(|_| {
                std::thread::sleep(Duration::from_micros(500));
                let asked = turns.load(Ordering::Relaxed);
                drop(records.lock(page));
                turns.load(Ordering::Relaxed) - asked
            });
            let waited = waited.collect();
            stop.store(true, Ordering::Relaxed);
            waited
        });
        waited.sort_unstable();
        assert!(waited[10] < TURNS, "turns until the other had its own: {waited:?}");
    }

    #[test]
    fn trying_takes_all_or_nothing_or_what_comes_before_an_obstacle() {
        let records = PageRecords::new(16).unwrap();
        let pages = |from, to| PageRange::new(PageIndex(from), PageIndex(to));
        let obstacle = records.lock(pages(5, 6));
        assert!(records.try_lock_all(pages(3, 8)).is_none());
        assert_eq!(records.try_lock_while(pages(2, 8), |_| true).range(), pages(2, 5));
        assert_eq!(records.try_lock_while(pages(2, 8), |page| page.0 < 4).range(), pages(2, 4));
        assert_eq!(records.try_lock_while(pages(5, 8), |_| true).range(), pages(5, 5));
        drop(obstacle);
        assert_eq!(records.try_lock_all(pages(3, 8)).map(|held| held.range()), Some(pages(3, 8)));
        assert!(records.try_lock_all(pages(0, 16)).is_some(), "everything was given back");
    }

    #[test]
    fn what_the_program_pinned_outlasts_a_pin_of_the_policys() {
        let records = PageRecords::new(4).unwrap();
        let page = PageIndex(2);
        let pinned = || records.info(page).pinned_home;
        records.pin_home(page, PinnedBy::Program);
        records.pin_home(page, PinnedBy::Policy);
        records.unpin_home(page, PinnedBy::Policy);
        assert!(pinned());
        records.unpin_home(page, PinnedBy::Program);
        assert!(!pinned());
        assert_eq!(records.info(page).faults, 0);
    }

    #[test]
    fn state_history_and_lock_do_not_disturb_each_other() {
        let records = PageRecords::new(4).unwrap();
        let page = PageIndex(2);
        {
            let _held = records.lock(PageRange::single(page));
            records.set_state(page, PageState::Device(DeviceNumber(200)));
            records.count_fault(page);
            records.mark(page, true, false);
            assert!(records.try_lock(page).is_none());
        }
        let info = records.info(page);
        assert_eq!(info.state, PageState::Device(DeviceNumber(200)));
        assert_eq!((info.accessed, info.dirty, info.faults), (true, false, 1));
        let _held = records.lock(PageRange::single(page));
        records.reset(page);
        assert_eq!(records.info(page).faults, 0);
        assert_eq!(records.state(page), PageState::Cpu);
    }
}
