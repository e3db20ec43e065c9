//! Whether a hole is a hole.
//!
//! SEEK_DATA asks without the page's lock whether a cached page is up to date. A page that the kernel just moves to another
//! place in memory (compaction, NUMA balancing) is in the cache before it is marked so (`mm/migrate.c`: the mapping is changed
//! first, the flags are copied after), and for that moment counts as a hole:
//!
//! ```text
//! kernel thread, migrating                       SEEK_DATA
//! new page into the cache, locked
//!                                                finds it, not up to date: "hole"
//! flags copied: up to date; unlocked
//! ```
//!
//! Who then maps zeros loses what the page holds. So where the cache holds anything in a claimed hole, the contents are read:
//! reading takes the page's lock and waits. Memory that was allocated ahead is in the cache too, and reads as zeros.

use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use linux_raw_sys::general::{__NR_cachestat, cachestat, cachestat_range};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Read at a time: four pages.
const PIECE: usize = 4 * PAGE_SIZE;

/// The first page of `hole` whose contents are not zero.
pub(super) fn overlooked(memfd: BorrowedFd<'_>, hole: PageRange) -> Option<PageIndex> {
    if hole.is_empty() || !may_be_cached(memfd, hole) {
        return None;
    }
    first_not_zero(memfd, hole)
}

/// Whether the cache may hold pages of `range`, up to date or not. Also true where the kernel cannot tell.
fn may_be_cached(memfd: BorrowedFd<'_>, range: PageRange) -> bool {
    let asked = cachestat_range { off: u64::from(range.start.0) * PAGE_SIZE as u64, len: range.bytes() as u64 };
    let mut found = cachestat { nr_cache: 0, nr_dirty: 0, nr_writeback: 0, nr_evicted: 0, nr_recently_evicted: 0 };
    // SAFETY: cachestat(2), Linux 6.5: reads the first structure, writes the second, both of the kernel's shape.
    let done = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_cachestat),
            memfd.as_raw_fd(),
            std::ptr::from_ref(&asked),
            std::ptr::from_mut(&mut found),
            0,
        )
    };
    done != 0 || found.nr_cache + found.nr_evicted > 0
}

fn first_not_zero(memfd: BorrowedFd<'_>, range: PageRange) -> Option<PageIndex> {
    let mut piece = [0u64; PIECE / size_of::<u64>()];
    let mut at = range.start;
    while at < range.end {
        let bytes = PageRange::new(at, range.end).bytes().min(PIECE);
        let buffer = bytemuck::cast_slice_mut::<u64, u8>(&mut piece[..bytes / size_of::<u64>()]);
        // A short read ends at whole pages of a memfd; one that fails says nothing, and then the page counts as data.
        let read = match rustix::io::pread(memfd, buffer, u64::from(at.0) * PAGE_SIZE as u64) {
            Ok(read) if read >= PAGE_SIZE => read / PAGE_SIZE,
            Err(rustix::io::Errno::INTR) => continue,
            _ => return Some(at),
        };
        let words = PAGE_SIZE / size_of::<u64>();
        let found = piece[..read * words].chunks(words).position(|page| page.iter().any(|&word| word != 0));
        if let Some(index) = found {
            return Some(at.plus(index as u32));
        }
        at = at.plus(read as u32);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};

    fn file(pages: u64) -> OwnedFd {
        let memfd = memfd_create("vksvm-test-holes", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, pages * PAGE_SIZE as u64).unwrap();
        memfd
    }

    fn span(start: u32, end: u32) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    #[test]
    fn a_page_with_contents_in_a_claimed_hole_is_found() {
        let memfd = file(64);
        // What SEEK_DATA says while the kernel moves page 37, the caller passes on: a hole from 3 to 50.
        rustix::io::pwrite(&memfd, &[1], 37 * PAGE_SIZE as u64 + 4095).unwrap();
        assert_eq!(overlooked(memfd.as_fd(), span(3, 50)), Some(PageIndex(37)));
        assert_eq!(overlooked(memfd.as_fd(), span(37, 38)), Some(PageIndex(37)));
        assert_eq!(overlooked(memfd.as_fd(), span(38, 64)), None);
        assert_eq!(overlooked(memfd.as_fd(), span(3, 3)), None);
    }

    #[test]
    fn memory_allocated_ahead_is_a_hole() {
        let memfd = file(64);
        fallocate(&memfd, FallocateFlags::empty(), 0, 16 * PAGE_SIZE as u64).unwrap();
        assert!(may_be_cached(memfd.as_fd(), span(4, 8)));
        assert_eq!(overlooked(memfd.as_fd(), span(0, 64)), None);
    }
}
