//! Live passes: servicing page faults while the kernel runs.
//!
//! The executor's thread starts the dispatch and then is its service thread: it drains the fault queue, services what it finds with
//! the same pipeline as in replay mode, and the waiting invocations go on. The gate stays open; who takes pages away meanwhile (CPU faults,
//! unmaps, evictions) goes by epochs (`service/epochs.rs`).
//!
//! Every wait is bounded. An invocation that has polled `poll_limit` times, or is told to give up (a fatal fault, a failed service, the
//! time limit), is poisoned, and its workgroup falls back to replay, or to a late fault if it must not run twice.

use super::dispatch::Pass;
use super::error::LaunchError;
use super::execute::{Executor, Job};
use super::requests::Beside;
use super::worklist::WorkList;
use crate::device::layout::{Control, variant};
use crate::device::{Dispatch, LiveUnit};
use crate::observe::Counters;
use crate::service::DeviceMirror;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the service thread spins after it last found something, before it sleeps between looks.
const SPIN: Duration = Duration::from_micros(200);
/// Looks at the queue for each look at the dispatch.
const LOOKS: u32 = 64;
/// How long it sleeps then.
const NAP: Duration = Duration::from_micros(50);
/// How long it sleeps between looks soon after it found something, where it must not take a processor from the kernel or the program.
const SHORT_NAP: Duration = Duration::from_micros(15);

/// Ends a dispatch whose service thread dies: the kernel is told to give up, and its end is waited for before what it uses goes.
struct EndOnPanic<'a>(&'a DeviceMirror);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.epochs().word(offset_of!(Control, give_up)).store(1, Ordering::SeqCst);
        while let Ok(false) = self.0.device().ended(NAP) {}
        self.0.end_live();
    }
}

impl Executor {
    /// Runs `list` once, servicing its faults meanwhile.
    pub(super) fn live_pass(&mut self, job: &Job, list: &WorkList, unit: LiveUnit) -> Result<Pass, LaunchError> {
        let mirror = self.mirror.clone();
        let prepared = {
            let gate = mirror.close_gate();
            self.prepare(job, list, &gate)?
        };
        let epochs = mirror.epochs();
        epochs.word(offset_of!(Control, queue_tail)).store(0, Ordering::Relaxed);
        epochs.word(offset_of!(Control, give_up)).store(0, Ordering::Release);
        // SAFETY: four words for each of MAX_SLICE slots; no dispatch is in flight.
        unsafe { self.units.host().write_bytes(0, list.len() as usize * 16) };
        let mut bits = variant::LIVE | self.common_bits(job);
        if unit == LiveUnit::Workgroup {
            bits |= variant::LOCKSTEP;
        }
        if job.idempotent {
            bits |= variant::IDEMPOTENT;
        }
        let dispatch = Dispatch { kernel: &job.kernel, variant: bits, push: &prepared.push, groups: prepared.groups };
        self.throttle = true;
        let start = Instant::now();
        mirror.begin_live();
        self.service.begin_live();
        let served = match mirror.device().start(&dispatch) {
            Ok(()) => {
                let end = EndOnPanic(&mirror);
                let served = self.serve_while_running(job, start);
                std::mem::forget(end);
                served
            }
            Err(error) => Err(self.device_failed(job, error)),
        };
        mirror.end_live();
        self.service.end_live();
        let mut pass = self.finish(list, bits, start.elapsed());
        // What was reported by invocations that gave up is served before the replay; if there is none, by nobody.
        self.drain_live();
        self.take_held();
        if served.is_err() || pass.replay.is_empty() {
            let entries = std::mem::take(&mut self.entries);
            self.abandon(&entries);
            pass.late = None;
        }
        served?;
        Ok(pass)
    }

    /// Services faults until the dispatch has ended. After an error the kernel is told to give up, and its end is waited for.
    fn serve_while_running(&mut self, job: &Job, start: Instant) -> Result<(), LaunchError> {
        let mirror = self.mirror.clone();
        let give_up = || mirror.epochs().word(offset_of!(Control, give_up)).store(1, Ordering::SeqCst);
        let mut result = Ok(());
        let mut busy = Instant::now();
        let mut looks = 0u32;
        loop {
            self.space.end_pins();
            if self.drain_live() + self.take_due() > 0 {
                looks = 0;
                busy = Instant::now();
                if result.is_ok() {
                    if let Err(error) = self.serve(job, None) {
                        give_up();
                        result = Err(error);
                    }
                } else {
                    let entries = std::mem::take(&mut self.entries);
                    self.abandon(&entries);
                }
                continue;
            }
            // Asking the driver costs as much as many looks at the queue.
            looks += 1;
            if !looks.is_multiple_of(LOOKS) {
                std::hint::spin_loop();
                continue;
            }
            self.sort_work();
            self.service.catch_up();
            if result.is_ok() && self.serve_request(Beside::Dispatch) {
                busy = Instant::now();
            }
            if result.is_ok()
                && let Some(limit) = self.options.time_limit
                && start.elapsed() > limit
            {
                give_up();
                result = Err(LaunchError::TimedOut { kernel: job.kernel.name.clone(), limit });
            }
            let patience = match (busy.elapsed() < SPIN, self.options.spin) {
                (true, true) => Duration::ZERO,
                (true, false) => SHORT_NAP,
                (false, _) => NAP,
            };
            match mirror.device().ended(patience) {
                Ok(true) => return result,
                // Where processors are few, CPU faults are handled on this one.
                Ok(false) if patience.is_zero() => std::thread::yield_now(),
                Ok(false) => {}
                Err(error) => {
                    give_up();
                    return result.and(Err(self.device_failed(job, error)));
                }
            }
        }
    }

    /// Moves what kernels have appended to `self.entries`; returns how many.
    fn drain_live(&mut self) -> usize {
        let before = self.entries.len();
        let tail = self.mirror.epochs().word(offset_of!(Control, queue_tail));
        self.queue.drain_live(tail, &mut self.entries);
        let drained = self.entries.len() - before;
        Counters::add(&self.counters.device_faults, drained as u64);
        drained
    }
}
