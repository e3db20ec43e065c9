//! Launches over more data than fits: part by part.
//!
//! A launch whose arguments are larger than the frames is cut into slices of workgroups that should need a small part of the frames each. Most
//! such kernels go through their arguments in step with their workgroups, so the part of every argument that corresponds to a slice is
//! brought before the slice runs, in bulk, instead of being missed page by page. That is a guess: what kernels need beyond it
//! they miss as ever, and if a slice does not use most of what was brought for it, the kernel is not guessed at again.
//!
//! What of array arguments was brought is marked as used beforehand, as it is where arrays are passed by device address, so that a fast pass
//! hits. Whether it was used shows then in what the slice missed. Marks of everything else are collected after each slice, by which eviction
//! goes: a fast pass would take their want for misses, and is not tried.

use super::LaunchError;
use super::execute::{Executor, Job};
use crate::addr::{Access, PageRange};
use crate::mm::state::Placement;
use crate::service::PageFault;

/// The part of the frames that a slice should need.
const SHARE: u64 = 8;
/// Fewest workgroups of a slice.
const FEWEST: u32 = 64;
/// Pages around a part that are brought too: neighbours are often needed.
const MARGIN: u64 = 1;

impl Executor {
    /// Workgroups of a slice, if the job is to run part by part.
    pub(super) fn part_size(&self, job: &Job, total: u32) -> Option<u32> {
        let pages: u64 = job.spans.iter().map(|(span, _)| u64::from(span.len())).sum();
        let usage = self.mirror.frames();
        let copied = self.options.habit.placement == Placement::Copy;
        if !copied || !self.options.eviction_policy || pages <= u64::from(usage.limit) / 4 * 3 {
            return None;
        }
        let part = u64::from(total) * u64::from(usage.limit) / SHARE / pages;
        Some(u32::try_from(part).unwrap_or(u32::MAX).max(FEWEST))
    }

    /// Brings what `count` workgroups from `first` on, of `total`, are likely to need; returns it.
    pub(super) fn bring_part(
        &mut self,
        job: &Job,
        first: u32,
        count: u32,
        total: u32,
    ) -> Result<Vec<PageRange>, LaunchError> {
        if self.unguessable.contains(&job.kernel.id) {
            return Ok(Vec::new());
        }
        let parts: Vec<(PageRange, Access)> =
            job.spans.iter().map(|&(span, access)| (part_of(span, first, count, total), access)).collect();
        let mirror = self.mirror.clone();
        // The table must cover pages that no kernel has asked for yet.
        mirror.table(&mirror.close_gate()).map_err(|error| self.device_failed(job, error))?;
        let mut faults = std::mem::take(&mut self.faults);
        faults.clear();
        for &(part, access) in &parts {
            // What is there already must not make room for the rest.
            self.service.protect(part);
            faults.extend(mirror.missing(part, access).map(|page| PageFault { page, access }));
        }
        let served = if faults.is_empty() { Ok(None) } else { self.service.serve(&mut faults, false).map(Some) };
        self.faults = faults;
        served.map_err(|error| self.failed(job, error))?;
        if self.marks_parts(job) {
            let gate = mirror.close_gate();
            parts.iter().for_each(|&(part, access)| mirror.mark_mapped(&gate, part, access));
        }
        Ok(parts.into_iter().map(|(part, _)| part).collect())
    }

    /// Whether all that is brought for a slice of the job is of array arguments.
    pub(super) fn marks_parts(&self, job: &Job) -> bool {
        self.passes_arrays(job) && job.spans.len() == job.arrays.len() && !self.unguessable.contains(&job.kernel.id)
    }

    /// A slice has run for which `parts` were brought, and `missed` pages all the same.
    pub(super) fn end_part(&mut self, job: &Job, parts: &[PageRange], missed: u64) {
        let (mut all, mut used) = (0, 0);
        for part in parts {
            let (resident, accessed) = self.mirror.used(*part);
            all += resident;
            used += accessed;
        }
        if used * 2 < all || missed * 2 > u64::from(all) {
            self.unguessable.insert(job.kernel.id);
        }
        self.service.end_slice();
    }
}

/// The pages of `span` that correspond to `count` workgroups from `first` on, of `total`.
fn part_of(span: PageRange, first: u32, count: u32, total: u32) -> PageRange {
    let at = |workgroup: u64| u64::from(span.len()) * workgroup / u64::from(total);
    let start = at(u64::from(first)).saturating_sub(MARGIN);
    let end = (at(u64::from(first) + u64::from(count)) + 1 + MARGIN).min(u64::from(span.len()));
    // Both lie inside the span.
    PageRange::new(span.start.plus(start as u32), span.start.plus(end as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PageIndex;

    #[test]
    fn the_parts_of_all_slices_cover_the_span() {
        let span = PageRange::of_len(PageIndex(100), 37);
        for total in [1, 3, 36, 37, 38, 1000] {
            for count in [1, 2, 64] {
                let mut covered = span.start;
                for first in (0..total).step_by(count as usize) {
                    let part = part_of(span, first, count.min(total - first), total);
                    assert!(part.start <= covered && span.contains_range(part), "{part:?}");
                    covered = covered.max(part.end);
                }
                assert_eq!(covered, span.end);
            }
        }
    }
}
