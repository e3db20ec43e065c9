//! userfaultfd: the tracker of choice. Page states are page-table states, so protecting a page
//! splits no kernel mapping and a change to many pages is one system call.
//!
//! How it works. The app view is registered for missing, minor and write-protect faults at once:
//!
//! | page | in the kernel | touch gives | answered by |
//! |---|---|---|---|
//! | never written | no page in the memfd | missing fault | zero page, or allocate and continue |
//! | unmapped | contents, no entry in the app view | minor fault | continue |
//! | write-protected | entry with the protection bit | write-protect fault on a store | lifting the bit |
//!
//! Threads. One reads the descriptor and never waits; what has to wait is handed to others (`serve.rs`, `mail.rs`). The kernel's
//! events about mappings are noted by whoever reads them (`foreign.rs`).
//!
//! No lost wake-ups. Every thread that waits put a message on the descriptor first; every message
//! read is answered by one explicit wake *after* the handler returned, whatever happened in between
//! (the other calls wake nobody); a thread that was woken for nothing retries, faults and puts a new message.
//! `stop` unregisters everything and wakes everybody.
//!
//! Gotchas:
//! - With privilege (`CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd=1`, or access to `/dev/userfaultfd`) system
//!   calls on tracked memory fault and wait as ordinary accesses do. Without, they return `EFAULT` for
//!   pages that are not accessible at that moment: touch them first.
//! - The kernel limits the mappings of a process; each separate watched run is one. When they near
//!   the budget, gaps are registered too; faults in gaps are resolved here and never reported.
//! - A forked child inherits no registration; there the tracker refuses every call.
//!
//! Unsafe code: the raw layer in `raw`, `madvise` and `mprotect` on the app view here.

mod foreign;
mod mail;
mod near;
mod populate;
mod raw;
mod registry;
mod serve;
mod trial;

pub(super) use trial::trial;

use super::choose::{TrackerOptions, TrackerUnavailable};
use super::process::ProcessId;
use super::threads::HandlerThreads;
use super::{FaultHandler, Protection, TrackError, Tracker, TrackerKind, Views};
use crate::addr::{PageIndex, PageRange};
use crate::scarce::ask;
use foreign::Gone;
use mail::Mail;
use parking_lot::Mutex;
use raw::{Features, Privilege, Span, Uffd};
use registry::Registry;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const OPEN_REMEDY: &str = "Set the sysctl vm.unprivileged_userfaultfd=1, grant CAP_SYS_PTRACE or access to \
    /dev/userfaultfd, allow the system call in the container's seccomp profile, or set VKSVM_TRACKER=sigsegv";
const FILES_REMEDY: &str = "Close file descriptors or raise their limit (ulimit -n)";
const KERNEL_REMEDY: &str = "Use Linux 6.4 or newer, or set VKSVM_TRACKER=sigsegv";
const MEMORY_REMEDY: &str =
    "Free host memory, raise the memory limit of the process's control group, or raise vm.max_map_count";
const WATCH_FIRST: &str = "Only pages that were passed to watch can be tracked; this is a bug in the caller";
const NOT_RUNNING: &str = "The tracker was stopped, or this is a forked child of the process that owns it";

/// Tracks accesses with userfaultfd. See the module's page.
pub struct UffdTracker {
    core: Arc<Core>,
    threads: HandlerThreads,
    thread_count: usize,
    privilege: Privilege,
    features: Features,
}

/// What the handler threads share with the tracker.
struct Core {
    raw: Uffd,
    views: Views,
    process: ProcessId,
    registry: Mutex<Registry>,
    /// Set once the registry holds gaps, so that the fault path need not lock it before.
    has_gaps: AtomicBool,
    /// Pages whose accesses were refused: mprotected until the next operation on them.
    refused: Mutex<BTreeSet<PageIndex>>,
    refused_count: AtomicUsize,
    /// Pages that the program has unmapped or moved away.
    gone: Gone,
    /// What was read and is to be done.
    mail: Mail,
    /// This process's page-table entries, to skip over mapped pages; none if /proc is not there.
    pagemap: Option<OwnedFd>,
    /// Readable once the tracker stops; never read.
    stop_event: OwnedFd,
    stopping: AtomicBool,
    faults: AtomicU64,
}

