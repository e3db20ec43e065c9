//! Which pages are watched, and which are registered with the kernel: the same ones, until separate runs
//! near the limit of kernel mappings. From then on gaps between them are registered too.

use super::super::runs::RunMap;
use crate::addr::{PageIndex, PageRange};
use rustix::io::Errno;

/// First unit to which runs are rounded out when there are too many: 2 MiB, a page table's reach.
const FIRST_GRAIN: u32 = 512;

/// The watched and the registered pages. Invariant: watched pages are registered.
pub(super) struct Registry {
    watched: RunMap<bool>,
    registered: RunMap<bool>,
    pages: u32,
    /// Registrations are rounded out to multiples of this many pages.
    grain: u32,
    /// Bound on registered runs and the gaps between them: each is a kernel mapping.
    budget: usize,
}

impl Registry {
    pub(super) fn new(pages: u32, budget: usize) -> Self {
        Self { watched: RunMap::new(pages, false), registered: RunMap::new(pages, false), pages, grain: 1, budget }
    }

    /// Whether all of `pages` is watched.
    pub(super) fn is_watched(&self, pages: PageRange) -> bool {
        self.watched.all(pages, true)
    }

    /// Whether pages are registered that are not watched.
    pub(super) fn has_gaps(&self) -> bool {
        self.grain > 1
    }

    /// Kernel mappings in use, and how many there may be.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.registered.len(), self.budget)
    }

    /// Watches `pages`, calling `register` for what the kernel does not know yet.
    pub(super) fn watch(
        &mut self,
        pages: PageRange,
        mut register: impl FnMut(PageRange) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.is_watched(pages) {
            return Ok(());
        }
        match self.register(self.rounded_out(pages), &mut register) {
            Err(Errno::NOMEM) => {
                // No mapping left to split: the limit is lower than the budget. Fill gaps, which merges some, and
                // try once more.
                self.budget = self.budget.min(self.registered.len());
                self.coarsen(&mut register)?;
                self.register(self.rounded_out(pages), &mut register)?;
            }
            done => done?,
        }
        self.watched.set(pages, true);
        if self.registered.len() > self.budget {
            self.coarsen(&mut register)?;
        }
        Ok(())
    }

    /// Forgets everything, calling `unregister` for each registered run.
    pub(super) fn clear(&mut self, unregister: impl Fn(PageRange)) {
        let everything = PageRange::of_len(PageIndex(0), self.pages);
        self.registered.iter(everything).filter(|&(_, registered)| registered).for_each(|(run, _)| unregister(run));
        self.registered.set(everything, false);
        self.watched.set(everything, false);
    }

    fn register(
        &mut self,
        run: PageRange,
        register: &mut impl FnMut(PageRange) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if !self.registered.all(run, true) {
            register(run)?;
            self.registered.set(run, true);
        }
        Ok(())
    }

    fn coarsen(&mut self, register: &mut impl FnMut(PageRange) -> Result<(), Errno>) -> Result<(), Errno> {
        let everything = PageRange::of_len(PageIndex(0), self.pages);
        while self.registered.len() > self.budget / 2 && self.grain < self.pages {
            self.grain = if self.grain == 1 { FIRST_GRAIN } else { self.grain.saturating_mul(4) };
            let runs: Vec<PageRange> =
                self.watched.iter(everything).filter(|&(_, watched)| watched).map(|(run, _)| run).collect();
            for run in runs {
                self.register(self.rounded_out(run), register)?;
            }
        }
        Ok(())
    }

    fn rounded_out(&self, pages: PageRange) -> PageRange {
        let start = pages.start.0 / self.grain * self.grain;
        let end = pages.end.0.checked_next_multiple_of(self.grain).map_or(self.pages, |end| end.min(self.pages));
        PageRange::new(PageIndex(start), PageIndex(end))
    }
}
