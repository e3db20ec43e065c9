//! The range protocol: notifiers, mirrors, ranges.
//!
//! A device-agnostic core with the semantics of Linux's mmu notifiers and HMM ranges. It knows no device, no tracker and no
//! page contents: only that the CPU's mapping of some pages is about to change, who must let go of them first, and whose
//! work has become stale by it.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use vksvm::addr::{PageIndex, PageRange};
//! use vksvm::hmm::{Blocking, Event, InvalidateInfo, Mirror, MirrorOps, Notifiers, OwnerId, WouldBlock};
//!
//! /// A device that maps pages one by one; its page table is a list behind the update lock.
//! struct Device(Mutex<Vec<PageIndex>>);
//!
//! impl MirrorOps for Device {
//!     fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
//!         let mut mapped = match info.blocking {
//!             Blocking::Yes => self.0.lock().unwrap(),
//!             Blocking::No => self.0.try_lock().map_err(|_| WouldBlock)?,
//!         };
//!         mapped.retain(|&page| !info.pages.contains(page));
//!         Ok(())
//!     }
//!     fn release(&self) {
//!         self.0.lock().unwrap().clear();
//!     }
//! }
//!
//! let notifiers = Notifiers::new();
//! let device = Arc::new(Device(Mutex::new(Vec::new())));
//! let mirror = Mirror::register(&notifiers, OwnerId::unique(), "example", device.clone())?;
//!
//! // A service maps page 7.
//! let range = mirror.range(PageRange::single(PageIndex(7)))?;
//! let seq = range.begin();
//! let mut mapped = device.0.lock().unwrap();
//! assert!(!range.retry(seq));
//! mapped.push(PageIndex(7));
//! drop(mapped);
//!
//! // The CPU takes it back.
//! let bracket = notifiers.invalidate(PageRange::of_len(PageIndex(0), 16), Event::Clear, None, Blocking::Yes)?;
//! assert!(device.0.lock().unwrap().is_empty());
//! assert!(!range.check(seq));
//! drop(bracket);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Map
//!
//! | file | holds |
//! |---|---|
//! | `event.rs` | events, owners, the callbacks' traits |
//! | `notifier.rs` | the address space's side: subscribe, invalidate, release; why retry is authoritative |
//! | `mirror.rs`, `range.rs` | the device's side |
//! | `snapshot.rs` | what stands in a mapping, page by page: snapshot and fault |
//! | `retry.rs`, `clock.rs` | giving up on the fast path, and on time |
//! | `in_flight.rs` | one range's count, sequence number and waiters |
//! | `shard.rs`, `index.rs`, `index/`, `entry.rs` | the registry: who overlaps what |
//! | `callback.rs` | panics and unregistering inside callbacks |
//!
//! # Locks
//!
//! One lock of rank [`Notifiers`](crate::rank::Rank::Notifiers) at a time, for a look-up; none while a callback runs or anybody waits. What
//! waits (a range, unregistering, release) checks in debug builds that its thread holds nothing a callback could take.
//!
//! # Costs
//!
//! An invalidation locks the shards of its pages twice and counts in the ranges it meets; a range's life is one
//! allocation and two look-ups. `check` and `retry` are one load.

mod callback;
mod clock;
mod entry;
mod error;
mod event;
mod in_flight;
mod index;
mod mirror;
mod mutation;
mod notifier;
mod range;
mod retry;
mod shard;
mod snapshot;

pub use clock::{Clock, Deadline, ManualClock, RealClock};
pub use error::{HmmError, InvalidateError, WaitError};
pub use event::{Blocking, Event, IntervalNotifier, InvalidateInfo, MirrorOps, OwnerId, WouldBlock};
pub use in_flight::Seq;
pub use mirror::{Mirror, UnregisterError};
pub use notifier::{Invalidation, Notifiers, Subscription};
pub use range::Range;
pub use retry::{Attempt, CollisionRetry, OutOfTime, Outcome, with_retry};
pub use snapshot::{
    LEAF_ORDERS, PageEntry, PageError, PageFaultIn, PageWalk, RangeError, Request, Walked, Want, read as read_pages,
};

#[cfg(all(test, loom))]
mod loom_models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod races;
#[cfg(all(test, shuttle))]
mod shuttle_models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod stress;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
