//! Allocating, freeing and resizing: what all handles of a heap share.
//!
//! Lock protocol: a class's lock, an arena pool's locks and the lock of the large allocations are never held
//! together, and none is held while the page source is called (but for a pool's growth, see `arena`) or while
//! heap memory is written: zeroing and copying happen on the caller's thread with nothing locked, because
//! such a store may fault and wait for a device.

use super::arena::ArenaPool;
use super::class::{CLASSES, SLAB_PAGES, SizeClass};
use super::large::{COARSEST_ALIGN, LargeAllocations};
use super::small::{ClassSlabs, Place};
use super::{HeapError, PageSource};
use crate::addr::{PAGE_SIZE, PageIndex, VirtAddr};
use parking_lot::Mutex;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

/// A class under its lock, on cache lines of its own: neighbouring classes are locked by different threads.
#[repr(align(128))]
pub(super) struct LockedClass(pub(super) Mutex<ClassSlabs>);

/// What all handles of a heap share.
pub(super) struct HeapInner {
    pub(super) source: Arc<dyn PageSource>,
    pub(super) classes: [LockedClass; CLASSES],
    pub(super) pools: [ArenaPool; SLAB_PAGES.len()],
    pub(super) large: LargeAllocations,
}

/// Memory handed out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) address: VirtAddr,
    /// Usable bytes, at least what was asked for.
    pub(super) len: usize,
    /// Whether it reads as zeros.
    pub(super) zero: bool,
}

impl Block {
    /// The block as a pointer.
    pub(super) fn pointer(self) -> NonNull<[u8]> {
        // Pages of the app view are never at address zero: mmap does not place mappings there.
        let start = NonNull::new(self.address.as_ptr()).unwrap_or(NonNull::dangling());
        NonNull::slice_from_raw_parts(start, self.len)
    }
}

impl HeapInner {
    pub(super) fn new(source: Arc<dyn PageSource>) -> Self {
        Self {
            classes: SizeClass::ALL.map(|class| LockedClass(Mutex::new(ClassSlabs::new(class)))),
            pools: SLAB_PAGES.map(|pages| ArenaPool::new(source.clone(), pages)),
            large: LargeAllocations::new(source.clone()),
            source,
        }
    }

    pub(super) fn class(&self, class: SizeClass) -> &Mutex<ClassSlabs> {
        &self.classes[class.index()].0
    }

    /// Allocates at least `layout.size()` bytes.
    pub(super) fn alloc(&self, layout: Layout) -> Result<Block, HeapError> {
        assert_off_fault_path("allocates from");
        if layout.size() == 0 {
            return Err(HeapError::ZeroSize);
        }
        match self.try_alloc(layout) {
            // Empty slabs that were kept warm may be all that is missing.
            Err(HeapError::Exhausted { .. }) if self.trim() => self.try_alloc(layout),
            result => result,
        }
    }

    fn try_alloc(&self, layout: Layout) -> Result<Block, HeapError> {
        let Some(class) = SizeClass::of(layout) else {
            let large = self.large.alloc(layout)?;
            return Ok(Block { address: self.source.addr_of(large.vma.start), len: large.bytes(), zero: true });
        };
        let slabs = self.class(class);
        loop {
            let taken = slabs.lock().take();
            if let Some((place, slot)) = taken {
                let (address, len) = (self.address_of(place), class.slot_bytes() as usize);
                return Ok(Block { address, len, zero: slot.zero });
            }
            // Others may take the new slab's slots before this thread does; then there is another round.
            let slab = self.pools[class.pool()].take(class)?;
            slabs.lock().add(slab);
        }
    }

