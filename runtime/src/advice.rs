//! Advice: where memory should be and how it is going to be used, and that its contents no longer matter.
//!
//! Hints never change a result, and what a device cannot follow does nothing (a message at level *debug* says so). Ranges need not be whole pages:
//! hints and prefetch concern all pages that the range touches, discarding those that lie inside.

use crate::Svm;
use crate::addr::{PageRange, VirtAddr};
use crate::kernel::requests::{Request, Work};
use crate::mm::advice::{Hint, Location};
use crate::mm::ops::{OpError, Span};
use crate::mm::space::AddressSpace;
use crate::service::ServiceError;
use bytemuck::AnyBitPattern;
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;

/// Advice could not be taken, or not be followed. Contents are as they were, but for what discarding had done by then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdviceError {
    /// The range is not memory of this heap, or may not be changed, or a device does not let go.
    #[error(transparent)]
    Range(#[from] OpError),
    /// Pages could not be brought to the device.
    #[error("pages were not brought to the device: {0}")]
    Service(#[from] ServiceError),
    /// Pages could not be brought home.
    #[error("pages were not brought home: {0}")]
    Home(Box<dyn std::error::Error + Send + Sync>),
    /// The runtime was closed meanwhile.
    #[error("the runtime was closed before the advice was followed; keep the Svm until it is")]
    Closed,
}

/// What an advice comes to, under way: it goes on whether or not it is waited for.
#[derive(Debug)]
pub struct Advised {
    done: Receiver<Result<u64, AdviceError>>,
}

impl Advised {
    fn at_once(pages: u64) -> Self {
        let (sender, done) = bounded(1);
        // There is room for one.
        let _ = sender.send(Ok(pages));
        Self { done }
    }

    /// Waits until everything is done. Returns the pages concerned: mapped on the device, brought home, or discarded.
    ///
    /// # Errors
    /// If it could not be done.
    pub fn wait(self) -> Result<u64, AdviceError> {
        self.done.recv().unwrap_or(Err(AdviceError::Closed))
    }

    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_done(&self) -> bool {
        !self.done.is_empty()
    }
}

impl Svm {
    /// This runtime's device, as a place for pages.
    pub fn location(&self) -> Location {
        Location::Device(self.inner.mirror.number())
    }

    /// Has the pages of `values` brought to where they are going to be used, and returns at once. CUDA: `cudaMemPrefetchAsync`; Linux:
    /// `madvise(MADV_WILLNEED)`.
    ///
    /// *To the device:* in bulk, as if kernels had missed them, as far as there are frames: at most three quarters of them, other pages making
    /// room that were not used lately; while a launch runs, free frames only. The CPU's next touch takes a page back, unless it only reads and the data is
    /// [mostly read](Hint::ReadMostly). Pages that are mapped at home stay there, and are mapped. Launches that are submitted later find them. *To the CPU:* what the device
    /// wrote comes home, and the CPU touches it without a fault; devices keep copies of mostly-read data only. To another runtime's device: ask that
    /// runtime; here it does nothing.
    ///
    /// # Errors
    /// If `values` do not lie in this heap, where something is mapped. Later, what [`Advised::wait`] returns.
    pub fn prefetch<T>(&self, values: *const [T], to: Location) -> Result<Advised, AdviceError> {
        let Some(pages) = self.pages_under(values)? else { return Ok(Advised::at_once(0)) };
        if to == self.location() {
            return self.bring(pages, true);
        }
        if to != Location::Cpu {
            tracing::debug!(%to, "not prefetched: that is another runtime's device");
            return Ok(Advised::at_once(0));
        }
        let (sender, done) = bounded(1);
        self.inner.space.send(move |space| {
            // Whoever does not wait for the result does not want it.
            let _ = sender.send(fetch_home(space, pages));
        });
        Ok(Advised { done })
    }

    /// As [`prefetch`](Self::prefetch), and waits until the pages are there. Returns how many were moved or mapped.
    ///
    /// # Errors
    /// As there.
    pub fn prefetch_and_wait<T>(&self, values: *const [T], to: Location) -> Result<u64, AdviceError> {
        self.prefetch(values, to)?.wait()
    }

    /// Notes a hint for the pages of `values` before it returns, and has it followed as far as something is to be done at once. It
    /// stays with the pages until it is replaced, or they are unmapped or freed to the system; what shares pages with `values` is advised too. CUDA: `cudaMemAdvise`.
    ///
    /// # Errors
    /// If `values` do not lie in this heap, where something is mapped, or a device does not let go.
    pub fn advise<T>(&self, values: *const [T], hint: Hint) -> Result<Advised, AdviceError> {
        let Some(pages) = self.pages_under(values)? else { return Ok(Advised::at_once(0)) };
        let space = &self.inner.space;
        space.advise_span(space.span_of(pages), hint)?;
        let imports = self.inner.device.info().import.is_some();
        match hint {
            Hint::AccessedBy(device, true) if Location::Device(device) != self.location() => {
                tracing::debug!(device = device.0, "not mapped ahead: that is another runtime's device");
            }
            Hint::AccessedBy(_, true) if imports => return self.bring(pages, false),
            Hint::AccessedBy(_, true) | Hint::PreferredLocation(Some(Location::Cpu)) if !imports => {
                tracing::debug!("the device cannot map pages at home: they are copied when they are used");
            }
            _ => {}
        }
        Ok(Advised::at_once(0))
    }

    /// As [`advise`](Self::advise), and waits until it is followed. Returns the pages that were mapped ahead.
    ///
    /// # Errors
    /// As there.
    pub fn advise_and_wait<T>(&self, values: *const [T], hint: Hint) -> Result<u64, AdviceError> {
        self.advise(values, hint)?.wait()
    }

    /// The contents of `values` no longer matter: whole pages inside are dropped wherever they are, and nothing of them is moved in either direction. Until
    /// they are written again, they read as zeros on all sides; what lies on pages that reach beyond `values` keeps its value. Kernels that
    /// run may go on: what they store meanwhile is dropped or stays. Hints stay, pins
    /// ([`AddressSpace::pin_home`](crate::mm::space::AddressSpace::pin_home)) end. Returns the pages discarded.
    /// CUDA: `cudaMemDiscardBatchAsync`, where reads are undefined; Linux: `madvise(MADV_REMOVE)`.
    ///
    /// # Errors
    /// If `values` do not lie in this heap, where something is mapped that may be written, or a device does not let go.
    pub fn discard<T: AnyBitPattern>(&self, values: &mut [T]) -> Result<u64, AdviceError> {
        // SAFETY: any bytes make a `T`, and nobody else looks: the borrow is exclusive until this returns.
        Ok(unsafe { self.inner.space.discard_inside(span_under(values)) }?)
    }

    /// As [`discard`](Self::discard), and returns at once. It is not ordered against launches, nor against anything else that happens before
    /// [`Advised::wait`] returns.
    ///
    /// # Safety
    /// Until it is done, `values` must stay allocated, and nobody may read or write them.
    ///
    /// # Errors
    /// As there; what is not found out at once is what [`Advised::wait`] returns.
    pub unsafe fn discard_without_waiting<T: AnyBitPattern>(&self, values: *mut [T]) -> Result<Advised, AdviceError> {
        self.pages_under(values)?;
        let span = span_under(values);
        let (sender, done) = bounded(1);
        self.inner.space.send(move |space| {
            // SAFETY: the caller's promise.
            let discarded = unsafe { space.discard_inside(span) };
            // Whoever does not wait for the result does not want it.
            let _ = sender.send(discarded.map_err(AdviceError::from));
        });
        Ok(Advised { done })
    }

    /// The pages that `values` touch, all mapped; nothing if there are no values.
    fn pages_under<T>(&self, values: *const [T]) -> Result<Option<PageRange>, AdviceError> {
        let span = span_under(values);
        if span.bytes == 0 {
            return Ok(None);
        }
        let space = &self.inner.space;
        let pages = space.pages_around(span)?;
        match space.vmas().read().first_hole(pages) {
            Some(hole) => Err(OpError::Unmapped { span, hole: space.span_of(hole) }.into()),
            None => Ok(Some(pages)),
        }
    }

    /// Sends the executor for `pages`.
    fn bring(&self, pages: PageRange, moving: bool) -> Result<Advised, AdviceError> {
        let (sender, done) = bounded(1);
        let request = Request::new(pages, moving, sender);
        self.inner.send(Work::Bring(request)).map_err(|()| AdviceError::Closed)?;
        Ok(Advised { done })
    }
}

fn span_under<T>(values: *const [T]) -> Span {
    let bytes = (values.len() as u64).saturating_mul(size_of::<T>() as u64);
    Span { start: VirtAddr::of(values), bytes }
}

/// Brings `pages` home, step by step. Returns how many a device had.
fn fetch_home(space: &Arc<AddressSpace>, pages: PageRange) -> Result<u64, AdviceError> {
    let (mut rest, mut fetched) = (pages, 0);
    while !rest.is_empty() {
        let (left, brought) = space.fetch_back(rest).map_err(AdviceError::Home)?;
        rest = left;
        fetched += brought;
    }
    Ok(fetched)
}
