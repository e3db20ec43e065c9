//! Following advice: what was said of pages, for those parts of the service that may not take the address space's lock, and bringing what the
//! program asked for.

use super::coalesce::PageFault;
use super::fault::{Served, Service, ServiceError};
use crate::addr::{PageIndex, PageRange};
use crate::mm::advice::{Advice, Location};
use crate::policy::{Granule, Resident, eviction_rank};

/// The address space's hints as of the last round of service.
#[derive(Debug, Default)]
pub(super) struct Followed {
    version: u64,
    /// Ascending.
    advised: Vec<(PageRange, Advice)>,
}

impl Followed {
    fn at(&self, page: PageIndex) -> Option<Advice> {
        let behind = self.advised.partition_point(|(range, _)| range.end <= page);
        self.advised.get(behind).filter(|(range, _)| range.contains(page)).map(|&(_, advice)| advice)
    }

    fn in_granule(&self, granule: Granule) -> Option<Location> {
        let pages = granule.pages();
        let behind = self.advised.partition_point(|(range, _)| range.end <= pages.start);
        let here = self.advised[behind..].iter().take_while(|(range, _)| range.start < pages.end);
        here.filter_map(|(_, advice)| advice.preferred()).next()
    }
}

impl Service {
    /// Learns of changed hints.
    pub(super) fn follow_advice(&mut self) {
        let vmas = self.space.vmas().read();
        if vmas.advice_version() != self.followed.version {
            self.followed.version = vmas.advice_version();
            self.followed.advised.clear();
            self.followed.advised.extend(vmas.advised().map(|vma| (vma.range, vma.advice())));
        }
    }

    /// What was said of a page, as of the last round.
    pub(super) fn advice_of(&self, page: PageIndex) -> Advice {
        self.followed.at(page).unwrap_or_default()
    }

    /// Cuts victims, ascending granules, into those that go first, those of which nothing is said, and those that go last.
    pub(super) fn by_preference(&self, granules: Vec<Resident>) -> [Vec<Resident>; 3] {
        let mut groups = [Vec::new(), granules, Vec::new()];
        if self.followed.advised.iter().any(|(_, advice)| advice.preferred().is_some()) {
            for victim in std::mem::take(&mut groups[1]) {
                let preferred = self.followed.in_granule(victim.granule);
                groups[usize::from(eviction_rank(preferred, self.mirror.number()))].push(victim);
            }
        }
        groups
    }

    /// Services what the program asked for: nothing is guessed, nobody is made to wait. If `moving`, pages come to the device also where they would
    /// be mapped at home for being accessed by it.
    pub(crate) fn bring(&mut self, faults: &mut Vec<PageFault>, moving: bool) -> Result<Served, ServiceError> {
        let guesses = std::mem::replace(&mut self.prefetch, false);
        self.set_moving(moving);
        let served = self.serve(faults, false);
        self.set_moving(false);
        self.prefetch = guesses;
        served
    }

    fn set_moving(&mut self, moving: bool) {
        self.moving = moving;
        if let Some(helper) = &mut self.helper {
            helper.moving = moving;
        }
    }
}
