//! Ranked locks: the one lock order, checked.
//!
//! Every lock of the runtime has a [`Rank`]; a thread may take a lock only if its rank is higher than
//! that of all it holds (**I12**; the table stands in ARCHITECTURE.md). Debug builds keep the ranks that
//! each thread holds and panic at the first wrong step, naming both ranks, whether or not that run would
//! have deadlocked. Release builds keep nothing: the wrappers are as large and as fast as the locks inside.
//!
//! Locks that are not mutexes (a bit in a page record, the device gate) take part through
//! [`acquired`] and [`page_locked`], which return a token that stands for holding the lock.
//!
//! A mutex that is private to one function's body, and under which nothing else is taken, need not be ranked.

use crate::sync;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// The place of a lock in the lock order, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// The address space's lock. Linux: `mmap_lock`.
    Mm,
    /// Page locks, taken by ascending page. Linux: `lock_page`.
    PageLock,
    /// Pages whose locks are not held are being write-protected.
    Guards,
    /// The notifier registry; never held while a callback runs.
    Notifiers,
    /// The device gate: a dispatch is in flight, or a callback keeps one from starting.
    DeviceGate,
    /// A mirror's update lock: its device page table and frame ownership. Linux: the `driver->update` lock.
    MirrorUpdate,
    /// The device's queue, staging ring and frame pool.
    DeviceQueue,
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mm => "mm (address space)",
            Self::PageLock => "page lock",
            Self::Guards => "guards",
            Self::Notifiers => "notifier registry",
            Self::DeviceGate => "device gate",
            Self::MirrorUpdate => "mirror update",
            Self::DeviceQueue => "device queue",
        })
    }
}

#[cfg(debug_assertions)]
mod ledger {
    use super::Rank;
    use std::cell::RefCell;

    crate::sync::thread_local! {
        /// What this thread holds, in the order of taking; the number is the page of a page lock.
        #[allow(clippy::missing_const_for_thread_local, reason = "the models' macro has no const form")]
        static HELD: RefCell<Vec<(Rank, u32)>> = RefCell::new(Vec::new());
    }

    pub(super) fn take(rank: Rank, page: u32) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(&(highest, held_page)) = held.iter().max() {
                let ascending = rank == Rank::PageLock && highest == Rank::PageLock && page > held_page;
                assert!(
                    rank > highest || ascending,
                    "lock order: taking {rank} (page {page}) while holding {highest} (page {held_page})"
                );
            }
            held.push((rank, page));
        });
    }

    pub(super) fn give_back(rank: Rank, page: u32) {
        // A thread that is going away has no ledger left; its locks are gone with it.
        let _ = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|&entry| entry == (rank, page)) {
                held.remove(at);
            }
        });
    }

    pub(super) fn highest() -> Option<Rank> {
        HELD.with(|held| held.borrow().iter().map(|&(rank, _)| rank).max())
    }
}

/// Stands for holding a lock of some rank; dropping it gives the rank back. Stays on its thread.
#[must_use = "the rank counts as held only while this lives"]
pub struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
    #[cfg(debug_assertions)]
    page: u32,
    _stays_on_its_thread: PhantomData<*const ()>,
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        ledger::give_back(self.rank, self.page);
    }
}

#[inline]
fn hold(rank: Rank, page: u32) -> Held {
    #[cfg(debug_assertions)]
    {
        ledger::take(rank, page);
        Held { rank, page, _stays_on_its_thread: PhantomData }
    }
    #[cfg(not(debug_assertions))]
    {
        let _ = (rank, page);
        Held { _stays_on_its_thread: PhantomData }
    }
}

/// Records that this thread is about to take a lock of `rank` that is not one of the types below.
/// Call it before waiting for the lock, so that a wrong order panics instead of hanging.
///
/// # Panics
/// In debug builds, if the thread holds a lock of the same or a higher rank.
#[inline]
pub fn acquired(rank: Rank) -> Held {
    hold(rank, 0)
}

/// Records that this thread is about to take the lock of the page with this number.
///
/// # Panics
/// In debug builds, if the thread holds a lock of a higher rank, or the lock of this or a later page.
#[inline]
pub fn page_locked(page: crate::addr::PageIndex) -> Held {
    hold(Rank::PageLock, page.0)
}

/// Checks that this thread holds no lock of `rank` or above before it does `what`.
///
/// # Panics
/// In debug builds, if it does.
#[inline]
pub fn assert_below(rank: Rank, what: &str) {
    #[cfg(debug_assertions)]
    if let Some(highest) = ledger::highest() {
        assert!(highest < rank, "lock order: {what} while holding {highest}");
    }
    #[cfg(not(debug_assertions))]
    let _ = (rank, what);
}

/// A mutex with a place in the lock order.
pub struct RankedMutex<T> {
    rank: Rank,
    inner: sync::Mutex<T>,
}

/// The right to use what a [`RankedMutex`] protects.
#[must_use]
pub struct RankedMutexGuard<'a, T> {
    guard: sync::MutexGuard<'a, T>,
    held: Held,
}

impl<T> RankedMutex<T> {
    /// A mutex of this rank around `value`.
    pub fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: sync::Mutex::new(value) }
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// In debug builds, if this thread holds a lock of the same or a higher rank.
    #[inline]
    pub fn lock(&self) -> RankedMutexGuard<'_, T> {
        let held = hold(self.rank, 0);
        RankedMutexGuard { guard: self.inner.lock(), held }
    }

    /// Takes the lock if it is free; what a notifier callback does when it must not block.
    ///
    /// # Panics
    /// As [`lock`](Self::lock): an order that is wrong is wrong even when nobody has to wait.
    #[inline]
    pub fn try_lock(&self) -> Option<RankedMutexGuard<'_, T>> {
        let held = hold(self.rank, 0);
        self.inner.try_lock().map(|guard| RankedMutexGuard { guard, held })
    }
}

