//! Mirrors: one device's view of one address space.
//!
//! [`Mirror`] takes the meaning of Linux's `struct mmu_notifier` (earlier: `struct hmm_mirror`): it hears of every
//! invalidation of the address space, and of its end. Ranges are made through it and borrow it, so that a mirror with
//! ranges cannot be unregistered, and a range cannot be used after its mirror is gone:
//!
//! ```compile_fail,E0505
//! # use vksvm::addr::{PageIndex, PageRange};
//! # fn example(mirror: vksvm::hmm::Mirror) -> Result<(), vksvm::hmm::HmmError> {
//! let range = mirror.range(PageRange::single(PageIndex(0)))?;
//! mirror.unregister().ok(); // moves out of `mirror` while `range` borrows it
//! let seq = range.begin();
//! # Ok(())
//! # }
//! ```
//!
//! ```compile_fail,E0382
//! # use vksvm::addr::{PageIndex, PageRange};
//! # fn example(mirror: vksvm::hmm::Mirror) {
//! mirror.unregister().ok();
//! mirror.range(PageRange::single(PageIndex(0))).ok(); // used after it was moved
//! # }
//! ```

use super::HmmError;
use super::callback;
use super::entry::{Entry, Target};
use super::event::{MirrorOps, OwnerId};
use super::notifier::Notifiers;
use super::range::Range;
use crate::addr::{PageIndex, PageRange};
use crate::rank::{Rank, assert_below};
use crate::sync::model_failed;
use std::fmt;
use std::sync::Arc;

/// A device's registration with an address space. Linux: `struct mmu_notifier`.
///
/// Dropping it unregisters it, as [`unregister`](Self::unregister) does; dropped inside a callback it does so when that thread's outermost
/// callback is over.
pub struct Mirror {
    notifiers: Arc<Notifiers>,
    entry: Arc<Entry>,
    owner: OwnerId,
}

impl Mirror {
    /// Registers a mirror for the whole address space. Linux: `mmu_notifier_register`.
    ///
    /// `owner` is what the mirror's own invalidations carry; `name` is for errors. `ops` may be called before this returns.
    ///
    /// # Errors
    /// If `ops` or another mirror with this owner is registered, or the address space was released; then `ops.release`
    /// was not called and will not be.
    pub fn register(
        notifiers: &Arc<Notifiers>,
        owner: OwnerId,
        name: impl Into<String>,
        ops: Arc<dyn MirrorOps>,
    ) -> Result<Self, HmmError> {
        let everything = PageRange { start: PageIndex(0), end: PageIndex(u32::MAX) };
        let entry = Entry::new(everything, Some(Target::Mirror { ops, owner, name: name.into() }))?;
        notifiers.attach_mirror(&entry)?;
        Ok(Self { notifiers: Arc::clone(notifiers), entry, owner })
    }

    /// Runs [`MirrorOps::release`] unless the address space's release did, and returns when no callback of this mirror runs
    /// or will run (I10). Linux: `mmu_notifier_unregister`.
    ///
    /// Waits for callbacks that run, so the caller holds no lock that a callback takes; debug builds check it.
    ///
    /// # Errors
    /// Inside a callback it is refused and gives the mirror back. If the release callback panicked the mirror is
    /// unregistered all the same.
    pub fn unregister(self) -> Result<(), UnregisterError> {
        if callback::inside() {
            return Err(UnregisterError::InsideCallback { mirror: self });
        }
        assert_below(Rank::Notifiers, "unregistering a mirror");
        // Dropping `self` afterwards finds everything done.
        self.notifiers
            .detach(&self.entry)
            .map_err(|message| UnregisterError::ReleasePanicked { name: self.name().to_owned(), message })
    }

    /// Registers `pages` so that collisions with invalidations are seen. Linux: filling in a `struct hmm_range` and inserting its
    /// interval notifier; the notifier's callback is the mirror's.
    ///
    /// Ranges may overlap each other. Made during an invalidation over `pages` it starts out invalid (I11).
    ///
    /// # Errors
    /// If `pages` is empty or the address space was released.
    pub fn range(&self, pages: PageRange) -> Result<Range<'_>, HmmError> {
        Range::new(self, pages)
    }

    /// What this mirror's own invalidations carry.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The name it was registered with.
    pub fn name(&self) -> &str {
        self.entry.listener.as_ref().map_or("", |listener| listener.name())
    }

    /// The notifiers it is registered with.
    pub fn notifiers(&self) -> &Arc<Notifiers> {
        &self.notifiers
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        if callback::inside() {
            callback::put_off(&self.notifiers, &self.entry);
        } else {
            self.notifiers.detach_or_report(&self.entry);
        }
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("name", &self.name()).field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Unregistering that was refused, or that did not go cleanly.
/// Linux: none; `mmu_notifier_unregister` returns nothing and would deadlock in a callback.
#[derive(Debug, thiserror::Error)]
pub enum UnregisterError {
    /// Called from inside a notifier callback, for whose end it would have to wait.
    #[error("cannot unregister {mirror:?} from inside a notifier callback: do it after the callback returned")]
    InsideCallback {
        /// The mirror, still registered. Dropping it unregisters it once the callback is over.
        mirror: Mirror,
    },
    /// The release callback panicked. The mirror is unregistered; its device mappings may still be there.
    #[error("mirror \"{name}\" panicked while releasing its mappings: {message}")]
    ReleasePanicked {
        /// The mirror's name.
        name: String,
        /// The panic's message.
        message: String,
    },
}
