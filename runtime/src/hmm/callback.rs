//! Being inside a callback: panics stay there, and handles dropped there are unregistered after it.
//!
//! Unregistering waits for callbacks that run. From inside one that would be waiting for oneself, so
//! it is refused there; a handle that is *dropped* there cannot be refused, and is put on a list of its thread
//! that is worked off when the outermost callback is over. Linux defers removals during an invalidation with
//! `deferred_list` in the same spirit.

use super::entry::Entry;
use super::notifier::Notifiers;
use crate::sync::thread_local;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "the models' macro has no const form")]
    static DEPTH: Cell<usize> = Cell::new(0);
    #[allow(clippy::missing_const_for_thread_local, reason = "as above")]
    static PUT_OFF: RefCell<Vec<(Arc<Notifiers>, Arc<Entry>)>> = RefCell::new(Vec::new());
}

/// Whether this thread is inside a notifier callback of any address space.
pub(super) fn inside() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}

/// Runs a callback; a panic becomes its message.
pub(super) fn contain<R>(callback: impl FnOnce() -> R) -> Result<R, String> {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    // The callback's own state may be broken after a panic; that is why the error names it. Ours is not touched by it.
    let outcome = catch_unwind(AssertUnwindSafe(callback));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
    })
}

/// Leaves the unregistering of `entry` to [`run_put_off`] on this thread.
pub(super) fn put_off(notifiers: &Arc<Notifiers>, entry: &Arc<Entry>) {
    PUT_OFF.with(|list| list.borrow_mut().push((Arc::clone(notifiers), Arc::clone(entry))));
}

/// Unregisters what was dropped inside callbacks of this thread, if it is outside now.
pub(super) fn run_put_off() {
    if inside() {
        return;
    }
    while let Some((notifiers, entry)) = PUT_OFF.with(|list| list.borrow_mut().pop()) {
        notifiers.detach_or_report(&entry);
    }
}
