//! The slabs of one size class, and which slot comes next.
//!
//! A plain data structure, locked by its owner (one lock a class). One slab is *current*: slots come out of
//! it in ascending order, so that objects allocated one after the other lie side by side. When it is used up
//! to its end, the lowest slab with free slots becomes current.
//!
//! Invariants: `partial` names exactly the slabs in `others` that have free slots; `empty` counts those in
//! `others` with no taken slot, and is at most [`WARM_SLABS`] whenever the class is unlocked after a free.

use super::class::SizeClass;
use super::slab::{Slab, Slot};
use crate::addr::{PAGE_SIZE, PageIndex};
use std::collections::{BTreeMap, BTreeSet};

/// Empty slabs kept with their memory, beside the current one.
const WARM_SLABS: u32 = 1;

/// A byte of the heap: a page and an offset from its start, which may reach into later pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) page: PageIndex,
    pub(super) offset: u32,
}

/// A slot could not be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotError {
    /// No slot of this class starts there.
    NotASlot,
    /// The slot is free already.
    Free,
}

/// The slabs of a size class.
#[derive(Debug)]
pub(super) struct ClassSlabs {
    class: SizeClass,
    current: Option<Slab>,
    others: BTreeMap<PageIndex, Slab>,
    partial: BTreeSet<PageIndex>,
    empty: u32,
    live: u64,
}

impl ClassSlabs {
    pub(super) fn new(class: SizeClass) -> Self {
        Self { class, current: None, others: BTreeMap::new(), partial: BTreeSet::new(), empty: 0, live: 0 }
    }

    /// Slots taken.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Takes a slot; `None` if all slabs are full.
    pub(super) fn take(&mut self) -> Option<(Place, Slot)> {
        loop {
            if let Some(slab) = &mut self.current
                && let Some(slot) = slab.take()
            {
                self.live += 1;
                return Some((Place { page: slab.start, offset: self.class.offset_of(slot.index) }, slot));
            }
            // Set aside first: it may have free slots further down and be the lowest itself.
            if let Some(used_up) = self.current.take() {
                self.set_aside(used_up);
            }
            let mut next = self.others.remove(&self.partial.pop_first()?)?;
            self.empty -= u32::from(next.live() == 0);
            next.rewind();
            self.current = Some(next);
        }
    }

    /// Adds a slab of fresh pages.
    pub(super) fn add(&mut self, start: PageIndex) {
        self.set_aside(Slab::new(start, self.class));
    }

    fn set_aside(&mut self, slab: Slab) {
        if !slab.is_full() {
            self.partial.insert(slab.start);
        }
        self.empty += u32::from(slab.live() == 0);
        self.others.insert(slab.start, slab);
    }

    /// Frees the slot that starts at the place. Answers with the start of a slab that is to be given back, if
    /// there are now more empty ones than are kept warm; the class has then forgotten it.
    pub(super) fn free(&mut self, place: Place) -> Result<Option<PageIndex>, SlotError> {
        let slot = self.slot_starting_at(place)?;
        let start = self.slab_start(place.page);
        if let Some(slab) = self.current.as_mut().filter(|slab| slab.start == start) {
            slab.free(slot);
            self.live -= 1;
            return Ok(None);
        }
        let slab = self.others.get_mut(&start).ok_or(SlotError::NotASlot)?;
        slab.free(slot);
        self.live -= 1;
        self.partial.insert(start);
        if slab.live() > 0 {
            return Ok(None);
        }
        if self.empty < WARM_SLABS {
            self.empty += 1;
            return Ok(None);
        }
        self.others.remove(&start);
        self.partial.remove(&start);
        Ok(Some(start))
    }

    /// Forgets all empty slabs, warm and current ones too; they are to be given back.
    pub(super) fn trim(&mut self) -> Vec<PageIndex> {
        if let Some(slab) = self.current.take() {
            self.set_aside(slab);
        }
        let empty: Vec<_> = self.others.values().filter(|slab| slab.live() == 0).map(|slab| slab.start).collect();
        for start in &empty {
            self.others.remove(start);
            self.partial.remove(start);
        }
        self.empty = 0;
        empty
    }

