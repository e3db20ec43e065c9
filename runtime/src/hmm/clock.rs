//! Injected time.
//!
//! Everything in the protocol that gives up after a while takes a [`Deadline`], which carries its [`Clock`]:
//! real time in the runtime, a hand-driven one in tests and simulations.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A source of time. Never runs backwards.
/// Linux: `jiffies`; injected here, so that tests need not wait.
pub trait Clock: Send + Sync {
    /// Time since an origin of the clock's own.
    fn now(&self) -> Duration;

    /// How long, in real time, a thread may sleep before it should look at the clock again, given the time
    /// `left` on this clock. A clock that does not follow real time answers with something short.
    fn nap(&self, left: Duration) -> Duration {
        left
    }
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// A clock whose origin is now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A clock that stands still until it is told to move.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanoseconds: AtomicU64,
}

impl ManualClock {
    /// A clock that shows zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // Only this function writes; saturating, so that the clock never runs backwards.
        let _ = self.nanoseconds.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_add(by)));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Acquire))
    }

    /// A millisecond: whoever waits looks again soon after the clock was moved.
    fn nap(&self, left: Duration) -> Duration {
        left.min(Duration::from_millis(1))
    }
}

/// A moment on a clock by which something must have happened.
/// Linux: `jiffies + msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT)` in drivers.
#[derive(Clone, Copy)]
pub struct Deadline<'c> {
    clock: &'c dyn Clock,
    from: Duration,
    at: Duration,
}

impl<'c> Deadline<'c> {
    /// `patience` from now on `clock`. With zero, whatever would have to wait fails at once.
    pub fn after(clock: &'c dyn Clock, patience: Duration) -> Self {
        let from = clock.now();
        Self { clock, from, at: from.saturating_add(patience) }
    }

    /// The time left; zero once it has passed.
    pub fn left(&self) -> Duration {
        self.at.saturating_sub(self.clock.now())
    }

    /// Whether the moment has come.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }

    /// Whether half of the time, or more, is gone.
    pub fn is_half_gone(&self) -> bool {
        let spent = self.clock.now().saturating_sub(self.from);
        spent >= self.left()
    }

    /// How long a thread may sleep in real time before it looks again; `None` once the moment has come.
    pub fn nap(&self) -> Option<Duration> {
        let left = self.left();
        (!left.is_zero()).then(|| self.clock.nap(left))
    }
}

impl fmt::Debug for Deadline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadline in {:?}", self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_when_its_clock_says_so() {
        let clock = ManualClock::new();
        let deadline = Deadline::after(&clock, Duration::from_secs(10));
        clock.advance(Duration::from_secs(4));
        assert!(!deadline.is_half_gone() && !deadline.has_passed());
        clock.advance(Duration::from_secs(1));
        assert!(deadline.is_half_gone() && !deadline.has_passed());
        clock.advance(Duration::from_secs(5));
        assert!(deadline.has_passed() && deadline.nap().is_none());
    }

    #[test]
    fn zero_patience_has_passed_at_once() {
        assert!(Deadline::after(&RealClock::new(), Duration::ZERO).has_passed());
    }

    #[test]
    fn endless_patience_does_not_overflow() {
        let clock = ManualClock::new();
        clock.advance(Duration::MAX);
        clock.advance(Duration::MAX);
        assert!(!Deadline::after(&clock, Duration::MAX).has_passed());
    }
}
