//! Direct passes: no checks, for kernels that are [confined](super::Kernel::confined) to what their launches are given.
//!
//! While all of that is on the device, each object in frames one after the other, a device address is the CPU's address plus a
//! constant, and the host knows the constants: one for each pointer argument, for what the kernel reaches from it by arithmetic
//! alone (`rewrite/runs.rs`), added to the argument itself where nothing else is done with it, and one for all else, which therefore must be the same for every object. The frame pool places VMAs so that it mostly is
//! (`device/frames.rs`). If something is missing, or distances differ where they must not, the launch goes on as any other. Once a
//! kernel misses nothing, what it did not use of its objects is brought too, unless that is most of them.
//!
//! **Invariants.** The gate is closed from the check to the dispatch's end, so nothing is taken away meanwhile. The kernel sets no
//! bits: before it runs, all pages of what it may read are marked accessed, of what it may write dirty as well (I4: more than
//! happened, never less). Nothing can be missing, so nothing is probed or replayed.

use super::Code;
use super::error::LaunchError;
use super::execute::{Executor, Job};
use super::fast::PointerArgument;
use super::worklist::WorkList;
use crate::addr::{Access, PageRange};
use crate::device::layout::{LAUNCH_BYTES, LaunchBlock, RUN_BYTES, variant};
use crate::observe::Counters;
use crate::service::GateGuard;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// What is to be added to CPU addresses.
struct Distances {
    /// Everywhere; 0 where nothing asks for it.
    common: u64,
    /// By run.
    runs: Vec<u64>,
}

/// As many missing pages are brought in any case; of more, no more than are there.
const FEW: usize = 64;

impl Executor {
    /// Brings what is missing of what a confined kernel is given, if there is little of it and the kernel needed nothing else when it
    /// last ran.
    pub(super) fn complete(&mut self, job: &Job) -> Result<(), LaunchError> {
        if !self.may_be_direct(job) || !job.kernel.hits.load(Ordering::Relaxed) {
            return Ok(());
        }
        let all: u64 = job.spans.iter().map(|(pages, _)| u64::from(pages.len())).sum();
        let missing = self.missing(job, &job.spans)?;
        let few = missing.len() <= FEW || missing.len() as u64 <= all / 2;
        let fits = all <= u64::from(self.mirror.frames().limit) / 4 * 3;
        self.bring(job, if few && fits { missing } else { Vec::new() })
    }

    fn may_be_direct(&self, job: &Job) -> bool {
        // Live, pages can be taken away while kernels run.
        let possible = matches!(job.kernel.code, Code::Spirv { .. }) && self.options.live.is_none();
        possible && job.confined && self.options.direct_arrays && !self.options.trace_uses
    }

    /// Runs `list` without checks, if the kernel allows it and all is there; false if nothing was run.
    pub(super) fn direct_pass(&mut self, job: &Job, list: &WorkList) -> Result<bool, LaunchError> {
        if !self.may_be_direct(job) || !matches!(list, WorkList::Span { .. }) {
            return Ok(false);
        }
        let mirror = self.mirror.clone();
        let gate = mirror.close_gate();
        // The table must cover what is looked up.
        mirror.table(&gate).map_err(|error| self.device_failed(job, error))?;
        let Some(distances) = self.distances(job, &gate) else { return Ok(false) };
        job.spans.iter().for_each(|&(pages, access)| mirror.mark_used(&gate, pages, access));
        // Where the device's grid has rows, they are full.
        let row = self.row();
        let mut first = list.clone();
        let rest = first.split_off(if first.len() > row { first.len() / row * row } else { first.len() });
        for part in [first, rest].iter().filter(|part| part.len() > 0) {
            self.run_direct(job, part, &distances, &gate)?;
        }
        // Nothing was missing.
        job.kernel.hits.store(true, Ordering::Relaxed);
        Ok(true)
    }

    fn run_direct(
        &mut self,
        job: &Job,
        list: &WorkList,
        distances: &Distances,
        gate: &GateGuard<'_>,
    ) -> Result<(), LaunchError> {
        let mut prepared = self.prepare(job, list, gate)?;
        let mut place = |at: usize, value: u64| prepared.push[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        place(offset_of!(LaunchBlock, table), distances.common);
        let first = LAUNCH_BYTES + job.kernel.runs.offset();
        for (index, (run, distance)) in job.kernel.runs.of.iter().zip(&distances.runs).enumerate() {
            if run.own {
                let at = run.argument as usize;
                let address = job.arguments.get(at..at + 8).map_or(0, bytemuck::pod_read_unaligned::<u64>);
                place(LAUNCH_BYTES + at, address.wrapping_add(*distance));
            } else {
                // Behind the run's address and length, which are not looked at.
                place(first + index * RUN_BYTES + 16, *distance);
            }
        }
        Counters::add(&self.counters.direct_dispatches, 1);
        let arrays = self.resolve_arrays(job, gate, &mut prepared);
        self.run_prepared(job, list, variant::DIRECT | variant::IDEMPOTENT | arrays, &prepared).map(drop)
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
