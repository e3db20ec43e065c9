//! Operations on VMAs: map, unmap, protect, move, discard. One file each.
//!
//! A program that wants whole pages, read-only data, or to change its mind about them takes a [`Mapping`]
//! ([`Svm::map`](crate::Svm::map)); the functions on [`AddressSpace`] below it name spans by address and are for who builds
//! something else on top. They take the meaning of Linux's system calls, for the VMAs that the program mapped
//! itself: the memory of the heap's allocator is refused.
//!
//! | operation | Linux | event | contents |
//! |---|---|---|---|
//! | [`map`](AddressSpace::map_span) | `mmap` | none: nobody can have it | zeros |
//! | [`unmap`](AddressSpace::unmap_span) | `munmap` | `Unmap` | gone, on every device too |
//! | [`protect`](AddressSpace::protect_span) | `mprotect` | `ProtectionVma` | kept; what devices wrote comes home |
//! | [`move`](AddressSpace::move_span) | `mremap` | `Migrate`, then `Unmap` | moved; what devices wrote comes home first |
//! | [`discard`](AddressSpace::discard_span) | `madvise(MADV_REMOVE)` | `Clear` | zeros |
//! | [`advise`](AddressSpace::advise_span) | `madvise` | none, or `Migrate` | kept |
//!
//! What holds for each of them:
//!
//! - But for advice it is carried out under the address space's write side and the locks of its pages, inside its bracket: a CPU fault or a
//!   fault service sees the state before it or the one after, and a service that sorted its faults before it finds another
//!   VMA id or permission and looks again.
//! - It works on any part of a mapping, or on several that are neighbours. VMAs are split at the borders; the parts that stay
//!   are not touched: neither their contents, nor what devices hold of them, dirty or not.
//! - Everything that can be wrong is checked before anything is changed, and what can fail is done first. The exceptions are
//!   said at the operation.
//! - Where nothing is mapped any more, a CPU touch is a SIGSEGV and a device touch ends the launch, until something else is
//!   mapped there.

mod advise;
mod discard;
mod error;
mod home;
mod map;
mod mapping;
mod pin;
mod protect;
mod remap;
mod unmap;

pub use error::{OpError, Span};
pub use map::MapRequest;
pub use mapping::Mapping;

use super::space::AddressSpace;
use super::vma::{Permission, VmaMap};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageIndex, PageRange, VirtAddr};

impl AddressSpace {
    /// The VMA of a mapping of the program's that `address` lies in, as a span; `None` for the allocator's memory and where
    /// nothing is mapped.
    pub fn mapping_at(&self, address: VirtAddr) -> Option<Span> {
        let page = self.home().views.page_of(address)?;
        let vmas = self.vmas().read();
        let vma = vmas.find(page).filter(|vma| vma.kind().is_mapping())?;
        Some(self.span_of(vma.range))
    }

    /// The addresses of `pages`.
    pub fn span_of(&self, pages: PageRange) -> Span {
        Span { start: self.home().views.addr_of(pages.start), bytes: pages.bytes() as u64 }
    }

    /// The pages of `span`, which is whole pages of the heap, at least one.
    pub(crate) fn pages_of(&self, span: Span) -> Result<PageRange, OpError> {
        let page = PAGE_SIZE as u64;
        if span.bytes == 0 {
            return Err(OpError::Empty { at: span.start });
        }
        if !span.start.0.is_multiple_of(page) || !span.bytes.is_multiple_of(page) {
            return Err(OpError::Unaligned { span });
        }
        let views = &self.home().views;
        let outside =
            || OpError::OutsideHeap { span, heap: self.span_of(PageRange::of_len(PageIndex(0), views.pages())) };
        let start = views.page_of(span.start).ok_or_else(outside)?;
        let pages = u32::try_from(span.bytes >> PAGE_SHIFT).map_err(|_| outside())?;
        if pages > views.pages() - start.0 {
            return Err(outside());
        }
        Ok(PageRange::of_len(start, pages))
    }

    /// Checks that all of `range` is mapped, by the program or by the heap's allocator.
    fn check_covered(&self, vmas: &VmaMap, range: PageRange) -> Result<(), OpError> {
        match vmas.first_hole(range) {
            Some(hole) => Err(OpError::Unmapped { span: self.span_of(range), hole: self.span_of(hole) }),
            None => Ok(()),
        }
    }

    /// Checks that all of `range` was mapped by the program.
    fn check_mapped(&self, vmas: &VmaMap, range: PageRange) -> Result<(), OpError> {
        let span = self.span_of(range);
        self.check_covered(vmas, range)?;
        match vmas.find_overlapping(range).find(|vma| !vma.kind().is_mapping()) {
            Some(vma) => Err(OpError::Allocator { span, vma: self.span_of(vma.range) }),
            None => Ok(()),
        }
    }

    /// Checks that all of `range` may be written.
    fn check_writable(&self, vmas: &VmaMap, range: PageRange) -> Result<(), OpError> {
        match vmas.find_overlapping(range).find(|vma| vma.permission() == Permission::ReadOnly) {
            Some(vma) => Err(OpError::ReadOnly { span: self.span_of(range), part: self.span_of(vma.range) }),
            None => Ok(()),
        }
    }

    /// Makes every CPU touch of `range`, whose page locks are held, fault. Harmless if nothing follows: the fault finds the page as it
    /// was.
    fn close_to_cpu(&self, range: PageRange) -> Result<(), OpError> {
        self.tracker().watch(range)?;
        self.tracker().unmap(range)?;
        Ok(())
    }
}
