//! The device page table: one 8-byte entry a page, walked by kernels, written by the host.
//!
//! Flat over the heap's grown part, so that a translation is one load. Who may write what:
//!
//! - kernels set ACCESSED, DIRTY and the pending bits, with 32-bit atomics on the low word;
//! - the host changes everything else, holding the mirror's update lock and the page's lock.
//!
//! Host updates are single 64-bit atomics, so a kernel never sees half an entry's flags; the high word of an
//! address changes only while the entry is not valid.

use super::layout::pte;
use super::{Device, DeviceError, SharedMemory, SharedUse};
use crate::addr::{DeviceAddress, PageIndex, PageRange};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device's page table.
pub struct PageTable {
    memory: Box<dyn SharedMemory>,
    /// Where the host finds the entries: asked for once, since a service looks at each of its entries several times.
    entries: NonNull<AtomicU64>,
    pages: u32,
}

// SAFETY: the entries are part of `memory`, which may be used from any thread, and are only accessed atomically.
unsafe impl Send for PageTable {}
// SAFETY: as above.
unsafe impl Sync for PageTable {}

impl PageTable {
    /// A table of `pages` entries, none valid.
    pub fn new(device: &dyn Device, pages: u32) -> Result<Self, DeviceError> {
        let memory = device.shared_memory(pages as usize * 8, SharedUse::HostWrites)?;
        Ok(Self { entries: memory.host().cast(), memory, pages })
    }

    /// Entries.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Address of page 0's entry on the device.
    pub fn address(&self) -> DeviceAddress {
        self.memory.address()
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn entry(&self, page: PageIndex) -> &AtomicU64 {
        assert!(page.0 < self.pages, "{page} is beyond the page table's {} entries", self.pages);
        // SAFETY: in bounds by the assertion; the memory lives as long as `self`, is 8-byte aligned, and is only
        // accessed atomically by the host. Kernels access the low word atomically or read plainly.
        unsafe { self.entries.add(page.index()).as_ref() }
    }

    /// The entry of a page; 0 for pages beyond the table.
    pub fn load(&self, page: PageIndex) -> u64 {
        if page.0 < self.pages { self.entry(page).load(Ordering::Acquire) } else { 0 }
    }

    /// Sets the entry of a page, dropping pending bits.
    pub fn store(&self, page: PageIndex, frame: DeviceAddress, flags: u64) {
        debug_assert_eq!(frame.0 & pte::FLAGS, 0, "frames are page aligned");
        self.entry(page).store(frame.0 | flags, Ordering::Release);
    }

    /// Clears flag bits, returning the entry as it was.
    pub fn clear_flags(&self, page: PageIndex, flags: u64) -> u64 {
        self.entry(page).fetch_and(!flags, Ordering::AcqRel)
    }

    /// Sets flag bits.
    pub fn set_flags(&self, page: PageIndex, flags: u64) {
        self.entry(page).fetch_or(flags, Ordering::AcqRel);
    }

    /// Makes the entry invalid, returning it as it was, with the accessed and dirty bits of that moment. The address stays, so that
    /// a kernel that found the entry valid just before does not read half of another address.
    pub fn take(&self, page: PageIndex) -> u64 {
        self.entry(page).fetch_and(!pte::FLAGS, Ordering::AcqRel)
    }

    /// The part of `range` that the table covers.
    pub fn clip(&self, range: PageRange) -> PageRange {
        range.intersect(PageRange::of_len(PageIndex(0), self.pages))
    }

    /// Copies all entries of `old` into this larger table.
    pub fn copy_from(&self, old: &PageTable) {
        for page in PageRange::of_len(PageIndex(0), old.pages.min(self.pages)).iter() {
            let entry = old.load(page);
            if entry != 0 {
                self.entry(page).store(entry, Ordering::Release);
            }
        }
    }
}

/// The frame's address in an entry.
pub fn frame_of(entry: u64) -> DeviceAddress {
    DeviceAddress(entry & !pte::FLAGS)
}