    /// Frees the allocation of `layout` that starts at `address`.
    pub(super) fn free(&self, address: VirtAddr, layout: Layout) -> Result<(), HeapError> {
        assert_off_fault_path("frees memory of");
        let place = self.place_of(address).ok_or(HeapError::Foreign { address })?;
        if let Some(class) = SizeClass::of(layout) {
            // A statement of its own: the class's lock is released before anything else is called.
            let freed = self.class(class).lock().free(place);
            return match freed {
                Ok(Some(emptied)) => {
                    self.pools[class.pool()].give_back(emptied);
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(_) => Err(self.diagnose(address, layout)),
            };
        }
        if place.offset != 0 {
            return Err(self.diagnose(address, layout));
        }
        match self.large.free(place.page, |large| large.fits(layout)) {
            Some(large) if large.fits(layout) => Ok(()),
            _ => Err(self.diagnose(address, layout)),
        }
    }

    /// Gives an allocation another size: in place if its slot or VMA has room, else elsewhere, moving the bytes
    /// that both sizes have.
    ///
    /// # Safety
    /// `pointer` must be a live allocation of this heap made with `old`, its bytes not borrowed elsewhere; after
    /// success only the pointer returned may be used.
    pub(super) unsafe fn resize(
        &self,
        pointer: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, HeapError> {
        assert_off_fault_path("resizes memory of");
        if new.size() == 0 {
            return Err(HeapError::ZeroSize);
        }
        let address = VirtAddr::of(pointer.as_ptr());
        if let Some(len) = self.resize_in_place(address, old, new) {
            return Ok(NonNull::slice_from_raw_parts(pointer, len));
        }
        let block = self.alloc(new)?.pointer();
        let kept = old.size().min(new.size());
        // SAFETY: the caller vouches for `old.size()` readable bytes at `pointer`; the block was just allocated
        // with at least `new.size()` bytes, which nobody else knows, so the two do not overlap.
        unsafe { pointer.copy_to_nonoverlapping(block.cast(), kept) };
        if let Err(error) = self.free(address, old) {
            // The caller broke the contract: nothing was freed. Its data is safe in the new place.
            report(&error);
        }
        Ok(block)
    }

    fn resize_in_place(&self, address: VirtAddr, old: Layout, new: Layout) -> Option<usize> {
        match (SizeClass::of(old), SizeClass::of(new)) {
            (Some(before), Some(after)) if before == after => Some(after.slot_bytes() as usize),
            (None, None) if address.0.is_multiple_of(new.align() as u64) && new.align() <= COARSEST_ALIGN => {
                let place = self.place_of(address).filter(|place| place.offset == 0)?;
                self.large.resize(place.page, new).map(|large| large.bytes())
            }
            _ => None,
        }
    }

    /// Gives back the memory of all empty slabs; whether there was any.
    pub(super) fn trim(&self) -> bool {
        let mut any = false;
        for class in SizeClass::ALL {
            let empty = self.class(class).lock().trim();
            for slab in empty {
                any = true;
                self.pools[class.pool()].give_back(slab);
            }
        }
        any
    }

    /// The address of a place.
    pub(super) fn address_of(&self, place: Place) -> VirtAddr {
        VirtAddr(self.source.addr_of(place.page).0 + u64::from(place.offset))
    }

    /// The page around an address, and the offset in it; `None` outside the heap.
    pub(super) fn place_of(&self, address: VirtAddr) -> Option<Place> {
        let page: PageIndex = self.source.page_of(address)?;
        let offset = address.page_offset() as u32;
        debug_assert!(offset < PAGE_SIZE as u32);
        Some(Place { page, offset })
    }
}

impl Drop for HeapInner {
    /// The last handle is gone, and with it every container: what is still allocated was leaked.
    fn drop(&mut self) {
        for pool in &mut self.pools {
            pool.unmap_all();
        }
        self.large.unmap_all();
    }
}

/// Invariant I1 in debug builds: resolving a fault may not depend on memory that can fault.
fn assert_off_fault_path(does: &str) {
    debug_assert!(
        !crate::track::on_fault_path(),
        "invariant I1: a thread that resolves faults {does} the shared heap; its locks may be held by the very thread \
         that waits for this fault. Use ordinary memory on the fault path"
    );
}

/// A wrong deallocation: a panic in debug builds; in release builds the memory is kept and the log says why.
pub(super) fn report(error: &HeapError) {
    if cfg!(debug_assertions) && !std::thread::panicking() {
        panic!("{error}");
    }
    tracing::error!(%error, "a wrong deallocation was ignored; the memory is leaked");
}
