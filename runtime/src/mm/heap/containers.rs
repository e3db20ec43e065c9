//! Boxes, vectors and hash maps in the heap: the allocator trait, and constructors that say why they failed.

use super::{Heap, HeapError};
use allocator_api2::alloc::{AllocError, Allocator};
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::{DefaultHashBuilder, HashMap};
use std::alloc::Layout;
use std::ptr::NonNull;

/// A box in the shared heap.
pub type SvmBox<T> = Box<T, Heap>;
/// A vector in the shared heap.
pub type SvmVec<T> = Vec<T, Heap>;
/// A hash map in the shared heap.
pub type SvmMap<K, V, S = DefaultHashBuilder> = HashMap<K, V, S, Heap>;

impl Heap {
    /// Moves a value into the heap.
    ///
    /// # Errors
    /// If the heap is exhausted or the value's alignment is over 2 MiB.
    pub fn boxed<T>(&self, value: T) -> Result<SvmBox<T>, HeapError> {
        let place = self.room_for(Layout::new::<T>())?.cast::<T>();
        // SAFETY: `place` was just allocated for a `T` (or dangles, aligned, if a `T` has no bytes), so it
        // may be written and then owned by a box that frees it to the same heap with the same layout.
        unsafe {
            place.write(value);
            Ok(Box::from_raw_in(place.as_ptr(), self.clone()))
        }
    }

    /// An empty vector; allocates nothing yet.
    pub fn vec<T>(&self) -> SvmVec<T> {
        Vec::new_in(self.clone())
    }

    /// An empty vector with room for `capacity` elements.
    ///
    /// # Errors
    /// If the heap is exhausted or cannot hold that much.
    pub fn vec_with_capacity<T>(&self, capacity: usize) -> Result<SvmVec<T>, HeapError> {
        let place = self.room_for(array_layout::<T>(capacity)?)?;
        // SAFETY: allocated from this heap with the layout of `capacity` elements (or dangling, if they have
        // no bytes); none of them is initialised, and the length is 0.
        Ok(unsafe { Vec::from_raw_parts_in(place.cast().as_ptr(), 0, capacity, self.clone()) })
    }

    /// A vector of clones of the elements of `slice`.
    ///
    /// # Errors
    /// As [`Heap::vec_with_capacity`].
    pub fn vec_from_slice<T: Clone>(&self, slice: &[T]) -> Result<SvmVec<T>, HeapError> {
        let mut vec = self.vec_with_capacity(slice.len())?;
        vec.extend_from_slice(slice);
        Ok(vec)
    }

    /// A vector of `len` zeros. Pages that are fresh are not touched: no memory is taken until someone writes.
    ///
    /// # Errors
    /// As [`Heap::vec_with_capacity`].
    pub fn vec_zeroed<T: bytemuck::Zeroable>(&self, len: usize) -> Result<SvmVec<T>, HeapError> {
        let layout = array_layout::<T>(len)?;
        let place = if layout.size() == 0 { dangling(layout) } else { self.alloc_zeroed(layout)? };
        // SAFETY: as in `vec_with_capacity`; and `Zeroable` says that zero bytes are valid elements.
        Ok(unsafe { Vec::from_raw_parts_in(place.cast().as_ptr(), len, len, self.clone()) })
    }

    /// An empty hash map; allocates nothing yet.
    pub fn map<K, V>(&self) -> SvmMap<K, V> {
        HashMap::with_hasher_in(DefaultHashBuilder::default(), self.clone())
    }

    /// As [`Heap::alloc`], but a layout without bytes gets an aligned address that is never dereferenced.
    fn room_for(&self, layout: Layout) -> Result<NonNull<[u8]>, HeapError> {
        if layout.size() == 0 { Ok(dangling(layout)) } else { self.alloc(layout) }
    }
}

fn array_layout<T>(len: usize) -> Result<Layout, HeapError> {
    Layout::array::<T>(len).map_err(|_| HeapError::TooLarge {
        asked: (len as u64).saturating_mul(size_of::<T>() as u64),
        limit: super::large::LARGEST as u64,
    })
}

fn dangling(layout: Layout) -> NonNull<[u8]> {
    let address = std::num::NonZeroUsize::new(layout.align()).unwrap_or(std::num::NonZeroUsize::MIN);
    NonNull::slice_from_raw_parts(NonNull::without_provenance(address), 0)
}

/// Why an allocation failed does not fit into the trait's error: it goes to the log.
fn failed(error: HeapError) -> AllocError {
    tracing::debug!(%error, "an allocation through the allocator trait failed");
    AllocError
}

// SAFETY: blocks stay valid and in place until they are freed or the last handle is dropped, since handles
// share one `HeapInner`, which alone unmaps them; moving a handle changes nothing, and a clone is the same
// heap. A block may be freed with every layout it fits, because all sizes from the one asked for to the one
// reported fall into one class or page count.
unsafe impl Allocator for Heap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.room_for(layout).map_err(failed)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 { Ok(dangling(layout)) } else { self.alloc_zeroed(layout).map_err(failed) }
    }

    unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the trait's contract: a block of this allocator that fits the layout, not used
            // afterwards.
            unsafe { self.dealloc(ptr, layout) };
        }
    }

    unsafe fn grow(&self, ptr: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate(new);
        }
        // SAFETY: the trait's contract: a block of this allocator that fits `old`, not used after success.
        unsafe { self.resize(ptr, old, new) }.map_err(failed)
    }

    unsafe fn grow_zeroed(&self, ptr: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate_zeroed(new);
        }
        // SAFETY: as in `grow`.
        let grown = unsafe { self.resize(ptr, old, new) }.map_err(failed)?;
        let fresh = grown.len() - old.size();
        // SAFETY: the block has `grown.len()` bytes, which is at least `new.size()` and so at least
        // `old.size()`; the caller owns it and has not been told of it yet.
        unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, fresh) };
        Ok(grown)
    }

    unsafe fn shrink(&self, ptr: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() == 0 {
            // SAFETY: the trait's contract, as in `grow`; the block is not used after success.
            unsafe { self.deallocate(ptr, old) };
            return Ok(dangling(new));
        }
        // SAFETY: as in `grow`.
        unsafe { self.resize(ptr, old, new) }.map_err(failed)
    }
}
