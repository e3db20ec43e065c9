//! A doubly mapped memfd, a tracker on it, and a handler that records faults and maps.

use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange};
use crate::track::sigsegv::SigsegvTracker;
use crate::track::uffd::UffdTracker;
use crate::track::{
    CpuFault, FaultHandler, FaultOutcome, ForeignChange, Protection, Tracker, TrackerKind, TrackerOptions, Views,
    on_fault_path,
};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output};
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::{Arc, OnceLock, Weak};

/// One test on one tracker.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) kind: TrackerKind,
    path: &'static str,
}

/// Runs `test`, unless the machine has no such tracker: then it says so.
pub(super) fn run(kind: TrackerKind, path: &'static str, test: fn(Case)) {
    if kind == TrackerKind::Userfaultfd
        && let Err(error) = crate::track::uffd::trial()
    {
        eprintln!("skipped: {error}");
        return;
    }
    test(Case { kind, path });
}

impl Case {
    /// In the test process: runs this same test in a process of its own and returns what became of it. In that process:
    /// `None`, and the test does what only a process of its own may do.
    pub(super) fn in_own_process(self) -> Option<Output> {
        const MARK: &str = "VKSVM_TRACK_TEST_CHILD";
        if std::env::var_os(MARK).is_some() {
            return None;
        }
        let test = self.path.split_once("::").unwrap().1;
        let again = crate::own_process::again();
        Some(
            Command::new(&again[0])
                .args(&again[1..])
                .args([test, "--exact", "--nocapture"])
                .env(MARK, "1")
                .output()
                .unwrap(),
        )
    }
}

type Decide = dyn Fn(&dyn Tracker, CpuFault) -> FaultOutcome + Send + Sync;
type Follow = dyn Fn(ForeignChange) + Send + Sync;

/// Records faults, then does what it was made to do.
pub(super) struct TestHandler {
    tracker: OnceLock<Weak<dyn Tracker>>,
    faults: Mutex<Vec<CpuFault>>,
    decide: Box<Decide>,
    /// Told of foreign changes, once it is set.
    pub(super) follow: OnceLock<Box<Follow>>,
}

impl FaultHandler for TestHandler {
    fn cpu_fault(&self, fault: CpuFault) -> FaultOutcome {
        assert!(on_fault_path(), "I1: handlers run with the guard held");
        self.faults.lock().push(fault);
        let tracker = self.tracker.get().unwrap().upgrade();
        tracker.map_or(FaultOutcome::Resolved, |tracker| (self.decide)(&*tracker, fault))
    }

    fn foreign_change(&self, change: ForeignChange) {
        if let Some(follow) = self.follow.get() {
            follow(change);
        }
    }
}

/// Maps the unit as the access needs.
pub(super) fn map_as_needed(tracker: &dyn Tracker, fault: CpuFault) -> FaultOutcome {
    let protection = match fault.access {
        Access::Read => Protection::ReadOnly,
        Access::Write => Protection::ReadWrite,
    };
    tracker.map(tracker.unit(fault.page), protection).unwrap();
    FaultOutcome::Resolved
}

/// A tracked heap.
pub(super) struct Tracked {
    pub(super) tracker: Arc<dyn Tracker>,
    pub(super) handler: Arc<TestHandler>,
    pub(super) memory: Memory,
}

impl Tracked {
    /// `pages` pages, all watched, with the handler [`map_as_needed`].
    pub(super) fn watching(case: Case, pages: u32) -> Self {
        let tracked = Self::new(case.kind, pages, TrackerOptions::default(), map_as_needed);
        tracked.tracker.watch(tracked.memory.views.all()).unwrap();
        tracked
    }

