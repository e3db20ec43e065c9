//! Read-ahead in the background: brings home what a program that goes through device-written memory is going to read next.
//!
//! One thread for an address space, started when it is first needed, does for a range what the fault handler does for a touch. It is on
//! the fault path (I1). Requests beyond what it can hold are dropped: whoever touches the pages first faults and brings them home.

use super::space::AddressSpace;
use crate::addr::PageRange;
use crate::track::HandlerThreads;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::{Arc, OnceLock, Weak};

/// Requests that wait at most.
const WAITING: usize = 16;

/// The thread and the way to it.
#[derive(Default)]
pub(super) struct Background {
    requests: OnceLock<Option<Sender<PageRange>>>,
}

impl Background {
    /// Asks for `range`, on behalf of `space`.
    pub(super) fn fetch(&self, space: &Arc<AddressSpace>, range: PageRange) {
        let requests = self.requests.get_or_init(|| start(Arc::downgrade(space)));
        // Full, or no thread: the pages are brought when they are touched.
        let _ = requests.as_ref().map(|requests| requests.try_send(range));
    }
}

/// Starts the thread, which ends when the sender is gone.
fn start(space: Weak<AddressSpace>) -> Option<Sender<PageRange>> {
    let (sender, requests) = bounded(WAITING);
    let serve = move |requests: &Receiver<PageRange>| {
        for range in requests {
            let Some(space) = space.upgrade() else { return };
            space.fetch_ahead(range);
        }
    };
    // Never joined: it holds nothing while it waits, and in a forked child it does not exist.
    HandlerThreads::default().spawn(1, Arc::new(move |_| serve(&requests))).ok()?;
    Some(sender)
}
