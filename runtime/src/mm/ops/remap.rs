//! Moving pages to other addresses.

use super::{OpError, Span};
use crate::addr::{PageIndex, PageRange, VirtAddr};
use crate::hmm::{Blocking, Event};
use crate::mm::pages::PageState;
use crate::mm::space::AddressSpace;
use crate::mm::vma::{Permission, VmaError, VmaMap};

impl AddressSpace {
    /// Moves `span` with contents, permissions and history to `to`, or to the lowest free place, and returns where that is. Its old
    /// addresses fault afterwards. Linux: `mremap` with `MREMAP_MAYMOVE`, and `MREMAP_FIXED` for `to`; unlike there what is
    /// mapped at `to` stays, and is an error.
    ///
    /// What devices wrote comes home first, and they map the new place afresh. The heap's pages stand in its file in order
    /// of address, so contents are copied, not remapped: pages that were never written cost nothing, the others a copy, and for that long
    /// the memory of both places.
    ///
    /// # Errors
    /// If `span` is empty, not whole pages, not mapped throughout or holds the allocator's memory; if the new place overlaps it or
    /// anything mapped, or there is none; if there is no memory.
    ///
    /// # Safety
    /// Nobody may use references into `span` any more.
    pub unsafe fn move_span(&self, span: Span, to: Option<VirtAddr>) -> Result<Span, OpError> {
        let range = self.pages_of(span)?;
        let mut vmas = self.vmas().write();
        self.check_mapped(&vmas, range)?;
        let target = self.place_for(&vmas, range, to)?;
        self.prepare(target, false)?;
        let pages = &self.home().pages;
        let (low, high) = if range.start < target.start { (range, target) } else { (target, range) };
        let _low = pages.lock(low);
        let _high = pages.lock(high);
        for vma in vmas.find_overlapping(range).filter(|vma| vma.permission() == Permission::ReadOnly) {
            let part = vma.range.intersect(range);
            let part = PageRange::of_len(target.start.plus(part.start.0 - range.start.0), part.len());
            self.tracker().watch(part)?;
            self.tracker().write_protect(part)?;
        }
        self.close_to_cpu(range)?;
        // Two brackets, because they say two things: bring home what you have; then, these addresses are gone.
        let home = self.notifiers().invalidate(range, Event::Migrate, None, Blocking::Yes)?;
        for page in range.iter() {
            pages.set_state(page, PageState::Cpu);
        }
        self.copy_contents(range, target)?;
        let gone = match self.notifiers().invalidate(range, Event::Unmap, None, Blocking::Yes) {
            Ok(gone) => gone,
            Err(error) => {
                self.erase(target);
                return Err(error.into());
            }
        };
        vmas.move_to(range, target.start).map_err(|error| self.explain(error, span))?;
        for (from, to) in range.iter().zip(target.iter()) {
            let info = pages.info(from);
            pages.mark(to, info.accessed, info.dirty);
        }
        self.erase(range);
        drop(gone);
        drop(home);
        Ok(self.span_of(target))
    }

    /// Where `range` is to go.
    fn place_for(&self, vmas: &VmaMap, range: PageRange, to: Option<VirtAddr>) -> Result<PageRange, OpError> {
        let span = self.span_of(range);
        let Some(to) = to else {
            let start = vmas.place(range.len(), 1).map_err(|error| self.explain(error, span))?;
            return Ok(PageRange::of_len(start, range.len()));
        };
        let target = self.pages_of(Span { start: to, bytes: span.bytes })?;
        let overlap = |with| self.explain(VmaError::Overlap { range: target, with }, span);
        if target.overlaps(range) {
            return Err(overlap(range));
        }
        vmas.in_the_way(target).map_or(Ok(target), |other| Err(overlap(other)))
    }

    /// Copies what `from` holds to `to`, which holds nothing; undone if there is no memory. The locks of both are held, `from` is
    /// closed to the CPU and on no device.
    fn copy_contents(&self, from: PageRange, to: PageRange) -> Result<(), OpError> {
        let views = &self.home().views;
        let there = |page: PageIndex| to.start.plus(page.0 - from.start.0);
        // Memory first: a store through the alias that found none would be a SIGBUS.
        for run in views.has_data(from) {
            if let Err(error) = views.allocate(PageRange::of_len(there(run.start), run.len())) {
                self.erase(to);
                return Err(error.into());
            }
        }
        for run in views.has_data(from) {
            // SAFETY: the alias is always readable and writable; the two ranges do not overlap, nobody else writes either: the
            // CPU's touches of `from` wait, and nobody knows `to`.
            unsafe {
                views.alias_ptr(run.start).copy_to_nonoverlapping(views.alias_ptr(there(run.start)), run.bytes())
            };
        }
        Ok(())
    }
}
