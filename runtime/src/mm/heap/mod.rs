//! The shared heap: a general-purpose allocator whose memory CPU and devices share.
//!
//! Use case: ordinary Rust data structures with ordinary pointers, which kernels dereference too. A [`Heap`] is
//! an `allocator_api2` allocator, so boxes, vectors and hash maps live in it as they are; raw memory comes from
//! [`Heap::alloc`].
//!
//! ```ignore
//! let mut points: SvmVec<[f32; 3]> = heap.vec();
//! points.push([1.0, 0.0, 0.0]);
//! let node = heap.boxed(Node { next: std::ptr::null(), value: 7 })?;
//! ```
//!
//! How it works: objects of up to 32 KiB take a slot of their size class (`class`) in a slab (`slab`) out of
//! an arena (`arena`); larger ones, and those aligned to more than a page, get a VMA of their own (`large`).
//! Objects of a class that are allocated one after the other lie side by side, and objects of up to 1 KiB do
//! not cross page borders.
//!
//! **All metadata lives outside the heap**: the allocator neither reads nor writes the memory it manages, so
//! bookkeeping never moves a page between CPU and device. The exceptions are asked for by the caller and run
//! on its thread: zeroing reused slots, and moving contents when an allocation grows.
//!
//! Locks, all leaves: one per size class, one per arena pool (and one for its growth), one for large
//! allocations; see `inner`. None is held while heap memory is touched or the address space may wait.
//!
//! Gotchas: `Vec::push` and the like abort the process when the heap is exhausted (`handle_alloc_error`), as
//! they do with any allocator; `try_reserve` and the constructors here return errors. The memory is unmapped
//! when the last handle and the last container are dropped: raw memory does not keep the heap alive.

mod arena;
mod class;
mod containers;
mod error;
mod inner;
mod large;
mod lookup;
mod slab;
mod small;
mod source;

pub use containers::{SvmBox, SvmMap, SvmVec};
pub use error::HeapError;
pub use lookup::{Allocation, HeapUsage};
pub use source::PageSource;

use crate::addr::VirtAddr;
use inner::{HeapInner, report};
use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// A handle to a shared heap. Cloning is cheap and gives another handle to the same heap.
#[derive(Clone)]
pub struct Heap {
    inner: Arc<HeapInner>,
}

impl Heap {
    /// A heap that takes its pages from `source`.
    pub fn new(source: Arc<dyn PageSource>) -> Self {
        Self { inner: Arc::new(HeapInner::new(source)) }
    }

    /// Whether both are handles to one heap.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Allocates memory for `layout`, uninitialised. The slice returned may be longer than asked for; all of
    /// it may be used, and any size between the two may be handed back.
    ///
    /// # Errors
    /// If the heap is exhausted, or the layout has no bytes, more than a heap can hold, or an alignment over
    /// 2 MiB.
    ///
    /// # Panics
    /// In debug builds, on a thread that is resolving a CPU fault (invariant I1). So do all functions that
    /// allocate or free.
    pub fn alloc(&self, layout: Layout) -> Result<NonNull<[u8]>, HeapError> {
        self.inner.alloc(layout).map(inner::Block::pointer)
    }

    /// As [`Heap::alloc`], all bytes zero. Fresh memory is zero already and is not touched.
    ///
    /// # Errors
    /// As [`Heap::alloc`].
    pub fn alloc_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, HeapError> {
        let block = self.inner.alloc(layout)?;
        let pointer = block.pointer();
        if !block.zero {
            // SAFETY: the block was just allocated with `len` bytes and nobody else knows it.
            unsafe { pointer.cast::<u8>().write_bytes(0, block.len) };
        }
        Ok(pointer)
    }

    /// Frees memory. A wrong pointer that is noticed (freed before, not from this heap, another layout)
    /// panics in debug builds; in release builds it is logged and nothing is freed.
    ///
    /// # Safety
    /// `pointer` must come from this heap, with `layout` or one that the slice returned also fits, and must not be used
    /// afterwards, by the CPU or by a kernel in flight.
    pub unsafe fn dealloc(&self, pointer: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the one that `try_dealloc` asks for.
        if let Err(error) = unsafe { self.try_dealloc(pointer, layout) } {
            report(&error);
        }
    }

    /// As [`Heap::dealloc`], but says what was wrong with the pointer. Then nothing was freed.
    ///
    /// # Errors
    /// If no live allocation of that layout starts there. A pointer freed before whose memory was handed out
    /// again cannot be told from a right one.
    ///
    /// # Safety
    /// If `pointer` is a live allocation of this heap, nobody may use it afterwards.
    pub unsafe fn try_dealloc(&self, pointer: NonNull<u8>, layout: Layout) -> Result<(), HeapError> {
        if layout.size() == 0 {
            return Err(HeapError::ZeroSize);
        }
        self.inner.free(VirtAddr::of(pointer.as_ptr()), layout)
    }

    /// Gives an allocation another size or alignment, in place where its slot or VMA has room, else by moving
    /// it. The first `min(old.size(), new.size())` bytes are kept. Nothing happens on error.
    ///
    /// # Errors
    /// As [`Heap::alloc`].
    ///
    /// # Safety
    /// As [`Heap::dealloc`] for `pointer` and `old`, if this succeeds.
    pub unsafe fn resize(&self, pointer: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, HeapError> {
        // SAFETY: the caller's promise: a live allocation of `old`, not used elsewhere, not used afterwards.
        unsafe { self.inner.resize(pointer, old, new) }
    }

    /// State, accessed and dirty bits and fault count of the page that `pointer` points to; `None` outside the heap.
    pub fn page_info<T: ?Sized>(&self, pointer: *const T) -> Option<crate::mm::pages::PageInfo> {
        self.inner.source.page_info(VirtAddr::of(pointer))
    }

    /// The live allocation that `address` lies in; `None` if that memory was freed or never allocated.
    pub fn allocation_at(&self, address: VirtAddr) -> Option<Allocation> {
        self.inner.allocation_at(address)
    }

    /// The live allocation closest to `address`, in the heap or not, and how many bytes away it is (0: inside).
    pub fn nearest(&self, address: VirtAddr) -> Option<(Allocation, u64)> {
        self.inner.nearest(address)
    }

    /// What the heap holds.
    pub fn usage(&self) -> HeapUsage {
        self.inner.usage()
    }

    /// Gives back the memory that is kept warm for small objects to come. Happens by itself when the heap is
    /// exhausted.
    pub fn trim(&self) {
        self.inner.trim();
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("usage", &self.usage()).finish()
    }
}

#[cfg(test)]
mod tests;
