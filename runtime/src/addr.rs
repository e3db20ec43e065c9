//! Units and kinds of addresses.
//!
//! No bare `u64` crosses a module border: a CPU address, a page of the shared heap, a frame of a
//! device and a device address are different types. Pages are numbered from the start of the
//! heap's reservation, so that a [`PageIndex`] indexes page records and device page tables alike.

use std::fmt;
use std::ops::Range;

/// Log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page, the unit of translation and of coherence: 4 KiB.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Pages in a granule, the unit of prefetch and of thrash accounting: 64 KiB.
pub const GRANULE_PAGES: u32 = 16;

/// A CPU virtual address; inside the heap it is also what kernels dereference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The address of a pointer's target.
    pub fn of<T: ?Sized>(pointer: *const T) -> Self {
        Self(pointer.cast::<u8>() as u64)
    }

    /// This address as a pointer (provenance is that of the heap's exposed mapping).
    pub fn as_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    /// Bytes from the start of the address's page.
    pub fn page_offset(self) -> usize {
        (self.0 as usize) & (PAGE_SIZE - 1)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A page of the shared heap, counted from the start of its reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// The page as an index into per-page arrays.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The page `count` pages further on.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// A half-open range of pages `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PageRange {
    /// First page.
    pub start: PageIndex,
    /// One past the last page; never below `start`.
    pub end: PageIndex,
}

impl PageRange {
    /// The pages from `start` up to, not including, `end`.
    ///
    /// # Panics
    /// If `end` lies before `start`.
    pub fn new(start: PageIndex, end: PageIndex) -> Self {
        assert!(start <= end, "page range runs backwards: {start:?}..{end:?}");
        Self { start, end }
    }

    /// `count` pages from `start`.
    pub fn of_len(start: PageIndex, count: u32) -> Self {
        Self { start, end: start.plus(count) }
    }

    /// The range of one page.
    pub fn single(page: PageIndex) -> Self {
        Self::of_len(page, 1)
    }

    /// Number of pages.
    pub fn len(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether the range holds no page.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Bytes covered.
    pub fn bytes(self) -> usize {
        self.len() as usize * PAGE_SIZE
    }

    /// Whether `page` lies inside.
    pub fn contains(self, page: PageIndex) -> bool {
        self.start <= page && page < self.end
    }

    /// Whether `other` lies wholly inside.
    pub fn contains_range(self, other: PageRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a page.
    pub fn overlaps(self, other: PageRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The shared pages; empty (at `self.start`) if there are none.
    pub fn intersect(self, other: PageRange) -> PageRange {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end { Self { start, end } } else { Self { start: self.start, end: self.start } }
    }

    /// The pages in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageIndex> + ExactSizeIterator {
        (self.start.0..self.end.0).map(PageIndex)
    }

    /// The range as indices into per-page arrays.
    pub fn indices(self) -> Range<usize> {
        self.start.index()..self.end.index()
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start.0, self.end.0)
    }
}

/// A 4 KiB frame of device memory, numbered across the device's slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameIndex(pub u32);

impl FrameIndex {
    /// The frame as an index into per-frame arrays.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The frame `count` frames further on.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

/// An address as the device's shaders see it (Vulkan: `VkDeviceAddress`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// The address `bytes` further on.
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Debug for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {:#x}", self.0)
    }
}

/// What an access wants to do; ordered by how intrusive it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Load.
    Read,
    /// Store, or an atomic read-modify-write.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_intersect_and_overlap_as_half_open_intervals() {
        let a = PageRange::of_len(PageIndex(4), 4);
        let b = PageRange::of_len(PageIndex(8), 2);
        assert!(!a.overlaps(b));
        assert!(a.intersect(b).is_empty());
        let c = PageRange::of_len(PageIndex(6), 10);
        assert_eq!(a.intersect(c), PageRange::new(PageIndex(6), PageIndex(8)));
        assert!(c.contains_range(b));
    }
}
