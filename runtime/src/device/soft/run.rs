//! Dispatches on the reference device: workgroups shared out among worker threads.
//!
//! Workers live as long as the device, so that they can be told from the program's threads. With one worker the order of
//! workgroups is that of their slots, or a permutation that depends only on the seed and the number of the dispatch; with
//! several, they take workgroups from a common counter. A kernel that panics ends its dispatch with an error.

use super::context::{SoftContext, SoftFunction};
use crate::device::DeviceError;
use crate::device::layout::{Control, LaunchBlock};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// One dispatch, as the workers see it.
pub(super) struct Work {
    pub(super) function: Arc<SoftFunction>,
    pub(super) launch: LaunchBlock,
    /// The control block as it was when the dispatch started; its counters are reached through `launch.control`.
    pub(super) control: Control,
    pub(super) arguments: Vec<u8>,
    pub(super) variant: u32,
    pub(super) local_size: [u32; 3],
    /// Slots, including those beyond the list.
    pub(super) slots: u32,
    /// The order of slots; as they come, if empty.
    pub(super) order: Vec<u32>,
    pub(super) next: AtomicU32,
    pub(super) panicked: Mutex<Option<String>>,
}

impl Work {
    fn help(&self) {
        while let Some(index) = self.take() {
            let slot = if self.order.is_empty() { index } else { self.order[index as usize] };
            let run = || self.workgroup(slot);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
                let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
                self.panicked.lock().get_or_insert(text.unwrap_or_else(|| "no message".into()));
                self.next.store(self.slots, Ordering::Relaxed);
            }
        }
    }

    fn take(&self) -> Option<u32> {
        let next = |next: u32| (next < self.slots).then_some(next + 1);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    fn workgroup(&self, slot: u32) {
        let Some(mut context) = SoftContext::begin(self, slot) else { return };
        for index in 0..self.local_size.iter().product() {
            context.invocation(index);
            (self.function)(&mut context);
        }
    }
}

/// The device's worker threads.
pub(super) struct Workers {
    work: Vec<Sender<Arc<Work>>>,
    done: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
    ids: Vec<u32>,
}

impl Workers {
    pub(super) fn start(count: usize) -> Result<Self, DeviceError> {
        let (report, done) = unbounded();
        let mut workers = Self { work: Vec::new(), done, threads: Vec::new(), ids: Vec::new() };
        for _ in 0..count.max(1) {
            let (sender, work) = bounded::<Arc<Work>>(1);
            let (say_id, id) = bounded(1);
            let report = report.clone();
            let body = move || {
                // The device waits for it; if it is gone there is nobody to tell.
                let _ = say_id.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
                for work in work {
                    work.help();
                    drop(work);
                    let _ = report.send(());
                }
            };
            let failed = |reason: String| DeviceError::Call {
                call: "starting a worker thread",
                reason: format!("{reason}. Raise the limit of threads (ulimit -u)"),
            };
            crate::scarce::ask("starting a worker", rustix::io::Errno::AGAIN)
                .map_err(|error| failed(error.to_string()))?;
            let thread = std::thread::Builder::new().name("vksvm-soft".into()).spawn(body);
            workers.threads.push(thread.map_err(|error| failed(error.to_string()))?);
            workers.work.push(sender);
            workers.ids.push(id.recv().map_err(|error| failed(error.to_string()))?);
        }
        Ok(workers)
    }

    /// Kernel thread ids.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Runs `work` to its end. One caller at a time.
    pub(super) fn run(&self, work: &Arc<Work>) -> Result<(), DeviceError> {
        let gone = || DeviceError::Lost("a worker thread has ended".into());
        for worker in &self.work {
            worker.send(work.clone()).map_err(|_| gone())?;
        }
        for _ in &self.work {
            self.done.recv().map_err(|_| gone())?;
        }
        match work.panicked.lock().take() {
            Some(reason) => Err(DeviceError::Call { call: "the kernel", reason }),
            None => Ok(()),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.work.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker of the reference device panicked");
            }
        }
    }
}

/// The numbers below `count` in an order that `seed` determines (Fisher and Yates, numbers from SplitMix64).
pub(super) fn permutation(count: u32, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        // The bias of the remainder does not matter here.
        order.swap(last, (random() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::permutation;

    #[test]
    fn permutations_hold_every_slot_once_and_depend_on_the_seed() {
        let one = permutation(100, 1);
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..100));
        assert_eq!(one, permutation(100, 1));
        assert_ne!(one, permutation(100, 2));
        assert!(permutation(0, 1).is_empty());
    }
}
