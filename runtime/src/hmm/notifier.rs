//! Notifiers: who must hear before the CPU's mapping changes, and the bracket around the change.
//!
//! [`Notifiers`] takes the meaning of Linux's `struct mmu_notifier_subscriptions`, [`Subscription`] that of
//! `struct mmu_interval_notifier`, [`Invalidation`] that of the pair `mmu_notifier_invalidate_range_start` and
//! `mmu_notifier_invalidate_range_end`.
//!
//! # Why retry is authoritative
//!
//! A start first makes every overlapping range invalid and only then runs the callbacks, each of which takes its mirror's
//! update lock. A service checks under that lock. Whichever of the two gets the lock first, no stale entry stays:
//!
//! ```text
//!     service                          invalidation
//!     ───────                          ────────────
//!     seq = range.begin()
//!     reads the CPU's mapping, copies
//!                                      start: range becomes invalid      (a)
//!  ┌─ either the service comes first ────────────────────────────────────────┐
//!  │  lock(update)                                                           │
//!  │  retry(seq) may still say "go on"                                       │
//!  │  writes PTEs                                                            │
//!  │  unlock(update)                   callback: lock(update)                │
//!  │                                   clears those PTEs, unlock             │
//!  ├─ or the callback does ──────────────────────────────────────────────────┤
//!  │                                   callback: lock(update), clears, unlock│
//!  │  lock(update): orders (a) before                                        │
//!  │  retry(seq) must say "stale"                                            │
//!  │  unlock(update), starts over                                            │
//!  └─────────────────────────────────────────────────────────────────────────┘
//!                                      the CPU's mapping changes
//!                                      end: range valid again, waiters wake
//! ```
//!
//! With the first two steps of the invalidation exchanged, a service that checks between them writes PTEs that nobody clears;
//! `loom_models.rs` shows it.
//!
//! # Where it differs from Linux
//!
//! - Validity is counted per range, not per address space: an unrelated invalidation delays nobody.
//! - The end is a destructor, and a start that fails ends itself.
//! - A callback that panics, or refuses though it may block, fails the invalidation; the kernel warns and goes on.
//! - The first subscription needs no lock of the address space: invalidations are listed even while nobody subscribes.
//!   (Callers who would rather pay nothing: [`Notifiers::is_subscribed`].)

use super::callback;
use super::entry::{Entry, Target};
use super::event::{Blocking, Event, IntervalNotifier, InvalidateInfo, OwnerId};
use super::in_flight::Seq;
use super::mutation::{Mutation, mutated};
use super::shard::{Flight, SHARDS, Shard, ShardSet, Told};
use super::{Deadline, HmmError, InvalidateError, WaitError};
use crate::addr::PageRange;
use crate::rank::{Rank, RankedMutex, assert_below};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::model_failed;
use std::fmt;
use std::sync::Arc;

/// The notifier side of one address space. Linux: `struct mmu_notifier_subscriptions`.
pub struct Notifiers {
    shards: Box<[Shard]>,
    roster: RankedMutex<Roster>,
    /// Mirrors and subscriptions. Ranges are not counted: they cannot be without a mirror.
    listeners: AtomicUsize,
}

/// The mirrors by name, for the few who need all of them.
#[derive(Default)]
struct Roster {
    mirrors: Vec<Arc<Entry>>,
    /// Registering, not yet mirrors: they release themselves if the address space goes away meanwhile.
    joining: Vec<Arc<Entry>>,
    released: bool,
}

