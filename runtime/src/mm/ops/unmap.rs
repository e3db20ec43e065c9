//! Unmapping.

use super::{OpError, Span};
use crate::hmm::{Blocking, Event};
use crate::mm::space::AddressSpace;

impl AddressSpace {
    /// Unmaps `span`, whole mappings or parts. Linux: `munmap`; unlike there a hole in the span is an error.
    ///
    /// Devices drop what they have of it, written or not; faults on it that a service is working on are refused when the
    /// kernel asks again. What is mapped there next has nothing of it.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, not mapped throughout, or holds the allocator's memory.
    ///
    /// # Safety
    /// Nobody may use references into `span` any more.
    pub unsafe fn unmap_span(&self, span: Span) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        let mut vmas = self.vmas().write();
        self.check_mapped(&vmas, range)?;
        let _pages = self.home().pages.lock(range);
        self.close_to_cpu(range)?;
        let bracket = self.notifiers().invalidate(range, Event::Unmap, None, Blocking::Yes)?;
        vmas.remove(range).map_err(|error| self.explain(error, span))?;
        self.erase(range);
        drop(bracket);
        Ok(())
    }
}
