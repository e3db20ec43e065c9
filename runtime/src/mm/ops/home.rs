//! Bringing pages home.

use super::{OpError, Span};
use crate::hmm::{Blocking, Event};
use crate::mm::pages::PageState;
use crate::mm::space::AddressSpace;

impl AddressSpace {
    /// Takes `span` away from all devices; what they wrote is home afterwards, and nothing else is moved. What a CPU store to each page would do,
    /// without storing. Linux: `migrate_vma_pages` from device memory to system memory.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, or not mapped throughout, or a device does not let go.
    pub fn migrate_home(&self, span: Span) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        let vmas = self.vmas().read();
        self.check_covered(&vmas, range)?;
        let pages = &self.home().pages;
        let _pages = pages.lock(range);
        let bracket = self.notifiers().invalidate(range, Event::Migrate, None, Blocking::Yes)?;
        range.iter().for_each(|page| pages.set_state(page, PageState::Cpu));
        drop(bracket);
        Ok(())
    }
}
