//! Where the heap's allocator gets its pages: implemented by the address space.

use super::HeapError;
use crate::addr::{PageIndex, PageRange, VirtAddr};
use crate::mm::pages::PageInfo;

/// Maps and unmaps VMAs for the allocator.
///
/// The allocator calls [`PageSource::unmap`] and [`PageSource::discard`] with none of its locks held, so
/// both may invalidate mirrors and wait for devices; [`PageSource::map`] is called with at most the lock
/// held that serialises the growth of an arena pool.
pub trait PageSource: Send + Sync {
    /// Maps a new VMA of `pages` pages aligned to `align` pages, lowest address first. Its pages read as zeros.
    ///
    /// # Errors
    /// [`HeapError::Exhausted`] if there is no room; the allocator then tries smaller or less aligned.
    fn map(&self, pages: u32, align: u32) -> Result<PageIndex, HeapError>;

    /// Unmaps a VMA made by [`PageSource::map`], whole, and gives its memory back.
    fn unmap(&self, pages: PageRange);

    /// The contents of `pages`, part of a VMA, no longer matter: gives their memory back, after which they
    /// read as zeros. The VMA stays.
    fn discard(&self, pages: PageRange);

    /// The page's address in the app view.
    fn addr_of(&self, page: PageIndex) -> VirtAddr;

    /// The page an app-view address lies in, mapped or not; `None` outside the heap.
    fn page_of(&self, addr: VirtAddr) -> Option<PageIndex>;

    /// What is known of the page an app-view address lies in; `None` outside the heap, or where states are not kept.
    fn page_info(&self, addr: VirtAddr) -> Option<PageInfo> {
        let _ = addr;
        None
    }
}
