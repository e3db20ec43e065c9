//! Grace periods: waiting until every unit that runs has let go of what it translated before.
//!
//! The host's half of the epochs' protocol, apart from devices and their memory, so that it can be run under a model checker
//! (`loom_models.rs`, which has the units' half as `shaders/vksvm.glsl` has it).
//!
//! Several shootdowns share one grace period: each first notes which is the next to begin, and is done once that has ended, whoever ran it.
//! What makes that right, without a stronger order than acquire and release:
//!
//! - who waits *adds* nothing to `begun`, but with a read-modify-write; so whoever begins a later period has seen what was cleared
//!   before, and so has, through the epoch's word, every unit that joins in it;
//! - a unit adds itself and then looks at the epoch with a read-modify-write; the host counts the epoch up with one and then looks at the
//!   count. One of the two comes first, and the other sees what was done before it: the host the unit, or the unit the new epoch.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The words that the host shares with running units.
pub(super) trait EpochWords {
    /// Counts the epoch up, with a read-modify-write that acquires and releases; returns the old one.
    fn advance(&self) -> u32;
    /// How many units are counted in `epoch`, or in another of its parity; acquires.
    fn counted(&self, epoch: u32) -> u32;
}

/// The grace periods of one device.
pub(super) struct GracePeriods {
    /// Held by whoever runs one: they do not overlap, so that two counts suffice. Nothing is taken under it.
    turn: Mutex<()>,
    begun: AtomicU64,
    /// The last that has ended; changed by the holder of `turn`.
    ended: AtomicU64,
}

impl GracePeriods {
    pub(super) fn new() -> Self {
        Self { turn: Mutex::new(()), begun: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }

    /// Returns once no unit uses what was cleared before the call. `go_on` is called between looks; it says false when no unit runs
    /// any more. True if this call ran the grace period, false if it shared another's.
    pub(super) fn wait(&self, words: &impl EpochWords, mut go_on: impl FnMut() -> bool) -> bool {
        let wanted = self.begun.fetch_add(0, Ordering::AcqRel) + 1;
        let _turn = self.turn.lock();
        if self.ended.load(Ordering::Acquire) >= wanted {
            return false;
        }
        let this = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let old = words.advance();
        while words.counted(old) != 0 && go_on() {}
        self.ended.store(this, Ordering::Release);
        true
    }

    /// Runs `work` while no grace period does.
    pub(super) fn between<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.turn.lock();
        work()
    }
}
