//! One slab: which of its slots are taken. Out of band; the slab's own memory is never looked at.

use super::class::SizeClass;
use crate::addr::{PAGE_SIZE, PageIndex};

/// The record of a slab of one size class.
#[derive(Debug)]
pub(super) struct Slab {
    /// First page.
    pub(super) start: PageIndex,
    class: SizeClass,
    /// One bit a slot, set while it is taken.
    taken: Box<[u64]>,
    live: u32,
    /// Slots below it were looked at since the slab became current: allocation goes upwards from here.
    cursor: u32,
    /// Slots from here on were never handed out since the slab's memory was given back: they read as zeros.
    fresh_from: u32,
}

/// A slot handed out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Which.
    pub(super) index: u32,
    /// Whether its memory reads as zeros.
    pub(super) zero: bool,
}

impl Slab {
    /// A slab of fresh (zero) pages with all slots free.
    pub(super) fn new(start: PageIndex, class: SizeClass) -> Self {
        let words = class.slots().div_ceil(64) as usize;
        Self { start, class, taken: vec![0; words].into_boxed_slice(), live: 0, cursor: 0, fresh_from: 0 }
    }

    /// Slots taken.
    pub(super) fn live(&self) -> u32 {
        self.live
    }

    /// Whether every slot is taken.
    pub(super) fn is_full(&self) -> bool {
        self.live == self.class.slots()
    }

    /// Whether the slot is taken.
    pub(super) fn is_live(&self, slot: u32) -> bool {
        self.taken[slot as usize / 64] & (1 << (slot % 64)) != 0
    }

    /// Starts over with the lowest free slot.
    pub(super) fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// Takes the next free slot upwards; `None` if there is none up to the slab's end.
    pub(super) fn take(&mut self) -> Option<Slot> {
        let index = self.next(self.cursor, false)?;
        self.taken[index as usize / 64] |= 1 << (index % 64);
        self.live += 1;
        self.cursor = index + 1;
        let zero = index >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(index + 1);
        Some(Slot { index, zero })
    }

    /// Frees a slot that is taken.
    pub(super) fn free(&mut self, slot: u32) {
        debug_assert!(self.is_live(slot));
        self.taken[slot as usize / 64] &= !(1 << (slot % 64));
        self.live -= 1;
    }

    /// The taken slot closest to `offset` (bytes from the slab's start) from below: it contains the offset or
    /// ends before it.
    pub(super) fn live_at_or_before(&self, offset: u32) -> Option<u32> {
        if self.live == 0 {
            return None;
        }
        let last = self.class.slot_at(offset.min(self.class.slab_pages() * PAGE_SIZE as u32 - 1));
        (0..=last).rev().find(|&slot| self.is_live(slot))
    }

    /// The taken slot closest to `offset` among those that start above it.
    pub(super) fn live_after(&self, offset: u32) -> Option<u32> {
        self.next(self.class.slot_at(offset) + 1, true)
    }

    /// The first taken slot.
    pub(super) fn first_live(&self) -> Option<u32> {
        self.next(0, true)
    }

    /// The first slot from `from` on that is taken or free, as asked.
    fn next(&self, from: u32, taken: bool) -> Option<u32> {
        let slots = self.class.slots();
        let mut from = from;
        while from < slots {
            let word = self.taken[from as usize / 64];
            let wanted = (if taken { word } else { !word }) & (u64::MAX << (from % 64));
            if wanted != 0 {
                let found = from / 64 * 64 + wanted.trailing_zeros();
                return (found < slots).then_some(found);
            }
            from = (from / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::Layout;

    #[test]
    fn slots_come_out_ascending_and_are_zero_only_the_first_time() {
        let class = SizeClass::of(Layout::new::<[u8; 48]>()).unwrap();
        let mut slab = Slab::new(PageIndex(0), class);
        for expected in 0..class.slots() {
            let slot = slab.take().unwrap();
            assert_eq!((slot.index, slot.zero), (expected, true));
        }
        assert!(slab.is_full() && slab.take().is_none());
        slab.free(100);
        slab.free(7);
        assert!(slab.take().is_none(), "the cursor stands at the end");
        slab.rewind();
        let slot = slab.take().unwrap();
        assert_eq!((slot.index, slot.zero), (7, false));
        assert_eq!(slab.take().unwrap().index, 100);
    }

    #[test]
    fn neighbours_of_an_offset_are_found_on_both_sides() {
        let class = SizeClass::of(Layout::new::<[u8; 1024]>()).unwrap();
        let mut slab = Slab::new(PageIndex(0), class);
        for _ in 0..4 {
            slab.take();
        }
        slab.free(1);
        slab.free(2);
        assert_eq!(slab.live_at_or_before(2048), Some(0));
        assert_eq!(slab.live_at_or_before(3072), Some(3));
        assert_eq!(slab.live_at_or_before(65_535), Some(3));
        assert_eq!(slab.live_after(0), Some(3));
        assert_eq!(slab.live_after(3072), None);
    }
}
