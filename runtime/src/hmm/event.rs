//! What an invalidation says, and the two traits through which it is heard.
//!
//! [`Event`], [`InvalidateInfo`] and [`IntervalNotifier`] take their meaning from Linux's
//! `enum mmu_notifier_event`, `struct mmu_notifier_range` and `struct mmu_interval_notifier_ops`;
//! [`MirrorOps`] from `struct mmu_notifier_ops`, cut down to the two callbacks that mirroring needs.

use crate::addr::PageRange;
use crate::sync::atomic::Ordering;
use std::sync::atomic::AtomicU64;

/// Why the CPU's mapping of a range is about to change. Linux: `enum mmu_notifier_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The range is unmapped or moved away: its addresses will mean nothing, or something else.
    Unmap,
    /// The mapping is taken away or replaced, the addresses stay valid (discard, copy-on-write, CPU fault).
    Clear,
    /// The protection of a whole VMA changes.
    ProtectionVma,
    /// The protection of pages changes, that of their VMA does not.
    ProtectionPage,
    /// Dirty tracking starts over: the next write must be seen.
    SoftDirty,
    /// The address space goes away.
    Release,
    /// Pages move to or from a device; the owner says whose.
    Migrate,
    /// Pages become exclusive to one device; the owner says whose.
    Exclusive,
}

impl Event {
    /// Whether a mirror that is itself the owner of the invalidation need not hear of it.
    /// Linux: drivers compare `range->owner` in their callbacks for exactly these two.
    pub fn is_owned(self) -> bool {
        matches!(self, Self::Migrate | Self::Exclusive)
    }
}

/// Who causes or receives invalidations: one number per mirror. Linux: the `owner` pointer of
/// `mmu_notifier_range_init_owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

impl OwnerId {
    /// A number that no other call in this process returned; they count up from 2^32.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whether the callbacks of an invalidation may wait. Linux: `MMU_NOTIFIER_RANGE_BLOCKABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocking {
    /// Callbacks wait for their locks and for the device as long as it takes.
    Yes,
    /// Callbacks take their locks only if they are free, and answer [`WouldBlock`] otherwise.
    No,
}

/// A callback's answer to a non-blocking invalidation that it could carry out only by waiting.
/// Linux: `-EAGAIN` from `invalidate_range_start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the notifier would have to wait")]
pub struct WouldBlock;

/// What a callback is told. Linux: `struct mmu_notifier_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidateInfo {
    /// The invalidated pages, clipped to what the callback subscribed to. (Linux does not clip.)
    pub pages: PageRange,
    /// Why.
    pub event: Event,
    /// Who caused it, if a mirror did.
    pub owner: Option<OwnerId>,
    /// Whether the callback may wait.
    pub blocking: Blocking,
}

/// Hears of invalidations of one interval. Linux: `struct mmu_interval_notifier_ops`.
///
/// Callbacks run with no registry lock held, on the thread that invalidates, several at once if several
/// threads invalidate. A callback may invalidate other pages and may take the locks ranked
/// [`DeviceGate`](crate::rank::Rank::DeviceGate) and above; it may not wait for a range, and it may not
/// unregister anything (dropping a handle inside a callback puts the unregistering off until after it).
pub trait IntervalNotifier: Send + Sync {
    /// Stops all use of `info.pages` before returning. An error counts only if
    /// `info.blocking` is [`Blocking::No`]; otherwise the invalidation fails and names this notifier.
    ///
    /// # Errors
    /// [`WouldBlock`] if it cannot be done without waiting and `info` forbids waiting.
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock>;

    /// How errors name this notifier.
    fn name(&self) -> &str {
        "interval notifier"
    }
}

/// What a mirror does when it is told. Linux: `struct mmu_notifier_ops`, of which `invalidate` is
/// `invalidate_range_start`; there is no `invalidate_range_end`, because the range protocol keeps
/// the bracket's state for all mirrors.
///
/// The same rules as for [`IntervalNotifier`] apply.
pub trait MirrorOps: Send + Sync {
    /// Takes the update lock, removes every device mapping of `info.pages`, and returns only when the device
    /// cannot use them any more and what it wrote is at home.
    ///
    /// # Errors
    /// [`WouldBlock`] if that needs waiting and `info` forbids it; some mappings may be gone then, which does no harm.
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock>;

    /// Removes every device mapping, for good. Called exactly once in the life of a registered mirror: when the
    /// address space is released or when the mirror unregisters, whichever comes first. `invalidate` may
    /// still run at the same time, and after it until unregistering is over; it finds nothing left to do.
    fn release(&self);
}
