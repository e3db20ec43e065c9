//! Array arguments: brought to the device before a launch, translated by the host at each dispatch.
//!
//! An array whose pages are all resident, in contiguous frames, is passed to the kernel by its device address; the kernel
//! variant for it ([`variant::ARRAYS`]) adds offsets and checks nothing. That
//! holds for the dispatch: the gate is closed, so nothing is taken away. If any array does not qualify (frames are short, it is
//! read and was never written, or the CPU took pages back a moment ago), each is passed with the longest part of it that does: in that
//! variant ([`variant::BOUNDS`]) an access compares its offset with the part's ends, and what lies outside is translated. Where no array has
//! such a part, the dispatch translates all of them. Results are the same.
//!
//! **Invariant.** What a kernel reaches without translating is marked as used before it runs, as it sets no bits itself (I4): all of the
//! array, or of the part. Where arrays do not fit, launches run part by part and what is brought for one is marked; there only
//! what is marked counts: marks on all that is resident would make it dirty, and eviction blind.

use super::LaunchError;
use super::execute::{Executor, Job};
use crate::addr::{Access, PAGE_SIZE, PageRange};
use crate::device::layout::variant;
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
    /// Its bytes; or which part of it is on the device: pages before the part (low word), pages of the part.
    pub(crate) extent: u64,
}

/// Fills device addresses in; returns the variant that uses them, 0 if there are none. With `parts`, the pages that were brought for the
/// slice, an array's part is looked for among those. If `marked`, only pages that are marked as used are part of one; otherwise they are marked.
pub(super) fn resolve(
    mirror: &DeviceMirror,
    gate: &GateGuard<'_>,
    arrays: &[ArrayArgument],
    parts: Option<&[PageRange]>,
    marked: bool,
    arguments: &mut [u8],
) -> u32 {
    let mut place = |array: &ArrayArgument, field: usize, value: u64| {
        arguments[array.at + field..][..8].copy_from_slice(&value.to_ne_bytes());
    };
    let whole = arrays.iter().map(|array| mirror.contiguous(gate, array.pages, array.access));
    if let Some(starts) = whole.collect::<Option<Vec<_>>>() {
        for (array, start) in arrays.iter().zip(starts) {
            place(array, offset_of!(ArrayBlock, device), start.0 + array.skew);
            mirror.mark_used(gate, array.pages, array.access);
        }
        return variant::ARRAYS;
    }
    let mut bits = 0;
    for array in arrays {
        let within = parts
            .map_or(Some(array.pages), |parts| parts.iter().find(|part| array.pages.contains_range(**part)).copied());
        let run = within.and_then(|within| mirror.longest_run(gate, within, array.access, marked));
        let Some((pages, start)) = run else {
            place(array, offset_of!(ArrayBlock, extent), 0);
            continue;
        };
        let before = pages.start.0 - array.pages.start.0;
        // Where the array's first element would be.
        let device = start.0.wrapping_sub(u64::from(before) * PAGE_SIZE as u64).wrapping_add(array.skew);
        place(array, offset_of!(ArrayBlock, device), device);
        place(array, offset_of!(ArrayBlock, extent), u64::from(before) | u64::from(pages.len()) << 32);
        if !marked {
            mirror.mark_used(gate, pages, array.access);
        }
        bits = variant::BOUNDS;
    }
    bits
}

impl Executor {
    /// Whether the job's arrays are passed by device address where they qualify.
    pub(super) fn passes_arrays(&self, job: &Job) -> bool {
        self.options.direct_arrays && !job.arrays.is_empty()
    }

    /// Whether the launch's arrays leave room for others.
    pub(super) fn arrays_fit(&self, job: &Job) -> bool {
        let pages: u64 = job.arrays.iter().map(|array| u64::from(array.pages.len())).sum();
        let take_frames =
            self.options.habit.placement == Placement::Copy || self.mirror.device().info().import.is_none();
        !take_frames || pages <= u64::from(self.mirror.frames().limit) / 4 * 3
    }

    /// Brings the launch's arrays to the device, if they leave room for others. What is not brought, or is taken back before the
    /// kernel runs, faults as everything else does.
    pub(super) fn bring_arrays(&mut self, job: &Job) -> Result<(), LaunchError> {
        if !self.passes_arrays(job) || !self.arrays_fit(job) {
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