impl UffdTracker {
    /// Opens a descriptor and negotiates features; watches nothing yet.
    ///
    /// # Errors
    /// The kernel refuses userfaultfd or lacks a feature.
    ///
    /// # Safety
    /// As for [`choose`](super::choose()).
    pub unsafe fn open(views: Views, options: &TrackerOptions) -> Result<Self, TrackerUnavailable> {
        let (raw, privilege, features) = negotiate()?;
        let no_eventfd = |error| unavailable("making an eventfd", error, FILES_REMEDY);
        ask("making eventfds", Errno::NFILE).map_err(no_eventfd)?;
        let stop_event = eventfd(0, EventfdFlags::CLOEXEC).map_err(no_eventfd)?;
        let core = Core {
            raw,
            views,
            process: ProcessId::establish(),
            registry: Mutex::new(Registry::new(views.pages, options.budget())),
            has_gaps: AtomicBool::new(false),
            refused: Mutex::default(),
            refused_count: AtomicUsize::new(0),
            gone: Gone::new(views.pages),
            mail: Mail::new().map_err(no_eventfd)?,
            pagemap: std::fs::File::open("/proc/self/pagemap").ok().map(OwnedFd::from),
            stop_event,
            stopping: AtomicBool::new(false),
            faults: AtomicU64::new(0),
        };
        Ok(Self {
            core: Arc::new(core),
            threads: HandlerThreads::default(),
            thread_count: options.threads(),
            privilege,
            features,
        })
    }
}

