//! Which allocation an address belongs to: for error messages and for checking a launch's pointers.
//!
//! Answers are true of some moment during the call; an allocation freed meanwhile by another thread may still
//! be named. Takes the heap's locks one at a time and calls nothing that waits, so that threads which service
//! a device may ask, though not on the fault path of the CPU.

use super::HeapError;
use super::class::SizeClass;
use super::inner::HeapInner;
use super::small::{Place, SlotError};
use crate::addr::{PAGE_SIZE, PageIndex, VirtAddr};
use std::alloc::Layout;

/// A live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Its first byte.
    pub start: VirtAddr,
    /// Bytes it may use: what was asked for, rounded up to its slot or to whole pages.
    pub len: usize,
}

impl Allocation {
    /// Whether the address is one of its bytes.
    pub fn contains(self, address: VirtAddr) -> bool {
        self.distance(address) == 0
    }

    /// One past its last byte.
    pub fn end(self) -> VirtAddr {
        VirtAddr(self.start.0 + self.len as u64)
    }

    /// Bytes from the address to its nearest byte: 0 inside, 1 just past the end.
    pub fn distance(self, address: VirtAddr) -> u64 {
        if address < self.start { self.start.0 - address.0 } else { address.0.saturating_sub(self.end().0 - 1) }
    }
}

/// What a heap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeapUsage {
    /// Bytes in live allocations, rounded up to their slots or pages.
    pub allocated: u64,
    /// Bytes in VMAs mapped for allocations, used or not; not all of them have memory.
    pub mapped: u64,
    /// Live allocations.
    pub allocations: u64,
}

impl HeapInner {
    /// The live allocation that `address` lies in.
    pub(super) fn allocation_at(&self, address: VirtAddr) -> Option<Allocation> {
        let place = self.place_of(address)?;
        let allocation = match self.owner_of(address) {
            Some(class) => {
                let [before, _] = self.class(class).lock().live_around(place);
                Allocation { start: self.address_of(before?), len: class.slot_bytes() as usize }
            }
            None => {
                let large = self.large.around(place.page)[0]?;
                Allocation { start: self.source.addr_of(large.vma.start), len: large.bytes() }
            }
        };
        allocation.contains(address).then_some(allocation)
    }

    /// The live allocation closest to `address`, which may lie outside the heap, and the distance in bytes.
    pub(super) fn nearest(&self, address: VirtAddr) -> Option<(Allocation, u64)> {
        let place = self.place_of(address).unwrap_or_else(|| self.border_towards(address));
        let mut candidates: Vec<Allocation> = SizeClass::ALL
            .into_iter()
            .flat_map(|class| {
                let around = self.class(class).lock().live_around(place);
                around.map(|place| (place, class.slot_bytes() as usize))
            })
            .filter_map(|(place, len)| Some(Allocation { start: self.address_of(place?), len }))
            .collect();
        candidates.extend(
            self.large
                .around(place.page)
                .into_iter()
                .flatten()
                .map(|large| Allocation { start: self.source.addr_of(large.vma.start), len: large.bytes() }),
        );
        candidates.into_iter().map(|found| (found, found.distance(address))).min_by_key(|&(_, distance)| distance)
    }

    /// Totals, each class as of the moment it was asked.
    pub(super) fn usage(&self) -> HeapUsage {
        let large = self.large.totals();
        let page = PAGE_SIZE as u64;
        let mut usage = HeapUsage {
            allocated: large.allocated_pages * page,
            mapped: large.mapped_pages * page,
            allocations: large.count,
        };
        for class in SizeClass::ALL {
            let live = self.class(class).lock().live();
            usage.allocated += live * u64::from(class.slot_bytes());
            usage.allocations += live;
        }
        for pool in &self.pools {
            usage.mapped += pool.mapped_pages() * page;
        }
        usage
    }

    /// Why `address` with `layout` cannot be freed.
    pub(super) fn diagnose(&self, address: VirtAddr, layout: Layout) -> HeapError {
        if let Some(found) = self.allocation_at(address)
            && found.start == address
        {
            return HeapError::WrongLayout { address, len: found.len, size: layout.size(), align: layout.align() };
        }
        if let (Some(class), Some(place)) = (self.owner_of(address), self.place_of(address))
            && self.class(class).lock().slot_starting_at(place) == Err(SlotError::Free)
        {
            return HeapError::DoubleFree { address, len: class.slot_bytes() as usize };
        }
        HeapError::NotAllocated { address }
    }

    /// The first or the last place there can be, whichever is closer to an address outside the heap.
    fn border_towards(&self, address: VirtAddr) -> Place {
        if address < self.source.addr_of(PageIndex(0)) {
            Place { page: PageIndex(0), offset: 0 }
        } else {
            Place { page: PageIndex(u32::MAX - 1), offset: PAGE_SIZE as u32 - 1 }
        }
    }

    fn owner_of(&self, address: VirtAddr) -> Option<SizeClass> {
        let page = self.source.page_of(address)?;
        self.pools.iter().find_map(|pool| pool.owner_of(page))
    }
}
