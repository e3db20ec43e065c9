//! Picks the best tracker that works here, and says why the better ones did not.

use super::sigsegv::SigsegvTracker;
use super::uffd::{self, UffdTracker};
use super::{Tracker, TrackerKind, Views};
use std::sync::Arc;

/// How a tracker is set up.
#[derive(Clone, Copy, Debug)]
pub struct TrackerOptions {
    /// Threads that resolve faults which have to wait (for a device, say), 1 to 8; the others are resolved by the one thread
    /// that reads them.
    pub handler_threads: usize,
    /// How many kernel mappings the tracker may make of the app view. `None`: half of what
    /// `vm.max_map_count` leaves to this process.
    pub mapping_budget: Option<usize>,
}

impl TrackerOptions {
    /// Upper bound of [`handler_threads`](Self::handler_threads).
    pub const MAX_HANDLER_THREADS: usize = 8;

    pub(super) fn threads(&self) -> usize {
        self.handler_threads.clamp(1, Self::MAX_HANDLER_THREADS)
    }

    pub(super) fn budget(&self) -> usize {
        self.mapping_budget.unwrap_or_else(default_mapping_budget).max(8)
    }
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self { handler_threads: 2, mapping_budget: None }
    }
}

/// No tracker, or not the one asked for, can be had.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} tracker does not work here: {reason}. {remedy}")]
pub struct TrackerUnavailable {
    /// Which tracker was tried.
    pub kind: TrackerKind,
    /// What went wrong.
    pub reason: String,
    /// What can be done about it.
    pub remedy: &'static str,
}

/// The tracker `kind`, or for `None` the best that works: userfaultfd if it passes a trial of every
/// kind of fault on a few pages of its own, SIGSEGV otherwise. [`Tracker::describe`] says why.
///
/// # Errors
/// The tracker asked for cannot be had.
///
/// # Safety
/// `views` describes two live shared mappings of one memfd that the caller manages and that stay until the tracker is
/// dropped. From [`Tracker::watch`] on, accesses to the app view wait for the handler; the caller must only let
/// safe code have references into it that such waiting, and the handler, keep valid.
pub unsafe fn choose(
    kind: Option<TrackerKind>,
    views: Views,
    options: &TrackerOptions,
) -> Result<Arc<dyn Tracker>, TrackerUnavailable> {
    let why_not = match kind {
        Some(TrackerKind::Sigsegv) => "asked for".to_owned(),
        Some(TrackerKind::Userfaultfd) => {
            // SAFETY: the caller's promise is the one asked for here.
            return Ok(Arc::new(unsafe { UffdTracker::open(views, options) }?));
        }
        None => match uffd::trial() {
            // SAFETY: as above.
            Ok(()) => match unsafe { UffdTracker::open(views, options) } {
                Ok(tracker) => return Ok(Arc::new(tracker)),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        },
    };
    tracing::info!(reason = %why_not, "tracking CPU accesses with mprotect and SIGSEGV");
    // SAFETY: as above.
    Ok(Arc::new(unsafe { SigsegvTracker::open(views, options, why_not) }?))
}

fn default_mapping_budget() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .unwrap_or(65_530);
    let in_use = std::fs::read("/proc/self/maps").map_or(1_000, |maps| maps.iter().filter(|&&b| b == b'\n').count());
    limit.saturating_sub(in_use) / 2
}