    pub(super) fn new(
        kind: TrackerKind,
        pages: u32,
        options: TrackerOptions,
        decide: impl Fn(&dyn Tracker, CpuFault) -> FaultOutcome + Send + Sync + 'static,
    ) -> Self {
        let memory = Memory::new(pages);
        // SAFETY: `memory` owns both mappings and is dropped after the tracker has stopped; tests access
        // the app view through raw pointers only.
        let tracker: Arc<dyn Tracker> = unsafe {
            match kind {
                TrackerKind::Userfaultfd => Arc::new(UffdTracker::open(memory.views, &options).unwrap()),
                TrackerKind::Sigsegv => Arc::new(SigsegvTracker::open(memory.views, &options, "test").unwrap()),
            }
        };
        let handler = Arc::new(TestHandler {
            tracker: OnceLock::new(),
            faults: Mutex::default(),
            decide: Box::new(decide),
            follow: OnceLock::new(),
        });
        assert!(handler.tracker.set(Arc::downgrade(&tracker)).is_ok());
        tracker.start(Arc::clone(&handler) as Arc<dyn FaultHandler>).unwrap();
        Self { tracker, handler, memory }
    }

    /// The faults since the last call, as (page, access).
    pub(super) fn take_faults(&self) -> Vec<(u32, Access)> {
        self.handler.faults.lock().drain(..).map(|fault| (fault.page.0, fault.access)).collect()
    }

    /// The threads that faulted since the last call.
    pub(super) fn take_threads(&self) -> Vec<u32> {
        self.handler.faults.lock().drain(..).map(|fault| fault.thread).collect()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.tracker.stop();
    }
}

/// The two views, as the heap makes them.
pub(super) struct Memory {
    pub(super) views: Views,
    memfd: OwnedFd,
    reservation: (usize, usize),
}

impl Memory {
    const ALIGNMENT: usize = 2 << 20;

    fn new(pages: u32) -> Self {
        let bytes = pages as usize * PAGE_SIZE;
        let memfd = memfd_create("vksvm-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, bytes as u64).unwrap();
        let (protection, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the fixed mapping replaces part of the reservation made just before; the others are new.
        unsafe {
            let reserved = bytes + Self::ALIGNMENT;
            let reservation = mmap_anonymous(null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE)
                .unwrap()
                .expose_provenance();
            let app: *mut c_void = with_exposed_provenance_mut(reservation.next_multiple_of(Self::ALIGNMENT));
            mmap(app, bytes, protection, shared | MapFlags::FIXED, &memfd, 0).unwrap();
            madvise(app, bytes, Advice::LinuxDontFork).unwrap();
            let alias = mmap(null_mut(), bytes, protection, shared, &memfd, 0).unwrap().expose_provenance();
            let views = Views { app: app.expose_provenance(), alias, pages, memfd: memfd.as_raw_fd() };
            Self { views, memfd, reservation: (reservation, reserved) }
        }
    }

    /// The first word of a page in the app view.
    pub(super) fn app(&self, page: u32) -> *mut u64 {
        with_exposed_provenance_mut(self.views.app_address(PageIndex(page)))
    }

    /// The first word of a page in the alias.
    pub(super) fn alias(&self, page: u32) -> *mut u64 {
        with_exposed_provenance_mut(self.views.alias + page as usize * PAGE_SIZE)
    }

    pub(super) fn load(&self, page: u32) -> u64 {
        // SAFETY: aligned and mapped; volatile, as the tracker and other threads act on it too.
        unsafe { self.app(page).read_volatile() }
    }

    pub(super) fn store(&self, page: u32, value: u64) {
        // SAFETY: as above.
        unsafe { self.app(page).write_volatile(value) }
    }

    pub(super) fn load_alias(&self, page: u32) -> u64 {
        // SAFETY: as above.
        unsafe { self.alias(page).read_volatile() }
    }

    pub(super) fn store_alias(&self, page: u32, value: u64) {
        // SAFETY: as above.
        unsafe { self.alias(page).write_volatile(value) }
    }

    /// Gives a page back.
    pub(super) fn punch(&self, page: u32) {
        let offset = u64::from(page) * PAGE_SIZE as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memfd, flags, offset, PAGE_SIZE as u64).unwrap();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (start, bytes) = self.reservation;
        // SAFETY: made in `new`; the tracker has stopped and the test's threads have ended.
        unsafe {
            munmap(with_exposed_provenance_mut(start), bytes).unwrap();
            munmap(with_exposed_provenance_mut(self.views.alias), self.views.pages as usize * PAGE_SIZE).unwrap();
        }
    }
}

/// Pages `start..end`.
pub(super) fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(PageIndex(start), PageIndex(end))
}

/// One page.
pub(super) fn page(page: u32) -> PageRange {
    pages(page, page + 1)
}
