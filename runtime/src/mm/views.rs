//! The heap's reservation: one memfd, mapped twice.
//!
//! The *app view* is what the program uses and what a tracker protects; the *alias* is always
//! read-write and belongs to the runtime. Reserving costs address space only: the memfd is sparse,
//! shared mappings are not charged in advance, and a page takes memory when it is first touched or
//! written through the alias. [`OwnedViews::punch`] gives pages back.
//!
//! What holds at all times:
//! - the app view is aligned to 2 MiB and so is the alias, so that a page has the same place inside
//!   a large leaf in both;
//! - only the part of the app view below the grown top is accessible at all, the rest is PROT_NONE, so
//!   that a wild pointer far from the heap's data is a SIGSEGV and not a fresh page; above the top nobody but
//!   [`OwnedViews::grow_to`] changes protections, below it nobody but the tracker does;
//! - neither view is inherited by fork: a child's touch is a SIGSEGV, never stale data;
//! - core dumps hold the grown part of the app view and nothing of the reservation behind it.
//!
//! Safety: this module owns the mappings and unmaps them on drop. Whatever hands out references into
//! them (the heap, the runtime's copies) must keep the `OwnedViews` alive.

mod holes;

use crate::addr::{PAGE_SIZE, PageIndex, PageRange, VirtAddr};
use crate::scarce::ask;
use crate::track::Views;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

/// Reservations are multiples of this many bytes and start at multiples of it: 2 MiB.
pub const RESERVATION_ALIGN: u64 = 2 << 20;
/// Reserved unless something else is asked for: 1 TiB.
pub const DEFAULT_RESERVATION: u64 = 1 << 40;
/// The largest reservation whose pages a [`PageIndex`] can number: 16 TiB less 2 MiB.
pub const MAX_RESERVATION: u64 = (1 << 44) - RESERVATION_ALIGN;

/// Pages by which the accessible part of the app view grows at least.
const GROW_PAGES: u32 = (RESERVATION_ALIGN as usize / PAGE_SIZE) as u32;

/// Pages that get memory with one call: 16 MiB.
const ALLOCATE_PAGES: u32 = 4096;

