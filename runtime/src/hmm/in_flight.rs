//! A count of brackets in flight, a sequence number of their starts, and those who wait for the count to be zero.
//!
//! One word holds all of it, so that "nothing in flight, and nothing started since" is one load:
//!
//! ```text
//!   63            24 23         2      1        0
//!  ┌────────────────┬────────────┬──────────┬─────────┐
//!  │ starts (wraps) │  in flight │ released │ waiters │
//!  └────────────────┴────────────┴──────────┴─────────┘
//! ```
//!
//! A start adds to both counts at once, so a reader that saw `(starts = s, in flight = 0)` and later sees `starts = s`
//! knows that nothing overlapped its time. Linux keeps the same facts in `invalidate_seq` (odd while
//! invalidating) and `active_invalidate_ranges`, but once per address space; here each range has its own, so that an
//! invalidation elsewhere disturbs nobody. The number wraps after 2^40 starts between a begin and its retry.
//!
//! Lock protocol: the mutex is private to this file, taken last, and held for a few instructions. Nobody takes it unless
//! somebody waits.

use super::clock::Deadline;
use super::mutation::{Mutation, mutated};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};

const WAITERS: u64 = 1;
const RELEASED: u64 = 2;
const ONE_IN_FLIGHT: u64 = 4;
const START_SHIFT: u32 = 24;
const ONE_START: u64 = 1 << START_SHIFT;
const IN_FLIGHT_MASK: u64 = (ONE_START - 1) & !(ONE_IN_FLIGHT - 1);

/// What [`Range::begin`](super::Range::begin) saw, to be compared by check and retry.
/// Linux: the `unsigned long` that `mmu_interval_read_begin` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seq(u64);

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// Nothing was in flight.
    Valid,
    /// The address space is gone.
    Released,
    /// The deadline passed.
    TimedOut,
}

pub(super) struct InFlight {
    word: AtomicU64,
    sleepers: Mutex<()>,
    wake: Condvar,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self { word: AtomicU64::new(0), sleepers: Mutex::new(()), wake: Condvar::new() }
    }

    /// One more in flight; every sequence number handed out so far is stale.
    #[inline]
    pub(super) fn start(&self) {
        self.word.fetch_add(ONE_START + ONE_IN_FLIGHT, Ordering::AcqRel);
    }

    /// One less in flight. Release: who begins after the last end sees what was changed between start and end.
    #[inline]
    pub(super) fn end(&self) {
        let before = self.word.fetch_sub(ONE_IN_FLIGHT, Ordering::AcqRel);
        debug_assert!(before & IN_FLIGHT_MASK != 0, "an end without a start");
        if before & IN_FLIGHT_MASK == ONE_IN_FLIGHT && before & WAITERS != 0 {
            self.wake_all();
        }
    }

    /// From now on never valid, and no wait takes long.
    pub(super) fn release(&self) {
        self.word.fetch_or(RELEASED, Ordering::AcqRel);
        self.wake_all();
    }

    pub(super) fn is_released(&self) -> bool {
        self.word.load(Ordering::Acquire) & RELEASED != 0
    }

    /// Waits until nothing is in flight or the deadline passes. A deadline that has passed already is no obstacle if
    /// there is nothing to wait for.
    pub(super) fn wait(&self, deadline: Option<&Deadline<'_>>) -> Waited {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if let Some(settled) = settled(word) {
                return settled;
            }
            let nap = match deadline {
                None => None,
                Some(deadline) => match deadline.nap() {
                    None => return Waited::TimedOut,
                    nap => nap,
                },
            };
            // The order matters: say that somebody sleeps, then look again, both in one operation and under
            // the mutex. An end either comes before it, and is seen here, or comes after it,
            // sees the flag, and cannot notify before this thread sleeps, because that needs the mutex.
            let sleepers = self.sleepers.lock();
            let word = self.word.fetch_or(WAITERS, Ordering::AcqRel);
            if settled(word).is_some() && !mutated(Mutation::SleepWithoutLookingAgain) {
                continue;
            }
            match nap {
                None => drop(self.wake.wait(sleepers)),
                Some(nap) => drop(self.wake.wait_for(sleepers, nap)),
            }
        }
    }

    /// Waits until nothing is in flight and returns the number of starts so far.
    pub(super) fn begin(&self) -> Seq {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if settled(word).is_some() {
                return Seq(word >> START_SHIFT);
            }
            self.wait(None);
        }
    }

    /// Whether something is, or was, in flight since `seq` was handed out.
    #[inline]
    pub(super) fn is_stale(&self, seq: Seq) -> bool {
        // Acquire is more than retry needs (the update lock orders it), and free on the machines that matter.
        let word = self.word.load(Ordering::Acquire);
        word >> START_SHIFT != seq.0 || word & (IN_FLIGHT_MASK | RELEASED) != 0
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.word.load(Ordering::Acquire) & IN_FLIGHT_MASK == 0
    }

    #[cold]
    fn wake_all(&self) {
        let sleepers = self.sleepers.lock();
        self.word.fetch_and(!WAITERS, Ordering::AcqRel);
        self.wake.notify_all();
        drop(sleepers);
    }
}

fn settled(word: u64) -> Option<Waited> {
    if word & RELEASED != 0 {
        Some(Waited::Released)
    } else if word & IN_FLIGHT_MASK == 0 {
        Some(Waited::Valid)
    } else {
        None
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::super::clock::RealClock;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_sequence_number_is_stale_once_something_started_even_after_it_ended() {
        let flights = InFlight::new();
        let seq = flights.begin();
        assert!(!flights.is_stale(seq));
        flights.start();
        assert!(flights.is_stale(seq));
        flights.end();
        assert!(flights.is_stale(seq));
        assert!(!flights.is_stale(flights.begin()));
    }

    #[test]
    fn the_number_of_starts_wraps_without_touching_the_rest() {
        let flights = InFlight::new();
        flights.word.store(!0 << START_SHIFT, Ordering::Relaxed);
        let seq = flights.begin();
        flights.start();
        assert!(flights.is_stale(seq) && !flights.is_released());
        flights.end();
        assert_eq!(flights.word.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn zero_patience_succeeds_if_nothing_is_in_flight_and_times_out_otherwise() {
        let (flights, clock) = (InFlight::new(), RealClock::new());
        let deadline = Deadline::after(&clock, Duration::ZERO);
        assert_eq!(flights.wait(Some(&deadline)), Waited::Valid);
        flights.start();
        assert_eq!(flights.wait(Some(&deadline)), Waited::TimedOut);
    }

    #[test]
    fn a_release_ends_every_wait() {
        let flights = InFlight::new();
        flights.start();
        flights.release();
        assert_eq!(flights.wait(None), Waited::Released);
        assert!(flights.is_stale(flights.begin()));
    }
}
