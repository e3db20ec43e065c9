//! Size classes: which slot an object of some layout takes, and where a slab's slots lie.
//!
//! Pure arithmetic. Classes grow by an eighth to a quarter, so that rounding up and the rest of a page or
//! slab that no slot fits into waste at most a quarter together (above 64 bytes; below, classes are 16 bytes
//! apart).
//!
//! Slots of up to 1 KiB are laid out page by page and never cross a page border: a device access to such
//! an object translates one address. Larger slots are packed over the whole slab.
//!
//! Slabs start at page borders, and a slot's offset is a multiple of its size (within its page or
//! slab): a slot is aligned to the largest power of two that divides its class's size, at most to a page.

use crate::addr::PAGE_SIZE;
use std::alloc::Layout;

/// Bytes in the slots of each class, ascending.
const SIZES: [u32; CLASSES] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 1792, 2048,
    2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768,
];

/// Number of size classes.
pub(super) const CLASSES: usize = 39;
/// Largest object that shares a slab with others, in bytes.
const LARGEST: usize = SIZES[CLASSES - 1] as usize;
/// Coarsest alignment such an object can have, in bytes.
const COARSEST: usize = PAGE_SIZE;
/// Slots of at most this many bytes do not cross page borders.
const WITHIN_PAGE: u32 = 1024;
/// Slots of at most this many bytes come from slabs of 64 KiB, larger ones from slabs of 256 KiB.
const SMALL_SLAB_SLOT: u32 = 8192;

/// Pages in the slabs of a pool: 64 KiB and 256 KiB.
pub(super) const SLAB_PAGES: [u32; 2] = [16, 64];

/// A size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SizeClass(u8);

impl SizeClass {
    /// The smallest class whose slots hold `layout`; `None` if it needs a VMA of its own.
    pub(super) fn of(layout: Layout) -> Option<Self> {
        if layout.align() > COARSEST || layout.size() > LARGEST {
            return None;
        }
        // Both are at most 32 KiB, and so is the result: 32 KiB is a multiple of every alignment up to 4 KiB.
        let (size, align) = (layout.size().next_multiple_of(layout.align()) as u32, layout.align() as u32);
        let mut class = SIZES.partition_point(|&slot| slot < size);
        // Ends at the latest at the next power of two, which is a class and a multiple of the alignment.
        while !SIZES[class].is_multiple_of(align) {
            class += 1;
        }
        Some(Self(class as u8))
    }

    /// All classes, ascending.
    pub(super) const ALL: [Self; CLASSES] = {
        let mut all = [Self(0); CLASSES];
        let mut index = 0;
        while index < CLASSES {
            all[index] = Self(index as u8);
            index += 1;
        }
        all
    };

    /// Position in per-class arrays.
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Bytes in a slot.
    pub(super) fn slot_bytes(self) -> u32 {
        SIZES[self.index()]
    }

    /// Which of the pools of [`SLAB_PAGES`] its slabs come from.
    pub(super) fn pool(self) -> usize {
        usize::from(self.slot_bytes() > SMALL_SLAB_SLOT)
    }

    /// Pages in a slab.
    pub(super) fn slab_pages(self) -> u32 {
        SLAB_PAGES[self.pool()]
    }

    /// Slots in a slab.
    pub(super) fn slots(self) -> u32 {
        match self.slots_per_page() {
            Some(per_page) => per_page * self.slab_pages(),
            None => self.slab_pages() * PAGE_SIZE as u32 / self.slot_bytes(),
        }
    }

    /// Where a slot starts, in bytes from the start of its slab.
    pub(super) fn offset_of(self, slot: u32) -> u32 {
        match self.slots_per_page() {
            Some(per_page) => slot / per_page * PAGE_SIZE as u32 + slot % per_page * self.slot_bytes(),
            None => slot * self.slot_bytes(),
        }
    }

    /// The last slot that starts at or before `offset` bytes from the start of the slab. It contains
    /// the offset unless that lies in the rest that no slot covers.
    pub(super) fn slot_at(self, offset: u32) -> u32 {
        let (page, within) = (offset / PAGE_SIZE as u32, offset % PAGE_SIZE as u32);
        match self.slots_per_page() {
            Some(per_page) => page * per_page + (within / self.slot_bytes()).min(per_page - 1),
            None => (offset / self.slot_bytes()).min(self.slots() - 1),
        }
    }

    fn slots_per_page(self) -> Option<u32> {
        (self.slot_bytes() <= WITHIN_PAGE).then(|| PAGE_SIZE as u32 / self.slot_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn the_class_is_the_smallest_that_holds_the_layout_aligned() {
        for size in 1..=LARGEST {
            for align in (0..=12).map(|shift| 1 << shift) {
                let class = SizeClass::of(layout(size, align)).unwrap();
                assert!(class.slot_bytes() as usize >= size && (class.slot_bytes() as usize).is_multiple_of(align));
                assert!(
                    SIZES[..class.index()]
                        .iter()
                        .all(|&slot| (slot as usize) < size || !slot.is_multiple_of(align as u32))
                );
                // What the heap reports as usable may be handed back as the size.
                assert_eq!(SizeClass::of(layout(class.slot_bytes() as usize, align)), Some(class));
            }
        }
        assert_eq!(SizeClass::of(layout(LARGEST + 1, 1)), None);
        assert_eq!(SizeClass::of(layout(16, 8192)), None);
    }

    #[test]
    fn at_most_a_quarter_is_wasted_on_rounding_and_rests_together() {
        for size in 65..=LARGEST {
            let class = SizeClass::of(layout(size, 1)).unwrap();
            let used = class.slots() as usize * size;
            let slab = class.slab_pages() as usize * PAGE_SIZE;
            assert!(used * 4 >= slab * 3, "{size}: {used} of {slab}");
        }
    }

    #[test]
    fn slots_lie_apart_inside_the_slab_and_small_ones_inside_pages() {
        for class in SizeClass::ALL {
            let size = class.slot_bytes();
            let mut end = 0;
            for slot in 0..class.slots() {
                let start = class.offset_of(slot);
                assert!(start >= end && start.is_multiple_of(1 << size.trailing_zeros().min(12)));
                end = start + size;
                assert!((start..end).step_by(16).all(|offset| class.slot_at(offset) == slot));
                assert!(size > 1024 || start / PAGE_SIZE as u32 == (end - 1) / PAGE_SIZE as u32);
            }
            assert!(end <= class.slab_pages() * PAGE_SIZE as u32);
            assert_eq!(class.slot_at(class.slab_pages() * PAGE_SIZE as u32 - 1), class.slots() - 1);
        }
    }
}