/// Reserving, growing or punching the heap's views failed.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    /// The size asked for cannot be reserved whatever the system allows.
    #[error(
        "a heap of {bytes} bytes cannot be reserved: the size must be a multiple of {RESERVATION_ALIGN} between \
         {RESERVATION_ALIGN} and {MAX_RESERVATION} bytes"
    )]
    Size {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The process may not have files as large as the heap.
    #[error(
        "a heap of {bytes} bytes needs a memfd of that size, and the process is limited to files of {limit} bytes; \
         raise the limit (ulimit -f) or open a heap of at most that size"
    )]
    FileSize {
        /// Bytes asked for.
        bytes: u64,
        /// The limit in force (RLIMIT_FSIZE), in bytes.
        limit: u64,
    },
    /// No memfd to be had.
    #[error("creating the memfd behind a heap of {bytes} bytes failed: {source}. {remedy}")]
    Memfd {
        /// Bytes asked for.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
        /// What can be done about it.
        remedy: &'static str,
    },
    /// The address space has no room for a view.
    #[error("reserving {bytes} bytes of address space for the heap's {view} failed: {source}. {remedy}")]
    Reserve {
        /// Which of the two mappings.
        view: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
        /// What can be done about it.
        remedy: String,
    },
    /// More pages were asked for than the heap has.
    #[error("the heap has {limit} pages and was asked to grow to {asked}; open a larger heap")]
    BeyondEnd {
        /// Pages asked for, from the start of the heap.
        asked: u32,
        /// Pages there are.
        limit: u32,
    },
    /// A part of the app view could not be made accessible.
    #[error(
        "making {start}..{end} of the heap's app view accessible failed: {source}. The kernel may have run out of \
         mappings: raise the sysctl vm.max_map_count"
    )]
    Grow {
        /// First address.
        start: VirtAddr,
        /// One past the last address.
        end: VirtAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// There is no memory for the contents of pages.
    #[error(
        "no memory for {start}..{end}: {source}. Free host memory or raise the limit of the process's control group"
    )]
    Memory {
        /// First address.
        start: VirtAddr,
        /// One past the last address.
        end: VirtAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Memory could not be given back.
    #[error(
        "giving back the memory of {start}..{end} failed: {source}. The pages keep their contents; try again when \
         the system has memory to spare"
    )]
    Punch {
        /// First address.
        start: VirtAddr,
        /// One past the last address.
        end: VirtAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The two mappings and the memfd behind them; unmapped and closed on drop.
/// Linux: none; a kernel reaches pages through its own map, here the alias is that.
#[derive(Debug)]
pub struct OwnedViews {
    app: Mapping,
    alias: Mapping,
    memfd: OwnedFd,
    pages: u32,
    /// Pages of the app view that are accessible. Held across the system calls of growing.
    top: Mutex<u32>,
    /// How often memory of each 2 MiB was given back.
    given_back: Vec<AtomicU32>,
}

impl OwnedViews {
    /// Reserves `bytes` (a multiple of 2 MiB, see [`DEFAULT_RESERVATION`]) in both views.
    ///
    /// # Errors
    /// If the size is not usable or the process's limits do not allow it; the error says which limit.
    pub fn reserve(bytes: u64) -> Result<Self, ViewsError> {
        if !bytes.is_multiple_of(RESERVATION_ALIGN) || !(RESERVATION_ALIGN..=MAX_RESERVATION).contains(&bytes) {
            return Err(ViewsError::Size { bytes });
        }
        let memfd = open_memfd(bytes)?;
        let app = Mapping::of(&memfd, bytes, ProtFlags::empty(), "app view")?;
        let alias = Mapping::of(&memfd, bytes, ProtFlags::READ | ProtFlags::WRITE, "alias")?;
        // At most 2^32 - 512 pages, by the check above.
        let pages = (bytes / PAGE_SIZE as u64) as u32;
        let given_back = bytemuck::zeroed_vec((bytes / RESERVATION_ALIGN) as usize);
        Ok(Self { app, alias, memfd, pages, top: Mutex::new(0), given_back })
    }

    /// The plain description that trackers and the runtime copy around. Valid while `self` lives.
    pub fn views(&self) -> Views {
        Views { app: self.app.base, alias: self.alias.base, pages: self.pages, memfd: self.memfd.as_raw_fd() }
    }

    /// Pages reserved.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages of the app view that are accessible, counted from its start.
    pub fn grown(&self) -> u32 {
        *self.top.lock()
    }

    /// Makes at least the first `pages` pages of the app view accessible. What already is stays as the
    /// tracker left it. Costs a system call per 2 MiB of growth at most, usually none.
    ///
    /// # Errors
    /// If there are not that many pages or the kernel refuses.
    pub fn grow_to(&self, pages: u32) -> Result<(), ViewsError> {
        if pages > self.pages {
            return Err(ViewsError::BeyondEnd { asked: pages, limit: self.pages });
        }
        let mut top = self.top.lock();
        if pages <= *top {
            return Ok(());
        }
        let target = pages.next_multiple_of(GROW_PAGES).min(self.pages);
        let fresh = PageRange::new(PageIndex(*top), PageIndex(target));
        let start = self.addr_of(fresh.start).as_ptr().cast();
        let refused = |errno: Errno| ViewsError::Grow {
            start: self.addr_of(fresh.start),
            end: self.addr_of(fresh.end),
            source: errno.into(),
        };
        ask("growing the app view", Errno::NOMEM).map_err(refused)?;
        // SAFETY: the span lies inside our own mapping, above the top, where nobody has been given
        // a pointer yet; making it accessible takes nothing away from anyone.
        unsafe { rustix::mm::mprotect(start, fresh.bytes(), MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(refused)?;
        // Dumps are a convenience: the heap works without, so a refusal is of no interest.
        // SAFETY: as above; the advice changes what a core dump holds and nothing else.
        let _ = unsafe { rustix::mm::madvise(start, fresh.bytes(), Advice::LinuxDoDump) };
        *top = target;
        Ok(())
    }

    /// Gives the memory of `pages` back: both views read zeros from then on.
    ///
    /// # Errors
    /// If the kernel refuses; contents are then unchanged.
    ///
    /// # Panics
    /// If `pages` reaches past the heap's end.
    pub fn punch(&self, pages: PageRange) -> Result<(), ViewsError> {
        assert!(pages.end.0 <= self.pages, "{pages:?} reach past the heap's {} pages", self.pages);
        if pages.is_empty() {
            return Ok(());
        }
        let offset = file_offset(pages.start);
        let punched = rustix::io::retry_on_intr(|| {
            ask("punching a hole", Errno::NOMEM)?;
            rustix::fs::fallocate(
                &self.memfd,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                pages.bytes() as u64,
            )
        });
        for count in &self.given_back[Self::units(pages)] {
            count.fetch_add(1, Ordering::Release);
        }
        punched.map_err(|errno| ViewsError::Punch {
            start: self.addr_of(pages.start),
            end: self.addr_of(pages.end),
            source: errno.into(),
        })
    }

    /// A number that has changed when memory of the 2 MiB that `pages` lie in was given back since. Who has a page's lock, or was told that a page
    /// has none any more, sees what was given back before.
    pub fn times_given_back(&self, pages: PageRange) -> u32 {
        self.given_back[Self::units(pages)].iter().fold(0, |sum, count| sum.wrapping_add(count.load(Ordering::Acquire)))
    }

    /// The parts of 2 MiB that `pages` lie in.
    fn units(pages: PageRange) -> Range<usize> {
        const UNIT: u32 = (RESERVATION_ALIGN / PAGE_SIZE as u64) as u32;
        (pages.start.0 / UNIT) as usize..pages.end.0.div_ceil(UNIT) as usize
    }

    /// Gives `pages` memory, so that writing them through the alias cannot fail. Contents stay; what had none reads as zeros.
    ///
    /// # Errors
    /// If there is not enough memory; some pages may have got theirs.
    ///
    /// # Panics
    /// If `pages` reaches past the heap's end.
    pub fn allocate(&self, pages: PageRange) -> Result<(), ViewsError> {
        assert!(pages.end.0 <= self.pages, "{pages:?} reach past the heap's {} pages", self.pages);
        if pages.is_empty() {
            return Ok(());
        }
        // An interrupted call is undone by the kernel, so a long one goes in pieces that get done between two signals.
        let mut rest = pages;
        while !rest.is_empty() {
            let piece = PageRange::of_len(rest.start, rest.len().min(ALLOCATE_PAGES));
            rustix::io::retry_on_intr(|| {
                ask("allocating home pages", Errno::NOSPC)?;
                rustix::fs::fallocate(
                    &self.memfd,
                    FallocateFlags::empty(),
                    file_offset(piece.start),
                    piece.bytes() as u64,
                )
            })
            .map_err(|errno| ViewsError::Memory {
                start: self.addr_of(pages.start),
                end: self.addr_of(pages.end),
                source: errno.into(),
            })?;
            rest.start = piece.end;
        }
        Ok(())
    }

    /// Fills the alias's page table in for `pages`, which have memory, so that who works there does not fault on each. Where that does not work (before
    /// Linux 5.14) they do. Pages that are `fresh`, [allocated](Self::allocate) and never written, are cleared first, one by one; of others the kernel
    /// fills in several entries at a time if it is asked to read them, and they permit stores all the same: this file is not written back anywhere.
    ///
    /// # Panics
    /// If `pages` reaches past the heap's end.
    pub fn populate(&self, pages: PageRange, fresh: bool) {
        assert!(pages.end.0 <= self.pages, "{pages:?} reach past the heap's {} pages", self.pages);
        let start = self.alias_ptr(pages.start).cast();
        let advice = if fresh { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        // SAFETY: the range lies in the alias; its page table is filled in, and nothing else changes.
        let _ = unsafe { rustix::mm::madvise(start, pages.bytes(), advice) };
    }

    /// Writes `pages` from `contents`, giving them memory as needed: for pages that may have none this costs less than storing
    /// through the alias, which would fault on each and have it cleared first.
    ///
    /// # Errors
    /// If there is not enough memory; some pages may have been written.
    ///
    /// # Safety
    /// `contents` must be readable for the bytes of `pages`, and not change meanwhile.
    pub unsafe fn write(&self, pages: PageRange, contents: *const u8) -> Result<(), ViewsError> {
        assert!(pages.end.0 <= self.pages, "{pages:?} reach past the heap's {} pages", self.pages);
        // SAFETY: the caller's contract.
        let contents = unsafe { std::slice::from_raw_parts(contents, pages.bytes()) };
        let start = file_offset(pages.start);
        let mut done = 0;
        while done < contents.len() {
            let written = ask("writing home pages", Errno::NOSPC)
                .and_then(|()| rustix::io::pwrite(&self.memfd, &contents[done..], start + done as u64));
            match written {
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(ViewsError::Memory {
                        start: self.addr_of(pages.start),
                        end: self.addr_of(pages.end),
                        source: errno.into(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The sub-ranges of `pages` that have memory, ascending, neighbours merged. A page without memory reads
    /// as zeros. Pages that gain or lose memory meanwhile may or may not be reported; if the kernel cannot
    /// tell, everything is reported.
    ///
    /// # Panics
    /// If `pages` reaches past the heap's end.
    pub fn has_data(&self, pages: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        assert!(pages.end.0 <= self.pages, "{pages:?} reach past the heap's {} pages", self.pages);
        let mut at = pages.start;
        std::iter::from_fn(move || {
            let data = self.next_data(at, pages.end);
            if data >= pages.end {
                return None;
            }
            // A page punched between the two calls makes the hole start where the data did.
            at = self.next_hole(data, pages.end).max(data.plus(1));
            Some(PageRange::new(data, at))
        })
    }

    /// The first page from `from` on that has memory, at most `end`. As [`has_data`](Self::has_data); the cost does not
    /// depend on how much data there is. What lies before the answer reads as zeros: the kernel's word for a hole is not taken
    /// where pages are cached all the same (`holes`).
    pub fn next_data(&self, from: PageIndex, end: PageIndex) -> PageIndex {
        let data = self.seek(SeekFrom::Data(file_offset(from)), from, end);
        holes::overlooked(self.memfd.as_fd(), PageRange::new(from, data.max(from))).unwrap_or(data)
    }

    /// The first page from `from` on that has no memory, at most `end`. The kernel walks all pages up to there, also those behind
    /// `end`: a few nanoseconds each.
    pub fn next_hole(&self, from: PageIndex, end: PageIndex) -> PageIndex {
        self.seek(SeekFrom::Hole(file_offset(from)), end, end)
    }

    /// Where the memfd's next data or hole is, at most `end`; `unknown` if the kernel cannot tell.
    ///
    /// SEEK_DATA and SEEK_HOLE take their starting point as an argument and answer with the result, so the
    /// descriptor's shared offset, which concurrent calls overwrite, is never relied on.
    fn seek(&self, to: SeekFrom, unknown: PageIndex, end: PageIndex) -> PageIndex {
        match rustix::fs::seek(&self.memfd, to) {
            // Offsets stay below the file's size, whose pages fit a `u32`.
            Ok(offset) => PageIndex((offset / PAGE_SIZE as u64) as u32).min(end),
            Err(Errno::NXIO) => end,
            Err(_) => unknown,
        }
    }

    /// The page in the alias: always readable and writable, never tracked.
    ///
    /// # Panics
    /// If the heap has no such page.
    pub fn alias_ptr(&self, page: PageIndex) -> *mut u8 {
        assert!(page.0 < self.pages, "{page} is past the heap's {} pages", self.pages);
        std::ptr::with_exposed_provenance_mut(self.alias.base + page.index() * PAGE_SIZE)
    }

    /// The page of the heap that an app-view address lies in.
    pub fn page_of(&self, address: VirtAddr) -> Option<PageIndex> {
        let offset = address.0.checked_sub(self.app.base as u64)?;
        let page = offset / PAGE_SIZE as u64;
        (page < u64::from(self.pages)).then_some(PageIndex(page as u32))
    }

    /// The page's address in the app view. One past the last page is allowed, as an end.
    pub fn addr_of(&self, page: PageIndex) -> VirtAddr {
        debug_assert!(page.0 <= self.pages, "{page} is past the heap's {} pages", self.pages);
        VirtAddr((self.app.base + page.index() * PAGE_SIZE) as u64)
    }

    /// Bytes of memory that the heap's pages take at present, in both views together.
    pub fn resident_bytes(&self) -> u64 {
        // `st_blocks` counts units of 512 bytes whatever the block size (stat(2)).
        rustix::fs::fstat(&self.memfd).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }
}

fn file_offset(page: PageIndex) -> u64 {
    u64::from(page.0) * PAGE_SIZE as u64
}

fn open_memfd(bytes: u64) -> Result<OwnedFd, ViewsError> {
    // Growing a file past RLIMIT_FSIZE raises SIGXFSZ, which would end the process: look first.
    if let Some(limit) = getrlimit(Resource::Fsize).current
        && limit < bytes
    {
        return Err(ViewsError::FileSize { bytes, limit });
    }
    let fail = |remedy| move |errno: Errno| ViewsError::Memfd { bytes, source: errno.into(), remedy };
    let flags = MemfdFlags::CLOEXEC;
    let no_file = "Close file descriptors or raise their limit (ulimit -n); Linux 3.17 or later is needed";
    ask("making the heap's file", Errno::NFILE).map_err(fail(no_file))?;
    let memfd = match rustix::fs::memfd_create("vksvm-heap", flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create("vksvm-heap", flags),
        other => other,
    }
    .map_err(fail(no_file))?;
    ask("sizing the heap's file", Errno::NOMEM)
        .and_then(|()| rustix::fs::ftruncate(&memfd, bytes))
        .map_err(fail("Open a smaller heap"))?;
    Ok(memfd)
}

/// One shared mapping of the whole memfd.
#[derive(Debug)]
struct Mapping {
    base: usize,
    bytes: usize,
}

impl Mapping {
    /// Maps the memfd's `bytes` at a multiple of [`RESERVATION_ALIGN`].
    fn of(memfd: &OwnedFd, bytes: u64, protection: ProtFlags, view: &'static str) -> Result<Self, ViewsError> {
        let fail =
            |errno: Errno| ViewsError::Reserve { view, bytes, source: errno.into(), remedy: reserve_remedy(bytes) };
        let align = RESERVATION_ALIGN as usize;
        let bytes = bytes as usize;
        ask("reserving a view", Errno::NOMEM).map_err(fail)?;
        // mmap cannot be asked for an alignment: take more than needed, keep the aligned part of it.
        // SAFETY: a new anonymous mapping where the kernel likes; it replaces nothing.
        let scout = unsafe {
            rustix::mm::mmap_anonymous(
                null_mut(),
                bytes + align,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(fail)?;
        let mut scout = Self { base: scout.expose_provenance(), bytes: bytes + align };
        let base = scout.base.next_multiple_of(align);
        ask("mapping a view", Errno::NOMEM).map_err(fail)?;
        // SAFETY: [base, base + bytes) lies inside the scout mapping, which is ours and which nobody uses;
        // MAP_FIXED replaces exactly that part of it.
        unsafe {
            rustix::mm::mmap(
                std::ptr::with_exposed_provenance_mut(base),
                bytes,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                memfd,
                0,
            )
        }
        .map_err(fail)?
        .expose_provenance();
        // The scout shrinks to what lies before and behind; each part is unmapped by its own drop.
        let tail = Self { base: base + bytes, bytes: scout.base + scout.bytes - (base + bytes) };
        scout.bytes = base - scout.base;
        drop((scout, tail));

        let mapping = Self { base, bytes };
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the mapping is ours and new; the advice concerns fork and core dumps only.
            let advised = unsafe { rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(base), bytes, advice) };
            ask("advising a view", Errno::NOMEM).and(advised).map_err(fail)?;
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the span was mapped by `Mapping::of` and belongs to this value alone; users of the
            // addresses keep the owner alive, so nobody dereferences them any more. Unmapping a span that
            // starts and ends at borders of our own mappings cannot fail for lack of kernel mappings.
            let _ = unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(self.base), self.bytes) };
        }
    }
}

/// What to do when address space ran out: usually `ulimit -v`, sometimes a small machine.
fn reserve_remedy(bytes: u64) -> String {
    let Some(limit) = getrlimit(Resource::As).current else {
        return format!("The heap is mapped twice; open a smaller one than {bytes} bytes");
    };
    let used = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |pages| pages * PAGE_SIZE as u64);
    // Twice mapped, and half of what is free left to the rest of the program.
    let fits = limit.saturating_sub(used) / 4 / RESERVATION_ALIGN * RESERVATION_ALIGN;
    format!(
        "The process is limited to {limit} bytes of address space and the heap is mapped twice: raise the limit \
         (ulimit -v unlimited) or open a smaller heap, here of at most about {fits} bytes"
    )
}

#[cfg(test)]
mod tests;
