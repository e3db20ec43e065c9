//! Array arguments: brought to the device before a launch, translated by the host at each dispatch.
//!
//! An array whose pages are all resident, in contiguous frames, is passed to the kernel by its device address; the kernel
//! variant for it ([`variant::ARRAYS`](crate::device::layout::variant::ARRAYS)) adds offsets and checks nothing. That
//! holds for the dispatch: the gate is closed, so nothing is taken away. If any array does not qualify (frames are short, it is
//! read and was never written, or the CPU took pages back a moment ago), the dispatch translates all of them instead; results
//! are the same.

use super::LaunchError;
use super::execute::{Executor, Job};
use crate::addr::{Access, PageRange};
use crate::mm::state::Placement;
use crate::service::{DeviceMirror, GateGuard, PageFault};
use std::mem::offset_of;

/// An array among a launch's arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArrayArgument {
    /// Offset of its `VksvmArray` in the arguments, in bytes.
    pub(crate) at: usize,
    /// Offset of its first element in its first page, in bytes.
    pub(crate) skew: u64,
    /// The pages it lies in.
    pub(crate) pages: PageRange,
    /// What the kernel may do with it.
    pub(crate) access: Access,
}

/// A `VksvmArray`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct ArrayBlock {
    /// Address on the CPU.
    pub(crate) va: u64,
    /// Address on the device, filled in where the array qualifies.
    pub(crate) device: u64,
    /// Length.
    pub(crate) bytes: u64,
}

/// Fills device addresses in. False, with nothing of use filled in, if an array does not qualify.
pub(super) fn resolve(
    mirror: &DeviceMirror,
    gate: &GateGuard<'_>,
    arrays: &[ArrayArgument],
    arguments: &mut [u8],
) -> bool {
    for array in arrays {
        let Some(start) = mirror.contiguous(gate, array.pages, array.access) else { return false };
        let address = start.0 + array.skew;
        arguments[array.at + offset_of!(ArrayBlock, device)..][..8].copy_from_slice(&address.to_ne_bytes());
    }
    // The kernel sets no bits where it does not translate: all that it may use counts as used.
    arrays.iter().for_each(|array| mirror.mark_used(gate, array.pages, array.access));
    true
}

impl Executor {
    /// Whether the job's arrays are passed by device address where they qualify.
    pub(super) fn passes_arrays(&self, job: &Job) -> bool {
        self.options.direct_arrays && !job.arrays.is_empty()
    }

    /// Brings the launch's arrays to the device, if they leave room for others. What is not brought, or is taken back before the
    /// kernel runs, faults as everything else does.
    pub(super) fn bring_arrays(&mut self, job: &Job) -> Result<(), LaunchError> {
        let pages: u64 = job.arrays.iter().map(|array| u64::from(array.pages.len())).sum();
        let take_frames =
            self.options.habit.placement == Placement::Copy || self.mirror.device().info().import.is_none();
        let too_many = take_frames && pages > u64::from(self.mirror.frames().limit) / 4 * 3;
        if !self.passes_arrays(job) || too_many {
            return Ok(());
        }
        let spans = job.arrays.iter().map(|array| (array.pages, array.access)).collect::<Vec<_>>();
        let missing = self.missing(job, &spans)?;
        self.bring(job, missing)
    }

    /// What of `spans` is not on the device.
    pub(super) fn missing(&mut self, job: &Job, spans: &[(PageRange, Access)]) -> Result<Vec<PageFault>, LaunchError> {
        // The table must cover pages that no kernel has asked for yet.
        let covered = self.mirror.table(&self.mirror.close_gate()).map(drop);
        covered.map_err(|error| self.device_failed(job, error))?;
        let mut faults = std::mem::take(&mut self.faults);
        faults.clear();
        for &(pages, access) in spans {
            faults.extend(self.mirror.missing(pages, access).map(|page| PageFault { page, access }));
        }
        Ok(faults)
    }

    /// Brings pages to the device, as far as there is room.
    pub(super) fn bring(&mut self, job: &Job, mut faults: Vec<PageFault>) -> Result<(), LaunchError> {
        let served =
            if faults.is_empty() { Ok(0) } else { self.service.serve(&mut faults, false).map(|one| one.short) };
        faults.clear();
        self.faults = faults;
        if served.map_err(|error| self.failed(job, error))? > 0 {
            // Frames are short: nothing waits for these pages, so others may have their frames.
            self.service.begin_launch();
        }
        Ok(())
    }
}