impl Tracker for UffdTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Userfaultfd
    }

    fn serves_system_calls(&self) -> bool {
        self.privilege != Privilege::UserModeOnly
    }

    fn describe(&self) -> String {
        let calls = match self.privilege {
            Privilege::Full => "privileged, system calls on tracked pages work",
            Privilege::Device => "through /dev/userfaultfd, system calls on tracked pages work",
            Privilege::UserModeOnly => {
                "unprivileged, system calls on inaccessible pages return EFAULT (vm.unprivileged_userfaultfd=1 lifts that)"
            }
        };
        let (runs, budget) = self.core.registry.lock().load();
        format!(
            "userfaultfd ({calls}; {}; 1 + {} handler threads; {runs} of {budget} kernel mappings)",
            self.features, self.thread_count
        )
    }

    fn start(&self, handler: Arc<dyn FaultHandler>) -> Result<(), TrackError> {
        let everything = self.core.views.all();
        self.core.admit("starting the fault handler", everything)?;
        let core = Arc::clone(&self.core);
        let body = move |index| if index == 0 { core.read_faults(&*handler) } else { core.work(&*handler) };
        self.threads.spawn(1 + self.thread_count, Arc::new(body)).map_err(|error| {
            self.stop();
            TrackError::new("starting the fault handler", everything, error, "Raise the limit of threads")
        })
    }

    fn watch(&self, pages: PageRange) -> Result<(), TrackError> {
        self.core.admit("watching", pages)?;
        let mut registry = self.core.registry.lock();
        let watched = registry.watch(pages, |run| {
            // SAFETY: `run` lies in the app view, a shared mapping of a memfd that `open`'s caller manages.
            self.core.on_present(run, |run| unsafe { self.core.raw.register(self.core.span(run)) })
        });
        self.core.has_gaps.store(registry.has_gaps(), Ordering::Release);
        watched.map_err(|error| TrackError::new("watching", pages, error, MEMORY_REMEDY))
    }

    fn write_protect(&self, pages: PageRange) -> Result<(), TrackError> {
        self.core.admit_watched("write-protecting", pages)?;
        self.core
            .on_present(pages, |pages| self.core.protect_mapped(pages, true))
            .map_err(|error| TrackError::new("write-protecting", pages, error, MEMORY_REMEDY))
    }

    fn unmap(&self, pages: PageRange) -> Result<(), TrackError> {
        self.core.admit_watched("unmapping", pages)?;
        self.core
            .on_present(pages, |pages| self.core.drop_entries(pages))
            .map_err(|error| TrackError::new("unmapping", pages, error, MEMORY_REMEDY))
    }

    fn write_protect_all(&self, runs: &[PageRange]) -> Result<(), TrackError> {
        let Some(cover) = self.core.admit_all_watched("write-protecting", runs)? else {
            return runs.iter().try_for_each(|&run| self.write_protect(run));
        };
        runs.iter()
            .try_for_each(|&run| self.core.protect_mapped(run, true))
            .map_err(|error| TrackError::new("write-protecting", cover, error, MEMORY_REMEDY))
    }

    fn unmap_all(&self, runs: &[PageRange]) -> Result<(), TrackError> {
        let Some(cover) = self.core.admit_all_watched("unmapping", runs)? else {
            return runs.iter().try_for_each(|&run| self.unmap(run));
        };
        runs.iter()
            .try_for_each(|&run| self.core.drop_entries(run))
            .map_err(|error| TrackError::new("unmapping", cover, error, MEMORY_REMEDY))
    }

    fn map(&self, pages: PageRange, protection: Protection) -> Result<(), TrackError> {
        // Unlike the other operations this asks the kernel, not the registry, what is watched: no lock on the fault path.
        let mapped = self.core.admit("mapping", pages).and_then(|()| {
            let populate = |pages| self.core.populate(pages, protection);
            let mapped = self.core.lift_refusals(pages).and_then(|()| self.core.on_present(pages, populate));
            mapped.map_err(|error| {
                let remedy = if error == Errno::NOENT { WATCH_FIRST } else { MEMORY_REMEDY };
                TrackError::new("mapping", pages, error, remedy)
            })
        });
        // Once stopped everything is accessible, and a handler may be on its way out.
        if self.core.is_stopped_here() { Ok(()) } else { mapped }
    }

    fn unit(&self, page: PageIndex) -> PageRange {
        PageRange::single(page)
    }

    fn faults(&self) -> u64 {
        self.core.faults.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        // The descriptor of a forked child still acts on its parent's memory: hands off.
        if self.core.process.is_other() {
            return;
        }
        self.core.release();
        self.threads.join();
        self.core.read_last_events();
    }
}

impl Drop for UffdTracker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Core {
    fn span(&self, pages: PageRange) -> Span {
        Span { start: self.views.app_address(pages.start), bytes: pages.bytes() }
    }

    fn is_stopped_here(&self) -> bool {
        !self.process.is_other() && self.stopping.load(Ordering::Acquire)
    }

    /// Whether `operation` makes sense at all.
    fn admit(&self, operation: &'static str, pages: PageRange) -> Result<(), TrackError> {
        if self.process.is_other() || self.stopping.load(Ordering::Acquire) {
            return Err(TrackError::new(operation, pages, Errno::SHUTDOWN, NOT_RUNNING));
        }
        if !self.views.all().contains_range(pages) {
            return Err(TrackError::new(operation, pages, Errno::RANGE, WATCH_FIRST));
        }
        Ok(())
    }

    /// Also checks that all of `pages` is watched, and makes earlier refusals there void.
    fn admit_watched(&self, operation: &'static str, pages: PageRange) -> Result<(), TrackError> {
        self.admit(operation, pages)?;
        if !self.registry.lock().is_watched(pages) {
            return Err(TrackError::new(operation, pages, Errno::NOENT, WATCH_FIRST));
        }
        self.lift_refusals(pages).map_err(|error| TrackError::new(operation, pages, error, MEMORY_REMEDY))
    }

