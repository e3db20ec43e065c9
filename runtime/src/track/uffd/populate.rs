//! Mapping a span whose pages are in any mix of states, in as few system calls as the mix allows.

use super::super::Protection;
use super::Core;
use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::scarce::ask;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Rounds without progress after which the kernel is taken to be stuck. Each yields the processor; a
/// few happen when others punch holes or map pages at the same time.
const MAX_STALLS: u32 = 100_000;
/// A signal interrupts `fallocate` and undoes what it did, so it goes in pieces: 16 MiB.
const ALLOCATE_PAGES: u32 = 4096;
/// Page-table entries looked at with one read.
const PAGEMAP_ENTRIES: usize = 512;

impl Core {
    /// Makes `pages` accessible as `protection` says.
    ///
    /// *Continue* maps contents up to the first page that is mapped already or has none. A run that is mapped
    /// gets its protection changed and is skipped; holes are filled, then continue goes on. Protected pages are
    /// mapped protected: at no time could a store slip in. The kernel continues within one of its mappings only, and
    /// borders may run anywhere (the program may have given part of the heap other advice): spans are halved
    /// until they fit. Nobody is woken: see the module's page.
    pub(super) fn populate(&self, pages: PageRange, protection: Protection) -> Result<(), Errno> {
        let protect = protection == Protection::ReadOnly;
        let mut rest = pages;
        let mut window = rest.len();
        let mut stalls = 0;
        while !rest.is_empty() {
            let span = PageRange::of_len(rest.start, rest.len().min(window));
            let done = match self.raw.continue_(self.span(span), protect) {
                Ok(bytes) => bytes / PAGE_SIZE,
                Err(Errno::EXIST) => {
                    let mapped = self.mapped_run(span);
                    self.protect_mapped(mapped, protect)?;
                    mapped.len() as usize
                }
                Err(Errno::FAULT) => self.fill_hole(span, protect)?,
                // The span crosses a border of kernel mappings (or is not registered at all).
                Err(Errno::NOENT) if span.len() > 1 => {
                    window = span.len() / 2;
                    continue;
                }
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return Err(error),
            };
            rest.start = rest.start.plus(done as u32);
            if done == 0 {
                stalls += 1;
                if stalls > MAX_STALLS {
                    return Err(Errno::AGAIN);
                }
                self.read_events();
                std::thread::yield_now();
            } else {
                stalls = 0;
                window = window.saturating_mul(2);
            }
        }
        Ok(())
    }

    /// Gives contents to the hole that `rest` starts with, and perhaps to later ones. Returns how many pages are mapped already.
    fn fill_hole(&self, rest: PageRange, protect: bool) -> Result<usize, Errno> {
        if rest.len() == 1 && !protect {
            // The common single fault: one call fills and maps.
            return match self.raw.zeropage(self.span(rest)) {
                Ok(bytes) => Ok(bytes / PAGE_SIZE),
                Err(Errno::EXIST | Errno::AGAIN | Errno::INTR) => Ok(0),
                Err(error) => Err(error),
            };
        }
        // SAFETY: the memfd behind the views stays open as long as they are mapped, which `open`'s caller promised.
        let memfd = unsafe { BorrowedFd::borrow_raw(self.views.memfd) };
        let piece = PageRange::of_len(rest.start, rest.len().min(ALLOCATE_PAGES));
        let offset = u64::from(piece.start.0) * PAGE_SIZE as u64;
        let allocated = ask("filling a hole", Errno::NOSPC)
            .and_then(|()| fallocate(memfd, FallocateFlags::empty(), offset, piece.bytes() as u64));
        match allocated {
            Ok(()) | Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The mapped pages that `rest` starts with: at least its first, which the kernel just said is mapped.
    fn mapped_run(&self, rest: PageRange) -> PageRange {
        let mut end = rest.start.plus(1);
        let mut entries = [0u64; PAGEMAP_ENTRIES];
        while let Some(pagemap) = self.pagemap.as_ref().filter(|_| end < rest.end) {
            let wanted = ((rest.end.0 - end.0) as usize).min(PAGEMAP_ENTRIES);
            let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut entries[..wanted]);
            let offset = (self.views.app_address(end) / PAGE_SIZE * size_of::<u64>()) as u64;
            let read = rustix::io::pread(pagemap, bytes, offset).map_or(0, |read| read / size_of::<u64>());
            // Documentation/admin-guide/mm/pagemap.rst: bit 63, the entry is present.
            let mapped = entries[..read].iter().take_while(|&&entry| entry >> 63 == 1).count();
            end = end.plus(mapped as u32);
            if mapped < wanted {
                break;
            }
        }
        PageRange::new(rest.start, PageIndex(end.0.min(rest.end.0)))
    }
}
