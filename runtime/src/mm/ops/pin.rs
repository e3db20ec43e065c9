//! Pinning pages at home.

use super::{OpError, Span};
use crate::mm::pages::PinnedBy;
use crate::mm::space::AddressSpace;

impl AddressSpace {
    /// Has devices that can map the home pages of `span` themselves, from the next time that they ask for them: no copies, and both sides
    /// work on them at once. For pages that CPU and devices use in turn so often that moving them costs more.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, or not mapped throughout.
    pub fn pin_home(&self, span: Span) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        let vmas = self.vmas().read();
        self.check_covered(&vmas, range)?;
        range.iter().for_each(|page| self.home().pages.pin_home(page, PinnedBy::Program));
        Ok(())
    }

    /// Undoes [`pin_home`](Self::pin_home): devices let go of the home pages, and what they ask for next is placed as usual.
    ///
    /// # Errors
    /// As there, and if a device does not let go; the pages may then stay as they are.
    pub fn unpin_home(&self, span: Span) -> Result<(), OpError> {
        let range = self.pages_of(span)?;
        let vmas = self.vmas().read();
        self.check_covered(&vmas, range)?;
        let pages = &self.home().pages;
        for page in range.iter() {
            pages.unpin_home(page, PinnedBy::Program);
            pages.unpin_home(page, PinnedBy::Policy);
        }
        self.leave_home(range)
    }
}
