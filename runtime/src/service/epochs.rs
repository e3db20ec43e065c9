//! Epochs: taking translations away from kernels that run.
//!
//! As in SRCU, units (workgroups, or single invocations) count themselves into the current epoch when they start, out when they end,
//! and move over to a new one at safe points. A shootdown clears entries, counts the epoch up and waits until nobody is counted in the
//! old one: from then on no invocation can use what was cleared.
//!
//! ```text
//! host                          unit
//! clear entries                 epoch e, counted in e
//! epoch: e → e+1                …uses a translation made in e…
//! wait for count[e] = 0         safe point: sees e+1, counts into e+1, out of e; forgets its translations
//! collect late bits, copy, free
//! ```
//!
//! A unit that joins reads the epoch, adds itself, and reads it again: had the host counted up in between and seen zero, the second
//! look tells. Two counts suffice, by parity, because grace periods do not overlap and each ends with the old count at zero
//! (`grace.rs`, which is checked by models). The wait ends too when the dispatch has ended, which covers units that left without counting
//! themselves out.

use super::grace::{EpochWords, GracePeriods};
use crate::device::layout::{Control, area};
use crate::device::{Device, DeviceError, SharedMemory, SharedUse};
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

/// Spins before a waiting shootdown asks whether the dispatch has ended.
const SPINS: u32 = 2_000;

/// What a shootdown waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// No kernel runs.
    None,
    /// A grace period that it ran.
    Ran,
    /// One that another ran.
    Shared,
}

/// A device's control block with what lies behind it, and the epochs kept in it.
pub struct Epochs {
    control: Arc<dyn SharedMemory>,
    /// A live dispatch is, or is about to be, in flight. Changed between grace periods.
    running: AtomicBool,
    grace: GracePeriods,
}

impl Epochs {
    pub(super) fn new(device: &dyn Device) -> Result<Self, DeviceError> {
        let control: Arc<dyn SharedMemory> = device.shared_memory(area::BYTES, SharedUse::HostReads)?.into();
        let stalled = Arc::downgrade(&control);
        device.on_stall(Box::new(move || {
            if let Some(control) = stalled.upgrade() {
                word_of(control.as_ref(), offset_of!(Control, give_up)).store(1, Ordering::SeqCst);
            }
        }));
        Ok(Self { control, running: AtomicBool::new(false), grace: GracePeriods::new() })
    }

    /// The control block.
    pub fn control(&self) -> &dyn SharedMemory {
        self.control.as_ref()
    }

    /// A word of the control block, by its offset.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        word_of(self.control.as_ref(), offset)
    }

    fn count(&self, epoch: u32) -> &AtomicU32 {
        self.word(offset_of!(Control, counts) + 4 * (epoch & 1) as usize)
    }

    /// A dispatch is about to start.
    pub(super) fn begin(&self) {
        self.grace.between(|| {
            self.count(0).store(0, Ordering::Relaxed);
            self.count(1).store(0, Ordering::Relaxed);
            self.running.store(true, Ordering::SeqCst);
            // Who took an entry away and saw nothing run did so before this, and kernels that start now see it.
            fence(Ordering::SeqCst);
        });
    }

    /// The dispatch has ended.
    pub(super) fn end(&self) {
        self.grace.between(|| self.running.store(false, Ordering::SeqCst));
    }

    /// Whether a live dispatch is in flight; the update lock is held.
    pub(super) fn running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Waits until no running kernel uses what was cleared before the call.
    pub(super) fn shootdown(&self, device: &dyn Device) -> Wait {
        fence(Ordering::SeqCst);
        if !self.running.load(Ordering::SeqCst) {
            return Wait::None;
        }
        let start = Instant::now();
        let mut spins = 0;
        let ran = self.grace.wait(self, || {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                return true;
            }
            spins = 0;
            // A kernel in a long stretch without a safe point: ask seldom, and leave it the processor.
            let patience =
                if start.elapsed() > Duration::from_millis(1) { Duration::from_micros(100) } else { Duration::ZERO };
            // A device that fails runs nothing any more.
            matches!(device.ended(patience), Ok(false))
        });
        if ran { Wait::Ran } else { Wait::Shared }
    }
}

fn word_of(control: &dyn SharedMemory, offset: usize) -> &AtomicU32 {
    assert!(offset + 4 <= size_of::<Control>() && offset.is_multiple_of(4));
    // SAFETY: inside the control block, aligned; both sides access it atomically while a dispatch runs.
    unsafe { control.host().add(offset).cast::<AtomicU32>().as_ref() }
}

impl EpochWords for Epochs {
    fn advance(&self) -> u32 {
        // 0 says that a unit is not counted yet. Skipping two keeps the parity, and so which count is drained, in step.
        let next = |epoch: u32| Some(if epoch == u32::MAX { 2 } else { epoch + 1 });
        let epoch = self.word(offset_of!(Control, epoch));
        epoch.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_else(|epoch| epoch)
    }

    fn counted(&self, epoch: u32) -> u32 {
        self.count(epoch).load(Ordering::SeqCst)
    }
}
