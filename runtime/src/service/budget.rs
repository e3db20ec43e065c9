//! The budget: how much device memory the frames may take, which may change while kernels run.
//!
//! Two bounds, of which the smaller holds: what the program asks for, and what the device says is there for this process
//! (`VK_EXT_memory_budget`), looked at when launches start and now and then while faults are served. Growing is a number; shrinking evicts
//! the pages of as many slabs as it takes and gives those back before it returns. Page locks are taken before the gate, one page at a
//! time, so it may be done by any thread that holds neither. Pages that waiting workgroups need go too: their workgroups ask again.

use super::mirror::DeviceMirror;
use crate::addr::{PAGE_SIZE, PageRange};
use crate::device::MemoryBudget;
use crate::mm::pages::PageState;
use crate::mm::state::evicted;
use crate::observe::Counters;
use parking_lot::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the device is asked while kernels run.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Rounds in which no page could be evicted, after which shrinking gives up.
const FRUITLESS: u32 = 10_000;

/// What bounds a mirror's frames.
#[derive(Debug)]
pub(super) struct Budget {
    /// The program's wish, in frames.
    asked: u32,
    /// The device's word, in frames; not bounded if it says nothing.
    offered: u32,
    looked: Option<Instant>,
}

impl Budget {
    pub(super) fn new(asked: u32) -> Mutex<Self> {
        Mutex::new(Self { asked: asked.max(1), offered: u32::MAX, looked: None })
    }

    fn limit(&self) -> u32 {
        self.asked.min(self.offered).max(1)
    }
}

/// The frames that fit, of which `allocated` are taken and count as used, into what a device offers. A sixteenth is left to others:
/// the figures are estimates, and the runtime needs some memory beside its frames.
fn offered(budget: MemoryBudget, allocated: u32) -> u32 {
    let mine = u64::from(allocated) * PAGE_SIZE as u64;
    let others = budget.used.saturating_sub(mine);
    let frames = (budget.bytes - budget.bytes / 16).saturating_sub(others) / PAGE_SIZE as u64;
    u32::try_from(frames).unwrap_or(u32::MAX).max(1)
}

impl DeviceMirror {
    /// Changes the most frames that may be taken from the device. When it returns, no more are; the caller holds no lock.
    pub(crate) fn set_frame_limit(&self, frames: u32) {
        self.budget.lock().asked = frames.max(1);
        self.resize();
    }

    /// Follows what the device says is there, if it has not been asked for a while, or at any rate if `now`.
    pub(crate) fn follow_device_budget(&self, now: bool) {
        {
            let mut budget = self.budget.lock();
            if !now && budget.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
                return;
            }
            budget.looked = Some(Instant::now());
        }
        if let Some(told) = self.device.memory_budget() {
            let offered = offered(told, self.frames().allocated);
            self.budget.lock().offered = offered;
            self.resize();
        }
    }

    /// Changes when the limit does, at the start and at the end: who finds too few frames meanwhile has not found out anything.
    pub(crate) fn resized(&self) -> u64 {
        self.resized.load(Ordering::Relaxed)
    }

    fn resize(&self) {
        let mut state = self.lock();
        // Read under the update lock, so that of two that change it the later is not undone by the earlier.
        let limit = self.budget.lock().limit();
        if state.frames.usage().limit != limit {
            self.resized.fetch_add(1, Ordering::Relaxed);
            state.frames.set_limit(limit);
        }
        drop(state);
        let mut fruitless = 0;
        loop {
            let mut state = self.lock();
            // Given back here, under the lock: whoever is told the budget holds must find it so.
            drop(state.frames.take_closed());
            let mut pages = state.frames.closed_pages();
            drop(state);
            if pages.is_empty() {
                self.resized.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // What is not mapped yet is waited for; a frame that is neither mapped nor given back would be a bug, and no reason to hang.
            if fruitless == FRUITLESS {
                tracing::error!(pages = pages.len(), "frames are not given back: the budget is exceeded");
                return;
            }
            fruitless += 1;
            pages.sort_unstable();
            for page in pages {
                let _page = self.home.pages.lock(PageRange::single(page));
                let locks = self.lock_for(PageRange::single(page));
                if !locks.state.frames.in_closed(&locks.state.table, page) {
                    continue;
                }
                fruitless = 0;
                self.take_home(locks, std::iter::once(page));
                let becomes = evicted(self.home.pages.state(page), PageState::Device(self.number()));
                self.home.pages.set_state(page, becomes);
                Counters::add(&self.counters.evictions, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_use_is_not_offered_and_what_the_frames_take_is() {
        let page = PAGE_SIZE as u64;
        let told = |bytes, used| MemoryBudget { bytes: bytes * page, used: used * page };
        assert_eq!(offered(told(1600, 0), 0), 1500);
        assert_eq!(offered(told(1600, 500), 500), 1500);
        assert_eq!(offered(told(1600, 600), 500), 1400);
        assert_eq!(offered(told(160, 6000), 500), 1, "one frame is always tried");
    }
}
