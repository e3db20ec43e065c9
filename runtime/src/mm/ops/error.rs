//! What can go wrong with an operation on VMAs, with the addresses and the remedy.

use crate::addr::VirtAddr;
use crate::hmm::InvalidateError;
use crate::mm::views::ViewsError;
use crate::track::TrackError;
use std::fmt;

/// Addresses of the heap, `bytes` from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first byte.
    pub start: VirtAddr,
    /// How many.
    pub bytes: u64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.bytes, self.start)
    }
}

/// An operation on VMAs failed. Nothing was changed, but for what [`OpError::Device`] says.
/// Linux: the error codes of the system calls of the same names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// No bytes.
    #[error("the span at {at} is empty; name at least one page")]
    Empty {
        /// Where.
        at: VirtAddr,
    },
    /// Not whole pages. Linux: `-EINVAL`.
    #[error("{span} are not whole pages; start and length must be multiples of 4096 bytes")]
    Unaligned {
        /// The span as it was passed.
        span: Span,
    },
    /// The span starts outside the heap, or runs past its end. Linux: `-ENOMEM` above `TASK_SIZE`.
    #[error("{span} are not inside the shared heap ({heap}); pass addresses of this heap, or open a larger one")]
    OutsideHeap {
        /// The span as it was passed.
        span: Span,
        /// The heap's reservation.
        heap: Span,
    },
    /// Something is mapped where the result would go. Linux: `-EEXIST` for `MAP_FIXED_NOREPLACE`.
    #[error("{span} overlap {with}, which are mapped; unmap those first or choose another place")]
    Overlap {
        /// Where the result would go.
        span: Span,
        /// What is in the way.
        with: Span,
    },
    /// A part of the span is not mapped. Linux: `-ENOMEM` from `mprotect`, `-EFAULT` from `mremap`.
    #[error("{span} are not mapped throughout: {hole} are not; name mapped pages only")]
    Unmapped {
        /// The span.
        span: Span,
        /// The first part that is not mapped.
        hole: Span,
    },
    /// The span holds memory of the heap's allocator.
    #[error("{span} include {vma} of the heap's allocator; only what was mapped with `map` can be changed like this")]
    Allocator {
        /// The span.
        span: Span,
        /// The allocator's part.
        vma: Span,
    },
    /// The span may not be written. Linux: `-EACCES`.
    #[error("{span} may not be changed: {part} are read-only; make them writable first (protect)")]
    ReadOnly {
        /// The span.
        span: Span,
        /// The first part that is read-only.
        part: Span,
    },
    /// No free place is large enough.
    #[error(
        "no room for {bytes} bytes aligned to {align}: {free} bytes of the heap are free, {longest} of them in one \
         piece; unmap something or open a larger heap"
    )]
    NoRoom {
        /// Bytes asked for.
        bytes: u64,
        /// Their alignment in bytes.
        align: u64,
        /// Free bytes in all.
        free: u64,
        /// Free bytes in the longest piece.
        longest: u64,
    },
    /// An alignment that is not a power of two of at least a page.
    #[error("an alignment of {align} bytes is none; use a power of two between 4096 and 2^43")]
    Alignment {
        /// The alignment asked for.
        align: u64,
    },
    /// A device did not let go: its notifier panicked. The span stays mapped, with what is at home as its contents; devices
    /// told before it may have let go already, of their newest data too where the operation would have dropped it.
    #[error(transparent)]
    Device(#[from] InvalidateError),
    /// CPU accesses could not be held off.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Memory could not be had.
    #[error(transparent)]
    Backing(#[from] ViewsError),
}
