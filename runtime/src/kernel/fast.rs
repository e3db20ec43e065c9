//! Fast passes: for lists of which everything is expected to be on the device.
//!
//! Drivers put the code of every translation in place, and software drivers also execute it where no invocation takes it. So kernels have
//! a variant without the slow path ([`variant::FAST`]): an access either hits, or its invocation is poisoned and its workgroup
//! marked when it ends; nothing is reported. What is left runs in the other variant, which finds out what was missing, and sets
//! accessed and dirty bits where they were not set, which also counts as a miss here.
//!
//! Kernels that may not be run over their own stores are probed first, with the gate closed from then on. For them accessed and dirty
//! bits are set in passing: a miss where there is none would be a late fault.
//!
//! Kernels that were rewritten are also told where the pages of their pointer arguments lie, as far as they are contiguous and
//! marked already (`rewrite/runs.rs`): then most accesses load no entry at all.
//!
//! Where each run is all of what its argument points to, a kernel that can be run again is told so (`variant::WHOLE`): what comes from an argument by
//! arithmetic alone then has no code for looking at entries, and misses if it lies elsewhere.
//!
//! A kernel's first pass is never fast, nor one after a list that missed something: a fast pass that fails costs about a
//! third of the one it was to replace.

use super::Code;
use super::error::LaunchError;
use super::execute::{Executor, Job};
use super::worklist::WorkList;
use crate::addr::{Access, PageIndex, PageRange, VirtAddr};
use crate::device::layout::{LAUNCH_BYTES, RUN_BYTES, variant};
use crate::service::GateGuard;
use std::sync::atomic::Ordering;

/// A pointer among a launch's arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointerArgument {
    /// Its offset in the arguments, in bytes.
    pub(crate) at: usize,
    /// What it is.
    pub(crate) address: VirtAddr,
    /// The page it points to.
    pub(crate) page: PageIndex,
    /// The pages of what it points to; its VMA's, if that is not known.
    pub(crate) pages: PageRange,
    /// How what it points to may be accessed; none, if it is not known what that is.
    pub(crate) access: Option<Access>,
}

/// How often a kernel may find something missing in passes that rely on whole runs, before there are no more such passes.
const MAX_STRAYS: u32 = 3;

impl Executor {
    /// Tells a rewritten kernel where its arguments lie, as far as that holds for a dispatch with the gate closed. Returns the variant for kernels
    /// all of whose runs are whole, if they are and the kernel has kept to them so far; then arguments that nothing else is done with become
    /// device addresses.
    pub(super) fn place_runs(&self, job: &Job, gate: &GateGuard<'_>, push: &mut [u8], bits: u32) -> u32 {
        let runs = &job.kernel.runs;
        let first = LAUNCH_BYTES + runs.offset();
        let mut own = Vec::new();
        let (mut whole, mut placed) = (bits & variant::IDEMPOTENT != 0, 0);
        let blocks = push.get_mut(first..).unwrap_or_default().chunks_exact_mut(RUN_BYTES);
        for (run, block) in runs.of.iter().zip(blocks) {
            let Some(place) = job.places.iter().find(|place| place.at == run.argument as usize) else { continue };
            let access = if run.write { Access::Write } else { Access::Read };
            let Some((pages, device)) = self.mirror.run_around(gate, place.pages, place.page, access) else { continue };
            let views = &self.space.home().views;
            // From the argument on, if the run starts at its page: then what is added to the argument is the offset.
            let skew = if pages.start == place.page { place.address.page_offset() as u64 } else { 0 };
            let (va, bytes) = (views.addr_of(pages.start).0 + skew, pages.bytes() as u64 - skew);
            for (word, value) in block.chunks_exact_mut(8).zip([va, bytes, device.0 + skew]) {
                word.copy_from_slice(&value.to_ne_bytes());
            }
            whole &= pages == place.pages;
            placed += 1;
            if run.own {
                own.push((LAUNCH_BYTES + place.at, place.address.0.wrapping_sub(va).wrapping_add(device.0 + skew)));
            }
        }
        let strays = job.kernel.strays.load(Ordering::Relaxed) >= MAX_STRAYS;
        if !whole || strays || placed == 0 || placed < runs.of.len() {
            return 0;
        }
        for (at, address) in own {
            push[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        }
        variant::WHOLE
    }

    /// Whether a fast pass over `list` is likely to be all that it takes.
    pub(super) fn expects_hits(&self, job: &Job, list: &WorkList) -> bool {
        let spares_code = matches!(job.kernel.code, Code::Spirv { .. }) && self.options.fast_passes;
        let hits = matches!(list, WorkList::Span { .. }) && job.kernel.hits.load(Ordering::Relaxed);
        self.try_fast && spares_code && hits
    }

    /// Runs `list`; returns what must run in the other variant.
    pub(super) fn fast_pass(&mut self, job: &Job, list: WorkList) -> Result<Option<WorkList>, LaunchError> {
        let mirror = self.mirror.clone();
        let pass = {
            let gate = mirror.close_gate();
            if job.idempotent {
                self.dispatch(job, &list, variant::FAST | variant::IDEMPOTENT, &gate)?
            } else {
                let probed = self.dispatch(job, &list, variant::FAST | variant::PROBE, &gate)?;
                if probed.replay.is_empty() {
                    self.dispatch(job, &list, variant::FAST, &gate)?
                } else {
                    // Stores went nowhere: all is still to be done.
                    return self.missed(job, list);
                }
            }
        };
        if let Some(workgroup) = pass.late {
            // Nothing was reported. What it misses when its stores go nowhere is the best guess at what it missed.
            self.pass(job, &WorkList::Ids(vec![workgroup]), variant::PROBE)?;
            return self.serve(job, Some(workgroup)).map(|_| None);
        }
        if pass.replay.is_empty() { Ok(None) } else { self.missed(job, WorkList::Ids(pass.replay)) }
    }

    fn missed(&self, job: &Job, list: WorkList) -> Result<Option<WorkList>, LaunchError> {
        job.kernel.hits.store(false, Ordering::Relaxed);
        Ok(Some(list))
    }
}
