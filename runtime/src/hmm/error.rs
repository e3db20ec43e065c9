//! What can go wrong, with the pages and the remedy.

use super::event::{Event, OwnerId};
use crate::addr::PageRange;

/// A subscription, mirror or range that could not be made, or an address space that could not be released cleanly.
/// Linux: the negative result of `mmu_notifier_register` and `mmu_interval_notifier_insert`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HmmError {
    /// The span holds no page, or ends before it starts. Linux: `-EOVERFLOW` from `mmu_interval_notifier_insert`.
    #[error("{pages:?} is empty or runs backwards: pass a range of at least one page")]
    BadRange {
        /// The span as it was passed.
        pages: PageRange,
    },
    /// The mirror, or another one with the same owner, is registered already.
    #[error("mirror \"{name}\" ({owner:?}) is registered with this address space already: unregister it first")]
    AlreadyRegistered {
        /// The mirror that stands in the way.
        name: String,
        /// Its owner.
        owner: OwnerId,
    },
    /// The address space was released. Linux: `-ESRCH`, when `mmget_not_zero` fails.
    #[error("cannot attach to {pages:?}: the address space was released")]
    Released {
        /// The span asked for.
        pages: PageRange,
    },
    /// Called from inside a notifier callback, for which it would have to wait.
    #[error("{what} from inside a notifier callback would wait for that callback: do it after the callback returned")]
    InsideCallback {
        /// What was attempted.
        what: &'static str,
    },
    /// Callbacks panicked while the address space was released. All others ran; the address space is released.
    #[error("callbacks panicked during release: {}; their device mappings may still be there", .notifiers.join(", "))]
    ReleasePanicked {
        /// Each notifier's name with the panic's message.
        notifiers: Vec<String>,
    },
}

/// An invalidation that did not start. Nothing is left in flight: the caller must not change the CPU's mapping,
/// and has nothing to end.
/// Linux: the negative result of `mmu_notifier_invalidate_range_start_nonblock`; the blocking one cannot fail there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidateError {
    /// A callback of a non-blocking invalidation would have had to wait. Linux: `-EAGAIN`.
    #[error("\"{notifier}\" would have to wait to let go of {pages:?} ({event:?}): try again, or let it block")]
    WouldBlock {
        /// Who refused.
        notifier: String,
        /// The pages to be invalidated.
        pages: PageRange,
        /// Why they were.
        event: Event,
    },
    /// A callback refused although it was allowed to wait. Linux warns about it and goes on; here the pages count as
    /// still in use.
    #[error("\"{notifier}\" refused to let go of {pages:?} ({event:?}) though it may wait: its device must be removed")]
    Refused {
        /// Who refused.
        notifier: String,
        /// The pages to be invalidated.
        pages: PageRange,
        /// Why they were.
        event: Event,
    },
    /// A callback panicked: its device may still use the pages.
    #[error("\"{notifier}\" panicked while letting go of {pages:?} ({event:?}): {message}; unregister it to go on")]
    Panicked {
        /// Whose callback it was.
        notifier: String,
        /// The pages to be invalidated.
        pages: PageRange,
        /// Why they were.
        event: Event,
        /// The panic's message.
        message: String,
    },
    /// The span ends before it starts.
    #[error("{pages:?} runs backwards")]
    BadRange {
        /// The span as it was passed.
        pages: PageRange,
    },
}

impl InvalidateError {
    /// Whether trying again may help.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::WouldBlock { .. })
    }
}

/// A range that did not become valid.
/// Linux: `-EBUSY` and `-EAGAIN` of `hmm_range_wait_until_valid` (before 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed while invalidations were in flight over the range. Linux: `-EBUSY` to the driver's caller.
    #[error("{pages:?} still being invalidated when the time ran out: wait longer, or take the slow path")]
    Timeout {
        /// The range's pages.
        pages: PageRange,
    },
    /// The address space was released; the range never becomes valid again.
    #[error("{pages:?} gone: the address space was released")]
    Released {
        /// The range's pages.
        pages: PageRange,
    },
}