impl<T> Deref for RankedMutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RankedMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A condition variable for [`RankedMutex`]; the rank stays held while waiting.
pub struct RankedCondvar(sync::Condvar);

impl Default for RankedCondvar {
    fn default() -> Self {
        Self::new()
    }
}

impl RankedCondvar {
    /// A condition variable nobody waits on.
    pub fn new() -> Self {
        Self(sync::Condvar::new())
    }

    /// Gives the lock back, waits for a notification (or wakes for no reason), takes the lock again.
    pub fn wait<'a, T>(&self, guard: RankedMutexGuard<'a, T>) -> RankedMutexGuard<'a, T> {
        let RankedMutexGuard { guard, held } = guard;
        RankedMutexGuard { guard: self.0.wait(guard), held }
    }

    /// As [`wait`](Self::wait), for at most `limit`; the flag says whether the time ran out.
    pub fn wait_for<'a, T>(&self, guard: RankedMutexGuard<'a, T>, limit: Duration) -> (RankedMutexGuard<'a, T>, bool) {
        let RankedMutexGuard { guard, held } = guard;
        let (guard, timed_out) = self.0.wait_for(guard, limit);
        (RankedMutexGuard { guard, held }, timed_out)
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}

/// A reader-writer lock with a place in the lock order. Readers count as holders: a thread that reads
/// may not read again, since a writer that waits in between would stop both.
pub struct RankedRwLock<T> {
    rank: Rank,
    inner: sync::RwLock<T>,
}

/// The right to read what a [`RankedRwLock`] protects.
#[must_use]
pub struct RankedReadGuard<'a, T> {
    guard: sync::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// The right to change what a [`RankedRwLock`] protects.
#[must_use]
pub struct RankedWriteGuard<'a, T> {
    guard: sync::RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> RankedRwLock<T> {
    /// A lock of this rank around `value`.
    pub fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: sync::RwLock::new(value) }
    }

    /// Waits until no writer holds the lock, and shares it.
    ///
    /// # Panics
    /// In debug builds, if this thread holds a lock of the same or a higher rank.
    #[inline]
    pub fn read(&self) -> RankedReadGuard<'_, T> {
        let held = hold(self.rank, 0);
        RankedReadGuard { guard: self.inner.read(), _held: held }
    }

    /// Shares the lock if nobody has to be waited for.
    ///
    /// # Panics
    /// As [`read`](Self::read): an order that is wrong is wrong even when nobody has to wait.
    #[inline]
    pub fn try_read(&self) -> Option<RankedReadGuard<'_, T>> {
        let held = hold(self.rank, 0);
        self.inner.try_read().map(|guard| RankedReadGuard { guard, _held: held })
    }

    /// Waits until nobody holds the lock, and takes it alone.
    ///
    /// # Panics
    /// In debug builds, if this thread holds a lock of the same or a higher rank.
    #[inline]
    pub fn write(&self) -> RankedWriteGuard<'_, T> {
        let held = hold(self.rank, 0);
        RankedWriteGuard { guard: self.inner.write(), _held: held }
    }
}

impl<T> Deref for RankedReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RankedWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RankedWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::addr::PageIndex;

    /// The message of the panic of `wrong`.
    #[cfg(debug_assertions)]
    fn panic_of(wrong: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(wrong).expect_err("must panic");
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn rising_ranks_are_accepted_and_order_of_release_is_free() {
        let mm = RankedRwLock::new(Rank::Mm, ());
        let update = RankedMutex::new(Rank::MirrorUpdate, ());
        let reading = mm.read();
        let pages = [page_locked(PageIndex(3)), page_locked(PageIndex(9))];
        let updating = update.lock();
        drop(reading);
        drop(pages);
        drop(updating);
        drop(mm.write());
    }

    #[test]
    #[cfg(debug_assertions)]
    fn a_falling_rank_panics_and_names_both() {
        let message = panic_of(|| {
            let update = RankedMutex::new(Rank::MirrorUpdate, ());
            let mm = RankedRwLock::new(Rank::Mm, ());
            let _updating = update.lock();
            drop(mm.read());
        });
        assert!(message.contains("mm (address space)") && message.contains("mirror update"), "{message}");
    }

    #[test]
    #[cfg(debug_assertions)]
    fn equal_ranks_panic_except_page_locks_by_ascending_page() {
        panic_of(|| {
            let (a, b) = (RankedMutex::new(Rank::DeviceQueue, ()), RankedMutex::new(Rank::DeviceQueue, ()));
            let _a = a.lock();
            drop(b.try_lock());
        });
        let message = panic_of(|| {
            let _late = page_locked(PageIndex(9));
            let _early = page_locked(PageIndex(3));
        });
        assert!(message.contains("page 3") && message.contains("page 9"), "{message}");
        drop(page_locked(PageIndex(0)));
    }

    #[test]
    #[cfg(debug_assertions)]
    fn waiting_where_a_callback_needs_the_lock_panics() {
        panic_of(|| {
            let _gate = acquired(Rank::DeviceGate);
            assert_below(Rank::Notifiers, "waiting for a range");
        });
        let _mm = acquired(Rank::Mm);
        assert_below(Rank::Notifiers, "waiting for a range");
    }

    #[test]
    #[cfg(not(debug_assertions))]
    fn release_builds_pay_nothing() {
        assert_eq!(size_of::<Held>(), 0);
        assert_eq!(size_of::<RankedMutexGuard<'_, u64>>(), size_of::<sync::MutexGuard<'_, u64>>());
    }
}
