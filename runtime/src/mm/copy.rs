//! The two meanings that a pointer handed to a device can have.
//!
//! - A **coherent view** is the default: launches take slices and pointers, and CPU and kernels see each other's stores at the
//!   moments that borrowing allows. Nothing is copied ahead, pages move as they are touched. Nothing to call.
//! - A **snapshot** is a copy of a range as it was at one moment, no matter who writes it meanwhile: CPU threads, kernels in
//!   flight, or both: [`Svm::snapshot_of`](crate::Svm::snapshot_of). For checkpoints, for looking at data that others work on, and for
//!   handing out something that must not change any more.
//!
//! GPU drivers call these "userptr" objects with and without notifiers; there the second kind pins pages and is not
//! coherent, here it is a copy and pins nothing.
//!
//! How the moment is made: with the locks of all pages held, what devices wrote comes home and their write permission goes
//! (`ProtectionPage`), and the CPU's goes. From then on nobody can store, since each would have to take a page's lock first: that is
//! the moment. Then the pages are copied through the alias. Those who know no page locks (users of the `hmm` API) are seen
//! as collisions on a subscription; then it starts over, and in the end under the address space's write side.

use super::ops::{OpError, Span};
use super::pages::PageState;
use super::space::AddressSpace;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageIndex, PageRange, VirtAddr};
use crate::hmm::{
    Attempt, Blocking, CollisionRetry, Deadline, Event, HmmError, IntervalNotifier, InvalidateInfo, OutOfTime,
    RealClock, WaitError, WouldBlock,
};
use bytemuck::AnyBitPattern;
use std::sync::Arc;
use std::time::Duration;

/// How long a snapshot may collide.
const PATIENCE: Duration = Duration::from_secs(30);

/// A snapshot could not be taken. Nothing was changed.
/// Linux: none; a driver's userptr object without notifier pins its pages instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The range is not memory of this heap, or a device does not let go.
    #[error("no snapshot of memory that is not there, or not to be had: {0}")]
    Range(#[from] OpError),
    /// The address space is going away.
    #[error("no snapshot: {0}")]
    Registration(#[from] HmmError),
    /// Others kept invalidating the range.
    #[error("no snapshot: {0}")]
    Collisions(#[from] OutOfTime),
    /// Somebody held an invalidation over the range for too long, or the address space is going away.
    #[error("no snapshot: {0}")]
    Waiting(#[from] WaitError),
}

/// Hears of invalidations and does nothing: the subscription's sequence number is all that is wanted.
struct Listening;

impl IntervalNotifier for Listening {
    fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
        Ok(())
    }

    fn name(&self) -> &str {
        "snapshot"
    }
}

impl AddressSpace {
    /// See [`Svm::snapshot_of`](crate::Svm::snapshot_of).
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_of<T: AnyBitPattern>(&self, values: *const [T]) -> Result<Vec<T>, SnapshotError> {
        let bytes = (values.len() as u64).saturating_mul(size_of::<T>() as u64);
        let span = Span { start: VirtAddr::of(values), bytes };
        if bytes == 0 {
            return Ok(vec![T::zeroed(); values.len()]);
        }
        // Checked first: a length that makes no sense must not be allocated.
        let range = self.pages_around(span)?;
        let mut copy = vec![T::zeroed(); values.len()];
        // SAFETY: the vector has that many zero bytes, in ordinary memory that nobody else knows, and any bytes make a `T`.
        unsafe { self.copy_at_a_moment(span, range, copy.as_mut_ptr().cast()) }?;
        Ok(copy)
    }

    /// # Safety
    /// `to` must be valid for writing `span.bytes` bytes, outside the heap, and zero; `range` are the pages around `span`.
    unsafe fn copy_at_a_moment(&self, span: Span, range: PageRange, to: *mut u8) -> Result<(), SnapshotError> {
        let listening = self.notifiers().subscribe(range, Arc::new(Listening))?;
        let clock = RealClock::new();
        let mut retry = CollisionRetry::new(Deadline::after(&clock, PATIENCE));
        loop {
            let attempt = retry.next()?;
            if attempt == Attempt::Fast {
                listening.wait_until_valid(retry.deadline())?;
            }
            let slow = (attempt == Attempt::Slow).then(|| self.vmas().write());
            let fast = slow.is_none().then(|| self.vmas().read());
            if let Some(hole) = slow.as_deref().or(fast.as_deref()).and_then(|vmas| vmas.first_hole(range)) {
                return Err(OpError::Unmapped { span, hole: self.span_of(hole) }.into());
            }
            let _pages = self.home().pages.lock(range);
            drop(fast);
            self.hold_still(range)?;
            let seq = listening.begin();
            // SAFETY: the caller's promise; the pages are held still.
            unsafe { self.copy_out(span, range, to) };
            if !listening.retry(seq) {
                return Ok(());
            }
            retry.collided();
            // SAFETY: the caller's promise.
            unsafe { to.write_bytes(0, span.bytes as usize) };
        }
    }

    /// After this nobody stores to `range`, whose page locks are held, until they are given back; home has the truth.
    fn hold_still(&self, range: PageRange) -> Result<(), OpError> {
        let pages = &self.home().pages;
        let on_device = |page: &PageIndex| matches!(pages.state(*page), PageState::Device(_));
        let in_use = |page| matches!(pages.state(page), PageState::Device(_) | PageState::Remote);
        if range.iter().any(in_use) {
            let bracket = self.notifiers().invalidate(range, Event::ProtectionPage, None, Blocking::Yes)?;
            range.iter().filter(on_device).for_each(|page| pages.set_state(page, PageState::Shared));
            drop(bracket);
        }
        self.tracker().watch(range)?;
        self.tracker().write_protect(range)?;
        Ok(())
    }

    /// # Safety
    /// As [`copy_at_a_moment`](Self::copy_at_a_moment), and `range` around `span` is held still.
    unsafe fn copy_out(&self, span: Span, range: PageRange, to: *mut u8) {
        let views = &self.home().views;
        let first = span.start.page_offset();
        let bytes = span.bytes as usize;
        // Pages without memory read as zeros, which `to` has; reading them through the alias would give them some.
        for run in views.has_data(range) {
            let from = ((run.start.0 - range.start.0) as usize) << PAGE_SHIFT;
            let (start, end) = (from.max(first), (from + run.bytes()).min(first + bytes));
            // SAFETY: `start..end` are offsets from the range's first byte that lie in this run and in the span; the alias is
            // always readable, nobody writes the pages, and `to` is outside the heap.
            unsafe {
                views.alias_ptr(range.start).add(start).copy_to_nonoverlapping(to.add(start - first), end - start)
            };
        }
    }

    /// The pages that `span`, which is not empty, touches.
    pub(crate) fn pages_around(&self, span: Span) -> Result<PageRange, OpError> {
        let views = &self.home().views;
        let heap = PageRange::of_len(PageIndex(0), views.pages());
        let outside = || OpError::OutsideHeap { span, heap: self.span_of(heap) };
        let start = views.page_of(span.start).ok_or_else(outside)?;
        let last = span.start.0.checked_add(span.bytes - 1).ok_or_else(outside)?;
        let last = views.page_of(VirtAddr(last)).ok_or_else(outside)?;
        debug_assert!(span.bytes.div_ceil(PAGE_SIZE as u64) <= u64::from(last.0 - start.0 + 1));
        Ok(PageRange::new(start, last.plus(1)))
    }
}
