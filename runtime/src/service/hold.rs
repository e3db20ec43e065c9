//! Holding off: faults on granules that somebody else is to keep for a while are taken out before service begins.
//!
//! Nothing waits here and no lock is held. Who called the service serves these faults again when their time has come; the entries
//! stay pending meanwhile, so that kernels do not report them again.

use super::coalesce::PageFault;
use super::fault::{Served, Service};
use crate::addr::Access;
use crate::mm::pages::PageState;
use crate::policy::thrash::Verdict;
use crate::policy::{Granule, may_pin};

impl Service {
    /// Tells the thrash watch of what `faults`, sorted by page, take from others. If `throttle`, those that must wait go to
    /// `served.held` instead.
    pub(super) fn hold_off(&self, faults: &mut Vec<PageFault>, throttle: bool, served: &mut Served) {
        let thrash = self.space.thrash();
        if !thrash.is_on() {
            return;
        }
        let (pages, number) = (&self.space.home().pages, self.mirror.number());
        let mut last = None;
        faults.retain(|fault| {
            if self.tight {
                thrash.refaulted(fault.page, number);
            }
            let takes = match pages.state(fault.page) {
                PageState::Cpu => true,
                PageState::Shared => fault.access == Access::Write,
                PageState::Device(owner) => owner != number,
                // Pinned, nobody takes it from anybody.
                PageState::Remote => !pages.info(fault.page).pinned_home,
            };
            if !takes {
                return true;
            }
            let granule = Granule::of(fault.page);
            let verdict = match last {
                Some((same, verdict)) if same == granule => verdict,
                _ => thrash.device_takes(granule, number, may_pin(self.advice_of(fault.page))),
            };
            last = Some((granule, verdict));
            match verdict {
                Verdict::Wait(time) if throttle => {
                    served.held.push((fault.page, time));
                    false
                }
                _ => true,
            }
        });
    }
}
