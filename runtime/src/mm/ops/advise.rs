//! Hints: noting them.

use super::{OpError, Span};
use crate::addr::{PageIndex, PageRange, VirtAddr};
use crate::hmm::{Blocking, Event};
use crate::mm::advice::{Advice, Hint, Location};
use crate::mm::pages::PageState;
use crate::mm::space::AddressSpace;
use crate::mm::vma::Vma;

impl AddressSpace {
    /// Notes a hint for the pages that `span` touches, whole pages or not. Moves nothing; where it makes device entries for home pages unwanted, these
    /// go. Linux: `madvise`.
    ///
    /// # Errors
    /// If `span` is empty or not mapped throughout; then nothing is noted. Or if a device does not let go; then all is.
    pub fn advise_span(&self, span: Span, hint: Hint) -> Result<(), OpError> {
        if span.bytes == 0 {
            return Err(OpError::Empty { at: span.start });
        }
        let range = self.pages_around(span)?;
        let mut vmas = self.vmas().write();
        self.check_covered(&vmas, range)?;
        if vmas.find_overlapping(range).all(|vma| vma.advice().with(hint) == vma.advice()) {
            return Ok(());
        }
        vmas.advise(range, hint).map_err(|error| self.explain(error, span))?;
        let unwanted = match hint {
            Hint::ReadMostly(on) => on,
            Hint::PreferredLocation(preferred) => preferred != Some(Location::Cpu),
            Hint::AccessedBy(_, on) => !on,
            Hint::Random(_) => false,
        };
        if unwanted { self.leave_home(range) } else { Ok(()) }
    }

    /// What was said of the page that `address` lies in; `None` where nothing is mapped.
    pub fn advice_at(&self, address: VirtAddr) -> Option<Advice> {
        let page = self.home().views.page_of(address)?;
        self.vmas().read().find(page).map(Vma::advice)
    }

    /// Has devices let go of home pages of `range`; what they ask for next is placed anew. The address space's lock is held.
    pub(super) fn leave_home(&self, range: PageRange) -> Result<(), OpError> {
        let pages = &self.home().pages;
        let _pages = pages.lock(range);
        let is_remote = |&page: &PageIndex| pages.state(page) == PageState::Remote;
        let mut at = range.start;
        while let Some(start) = PageRange::new(at, range.end).iter().find(is_remote) {
            let length = PageRange::new(start, range.end).iter().take_while(is_remote).count();
            let run = PageRange::of_len(start, length as u32);
            let bracket = self.notifiers().invalidate(run, Event::Migrate, None, Blocking::Yes)?;
            run.iter().for_each(|page| pages.set_state(page, PageState::Cpu));
            drop(bracket);
            at = run.end;
        }
        Ok(())
    }
}
