//! Mapping fresh pages.

use super::{OpError, Span};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::mm::advice::Advice;
use crate::mm::space::AddressSpace;
use crate::mm::vma::{Permission, VmaAttributes, VmaError, VmaKind, VmaMap};
use std::sync::Arc;

/// Coarsest alignment that can be asked for.
const COARSEST: u64 = 1 << 43;

/// What to map, and where.
/// Linux: the arguments of `mmap`.
#[derive(Clone, Debug)]
pub struct MapRequest {
    bytes: u64,
    align: u64,
    at: Option<VirtAddr>,
    attributes: VmaAttributes,
}

impl MapRequest {
    /// `bytes` of pages, a multiple of 4096, at the lowest free place.
    pub fn new(bytes: u64, permission: Permission) -> Self {
        let attributes = VmaAttributes { permission, ..VmaAttributes::default() };
        Self { bytes, align: PAGE_SIZE as u64, at: None, attributes }
    }

    /// At a multiple of `bytes`, a power of two: 64 KiB and 2 MiB let devices use larger leaves.
    #[must_use]
    pub fn align(mut self, bytes: u64) -> Self {
        self.align = bytes;
        self
    }

    /// Exactly there. Linux: `MAP_FIXED_NOREPLACE`.
    #[must_use]
    pub fn at(mut self, start: VirtAddr) -> Self {
        self.at = Some(start);
        self
    }

    /// Hints about the use.
    #[must_use]
    pub fn advice(mut self, advice: Advice) -> Self {
        self.attributes.advice = advice;
        self
    }

    /// A name for messages and traces.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.attributes.name = Some(name.into());
        self
    }
}

impl AddressSpace {
    /// Maps pages that read as zeros. Linux: `mmap`, anonymous and shared.
    ///
    /// # Errors
    /// If the request is empty, not whole pages or badly aligned, overlaps what is mapped, or finds no room.
    pub fn map_span(&self, request: &MapRequest) -> Result<Span, OpError> {
        let mut attributes = request.attributes.clone();
        attributes.kind = VmaKind::Mapping;
        let read_only = attributes.permission == Permission::ReadOnly;
        let mut vmas = self.vmas().write();
        let range = self.enter(&mut vmas, request, attributes)?;
        let ready = self.prepare(range, read_only);
        if ready.is_err() {
            // Just entered, so removing it cannot fail.
            let _ = vmas.remove(range);
        }
        ready.map(|()| self.span_of(range))
    }

    /// Enters a VMA for the request.
    fn enter(&self, vmas: &mut VmaMap, request: &MapRequest, attributes: VmaAttributes) -> Result<PageRange, OpError> {
        let MapRequest { bytes, align, at, .. } = *request;
        let page = PAGE_SIZE as u64;
        if !align.is_power_of_two() || !(page..=COARSEST).contains(&align) {
            return Err(OpError::Alignment { align });
        }
        let span = Span { start: at.unwrap_or_default(), bytes };
        if let Some(start) = at {
            let range = self.pages_of(span)?;
            if !start.0.is_multiple_of(align) {
                return Err(OpError::Unaligned { span });
            }
            return vmas.insert(range, attributes).map(|_| range).map_err(|error| self.explain(error, span));
        }
        if bytes == 0 {
            return Err(OpError::Empty { at: span.start });
        }
        if !bytes.is_multiple_of(page) {
            return Err(OpError::Unaligned { span });
        }
        // More pages than can be numbered find no room either.
        let pages = u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX);
        let align = (align >> PAGE_SHIFT) as u32;
        let entered = vmas.insert_lowest(pages, align, attributes);
        entered.map(|vma| vma.range).map_err(|error| match self.explain(error, span) {
            OpError::NoRoom { align, free, longest, .. } => OpError::NoRoom { bytes, align, free, longest },
            other => other,
        })
    }

    /// Makes fresh pages usable: accessible, zero, and tracked if stores must be caught.
    pub(super) fn prepare(&self, range: PageRange, read_only: bool) -> Result<(), OpError> {
        self.home().views.grow_to(range.end.0)?;
        self.readmit(range)?;
        let _pages = self.home().pages.lock(range);
        if self.home().views.has_data(range).next().is_some() {
            // A stray store to pages that nobody had mapped and nobody watched.
            self.erase(range);
        }
        if read_only {
            self.tracker().watch(range)?;
            self.tracker().write_protect(range)?;
        }
        Ok(())
    }

    /// A refusal of the VMA map, in addresses.
    pub(super) fn explain(&self, error: VmaError, span: Span) -> OpError {
        let page = PAGE_SIZE as u64;
        match error {
            VmaError::Empty { .. } => OpError::Empty { at: span.start },
            VmaError::Overlap { range, with } => {
                OpError::Overlap { span: self.span_of(range), with: self.span_of(with) }
            }
            VmaError::Unmapped { range, hole } => {
                OpError::Unmapped { span: self.span_of(range), hole: self.span_of(hole) }
            }
            VmaError::NoRoom { pages, align, free, longest } => OpError::NoRoom {
                bytes: u64::from(pages) * page,
                align: u64::from(align) * page,
                free: u64::from(free) * page,
                longest: u64::from(longest) * page,
            },
            VmaError::OutOfHeap { .. } => {
                let heap = PageRange::of_len(crate::addr::PageIndex(0), self.home().views.pages());
                OpError::OutsideHeap { span, heap: self.span_of(heap) }
            }
        }
    }
}
