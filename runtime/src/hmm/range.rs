//! Ranges: a registered span with wait, begin, check and retry.
//!
//! [`Range`] takes the meaning of Linux's `struct hmm_range` with its `mmu_interval_notifier`. The way to use it:
//!
//! ```text
//! let range = mirror.range(span)?;
//! loop {                                    // through CollisionRetry, which bounds it
//!     range.wait_until_valid(deadline)?;
//!     let seq = range.begin();              // anew in every round
//!     … read the CPU's mapping, copy …
//!     let update = mirror_update.lock();    // the lock that MirrorOps::invalidate takes
//!     if range.retry(seq) { drop(update); undo; continue; }
//!     … write PTEs …
//!     break;
//! }
//! ```
//!
//! `notifier.rs` draws why that never leaves a stale PTE.

use super::entry::Entry;
use super::event::{Blocking, Event, InvalidateInfo};
use super::in_flight::Seq;
use super::index::Keyed;
use super::mirror::Mirror;
use super::notifier::Invalidation;
use super::{Deadline, HmmError, InvalidateError, WaitError};
use crate::addr::PageRange;
use crate::sync::model_failed;
use std::fmt;
use std::sync::Arc;

/// A span of pages whose invalidations are seen. Linux: `struct hmm_range`.
///
/// Registered until dropped; through its mirror it keeps the address space's notifiers alive.
pub struct Range<'m> {
    mirror: &'m Mirror,
    entry: Arc<Entry>,
}

impl<'m> Range<'m> {
    pub(super) fn new(mirror: &'m Mirror, pages: PageRange) -> Result<Self, HmmError> {
        let entry = Entry::new(pages, None)?;
        mirror.notifiers().insert(&entry);
        let range = Self { mirror, entry };
        if range.entry.validity.is_released() {
            return Err(HmmError::Released { pages });
        }
        Ok(range)
    }

    /// The registered pages.
    pub fn pages(&self) -> PageRange {
        self.entry.pages
    }

    /// The mirror it belongs to.
    pub fn mirror(&self) -> &'m Mirror {
        self.mirror
    }

    /// Waits until no invalidation over the range is in flight. Linux: `hmm_range_wait_until_valid` (before 5.5), with an
    /// injected clock. That it was valid says nothing about now: [`begin`](Self::begin) comes next. With a deadline that has passed it
    /// succeeds if there is nothing to wait for.
    ///
    /// The caller may hold the address space's lock, but no lock that a callback takes (I12; debug builds
    /// check it); page locks only if it holds those of the whole range.
    ///
    /// # Errors
    /// If the deadline passes first, or the address space is released.
    pub fn wait_until_valid(&self, deadline: Deadline<'_>) -> Result<(), WaitError> {
        self.entry.wait_until_valid(deadline)
    }

    /// Waits out invalidations in flight, without limit, and returns the number that [`check`](Self::check) and [`retry`](Self::retry)
    /// compare. What was changed between the start and the end of earlier invalidations is visible afterwards.
    /// Linux: `mmu_interval_read_begin`. Take it anew for every attempt. The rules of
    /// [`wait_until_valid`](Self::wait_until_valid) about locks apply.
    ///
    /// After the address space's release it returns at once, with a number that is stale.
    pub fn begin(&self) -> Seq {
        self.entry.begin()
    }

    /// Whether nothing was seen to invalidate the range since `seq`: a hint, one load, for leaving early.
    /// Linux: `mmu_interval_check_retry`, which answers the opposite.
    #[inline]
    pub fn check(&self, seq: Seq) -> bool {
        !self.entry.validity.is_stale(seq)
    }

    /// Whether the attempt must be given up because the range was invalidated since `seq`. The answer "no" holds for
    /// as long as the caller keeps holding the lock that [`MirrorOps::invalidate`](super::MirrorOps::invalidate) takes, or rather:
    /// whoever invalidates from then on calls back after that lock is free, and finds what was written.
    /// Linux: `mmu_interval_read_retry`.
    #[inline]
    #[must_use = "an attempt that must be retried may not be committed"]
    pub fn retry(&self, seq: Seq) -> bool {
        self.entry.validity.is_stale(seq)
    }

    /// Starts an invalidation that this range's own service causes: as
    /// [`Notifiers::invalidate`](super::Notifiers::invalidate) with the mirror as owner, except that this very range stays valid, so that the
    /// service is not made to start over by itself. `pages` need not be those of the range.
    /// Linux: `migrate_vma_setup` with `pgmap_owner`; the driver there tells its own invalidation apart by the owner.
    ///
    /// The mirror itself is not called, whatever `event` is; other mirrors always are. (In Linux drivers leave out what they caused by the
    /// owner, which only `MIGRATE` and `EXCLUSIVE` carry.)
    /// *Other* ranges of the same mirror do become invalid. To make two services of one mirror over the same pages exclude each other
    /// by that alone, keep the guard until the PTEs are written: then either service begins before the other's start and is
    /// stale at its retry, or it begins after the other's end and sees the other's PTEs. (Page locks do it too.)
    ///
    /// # Errors
    /// As [`Notifiers::invalidate`](super::Notifiers::invalidate).
    pub fn invalidate_others(
        &self,
        pages: PageRange,
        event: Event,
        blocking: Blocking,
    ) -> Result<Invalidation<'_>, InvalidateError> {
        let owner = Some(self.mirror.owner());
        let info = InvalidateInfo { pages, event, owner, blocking };
        self.mirror.notifiers().invalidate_except(Some(self.entry.key()), info)
    }
}

impl Drop for Range<'_> {
    fn drop(&mut self) {
        if !model_failed() {
            self.mirror.notifiers().remove(&self.entry);
        }
    }
}

impl fmt::Debug for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range").field("pages", &self.entry.pages).field("mirror", &self.mirror).finish_non_exhaustive()
    }
}