    /// Checks that a live slot starts at the place.
    pub(super) fn slot_starting_at(&self, place: Place) -> Result<u32, SlotError> {
        let slab = self.slab(self.slab_start(place.page)).ok_or(SlotError::NotASlot)?;
        let offset = self.offset_in_slab(place);
        let slot = self.class.slot_at(offset);
        if self.class.offset_of(slot) != offset {
            Err(SlotError::NotASlot)
        } else if !slab.is_live(slot) {
            Err(SlotError::Free)
        } else {
            Ok(slot)
        }
    }

    /// The starts of the live slots closest to the place: the last that starts at or before it, and the first
    /// that starts after it.
    pub(super) fn live_around(&self, place: Place) -> [Option<Place>; 2] {
        let start = self.slab_start(place.page);
        let offset = self.offset_in_slab(place);
        let at = |slab: &Slab, slot: u32| Place { page: slab.start, offset: self.class.offset_of(slot) };
        let before = |slab: &Slab| {
            let limit = if slab.start == start { offset } else { u32::MAX };
            slab.live_at_or_before(limit).map(|slot| at(slab, slot))
        };
        let after = |slab: &Slab| {
            let slot = if slab.start == start { slab.live_after(offset) } else { slab.first_live() };
            slot.map(|slot| at(slab, slot))
        };
        let current = self.current.as_ref();
        let below = self.others.range(..=start).rev().find_map(|(_, slab)| before(slab));
        let current_below = current.filter(|slab| slab.start <= start).and_then(before);
        let above = self.others.range(start..).find_map(|(_, slab)| after(slab));
        let current_above = current.filter(|slab| slab.start >= start).and_then(after);
        [
            below.into_iter().chain(current_below).max_by_key(|place| (place.page, place.offset)),
            above.into_iter().chain(current_above).min_by_key(|place| (place.page, place.offset)),
        ]
    }

    fn slab(&self, start: PageIndex) -> Option<&Slab> {
        self.current.as_ref().filter(|slab| slab.start == start).or_else(|| self.others.get(&start))
    }

    /// Arenas are aligned to the slabs' length, so slabs start at its multiples.
    fn slab_start(&self, page: PageIndex) -> PageIndex {
        PageIndex(page.0 - page.0 % self.class.slab_pages())
    }

    fn offset_in_slab(&self, place: Place) -> u32 {
        (place.page.0 % self.class.slab_pages()) * PAGE_SIZE as u32 + place.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::alloc::Layout;
    use std::collections::HashSet;

    fn check(slabs: &ClassSlabs, given_back: &HashSet<PageIndex>) {
        let with_room: BTreeSet<_> = slabs.others.values().filter(|s| !s.is_full()).map(|s| s.start).collect();
        assert_eq!(slabs.partial, with_room);
        assert_eq!(slabs.empty as usize, slabs.others.values().filter(|s| s.live() == 0).count());
        let all = || slabs.others.values().chain(&slabs.current);
        assert_eq!(slabs.live, all().map(|s| u64::from(s.live())).sum());
        assert!(all().all(|s| !given_back.contains(&s.start)));
    }

    #[test]
    fn slots_are_handed_out_once_and_empty_slabs_leave_whatever_the_order() {
        let class = SizeClass::of(Layout::new::<[u8; 4096]>()).unwrap();
        let mut slabs = ClassSlabs::new(class);
        let mut random = SmallRng::seed_from_u64(7);
        let (mut taken, mut given_back, mut next) = (Vec::new(), HashSet::new(), 0);
        for round in 0..20_000 {
            // Grows and shrinks in turn, so that slabs come and go.
            if random.random_bool(if round / 500 % 2 == 0 { 0.7 } else { 0.3 }) {
                let (place, _) = slabs.take().unwrap_or_else(|| {
                    slabs.add(PageIndex(next));
                    next += class.slab_pages();
                    slabs.take().unwrap()
                });
                assert!(!taken.contains(&place));
                taken.push(place);
            } else if !taken.is_empty() {
                let place = taken.swap_remove(random.random_range(0..taken.len()));
                given_back.extend(slabs.free(place).unwrap());
                assert!(slabs.empty <= WARM_SLABS);
                assert!(slabs.free(place).is_err());
            }
            check(&slabs, &given_back);
        }
        assert!(given_back.len() > 10);
        for place in taken {
            given_back.extend(slabs.free(place).unwrap());
        }
        given_back.extend(slabs.trim());
        check(&slabs, &given_back);
        assert_eq!(given_back.len() as u32 * class.slab_pages(), next, "every slab was given back");
    }
}
