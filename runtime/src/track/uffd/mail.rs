//! What was read from the descriptor and is still to be done.
//!
//! Two boxes. *Jobs* are for the threads that may wait. *Strays* are faults that a thread read which was after events (see
//! `foreign.rs`): they are the reading thread's, which is rung for.
//!
//! Lock protocol: both locks are leaves, held for a few instructions.

use super::raw::{Fault, Span};
use crate::track::{CpuFault, ForeignChange};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    bell: OwnedFd,
}

impl Mail {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            jobs: Mutex::default(),
            arrived: Condvar::new(),
            strays: Mutex::default(),
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
        // Fails only when the counter is full, and then it is readable as it should be.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// What was handed over. For the reading thread.
    pub(super) fn strays(&self) -> Vec<Fault> {
        if self.strays.lock().is_empty() {
            return Vec::new();
        }
        // Silenced first: a bell rung after this stands for a fault that is taken now or next time.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        std::mem::take(&mut *self.strays.lock())
    }

    /// Readable when there are strays.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
