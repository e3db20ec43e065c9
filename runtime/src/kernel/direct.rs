//! Direct passes: no checks, for kernels that are [confined](super::Kernel::confined) to what their launches are given.
//!
//! While all of that is on the device, each object in frames one after the other, a device address is the CPU's address plus a
//! constant, and the host knows the constants: one for each pointer argument, for what the kernel reaches from it by arithmetic
//! alone (`rewrite/runs.rs`), and one for all else, which therefore must be the same for every object. The frame pool places VMAs so that it mostly is
//! (`device/frames.rs`). If something is missing, or distances differ where they must not, the launch goes on as any other.
//!
//! **Invariants.** The gate is closed from the check to the dispatch's end, so nothing is taken away meanwhile. The kernel sets no
//! bits: before it runs, all pages of what it may read are marked accessed, of what it may write dirty as well (I4: more than
//! happened, never less). Nothing can be missing, so nothing is probed or replayed.

use super::Code;
use super::error::LaunchError;
use super::execute::{Executor, Job, WorkList};
use super::fast::PointerArgument;
use crate::addr::{Access, PageRange};
use crate::device::layout::{LAUNCH_BYTES, LaunchBlock, RUN_BYTES, variant};
use crate::observe::Counters;
use crate::service::GateGuard;
use std::mem::offset_of;

/// What is to be added to CPU addresses.
struct Distances {
    /// Everywhere; 0 where nothing asks for it.
    common: u64,
    /// By run.
    runs: Vec<u64>,
}

impl Executor {
    /// Runs `list` without checks, if the kernel allows it and all is there; false if nothing was run.
    pub(super) fn direct_pass(&mut self, job: &Job, list: &WorkList) -> Result<bool, LaunchError> {
        let asked = job.confined && self.options.direct_arrays && !self.options.trace_uses;
        let runs = matches!(job.kernel.code, Code::Spirv { .. }) && matches!(list, WorkList::Span { .. });
        // Live, pages can be taken away while kernels run.
        if !asked || !runs || self.options.live.is_some() {
            return Ok(false);
        }
        let mirror = self.mirror.clone();
        let gate = mirror.close_gate();
        let mut prepared = self.prepare(job, list, &gate)?;
        let Some(distances) = self.distances(job, &gate) else { return Ok(false) };
        job.spans.iter().for_each(|&(pages, access)| mirror.mark_used(&gate, pages, access));

        let mut place = |at: usize, value: u64| prepared.push[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        place(offset_of!(LaunchBlock, table), distances.common);
        let first = LAUNCH_BYTES + job.kernel.runs.offset();
        for (run, distance) in distances.runs.into_iter().enumerate() {
            // Behind the run's address and length, which are not looked at.
            place(first + run * RUN_BYTES + 16, distance);
        }
        Counters::add(&self.counters.direct_dispatches, 1);
        let arrays = self.resolve_arrays(job, &gate, &mut prepared);
        self.run_prepared(job, list, variant::DIRECT | variant::IDEMPOTENT | arrays, &prepared)?;
        Ok(true)
    }

    /// What to add to addresses, if that is all that a dispatch with the gate closed must do.
    fn distances(&self, job: &Job, gate: &GateGuard<'_>) -> Option<Distances> {
        // Raw pointers may lead into the objects; what else they lead to is not known.
        let known = |place: &PointerArgument| {
            place.access.is_some() || job.spans.iter().any(|(pages, _)| pages.contains(place.page))
        };
        if !job.places.iter().all(known) {
            return None;
        }
        let distance = |pages: PageRange, access: Access| {
            let device = self.mirror.contiguous(gate, pages, access)?;
            Some(device.0.wrapping_sub(self.space.home().views.addr_of(pages.start).0))
        };
        let mut spans = Vec::with_capacity(job.spans.len());
        for &(pages, access) in &job.spans {
            spans.push((pages, distance(pages, access)?));
        }
        let (_, first) = *spans.first()?;
        let common = spans.iter().all(|&(_, distance)| distance == first).then_some(first);
        let runs = &job.kernel.runs;
        let of_runs = runs.of.iter().map(|run| {
            let place = job.places.iter().find(|place| place.at == run.argument as usize);
            let Some(place) = place.filter(|place| place.access.is_some()) else { return common };
            // What is stored to an object that was given for reading must not vanish: others may have copies.
            let written_as_given = !run.write || place.access == Some(Access::Write);
            spans.iter().find(|(pages, _)| *pages == place.pages && written_as_given).map(|&(_, distance)| distance)
        });
        let of_runs = of_runs.collect::<Option<Vec<u64>>>()?;
        let needs_common = runs.strays || job.kernel.rewritten.is_none();
        if needs_common && common.is_none() {
            return None;
        }
        Some(Distances { common: common.unwrap_or(0), runs: of_runs })
    }
}
