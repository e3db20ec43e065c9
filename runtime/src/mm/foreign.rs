//! Following what the program did to the app view by calls of its own, as far as the tracker noticed (`track/uffd/foreign.rs`).
//!
//! The addresses are lost: nothing of the heap is mapped there again, since something else may be. Devices hear what they would have
//! heard had the program used the operations in `ops/`: `Unmap`; and before it `Migrate` for memory that lives on
//! elsewhere, so that what devices wrote is in it. Nothing is ever written back through the app view, so nothing lands in
//! what is mapped there next.

use super::ops::Span;
use super::pages::PageState;
use super::space::AddressSpace;
use crate::addr::PageRange;
use crate::hmm::{Blocking, Event, Invalidation};
use crate::track::ForeignChange;

impl AddressSpace {
    /// Brings VMAs, pages and devices into line with a change that has been made.
    pub(super) fn follow(&self, change: ForeignChange) {
        let (range, moved) = match change {
            ForeignChange::Unmapped(range) => (range, false),
            ForeignChange::Moved(range) => (range, true),
        };
        let Span { start, bytes } = self.span_of(range);
        tracing::warn!(
            %start, bytes, moved,
            "the program unmapped or moved memory of the shared heap by a system call of its own: these addresses are \
             lost to the heap; use Mapping::unmap, move_to or discard"
        );
        let mut vmas = self.vmas().write();
        let pages = &self.home().pages;
        let _pages = pages.lock(range);
        let home = moved.then(|| self.tell(range, Event::Migrate));
        if moved {
            range.iter().for_each(|page| pages.set_state(page, PageState::Cpu));
        }
        let gone = self.tell(range, Event::Unmap);
        if let Err(error) = vmas.withdraw(range) {
            tracing::error!(%start, bytes, "addresses that are lost stay in use: {error}");
        }
        if moved {
            // The memory is the program's, at another address.
            range.iter().for_each(|page| pages.reset(page));
        } else {
            self.erase(range);
        }
        drop((home, gone));
    }

    fn tell(&self, range: PageRange, event: Event) -> Option<Invalidation<'_>> {
        let told = self.notifiers().invalidate(range, event, None, Blocking::Yes);
        told.inspect_err(|error| tracing::error!(?range, "a device keeps pages that are gone: {error}")).ok()
    }
}
