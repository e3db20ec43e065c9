//! A mapping as a program holds it: owned pages, with the operations that are safe because it owns them.

use super::{MapRequest, OpError, Span};
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::space::AddressSpace;
use crate::mm::vma::Permission;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Pages of the shared heap that belong to the program, outside the allocator: made by [`Svm::map`](crate::Svm::map),
/// unmapped when dropped.
///
/// Launches take its slices as they take those of vectors; addresses inside are ordinary pointers for CPU and kernels.
///
/// ```
/// # use vksvm::{Permission, Svm};
/// # use vksvm::device::soft::SoftOptions;
/// # let svm = Svm::builder().soft_device(SoftOptions::default()).heap_bytes(64 << 20).build()?;
/// let mut table = svm.map(4 * 4096, Permission::ReadWrite)?;
/// table.as_mut_slice()?.fill(7);
/// table.protect(0..8192, Permission::ReadOnly)?; // from now on a store there is a fault, on the CPU and on devices
/// assert!(table.as_mut_slice().is_err());
/// let mut rest = table.split_off(8192)?;
/// rest.discard(0..4096)?;
/// assert_eq!((table.as_slice()[0], rest.as_slice()[0], rest.as_slice()[4096]), (7, 0, 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mapping {
    space: Arc<AddressSpace>,
    /// Never empty while it lives; nothing after it was unmapped.
    span: Span,
}

impl Mapping {
    /// Maps pages of `space`.
    ///
    /// # Errors
    /// As [`AddressSpace::map_span`].
    pub fn new(space: &Arc<AddressSpace>, request: &MapRequest) -> Result<Self, OpError> {
        Ok(Self { space: space.clone(), span: space.map_span(request)? })
    }

    /// The first byte's address.
    pub fn start(&self) -> VirtAddr {
        self.span.start
    }

    /// Bytes, a multiple of 4096.
    pub fn len(&self) -> usize {
        self.span.bytes as usize
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.span.bytes == 0
    }

    /// A pointer to the first byte. Writing through it to read-only pages is a SIGSEGV.
    pub fn as_ptr(&self) -> *mut u8 {
        self.span.start.as_ptr()
    }

    /// The contents.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the span is mapped for as long as `self` lives, initialised (zeros or what was written), and changed only through
        // `&mut self` or by kernels that were given it for writing.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// The contents, to be changed.
    ///
    /// # Errors
    /// If any part is read-only.
    pub fn as_mut_slice(&mut self) -> Result<&mut [u8], OpError> {
        let pages = self.space.pages_of(self.span)?;
        self.space.check_writable(&self.space.vmas().read(), pages)?;
        // SAFETY: as in `as_slice`; `&mut self` keeps others away, and nobody else can make the pages read-only.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) })
    }

    /// The addresses of a part, given as offsets.
    ///
    /// # Errors
    /// If the part is empty, or does not lie inside.
    fn part(&self, part: Range<usize>) -> Result<Span, OpError> {
        let start = VirtAddr(self.span.start.0.saturating_add(part.start as u64));
        if part.is_empty() {
            return Err(OpError::Empty { at: start });
        }
        let span = Span { start, bytes: (part.end - part.start) as u64 };
        if part.end > self.len() {
            return Err(OpError::Unmapped {
                span,
                hole: Span { start: self.end(), bytes: (part.end - self.len()) as u64 },
            });
        }
        Ok(span)
    }

    fn end(&self) -> VirtAddr {
        VirtAddr(self.span.start.0 + self.span.bytes)
    }

    /// Lets CPU and devices do with `part` (offsets in bytes, whole pages) what `permission` says;
    /// see [`AddressSpace::protect_span`].
    ///
    /// # Errors
    /// If the part is empty, not whole pages, or does not lie inside.
    pub fn protect(&mut self, part: Range<usize>, permission: Permission) -> Result<(), OpError> {
        self.space.protect_span(self.part(part)?, permission)
    }

    /// Forgets the contents of `part`, which then reads as zeros; see [`AddressSpace::discard_span`].
    ///
    /// # Errors
    /// If the part is empty, not whole pages, read-only, or does not lie inside.
    pub fn discard(&mut self, part: Range<usize>) -> Result<(), OpError> {
        let span = self.part(part)?;
        // SAFETY: `&mut self`: nobody holds a reference into it.
        unsafe { self.space.discard_span(span) }
    }

    /// Cuts it in two at `at` bytes, a multiple of 4096; returns the upper part. Neither moves, and no page is touched. To
    /// unmap a part, drop it.
    ///
    /// # Errors
    /// If `at` is not whole pages, or one part would be empty.
    pub fn split_off(&mut self, at: usize) -> Result<Self, OpError> {
        let upper = self.part(at..self.len().max(at))?;
        if at == 0 {
            return Err(OpError::Empty { at: self.span.start });
        }
        if !at.is_multiple_of(PAGE_SIZE) {
            return Err(OpError::Unaligned { span: upper });
        }
        self.span.bytes = at as u64;
        Ok(Self { space: self.space.clone(), span: upper })
    }

    /// Moves it to `to`, or to the lowest free place, with all it holds; see [`AddressSpace::move_span`].
    ///
    /// # Errors
    /// As there; the mapping then stays where it is.
    pub fn move_to(&mut self, to: Option<VirtAddr>) -> Result<(), OpError> {
        // SAFETY: `&mut self`: nobody holds a reference into it.
        self.span = unsafe { self.space.move_span(self.span, to) }?;
        Ok(())
    }

    /// Unmaps it, which dropping it does too, and says what went wrong.
    ///
    /// # Errors
    /// If a device does not let go; the pages then stay mapped for good.
    pub fn unmap(mut self) -> Result<(), OpError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), OpError> {
        if self.is_empty() {
            return Ok(());
        }
        let mut rest = self.span;
        self.span.bytes = 0;
        loop {
            // SAFETY: `self` owned the span and lets go of it; references into it borrow `self`.
            let hole = match unsafe { self.space.unmap_span(rest) } {
                // A system call of the program's own took a part: the others are still to be unmapped.
                Err(OpError::Unmapped { hole, .. }) => hole,
                done => return done,
            };
            let below = Span { start: rest.start, bytes: hole.start.0 - rest.start.0 };
            if below.bytes > 0 {
                // SAFETY: as above.
                unsafe { self.space.unmap_span(below) }?;
            }
            let end = rest.start.0 + rest.bytes;
            rest.start = VirtAddr(hole.start.0 + hole.bytes);
            rest.bytes = end - rest.start.0;
            if rest.bytes == 0 {
                return Ok(());
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!("a mapping stays: {error}");
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mapping").field(&self.span).finish()
    }
}
