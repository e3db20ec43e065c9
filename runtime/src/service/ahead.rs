//! Prefetch: what the policies expect to be asked for next is mapped ahead, while frames are plentiful; what is mapped at home
//! needs none.

use super::batch::{Part, extend_runs, pages_of};
use super::coalesce::{MAX_SPAN, PageFault, Span, deduplicate};
use super::fault::Service;
use crate::addr::{Access, PageIndex, PageRange};
use crate::device::layout::pte;
use crate::mm::vma::{Permission, Vma};
use crate::observe::Counters;
use crate::policy::{Ahead, Granule, fill_up};

/// Share of the frames that must stay free of guesses: a quarter.
const KEEP_FREE: u32 = 4;

impl Service {
    /// Adds spans that nobody asked for to `list`, the spans of `faults`.
    pub(super) fn look_ahead(&mut self, faults: &[PageFault], list: &mut Vec<Part>) {
        if !self.prefetch {
            return;
        }
        let asked = list.len();
        self.fill_pinned(list);
        if self.tight {
            return;
        }
        let mirror = self.mirror.clone();
        let used = |ahead: Ahead| {
            let state = mirror.lock();
            let in_use = |page| state.table.load(page) & (pte::VALID | pte::ACCESSED) == pte::VALID | pte::ACCESSED;
            mirror.guesses.judge(ahead, in_use)
        };
        let before = self.streams.accuracy();
        let mut at = 0;
        while at < asked {
            let first = &list[at];
            if first.span.pages == first.vma.range {
                // All of it is asked for, as with VMAs of a page.
                at += 1;
                continue;
            }
            let vma = first.vma.clone();
            let same = list[at..asked].iter().take_while(|other| other.vma.id == vma.id).count();
            let of_vma = list[at].span.faults.start..list[at + same - 1].span.faults.end;
            self.follow_holes(&list[at..at + same], faults);
            let contested = |fault: &PageFault| self.space.thrash().is_contested(Granule::of(fault.page));
            // Where the other side is there, too, it takes back what is fetched ahead before it is used. The round's ends tell enough.
            let ends = [&faults[of_vma.start], &faults[of_vma.end - 1]];
            if vma.advice().is_random() || ends.into_iter().any(contested) {
                at += same;
                continue;
            }
            if self.fills.blocks(vma.id.0) {
                self.fill_up(at..at + same, list);
            }
            at += same;
            let pages = faults[of_vma].iter().map(|fault| fault.page);
            let Some(ahead) = self.streams.round(vma.id.0, vma.range, pages, used) else { continue };
            if ahead.count <= self.room() {
                self.follow(ahead);
                ahead.ranges().for_each(|range| add(list, range, &vma));
            }
        }
        let after = self.streams.accuracy();
        Counters::add(&mirror.counters.prefetched, after.0 - before.0);
        Counters::add(&mirror.counters.prefetched_used, after.1 - before.1);
    }

    /// Adds what else lies in granules that are pinned at home: to map it there costs nothing, and one fault is enough.
    fn fill_pinned(&self, list: &mut Vec<Part>) {
        let thrash = self.space.thrash();
        if !thrash.is_on() {
            return;
        }
        let mut last = None;
        for at in 0..list.len() {
            let (pages, vma) = (list[at].span.pages, list[at].vma.clone());
            for granule in Granule::of(pages.start).0..=Granule::of(PageIndex(pages.end.0 - 1)).0 {
                let granule = Granule(granule);
                if last != Some(granule) && thrash.granule(granule).is_pinned() {
                    add(list, granule.pages().intersect(vma.range), &vma);
                }
                last = Some(granule);
            }
        }
    }

    /// Adds what is missing of blocks that the parts in `of_vma`, all of one VMA, make dense.
    fn fill_up(&mut self, of_vma: std::ops::Range<usize>, list: &mut Vec<Part>) {
        let vma = list[of_vma.start].vma.clone();
        let room = self.room();
        let mut asked = std::mem::take(&mut self.asked);
        asked.clear();
        asked.extend(pages_of(&list[of_vma]));
        let state = self.mirror.lock();
        let present = |page| state.table.load(page) & pte::VALID != 0;
        let mut brought = std::mem::take(&mut self.brought);
        brought.clear();
        fill_up(&asked, vma.range, room, present, |range| {
            add(list, range, &vma);
            brought.push(range);
        });
        drop(state);
        self.asked = asked;
        self.brought = brought;
        self.follow_brought(vma.id.0);
    }

