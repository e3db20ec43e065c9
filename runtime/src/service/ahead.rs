//! Prefetch: what the policy recognises as a stream is mapped ahead, while frames are plentiful.

use super::coalesce::{PageFault, Span};
use super::fault::Service;
use crate::addr::PageRange;
use crate::device::layout::pte;
use crate::mm::vma::Vma;
use crate::observe::Counters;
use crate::policy::Ahead;

/// Share of the frames that must stay free of guesses: a quarter.
const KEEP_FREE: u32 = 4;

impl Service {
    /// Adds spans that nobody asked for to `list`, the spans of `faults`.
    pub(super) fn look_ahead(&mut self, faults: &[PageFault], list: &mut Vec<(Span, Vma)>) {
        if !self.prefetch || self.tight {
            return;
        }
        let mirror = self.mirror.clone();
        let used = |ahead: Ahead| {
            let state = mirror.lock();
            let pages = ahead.ranges().flat_map(|range| state.table.clip(range).iter());
            // Of pages taken away since, the record says whether they were used.
            let was_used = |page| match state.table.load(page) {
                entry if entry & pte::VALID != 0 => entry & pte::ACCESSED != 0,
                _ => mirror.home.pages.info(page).accessed,
            };
            pages.filter(|&page| was_used(page)).count() as u32
        };
        let counters = &self.mirror.counters;
        let before = self.streams.accuracy();
        let asked = list.len();
        let mut at = 0;
        while at < asked {
            let vma = list[at].1.clone();
            let same = list[at..asked].iter().take_while(|(_, other)| other.id == vma.id).count();
            let of_vma = list[at].0.faults.start..list[at + same - 1].0.faults.end;
            at += same;
            let pages = faults[of_vma].iter().map(|fault| fault.page);
            let Some(ahead) = self.streams.round(vma.id.0, vma.range, pages, used) else { continue };
            let usage = self.mirror.frames();
            if ahead.count > (usage.limit - usage.limit / KEEP_FREE).saturating_sub(usage.used) {
                continue;
            }
            for range in ahead.ranges() {
                let starts = (range.start.0..range.end.0).step_by(super::coalesce::MAX_SPAN as usize);
                list.extend(starts.map(|start| {
                    let length = (range.end.0 - start).min(super::coalesce::MAX_SPAN);
                    let pages = PageRange::of_len(crate::addr::PageIndex(start), length);
                    (Span { pages, faults: 0..0 }, vma.clone())
                }));
            }
        }
        let after = self.streams.accuracy();
        Counters::add(&counters.prefetched, after.0 - before.0);
        Counters::add(&counters.prefetched_used, after.1 - before.1);
    }
}
