//! Forgetting contents.

use super::{OpError, Span};
use crate::hmm::{Blocking, Event};
use crate::mm::space::AddressSpace;

impl AddressSpace {
    /// The contents of `span` no longer matter: their memory is given back, on the host and on devices, nothing is copied, and the pages
    /// read as zeros. Linux: `madvise(MADV_REMOVE)`.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, not mapped throughout, read-only in part, or holds the allocator's memory.
    ///
    /// # Safety
    /// Nobody may hold references into `span` that rely on its contents.
    pub unsafe fn discard_span(&self, span: Span) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        // Held for writing, so that no fault sees the pages between their contents and zeros.
        let vmas = self.vmas().write();
        self.check_mapped(&vmas, range)?;
        self.check_writable(&vmas, range)?;
        let _pages = self.home().pages.lock(range);
        let bracket = self.notifiers().invalidate(range, Event::Clear, None, Blocking::Yes)?;
        self.erase(range);
        drop(bracket);
        Ok(())
    }
}