    /// A round of `missed` pages in `vma` begins: the longest hole between them that is filled. What was brought along there before is judged,
    /// once that can be.
    pub(super) fn longest_hole(&mut self, vma: &Vma, missed: usize) -> u32 {
        let id = vma.id.0;
        if self.fills.begin(id, missed as u32) {
            let (filled, used) = {
                let state = self.mirror.lock();
                let used = pte::VALID | pte::ACCESSED;
                let covered = |page| state.table.clip(PageRange::single(page)).len() == 1;
                self.mirror.filled.judge(id, |page| covered(page) && state.table.load(page) & used == used)
            };
            self.fills.judged(id, filled, used);
            Counters::add(&self.mirror.counters.prefetched, u64::from(filled));
            Counters::add(&self.mirror.counters.prefetched_used, u64::from(used));
        }
        self.fills.holes(id)
    }

    /// Has the use of what lies in the holes of `parts`, all of one VMA, counted from now on.
    fn follow_holes(&mut self, parts: &[Part], faults: &[PageFault]) {
        self.brought.clear();
        let mut state = None;
        for Part { span, .. } in parts.iter().filter(|part| (part.span.pages.len() as usize) > part.span.faults.len()) {
            let state = state.get_or_insert_with(|| self.mirror.lock());
            let mut asked = faults[span.faults.clone()].iter().map(|fault| fault.page).peekable();
            for page in span.pages.iter() {
                // What is there was not brought along.
                if asked.next_if_eq(&page).is_none() && state.table.load(page) & pte::VALID == 0 {
                    extend_runs(&mut self.brought, page);
                }
            }
        }
        drop(state);
        if let Some(part) = parts.first() {
            self.follow_brought(part.vma.id.0);
        }
    }

    fn follow_brought(&mut self, id: u64) {
        let pages = self.mirror.filled.follow(id, self.brought.iter().copied());
        self.fills.filled(id, pages);
    }

    /// While kernels run: adds to `faults` the stores that are expected next, to pages that the device can read already.
    pub(super) fn follow_writes(&mut self, faults: &mut Vec<PageFault>) {
        if !self.live || !self.prefetch || self.tight {
            return;
        }
        let mut room = self.room();
        let asked = faults.len();
        let mut at = 0;
        while at < asked {
            let vma = self.space.vmas().read().find(faults[at].page).cloned();
            let Some(vma) = vma.filter(|vma| {
                vma.permission() == Permission::ReadWrite && !vma.advice().is_random() && !vma.advice().is_read_mostly()
            }) else {
                at += 1;
                continue;
            };
            let of_vma = &faults[at..asked];
            let of_vma = &of_vma[..of_vma.partition_point(|fault| vma.range.contains(fault.page))];
            at += of_vma.len();
            let stores = || of_vma.iter().filter(|fault| fault.access == Access::Write).map(|fault| fault.page);
            let (Some(low), Some(high)) = (stores().next(), stores().next_back()) else { continue };
            let count = self.writes.round(vma.id.0, low, high);
            let behind = PageRange::of_len(high.plus(1), count).intersect(vma.range);
            let state = self.mirror.lock();
            let readable = |&page: &PageIndex| {
                let entry = state.table.load(page);
                let zero = entry & pte::ZERO != 0;
                room -= u32::from(zero && room > 0);
                entry & (pte::VALID | pte::WRITABLE | pte::HOME) == pte::VALID && (!zero || room > 0)
            };
            let contested = |page: PageIndex| self.space.thrash().is_contested(Granule::of(page));
            let expected = state.table.clip(behind).iter().take_while(readable).take_while(|&page| !contested(page));
            let before = faults.len();
            faults.extend(expected.map(|page| PageFault { page, access: Access::Write }));
            drop(state);
            self.writes.granted(vma.id.0, (faults.len() - before) as u32);
        }
        if faults.len() > asked {
            deduplicate(faults);
        }
    }

    /// Frames that guesses may take.
    fn room(&self) -> u32 {
        let usage = self.mirror.frames();
        (usage.limit - usage.limit / KEEP_FREE).saturating_sub(usage.used)
    }

    /// Has the use of a guess's pages counted from now on.
    fn follow(&self, ahead: Ahead) {
        self.mirror.guesses.follow(ahead);
        let state = self.mirror.lock();
        for page in ahead.ranges().flat_map(|range| state.table.clip(range).iter()) {
            // Mapped already, and used before.
            if state.table.load(page) & pte::ACCESSED != 0 {
                let entry = state.table.clear_flags(page, pte::ACCESSED);
                self.mirror.home.pages.mark(page, entry & pte::ACCESSED != 0, false);
            }
        }
    }
}

/// Adds a range of `vma` that nobody asked for, in parts.
fn add(list: &mut Vec<Part>, range: PageRange, vma: &Vma) {
    let starts = (range.start.0..range.end.0).step_by(MAX_SPAN as usize);
    list.extend(starts.map(|start| {
        let pages = PageRange::of_len(PageIndex(start), (range.end.0 - start).min(MAX_SPAN));
        Part { span: Span { pages, faults: 0..0 }, vma: vma.clone(), ends: false }
    }));
}