impl Notifiers {
    /// Notifiers that nobody subscribes to.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Shard::new()).collect(),
            roster: RankedMutex::new(Rank::Notifiers, Roster::default()),
            listeners: AtomicUsize::new(0),
        })
    }

    /// Calls `callback` before anything changes in `pages`, until the subscription is dropped.
    /// Linux: `mmu_interval_notifier_insert`.
    ///
    /// Made during an invalidation over `pages`, it starts out invalid (I11) and is not called for that one.
    /// From a callback, or while waiting is forbidden, it works as well; Linux defers it then.
    ///
    /// # Errors
    /// If `pages` is empty, or the address space was released.
    pub fn subscribe(
        self: &Arc<Self>,
        pages: PageRange,
        callback: Arc<dyn IntervalNotifier>,
    ) -> Result<Subscription, HmmError> {
        let entry = Entry::new(pages, Some(Target::Interval(callback)))?;
        self.listeners.fetch_add(1, Ordering::AcqRel);
        self.insert(&entry);
        let subscription = Subscription { notifiers: Arc::clone(self), entry };
        if subscription.entry.validity.is_released() {
            return Err(HmmError::Released { pages });
        }
        Ok(subscription)
    }

    /// Tells everybody concerned that the mapping of `pages` is about to change because of `event`, and keeps ranges over
    /// them invalid until the returned guard is dropped.
    /// Linux: `mmu_notifier_invalidate_range_start`, or `_nonblock`; dropping is `_end`.
    ///
    /// When it returns, no device uses `pages` any more, except that of the mirror whose owner is `owner` if the event
    /// is [`Migrate`](Event::Migrate) or [`Exclusive`](Event::Exclusive): that mirror is not called. Its ranges do become
    /// invalid; a service that must keep its own calls [`Range::invalidate_others`](super::Range::invalidate_others).
    /// No pages, nothing to do: the guard then stands for nothing.
    ///
    /// The caller may hold the address space's lock and page locks, nothing above; debug builds check it.
    ///
    /// # Errors
    /// Then nothing is in flight, and the mapping must not be changed: a callback would have had to wait (only if
    /// `blocking` says that it may not), or panicked, or refused without reason.
    pub fn invalidate(
        &self,
        pages: PageRange,
        event: Event,
        owner: Option<OwnerId>,
        blocking: Blocking,
    ) -> Result<Invalidation<'_>, InvalidateError> {
        self.invalidate_except(None, InvalidateInfo { pages, event, owner, blocking })
    }

    /// [`invalidate`](Self::invalidate), leaving the entry with the key `except` valid.
    pub(super) fn invalidate_except(
        &self,
        except: Option<usize>,
        info: InvalidateInfo,
    ) -> Result<Invalidation<'_>, InvalidateError> {
        let InvalidateInfo { pages, event, owner, .. } = info;
        if pages.end < pages.start {
            return Err(InvalidateError::BadRange { pages });
        }
        if pages.is_empty() {
            return Ok(Invalidation { notifiers: self, flight: None });
        }
        let flight = Flight { pages, shards: ShardSet::of(pages), except };
        let mut told = Told::default();
        for here in flight.shards.iter() {
            self.shards[here].open(here, &flight, event, owner, &mut told);
        }
        // From here on the guard ends it, whatever happens (I9).
        let invalidation = Invalidation { notifiers: self, flight: Some(flight) };
        let outcome = told.each(|entry| tell(entry, &info));
        #[cfg(test)]
        if mutated(Mutation::CallbacksBeforeMarking) {
            flight.shards.iter().for_each(|here| self.shards[here].mark_late(here, &flight));
        }
        callback::run_put_off();
        match outcome {
            Ok(()) => Ok(invalidation),
            Err(error) => {
                if mutated(Mutation::RefusalLeftOpen) {
                    std::mem::forget(invalidation);
                }
                Err(error)
            }
        }
    }

    /// The address space goes away: every interval subscription hears [`Event::Release`], every mirror's
    /// [`release`](super::MirrorOps::release) runs, once, also if it unregisters at the same time. When this returns all of that is
    /// over and no callback will run again; ranges never become valid again, new ones are refused.
    /// Linux: `__mmu_notifier_release`, from `exit_mmap`. Calling it again waits and does nothing more.
    ///
    /// # Errors
    /// If callbacks panicked (all others ran), or if called from inside one.
    pub fn release(&self) -> Result<(), HmmError> {
        if callback::inside() {
            return Err(HmmError::InsideCallback { what: "releasing the address space" });
        }
        assert_below(Rank::Notifiers, "releasing the address space");
        let mirrors = {
            let mut roster = self.roster.lock();
            roster.released = true;
            roster.mirrors.clone()
        };
        // As in a start: everything becomes invalid first, then callbacks run.
        let mut told = Told::default();
        for (here, shard) in self.shards.iter().enumerate() {
            shard.release(here, &mut told);
        }
        let mut panicked = Vec::new();
        let mut heard = Vec::new();
        let _: Result<(), ()> = told.each(|entry| {
            heard.push(Arc::clone(entry));
            if let Some(listener) = entry.listener.as_ref().filter(|l| matches!(l.target, Target::Interval(_))) {
                let pages = entry.pages;
                let info = InvalidateInfo { pages, event: Event::Release, owner: None, blocking: Blocking::Yes };
                // A refusal changes nothing: the memory goes away.
                if let Err(message) = listener.invalidate(&info) {
                    panicked.push(format!("{}: {message}", listener.name()));
                }
            }
            Ok(())
        });
        // Invalidations that started earlier may still be calling.
        heard.iter().filter_map(|entry| entry.listener.as_ref()).for_each(|listener| listener.wait_out_callbacks());
        for mirror in mirrors {
            if let Err(message) = self.detach(&mirror) {
                let name = mirror.listener.as_ref().map_or("", |listener| listener.name());
                panicked.push(format!("{name}: {message}"));
            }
        }
        callback::run_put_off();
        if panicked.is_empty() { Ok(()) } else { Err(HmmError::ReleasePanicked { notifiers: panicked }) }
    }

    /// Whether any mirror or interval notifier is subscribed: one load. Linux: `mm_has_notifiers`.
    ///
    /// A caller that holds the address space's lock may leave out [`invalidate`](Self::invalidate) when this says no, and pay nothing,
    /// if first subscriptions are made under the write side of that lock (as Linux demands of `mmu_notifier_register`):
    /// otherwise a mirror could register and fill a range between the load and the change.
    #[inline]
    pub fn is_subscribed(&self) -> bool {
        self.listeners.load(Ordering::Acquire) != 0
    }

    /// Whether no invalidation is in flight and every entry knows it.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.shards.iter().all(Shard::is_idle)
    }

    /// Puts an entry into its shards, invalid if need be.
    pub(super) fn insert(&self, entry: &Arc<Entry>) {
        for here in entry.shards.iter() {
            self.shards[here].insert(here, entry);
        }
    }

    /// Takes an entry out of its shards; no invalidation finds it afterwards.
    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        for here in entry.shards.iter() {
            self.shards[here].remove(entry);
        }
    }

    /// Enters a mirror. The roster decides whether it comes before or after the release of the address space.
    pub(super) fn attach_mirror(&self, entry: &Arc<Entry>) -> Result<(), HmmError> {
        {
            let mut roster = self.roster.lock();
            if roster.released {
                return Err(HmmError::Released { pages: entry.pages });
            }
            if let Some(conflict) =
                roster.mirrors.iter().chain(&roster.joining).find_map(|other| conflict(entry, other))
            {
                return Err(conflict);
            }
            roster.joining.push(Arc::clone(entry));
        }
        self.listeners.fetch_add(1, Ordering::AcqRel);
        self.insert(entry);
        let mut roster = self.roster.lock();
        roster.joining.retain(|other| !Arc::ptr_eq(other, entry));
        if !roster.released {
            roster.mirrors.push(Arc::clone(entry));
            return Ok(());
        }
        drop(roster);
        // It never was a mirror: no release callback, but the grace period.
        self.leave(entry);
        Err(HmmError::Released { pages: entry.pages })
    }

    /// Takes a listener out and waits until none of its callbacks runs (I10).
    /// The error is the message of its release callback's panic.
    ///
    /// Linux's order (`mmu_notifier_unregister`): release while still subscribed, so that there is no moment in which the
    /// device has mappings and hears of nothing; then leave; then the grace period.
    pub(super) fn detach(&self, entry: &Arc<Entry>) -> Result<(), String> {
        let outcome = entry.listener.as_ref().map_or(Ok(()), |listener| listener.release());
        self.leave(entry);
        callback::run_put_off();
        outcome
    }

    /// [`detach`](Self::detach) for those who have nobody to hand the error to.
    pub(super) fn detach_or_report(&self, entry: &Arc<Entry>) {
        if let Err(message) = self.detach(entry) {
            let name = entry.listener.as_ref().map_or("", |listener| listener.name());
            tracing::error!(mirror = name, message, "the release callback panicked");
        }
    }

    /// May run twice for one entry (release and unregister at once): each caller returns only after the removal
    /// and after the grace period.
    fn leave(&self, entry: &Arc<Entry>) {
        self.remove(entry);
        if let Some(listener) = &entry.listener {
            if listener.leave_once() {
                self.roster.lock().mirrors.retain(|other| !Arc::ptr_eq(other, entry));
                self.listeners.fetch_sub(1, Ordering::AcqRel);
            }
            if !mutated(Mutation::NoGracePeriod) {
                listener.wait_out_callbacks();
            }
        }
    }
}

