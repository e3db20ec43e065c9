//! What was read from the descriptor and is still to be done.
//!
//! Three boxes. *Jobs* are for the threads that may wait. *Strays* are faults that a thread read which was after events (see
//! `foreign.rs`): they are the reading thread's, which is rung for. So are faults that the handler *put off*, with the time when it is to be
//! asked again; their threads still wait, since nobody woke them.
//!
//! Lock protocol: all locks are leaves, held for a few instructions.

use super::raw::{Fault, Span};
use crate::addr::PageIndex;
use crate::track::{CpuFault, ForeignChange};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Something to do that may take long.
#[derive(Debug)]
pub(super) enum Job {
    /// A fault that could not be resolved at once.
    Fault(CpuFault),
    /// The program changed the app view. What was moved is at the span.
    Change(ForeignChange, Option<Span>),
    /// Memory that was moved twice: nothing to do but to let go of it.
    LetGo(Span),
}

pub(super) struct Mail {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    arrived: Condvar,
    strays: Mutex<Vec<Fault>>,
    put_off: Mutex<Vec<(Instant, CpuFault)>>,
    /// How many are put off, so that the reading thread need not lock to see that there are none.
    put_off_count: AtomicUsize,
    bell: OwnedFd,
    /// Whether the bell may have been rung since it was last silenced.
    rung: AtomicBool,
}

impl Mail {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            jobs: Mutex::default(),
            arrived: Condvar::new(),
            strays: Mutex::default(),
            put_off: Mutex::default(),
            put_off_count: AtomicUsize::new(0),
            rung: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn post(&self, job: Job) {
        self.jobs.lock().0.push_back(job);
        self.arrived.notify_one();
    }

    /// Waits for a job; nothing once the boxes are closed.
    pub(super) fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if jobs.1 {
                return None;
            }
            if let Some(job) = jobs.0.pop_front() {
                return Some(job);
            }
            self.arrived.wait(&mut jobs);
        }
    }

    /// Nobody waits for jobs any more.
    pub(super) fn close(&self) {
        self.jobs.lock().1 = true;
        self.arrived.notify_all();
    }

    /// Hands faults to the reading thread.
    pub(super) fn hand_over(&self, fault: Fault) {
        self.strays.lock().push(fault);
        self.ring();
    }

    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        // Fails only when the counter is full, and then it is readable as it should be.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Keeps a fault until the handler is to be asked again.
    pub(super) fn put_off(&self, until: Instant, fault: CpuFault) {
        let mut put_off = self.put_off.lock();
        put_off.push((until, fault));
        self.put_off_count.store(put_off.len(), Ordering::Release);
        drop(put_off);
        // The reading thread may sleep for longer.
        self.ring();
    }

    /// When the first of the faults put off is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.put_off_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.put_off.lock().iter().map(|&(due, _)| due).min()
    }

    /// Takes faults out that were put off: those that are due.
    pub(super) fn due(&self) -> Vec<CpuFault> {
        if self.put_off_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let now = Instant::now();
        self.take_put_off(|due, _| due <= now)
    }

    /// Takes faults out that were put off: those on `page`.
    pub(super) fn withdraw(&self, page: PageIndex) -> Vec<CpuFault> {
        if self.put_off_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.take_put_off(|_, fault| fault.page == page)
    }

    fn take_put_off(&self, which: impl Fn(Instant, &CpuFault) -> bool) -> Vec<CpuFault> {
        let mut put_off = self.put_off.lock();
        let mut taken = Vec::new();
        put_off.retain(|(due, fault)| {
            let take = which(*due, fault);
            if take {
                taken.push(*fault);
            }
            !take
        });
        self.put_off_count.store(put_off.len(), Ordering::Release);
        taken
    }

    /// What was handed over. For the reading thread.
    pub(super) fn strays(&self) -> Vec<Fault> {
        if !self.rung.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        // Silenced first: a bell rung after this stands for a fault that is taken now or next time.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        std::mem::take(&mut *self.strays.lock())
    }

    /// Readable when there are strays, or something was put off.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
