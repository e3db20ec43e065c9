//! Collision-retry: trying again, and when to stop trying the fast way.
//!
//! A service that loses against invalidations starts over. An adversary could make it lose for ever, so after a few
//! collisions, or when half of its time is gone, it is told to take the *slow path*: to hold the address space's write
//! side, which keeps invalidations off, while it tries. Linux leaves that to drivers (they count retries against
//! `HMM_RANGE_DEFAULT_TIMEOUT`, and some fall back to the `mmap_lock`'s write side); here it is one state machine.
//!
//! It holds no lock and decides from counts and an injected clock only.

use super::clock::Deadline;
use std::time::Duration;

/// How the next attempt is to be made.
/// Linux: whether a driver holds the `mmap_lock` for reading or for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Under the address space's read side, or none: invalidations may collide.
    Fast,
    /// Under the address space's write side, which holds invalidations off.
    Slow,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Committed.
    Done(T),
    /// The range was invalidated meanwhile; everything was undone.
    Collided,
}

/// An operation that ran out of time while colliding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("collided {collisions} times with invalidations and ran out of time: allow more than {patience:?}")]
pub struct OutOfTime {
    /// Attempts that collided.
    pub collisions: u32,
    /// The time there was.
    pub patience: Duration,
}

/// The state of one operation that may collide.
/// Linux: the loop around `hmm_range_fault` in each driver.
#[derive(Clone, Debug)]
pub struct CollisionRetry<'c> {
    deadline: Deadline<'c>,
    patience: Duration,
    collisions: u32,
    fast_collisions: u32,
}

impl<'c> CollisionRetry<'c> {
    /// Collisions on the fast path before the slow path is taken.
    pub const FAST_COLLISIONS: u32 = 4;

    /// An operation that has until `deadline`.
    pub fn new(deadline: Deadline<'c>) -> Self {
        Self::with_fast_collisions(deadline, Self::FAST_COLLISIONS)
    }

    /// As [`new`](Self::new), with another number of collisions before the slow path; with zero it is taken at once.
    pub fn with_fast_collisions(deadline: Deadline<'c>, fast_collisions: u32) -> Self {
        Self { deadline, patience: deadline.left(), collisions: 0, fast_collisions }
    }

    /// How to make the next attempt. The first is always granted, so that an operation without any patience is
    /// tried once, and goes through if nothing collides.
    ///
    /// # Errors
    /// If the deadline passed and an attempt has collided.
    pub fn next(&self) -> Result<Attempt, OutOfTime> {
        if self.collisions > 0 && self.deadline.has_passed() {
            return Err(OutOfTime { collisions: self.collisions, patience: self.patience });
        }
        let slow = self.collisions >= self.fast_collisions || (self.collisions > 0 && self.deadline.is_half_gone());
        Ok(if slow { Attempt::Slow } else { Attempt::Fast })
    }

    /// Records that the attempt collided.
    pub fn collided(&mut self) {
        self.collisions = self.collisions.saturating_add(1);
    }

    /// Attempts that collided so far.
    pub fn collisions(&self) -> u32 {
        self.collisions
    }

    /// Until when it may go on; also the limit for waiting inside an attempt.
    pub fn deadline(&self) -> Deadline<'c> {
        self.deadline
    }
}

/// Runs `attempt` until it is done, fails, or the time runs out. `attempt` takes the address space's write side if it
/// is told [`Attempt::Slow`], and begins a new sequence each time.
///
/// # Errors
/// What `attempt` returns, or [`OutOfTime`].
pub fn with_retry<T, E: From<OutOfTime>>(
    deadline: Deadline<'_>,
    mut attempt: impl FnMut(Attempt) -> Result<Outcome<T>, E>,
) -> Result<T, E> {
    let mut retry = CollisionRetry::new(deadline);
    loop {
        match attempt(retry.next()?)? {
            Outcome::Done(value) => return Ok(value),
            Outcome::Collided => retry.collided(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::ManualClock;
    use super::*;

    #[test]
    fn the_slow_path_comes_after_four_collisions() {
        let clock = ManualClock::new();
        let mut seen = Vec::new();
        let result: Result<(), OutOfTime> = with_retry(Deadline::after(&clock, Duration::from_secs(1)), |attempt| {
            seen.push(attempt);
            Ok(if attempt == Attempt::Slow { Outcome::Done(()) } else { Outcome::Collided })
        });
        result.expect("the slow path succeeds");
        assert_eq!(seen, [[Attempt::Fast; 4].as_slice(), &[Attempt::Slow]].concat());
    }

    #[test]
    fn the_slow_path_comes_when_half_the_time_is_gone() {
        let clock = ManualClock::new();
        let mut retry = CollisionRetry::new(Deadline::after(&clock, Duration::from_secs(10)));
        clock.advance(Duration::from_secs(6));
        assert_eq!(retry.next(), Ok(Attempt::Fast), "nothing collided yet");
        retry.collided();
        assert_eq!(retry.next(), Ok(Attempt::Slow));
    }

    #[test]
    fn without_patience_it_is_tried_once() {
        let clock = ManualClock::new();
        let mut attempts = 0;
        let result: Result<(), OutOfTime> = with_retry(Deadline::after(&clock, Duration::ZERO), |_| {
            attempts += 1;
            Ok(Outcome::Collided)
        });
        assert_eq!(result, Err(OutOfTime { collisions: 1, patience: Duration::ZERO }));
        assert_eq!(attempts, 1);
    }

    #[test]
    fn an_error_of_the_attempt_ends_it() {
        let clock = ManualClock::new();
        let deadline = Deadline::after(&clock, Duration::from_secs(1));
        let result: Result<(), Box<dyn std::error::Error>> = with_retry(deadline, |_| Err("no such page".into()));
        assert_eq!(result.expect_err("passed on").to_string(), "no such page");
    }
}