    /// Does for ascending `runs` at once what `admit_watched` does for each: the range that covers them, or nothing if they must be
    /// looked at one by one, since not all in between is watched.
    fn admit_all_watched(&self, operation: &'static str, runs: &[PageRange]) -> Result<Option<PageRange>, TrackError> {
        let [first, .., last] = runs else { return Ok(None) };
        let cover = PageRange::new(first.start, last.end);
        self.admit(operation, cover)?;
        let watched = self.registry.lock().is_watched(cover) && self.refused_count.load(Ordering::Acquire) == 0;
        Ok(watched.then_some(cover))
    }

    /// Sets or lifts write protection where there are entries.
    fn protect_mapped(&self, pages: PageRange, protect: bool) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        loop {
            match self.raw.write_protect(self.span(pages), protect) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    self.read_events();
                    std::thread::yield_now();
                }
                done => return done,
            }
        }
    }

    /// Drops the app view's entries; contents stay in the memfd.
    fn drop_entries(&self, pages: PageRange) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        let Span { start, bytes } = self.span(pages);
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the pages lie in the app view and are watched. The mapping is shared, so its contents
        // live in the memfd and dropping entries loses nothing: a touch waits until they are back.
        let dropped = ask("dropping entries of the app view", Errno::NOMEM)
            .and_then(|()| unsafe { rustix::mm::madvise(start, bytes, rustix::mm::Advice::LinuxDontNeed) });
        if dropped != Err(Errno::INVAL) {
            return dropped;
        }
        // The program locked its memory (mlockall): that wants another advice, from Linux 5.18 on.
        // SAFETY: as above.
        match unsafe { libc::madvise(start, bytes, libc::MADV_DONTNEED_LOCKED) } {
            0 => Ok(()),
            _ => dropped,
        }
    }

    /// Ends tracking: everything becomes accessible and nobody waits any more. Idempotent.
    fn release(&self) {
        self.stopping.store(true, Ordering::Release);
        // Fails only when the counter is full, and then it is readable as it should be.
        let _ = rustix::io::write(&self.stop_event, &1u64.to_ne_bytes());
        self.mail.close();
        let everything = self.views.all();
        // Both fail only for want of memory; the descriptor's end does the same again.
        let _ = self.lift_refusals(everything);
        self.registry.lock().clear(|run| {
            for run in self.gone.rest_of(run) {
                let _ = self.raw.unregister(self.span(run));
            }
        });
        // A thread may have queued itself between the kernel's wake and its end of the registration.
        let _ = self.raw.wake(self.span(everything));
    }
}

fn unavailable(what: &str, error: impl Into<std::io::Error>, remedy: &'static str) -> TrackerUnavailable {
    TrackerUnavailable { kind: TrackerKind::Userfaultfd, reason: format!("{what}: {}", error.into()), remedy }
}

/// Asks a first descriptor for what the kernel offers and enables on a second what is needed:
/// the handshake is possible once per descriptor.
fn negotiate() -> Result<(Uffd, Privilege, Features), TrackerUnavailable> {
    let refused = |error: Errno| {
        let remedy = if error == Errno::NOSYS { KERNEL_REMEDY } else { OPEN_REMEDY };
        unavailable("opening a userfaultfd", error, remedy)
    };
    let (probe, _) = Uffd::open().map_err(refused)?;
    let offered = probe.api(Features::NONE).map_err(|error| unavailable("its handshake", error, KERNEL_REMEDY))?;
    let lacking = Features::REQUIRED.without(offered);
    if !lacking.is_empty() {
        return Err(TrackerUnavailable {
            kind: TrackerKind::Userfaultfd,
            reason: format!("the kernel lacks {lacking}"),
            remedy: KERNEL_REMEDY,
        });
    }
    let (raw, privilege) = Uffd::open().map_err(refused)?;
    let wanted = Features::REQUIRED.or(Features::THREAD_ID.or(Features::EVENTS).and(offered));
    raw.api(wanted).map_err(|error| unavailable("enabling its features", error, KERNEL_REMEDY))?;
    Ok((raw, privilege, wanted))
}
