//! Does userfaultfd do here what it says? Sandboxes emulate, kernels lag: so every kind of fault is tried on
//! a few pages of our own, with a time limit, before the heap depends on it.

use super::super::choose::{TrackerOptions, TrackerUnavailable};
use super::super::{CpuFault, FaultHandler, FaultOutcome, Protection, Tracker, TrackerKind, Views};
use super::{KERNEL_REMEDY, UffdTracker, unavailable};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange};
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

const PAGES: u32 = 2;
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Tries missing, minor and write-protect faults.
///
/// # Errors
/// userfaultfd cannot be had, or one of them did not happen as it should.
pub(in super::super) fn trial() -> Result<(), TrackerUnavailable> {
    let pages = TrialPages::new().map_err(|error| unavailable("mapping memory for its trial", error, KERNEL_REMEDY))?;
    // SAFETY: `pages` owns both mappings, outlives the tracker (dropped in reverse order), and
    // nobody holds references into them: `touch` uses volatile accesses.
    let tracker = Arc::new(unsafe { UffdTracker::open(pages.views, &TrackerOptions::default()) }?);
    let handler = Arc::new(TrialHandler { tracker: OnceLock::new(), seen: Mutex::default() });
    // The handler's reference is weak: a strong one would make a cycle.
    let _ = handler.tracker.set(Arc::downgrade(&tracker));
    let failed = |step: &str, why: String| TrackerUnavailable {
        kind: TrackerKind::Userfaultfd,
        reason: format!("its trial failed at {step}: {why}"),
        remedy: KERNEL_REMEDY,
    };

    tracker.start(Arc::clone(&handler) as Arc<dyn FaultHandler>).map_err(|e| failed("starting", e.to_string()))?;
    let (report, reports) = mpsc::channel();
    let address = pages.views.app;
    let steps = Arc::clone(&tracker);
    let toucher = std::thread::Builder::new()
        .name("vksvm-trial".into())
        .spawn(move || {
            let _ = report.send(touch(&*steps, &handler, address));
        })
        .map_err(|e| failed("starting", e.to_string()))?;
    let outcome = reports.recv_timeout(TIME_LIMIT);
    tracker.stop();
    // Stopping made everything accessible, so the toucher ends whatever went wrong.
    let _ = toucher.join();
    match outcome {
        Ok(outcome) => outcome.map_err(|(step, why)| failed(step, why)),
        Err(_) => Err(failed("waiting for a fault", "no answer in time".into())),
    }
}

/// Each step: bring the page into a state, touch it, compare what was reported and what was read.
fn touch(tracker: &dyn Tracker, handler: &TrialHandler, address: usize) -> Result<(), (&'static str, String)> {
    let page = PageRange::single(PageIndex(0));
    let pointer = with_exposed_provenance_mut::<u64>(address);
    // SAFETY: the mapping is live, aligned and only this thread accesses it.
    let (load, store) = (|| unsafe { pointer.read_volatile() }, |value| unsafe { pointer.write_volatile(value) });
    let expect = |step: &'static str, access: Option<Access>, value: u64, found: u64| {
        let seen = std::mem::take(&mut *handler.seen.lock());
        let as_expected = match access {
            Some(access) => seen.iter().any(|&(p, a)| p == page.start && a == access),
            None => seen.is_empty(),
        };
        if as_expected && value == found {
            return Ok(());
        }
        Err((step, format!("expected {access:?} and value {value}, got {seen:?} and {found}")))
    };
    let run = |step: &'static str, done: Result<(), super::TrackError>| done.map_err(|error| (step, error.to_string()));

    run("watching", tracker.watch(page))?;
    expect("a missing fault", Some(Access::Read), 0, load())?;
    store(1);
    expect("a write-protect fault on a page mapped read-only", Some(Access::Write), 1, load())?;
    store(2);
    expect("a store that needs no fault", None, 2, load())?;
    run("write-protecting", tracker.write_protect(page))?;
    store(3);
    expect("a write-protect fault", Some(Access::Write), 3, load())?;
    run("unmapping", tracker.unmap(page))?;
    expect("a minor fault", Some(Access::Read), 3, load())
}

struct TrialHandler {
    tracker: OnceLock<std::sync::Weak<UffdTracker>>,
    seen: Mutex<Vec<(PageIndex, Access)>>,
}

impl FaultHandler for TrialHandler {
    fn cpu_fault(&self, fault: CpuFault) -> FaultOutcome {
        self.seen.lock().push((fault.page, fault.access));
        let protection = match fault.access {
            Access::Read => Protection::ReadOnly,
            Access::Write => Protection::ReadWrite,
        };
        if let Some(tracker) = self.tracker.get().and_then(std::sync::Weak::upgrade) {
            // A failure shows as a fault that repeats until the time limit; refusing would be a signal.
            let _ = tracker.map(PageRange::single(fault.page), protection);
        }
        FaultOutcome::Resolved
    }
}

/// A memfd of a few pages, mapped twice.
struct TrialPages {
    views: Views,
    _memfd: OwnedFd,
}

impl TrialPages {
    const BYTES: usize = PAGES as usize * PAGE_SIZE;

    fn new() -> Result<Self, Errno> {
        let memfd = memfd_create("vksvm-trial", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, Self::BYTES as u64)?;
        let map = || {
            // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
            unsafe {
                mmap(null_mut(), Self::BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memfd, 0)
                    .map(|start| start.expose_provenance())
            }
        };
        let app = map()?;
        // If this fails the first mapping leaks: two pages of address space on the way to an error.
        let alias = map()?;
        let views = Views { app, alias, pages: PAGES, memfd: memfd.as_raw_fd() };
        Ok(Self { views, _memfd: memfd })
    }
}

impl Drop for TrialPages {
    fn drop(&mut self) {
        for start in [self.views.app, self.views.alias] {
            // SAFETY: mapped in `new`; the tracker has stopped and nobody else knows these addresses.
            let _ = unsafe { munmap(with_exposed_provenance_mut(start), Self::BYTES) };
        }
    }
}
