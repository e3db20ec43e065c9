//! What is done beside the program's threads: read-ahead for a program that goes through device-written memory, and errands that the program
//! sends and does not wait for, such as prefetching home.
//!
//! One thread for each of the two and an address space, started when it is first needed, does for a range what the fault handler does for a
//! touch. It is on the fault path (I1). Read-ahead beyond what can be held is dropped: whoever touches the pages first faults and brings
//! them home. Errands are kept, and done in order.

use super::space::AddressSpace;
use crate::addr::PageRange;
use crate::track::HandlerThreads;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::sync::{Arc, OnceLock, Weak};

/// Requests for read-ahead that wait at most.
const WAITING: usize = 16;

/// Something to be done for an address space.
pub(super) type Errand = Box<dyn FnOnce(&Arc<AddressSpace>) + Send>;

/// The threads and the ways to them.
#[derive(Default)]
pub(super) struct Background {
    ahead: OnceLock<Option<Sender<PageRange>>>,
    errands: OnceLock<Option<Sender<Errand>>>,
}

impl Background {
    /// Asks for `range`, on behalf of `space`.
    pub(super) fn fetch(&self, space: &Arc<AddressSpace>, range: PageRange) {
        let fetch = |space: &Arc<AddressSpace>, range| space.fetch_ahead(range);
        let ahead = self.ahead.get_or_init(|| start(space, bounded(WAITING), fetch));
        // Full, or no thread: the pages are brought when they are touched.
        let _ = ahead.as_ref().map(|ahead| ahead.try_send(range));
    }

    /// Has `errand` done, at once if there is no thread for it.
    pub(super) fn send(&self, space: &Arc<AddressSpace>, errand: Errand) {
        let errands = self.errands.get_or_init(|| start(space, unbounded(), |space, errand: Errand| errand(space)));
        let left = match errands {
            Some(errands) => errands.send(errand).err().map(|unsent| unsent.0),
            None => Some(errand),
        };
        if let Some(errand) = left {
            errand(space);
        }
    }
}

/// Starts a thread, which ends when the sender is gone.
fn start<R: Send + 'static>(
    space: &Arc<AddressSpace>,
    (sender, requests): (Sender<R>, Receiver<R>),
    serve: impl Fn(&Arc<AddressSpace>, R) + Send + Sync + 'static,
) -> Option<Sender<R>> {
    let space: Weak<AddressSpace> = Arc::downgrade(space);
    let work = move || {
        for request in &requests {
            let Some(space) = space.upgrade() else { return };
            serve(&space, request);
        }
    };
    // Never joined: it holds nothing while it waits, and in a forked child it does not exist.
    HandlerThreads::default().spawn(1, Arc::new(move |_| work())).ok()?;
    Some(sender)
}
