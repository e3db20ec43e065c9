//! What can go wrong with the heap.

use crate::addr::VirtAddr;
use crate::mm::views::ViewsError;

/// An allocation or a deallocation failed. The heap is unchanged and stays usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeapError {
    /// No room for it.
    #[error(
        "the shared heap is exhausted: {asked} bytes were asked for, {in_use} of its {limit} bytes are mapped; free \
         something or open a larger heap"
    )]
    Exhausted {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of the heap in VMAs.
        in_use: u64,
        /// Bytes the heap has.
        limit: u64,
    },
    /// An allocation of no bytes was asked for.
    #[error("an allocation of zero bytes has no address in the shared heap; ask for at least one byte")]
    ZeroSize,
    /// More bytes than any heap can have.
    #[error("{asked} bytes are more than a shared heap can hold ({limit} bytes); split the data")]
    TooLarge {
        /// Bytes asked for, `u64::MAX` if that many cannot be counted.
        asked: u64,
        /// Bytes that a heap can have at most.
        limit: u64,
    },
    /// A coarser alignment than the heap's own.
    #[error("an alignment of {asked} bytes is coarser than the shared heap offers ({limit} bytes)")]
    Alignment {
        /// Bytes asked for.
        asked: u64,
        /// The coarsest alignment there is, in bytes.
        limit: u64,
    },
    /// The object was freed before.
    #[error("double free: the {len} bytes at {address} of the shared heap were freed before")]
    DoubleFree {
        /// Start of the object.
        address: VirtAddr,
        /// Bytes of its slot.
        len: usize,
    },
    /// The address lies in the heap, but no live allocation starts there.
    #[error("{address} lies in the shared heap, but no live allocation starts there: freed before, or not from alloc")]
    NotAllocated {
        /// The address given.
        address: VirtAddr,
    },
    /// The address lies outside the heap.
    #[error("{address} does not lie in the shared heap; free it where it was allocated")]
    Foreign {
        /// The address given.
        address: VirtAddr,
    },
    /// The layout is not that of the allocation.
    #[error(
        "the allocation at {address} holds {len} bytes, and was handed back as one of {size} bytes aligned to {align}; \
         pass the layout it was allocated with"
    )]
    WrongLayout {
        /// Start of the allocation.
        address: VirtAddr,
        /// Bytes it holds.
        len: usize,
        /// Bytes in the layout given.
        size: usize,
        /// Alignment in the layout given, in bytes.
        align: usize,
    },
    /// The memory behind the heap could not be had or given back.
    #[error(transparent)]
    Backing(#[from] ViewsError),
    /// Accesses to the memory could not be tracked as they must be.
    #[error(transparent)]
    Tracking(#[from] crate::track::TrackError),
}
