//! What a dispatch reported: services its faults, and says in full what cannot be serviced.

use super::error::{FaultReason, KernelFault, LaunchError};
use super::execute::{Executor, Job};
use super::worklist::coordinates;
use crate::addr::{Access, PageIndex, VirtAddr};
use crate::device::layout::{FaultEntry, fault_flags};
use crate::mm::space::AddressSpace;
use crate::mm::vma::Permission;
use crate::service::PageFault;

impl Executor {
    /// Services what was drained. True if frames were short.
    pub(super) fn serve(&mut self, job: &Job, late: Option<u32>) -> Result<bool, LaunchError> {
        let mut entries = std::mem::take(&mut self.entries);
        let result = self.serve_entries(job, late, &entries);
        if result.is_err() {
            self.abandon(&entries);
        }
        entries.clear();
        self.entries = entries;
        result
    }

    /// Lets kernels to come report these pages again.
    pub(super) fn abandon(&self, entries: &[FaultEntry]) {
        let views = &self.space.home().views;
        self.service.abandon(entries.iter().filter_map(|entry| views.page_of(VirtAddr(entry.address))));
    }

    fn serve_entries(&mut self, job: &Job, late: Option<u32>, entries: &[FaultEntry]) -> Result<bool, LaunchError> {
        let views = &self.space.home().views;
        self.faults.clear();
        if self.strict {
            let guesses = entries.iter().filter(|entry| entry.flags & fault_flags::SPECULATIVE != 0);
            self.service.abandon(guesses.filter_map(|entry| views.page_of(VirtAddr(entry.address))));
        }
        for entry in entries.iter().filter(|entry| !self.strict || entry.flags & fault_flags::SPECULATIVE == 0) {
            let access = if entry.flags & fault_flags::WRITE != 0 { Access::Write } else { Access::Read };
            if entry.flags & fault_flags::OUTSIDE != 0 {
                return Err(self.fatal(job, entry, outside(entry.address)));
            }
            if entry.flags & fault_flags::OVERRUN != 0 {
                return Err(self.fatal(job, entry, FaultReason::PastEnd));
            }
            if let Some(page) = views.page_of(VirtAddr(entry.address)) {
                self.faults.push(PageFault { page, access });
                self.seen.insert(page);
            }
        }
        if let Some(workgroup) = late {
            let entry = entries.iter().find(|entry| entry.workgroup == workgroup).or(entries.first());
            return Err(LaunchError::LateFault(Box::new(self.describe(
                job,
                entry.copied().unwrap_or(FaultEntry { workgroup, ..bytemuck::Zeroable::zeroed() }),
                FaultReason::Late,
            ))));
        }
        let mut faults = std::mem::take(&mut self.faults);
        let served = self.service.serve(&mut faults, self.throttle);
        self.faults = faults;
        let served = served.map_err(|error| self.failed(job, error))?;
        self.hold(entries, &served.held);
        if !served.refused.is_empty() {
            // Guesses of poisoned invocations may miss everything; only a real access is an error.
            let real = entries.iter().filter(|entry| entry.flags & fault_flags::SPECULATIVE == 0);
            for entry in real {
                let Some(page) = views_page(&self.space, entry.address).filter(|page| served.refused.contains(page))
                else {
                    continue;
                };
                let reason = match self.space.vmas().read().find(page).map(|vma| vma.permission()) {
                    // Somebody guessed that it would store to what this one reads.
                    Some(Permission::ReadOnly) if entry.flags & fault_flags::WRITE == 0 => continue,
                    Some(Permission::ReadOnly) => FaultReason::ReadOnly,
                    _ => FaultReason::Unmapped,
                };
                return Err(self.fatal(job, entry, reason));
            }
        }
        Ok(served.short > 0)
    }

    fn fatal(&self, job: &Job, entry: &FaultEntry, reason: FaultReason) -> LaunchError {
        LaunchError::Fault(Box::new(self.describe(job, *entry, reason)))
    }

    fn describe(&self, job: &Job, entry: FaultEntry, reason: FaultReason) -> KernelFault {
        let address = VirtAddr(entry.address);
        KernelFault {
            kernel: job.kernel.name.clone(),
            workgroup: coordinates(entry.workgroup, job.grid),
            invocation: entry.invocation,
            address,
            access: if entry.flags & fault_flags::WRITE != 0 { Access::Write } else { Access::Read },
            bytes: entry.bytes,
            reason,
            site: (entry.flags >> fault_flags::SITE_SHIFT)
                .checked_sub(1)
                .and_then(|site| job.kernel.sites.get(site as usize).cloned()),
            nearest: self.space.mapping_at(address).map(|part| (part.start, part.bytes)).or_else(|| {
                self.heap.nearest(address).map(|(allocation, _)| (allocation.start, allocation.len as u64))
            }),
        }
    }
}

fn views_page(space: &AddressSpace, address: u64) -> Option<PageIndex> {
    space.home().views.page_of(VirtAddr(address))
}

fn outside(address: u64) -> FaultReason {
    // The first page is where null pointers to structures land.
    if address < 4096 { FaultReason::Null } else { FaultReason::OutsideHeap }
}
