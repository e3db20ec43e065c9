//! Changing what may be done with pages.

use super::{OpError, Span};
use crate::hmm::{Blocking, Event};
use crate::mm::pages::PageState;
use crate::mm::space::AddressSpace;
use crate::mm::vma::Permission;

impl AddressSpace {
    /// Lets CPU and devices do with `span` what `permission` says. Linux: `mprotect`.
    ///
    /// A CPU store to a read-only page is a SIGSEGV; that of a kernel ends its launch
    /// ([`FaultReason::ReadOnly`](crate::kernel::FaultReason)). Pages that a device was writing come home and stay readable on it.
    /// Where nothing changes nobody is told.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, not mapped throughout, or holds the allocator's memory.
    pub fn protect_span(&self, span: Span, permission: Permission) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        let mut vmas = self.vmas().write();
        self.check_mapped(&vmas, range)?;
        if vmas.find_overlapping(range).all(|vma| vma.permission() == permission) {
            return Ok(());
        }
        let pages = &self.home().pages;
        let _pages = pages.lock(range);
        match permission {
            // A page that the CPU could write faults at the next store; one that it could not is as it was.
            Permission::ReadOnly => {
                self.tracker().watch(range)?;
                self.tracker().write_protect(range)?;
            }
            Permission::ReadWrite => self.readmit(range)?,
        }
        let bracket = self.notifiers().invalidate(range, Event::ProtectionVma, None, Blocking::Yes)?;
        for page in range.iter().filter(|&page| matches!(pages.state(page), PageState::Device(_))) {
            // Its device let go of writing and brought home what it wrote; home and frame agree.
            pages.set_state(page, PageState::Shared);
        }
        vmas.set_permission(range, permission).map_err(|error| self.explain(error, span))?;
        drop(bracket);
        Ok(())
    }
}