impl fmt::Debug for Notifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifiers").field("listeners", &self.listeners.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}

/// Runs one callback of an invalidation.
fn tell(entry: &Entry, info: &InvalidateInfo) -> Result<(), InvalidateError> {
    let Some(listener) = &entry.listener else { return Ok(()) };
    let InvalidateInfo { pages, event, blocking, .. } = *info;
    let clipped = InvalidateInfo { pages: pages.intersect(entry.pages), ..*info };
    let outcome = listener.invalidate(&clipped);
    let notifier = || listener.name().to_owned();
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) if blocking == Blocking::No => {
            Err(InvalidateError::WouldBlock { notifier: notifier(), pages, event })
        }
        Ok(Err(_)) => Err(InvalidateError::Refused { notifier: notifier(), pages, event }),
        Err(message) => Err(InvalidateError::Panicked { notifier: notifier(), pages, event, message }),
    }
}

/// The error if `new` is the same mirror as `other`, or has the same owner.
fn conflict(new: &Arc<Entry>, other: &Arc<Entry>) -> Option<HmmError> {
    let Target::Mirror { ops, owner, .. } = &new.listener.as_ref()?.target else { return None };
    let Target::Mirror { ops: other_ops, owner: other_owner, name } = &other.listener.as_ref()?.target else {
        return None;
    };
    let same = owner == other_owner || std::ptr::addr_eq(Arc::as_ptr(ops), Arc::as_ptr(other_ops));
    same.then(|| HmmError::AlreadyRegistered { name: name.clone(), owner: *other_owner })
}

