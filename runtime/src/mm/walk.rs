//! The address space as a mapping to be read: home pages, for [`Range::snapshot`](crate::hmm::Range::snapshot) and
//! [`Range::fault`](crate::hmm::Range::fault).
//!
//! What it says holds for whoever uses home memory itself (imported into a device, or on the CPU); who copies a page must
//! hold the CPU off first, as `service` does. A page counts as mapped if it has memory and home is the truth:
//! what a device owns is not there until it is faulted in, as device-private memory of others in Linux.

use super::pages::PageState;
use super::space::AddressSpace;
use super::vma::{Permission, VmaMap};
use crate::addr::{Access, PageIndex, PageRange};
use crate::hmm::{PageEntry, PageError, PageFaultIn, PageWalk, Walked};

/// An address space whose lock is held, for as long as this lives. Linux: `mm_struct` under `mmap_lock`.
pub struct HomeWalk<'a> {
    space: &'a AddressSpace,
    vmas: &'a VmaMap,
}

impl<'a> HomeWalk<'a> {
    /// `vmas` are those of `space`, from its lock, either side.
    pub fn new(space: &'a AddressSpace, vmas: &'a VmaMap) -> Self {
        Self { space, vmas }
    }
}

impl PageWalk for HomeWalk<'_> {
    fn extent(&self) -> PageRange {
        PageRange::of_len(PageIndex(0), self.space.home().views.pages())
    }

    fn walk(&self, pages: PageRange, each: &mut dyn FnMut(Walked)) {
        let home = self.space.home();
        let mut data = home.views.has_data(pages).peekable();
        let mut vmas = self.vmas.find_overlapping(pages).peekable();
        for page in pages.iter() {
            while vmas.next_if(|vma| vma.range.end <= page).is_some() {}
            let Some(vma) = vmas.peek().filter(|vma| vma.range.contains(page)) else {
                let entry = PageEntry { error: Some(PageError::Unmapped), ..PageEntry::default() };
                each(Walked { entry, ..Walked::default() });
                continue;
            };
            while data.next_if(|run| run.end <= page).is_some() {}
            let has_memory = data.peek().is_some_and(|run| run.contains(page));
            let info = home.pages.info(page);
            let entry = PageEntry {
                valid: has_memory && !matches!(info.state, PageState::Device(_)),
                write: has_memory
                    && matches!(info.state, PageState::Cpu | PageState::Remote)
                    && vma.permission() == Permission::ReadWrite,
                accessed: info.accessed,
                dirty: info.dirty,
                ..PageEntry::default()
            };
            each(Walked { entry, place: u64::from(page.0), group: vma.id.0 });
        }
    }
}

impl PageFaultIn for HomeWalk<'_> {
    fn fault_in(&self, page: PageIndex, access: Access) -> Result<(), PageError> {
        let vma = self.vmas.find(page).ok_or(PageError::Unmapped)?;
        if access == Access::Write && vma.permission() == Permission::ReadOnly {
            return Err(PageError::NoPermission);
        }
        self.space.bring_home(page, access).map_err(|error| {
            tracing::error!(%page, %access, "not faulted in: {error}");
            PageError::NoMemory
        })
    }
}
