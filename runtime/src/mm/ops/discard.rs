//! Forgetting contents.

use super::{OpError, Span};
use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::hmm::{Blocking, Event};
use crate::mm::space::AddressSpace;

/// Pages discarded together: it bounds how long others wait for their locks. 16 MiB.
const STEP: u32 = 4096;

impl AddressSpace {
    /// The contents of `span` no longer matter: their memory is given back, on the host and on devices, nothing is copied, and the pages
    /// read as zeros, pinned no more. Linux: `madvise(MADV_REMOVE)`.
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

    /// As [`discard_span`](Self::discard_span) for the whole pages inside `span`, which may be the allocator's, step by step. Returns how many.
    ///
    /// # Errors
    /// If `span` is not mapped throughout or read-only in part: then nothing is discarded, unless that became so meanwhile. Or if a device does not
    /// let go; what comes before is discarded then.
    ///
    /// # Safety
    /// As there; and what lies in `span` must not be freed before this returns.
    pub(crate) unsafe fn discard_inside(&self, span: Span) -> Result<u64, OpError> {
        if span.bytes == 0 {
            return Ok(0);
        }
        let around = self.pages_around(span)?;
        {
            let vmas = self.vmas().read();
            self.check_covered(&vmas, around)?;
            self.check_writable(&vmas, around)?;
        }
        let page = PAGE_SIZE as u64;
        let start = around.start.plus(u32::from(!span.start.0.is_multiple_of(page)));
        let end = PageIndex(around.end.0 - u32::from(!(span.start.0 + span.bytes).is_multiple_of(page)));
        let mut at = start;
        while at < end {
            let range = PageRange::new(at, end.min(at.plus(STEP)));
            let vmas = self.vmas().read();
            self.check_covered(&vmas, range)?;
            self.check_writable(&vmas, range)?;
            let _pages = self.home().pages.lock(range);
            let bracket = self.notifiers().invalidate(range, Event::Clear, None, Blocking::Yes)?;
            self.erase(range);
            drop(bracket);
            at = range.end;
        }
        Ok(u64::from(end.0.saturating_sub(start.0)))
    }
}