/// An invalidation in flight. Dropping it is its end: what only it made invalid becomes valid again and waiters wake.
/// Linux: what stands between `mmu_notifier_invalidate_range_start` and `_end`.
///
/// The thread that holds it must not wait for a range over the same pages. Ending it takes a lock of rank
/// [`Notifiers`](Rank::Notifiers): give the device gate and the update lock back first.
#[must_use = "dropping it ends the invalidation: change the mapping first"]
pub struct Invalidation<'n> {
    notifiers: &'n Notifiers,
    /// Nothing for an invalidation of no pages.
    flight: Option<Flight>,
}

impl Invalidation<'_> {
    /// The invalidated pages; `None` if there were none.
    pub fn pages(&self) -> Option<PageRange> {
        self.flight.as_ref().map(|flight| flight.pages)
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        let Some(flight) = self.flight.as_ref().filter(|_| !model_failed()) else { return };
        for here in flight.shards.iter() {
            self.notifiers.shards[here].shut(here, flight);
        }
    }
}

impl fmt::Debug for Invalidation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation").field("pages", &self.pages()).finish_non_exhaustive()
    }
}

/// A callback's subscription to an interval, with the interval's validity.
/// Linux: `struct mmu_interval_notifier`.
///
/// Dropping it unsubscribes and waits until its callback does not run (Linux: `mmu_interval_notifier_remove`);
/// dropped inside a callback it does so when the thread's outermost callback is over.
pub struct Subscription {
    notifiers: Arc<Notifiers>,
    entry: Arc<Entry>,
}

impl Subscription {
    /// The pages subscribed to.
    pub fn pages(&self) -> PageRange {
        self.entry.pages
    }

    /// As [`Range::wait_until_valid`](super::Range::wait_until_valid).
    ///
    /// # Errors
    /// If the deadline passes, or the address space is released.
    pub fn wait_until_valid(&self, deadline: Deadline<'_>) -> Result<(), WaitError> {
        self.entry.wait_until_valid(deadline)
    }

    /// As [`Range::begin`](super::Range::begin). Linux: `mmu_interval_read_begin`.
    pub fn begin(&self) -> Seq {
        self.entry.begin()
    }

    /// As [`Range::check`](super::Range::check). Linux: `mmu_interval_check_retry`, inverted.
    #[inline]
    pub fn check(&self, seq: Seq) -> bool {
        !self.entry.validity.is_stale(seq)
    }

    /// As [`Range::retry`](super::Range::retry), under the lock that the callback takes. Linux: `mmu_interval_read_retry`.
    #[inline]
    pub fn retry(&self, seq: Seq) -> bool {
        self.entry.validity.is_stale(seq)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        if callback::inside() {
            callback::put_off(&self.notifiers, &self.entry);
        } else {
            self.notifiers.detach_or_report(&self.entry);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("pages", &self.entry.pages).finish_non_exhaustive()
    }
}
