//! What the index holds: a range, an interval subscription or a mirror.
//!
//! All three are an interval with a validity; the latter two also listen. A mirror is simply a listener
//! whose interval is the whole address space.

use super::callback::contain;
use super::event::{Event, IntervalNotifier, InvalidateInfo, MirrorOps, OwnerId, WouldBlock};
use super::in_flight::{InFlight, Seq, Waited};
use super::index::Keyed;
use super::mutation::{Mutation, mutated};
use super::shard::ShardSet;
use super::{Deadline, HmmError, WaitError};
use crate::addr::PageRange;
use crate::rank::{Rank, assert_below};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Aligned so that what an invalidation touches is one cache line.
#[repr(align(64))]
pub(super) struct Entry {
    pub(super) pages: PageRange,
    pub(super) shards: ShardSet,
    /// The invalidations in flight over `pages`.
    pub(super) validity: InFlight,
    /// Boxed, because ranges have none and are made by the million.
    pub(super) listener: Option<Box<Listener>>,
    #[cfg(any(loom, shuttle))]
    number: usize,
}

/// Its key is its address: entries do not move.
#[cfg(not(any(loom, shuttle)))]
impl Keyed for Entry {}

/// Models must not depend on addresses, or an execution cannot be repeated.
#[cfg(any(loom, shuttle))]
impl Keyed for Entry {
    fn key(&self) -> usize {
        self.number
    }
}

/// The part of an entry that is called back.
pub(super) struct Listener {
    pub(super) target: Target,
    /// Callbacks that run, or are about to: what the grace period waits for.
    pub(super) running: InFlight,
    released: ReleaseOnce,
    /// One once it left the registry's counts.
    left: AtomicUsize,
}

pub(super) enum Target {
    Interval(Arc<dyn IntervalNotifier>),
    Mirror { ops: Arc<dyn MirrorOps>, owner: OwnerId, name: String },
}

impl Entry {
    /// # Errors
    /// If `pages` holds no page.
    pub(super) fn new(pages: PageRange, target: Option<Target>) -> Result<Arc<Self>, HmmError> {
        if pages.start >= pages.end {
            return Err(HmmError::BadRange { pages });
        }
        let listener = target.map(|target| Box::new(Listener::new(target)));
        Ok(Arc::new(Self {
            pages,
            shards: ShardSet::of(pages),
            validity: InFlight::new(),
            listener,
            #[cfg(any(loom, shuttle))]
            number: {
                static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
                NEXT.fetch_add(1, Ordering::Relaxed)
            },
        }))
    }

    pub(super) fn begin(&self) -> Seq {
        assert_below(Rank::Notifiers, "waiting for a range");
        self.validity.begin()
    }

    pub(super) fn wait_until_valid(&self, deadline: Deadline<'_>) -> Result<(), WaitError> {
        assert_below(Rank::Notifiers, "waiting for a range");
        match self.validity.wait(Some(&deadline)) {
            Waited::Valid => Ok(()),
            Waited::TimedOut => Err(WaitError::Timeout { pages: self.pages }),
            Waited::Released => Err(WaitError::Released { pages: self.pages }),
        }
    }
}

impl Listener {
    fn new(target: Target) -> Self {
        Self { target, running: InFlight::new(), released: ReleaseOnce::new(), left: AtomicUsize::new(0) }
    }

    /// Whether this is the first call.
    pub(super) fn leave_once(&self) -> bool {
        self.left.swap(1, Ordering::AcqRel) == 0
    }

    /// The grace period: returns when no callback runs. Final once no invalidation can find the listener.
    pub(super) fn wait_out_callbacks(&self) {
        self.running.wait(None);
    }

    pub(super) fn name(&self) -> &str {
        match &self.target {
            Target::Interval(notifier) => notifier.name(),
            Target::Mirror { name, .. } => name,
        }
    }

    /// Whether `event` was caused by this very mirror, which therefore need not hear of it: as it says itself if it invalidates
    /// for a service of its own, else only for events that have an owner.
    pub(super) fn caused(&self, event: Event, by: Option<OwnerId>, for_itself: bool) -> bool {
        match &self.target {
            Target::Interval(_) => false,
            Target::Mirror { owner, .. } => (for_itself || event.is_owned()) && by == Some(*owner),
        }
    }

    /// Runs the callback; the outer error is the message of its panic.
    pub(super) fn invalidate(&self, info: &InvalidateInfo) -> Result<Result<(), WouldBlock>, String> {
        contain(|| match &self.target {
            Target::Interval(notifier) => notifier.invalidate(info),
            Target::Mirror { ops, .. } => ops.invalidate(info),
        })
    }

    /// Runs a mirror's release callback unless it ran before, and returns when it has run; the error is
    /// the message of its panic.
    pub(super) fn release(&self) -> Result<(), String> {
        match &self.target {
            Target::Interval(_) => Ok(()),
            Target::Mirror { ops, .. } => self.released.run(|| contain(|| ops.release())).unwrap_or(Ok(())),
        }
    }
}

/// Runs something once, and lets everybody else wait until it has run. Unlike std's `Once` it runs on the model
/// checkers' primitives.
struct ReleaseOnce {
    phase: Mutex<Phase>,
    done: Condvar,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Before,
    Running,
    After,
}

impl ReleaseOnce {
    fn new() -> Self {
        Self { phase: Mutex::new(Phase::Before), done: Condvar::new() }
    }

    /// The result of `action` for the caller that ran it, `None` for the others, who return after it.
    fn run<R>(&self, action: impl FnOnce() -> R) -> Option<R> {
        let mut phase = self.phase.lock();
        while *phase == Phase::Running && !mutated(Mutation::ReleaseUnclaimed) {
            phase = self.done.wait(phase);
        }
        if *phase == Phase::After {
            return None;
        }
        *phase = Phase::Running;
        drop(phase);
        let result = action();
        *self.phase.lock() = Phase::After;
        self.done.notify_all();
        Some(result)
    }
}
