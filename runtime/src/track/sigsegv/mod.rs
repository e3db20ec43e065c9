//! mprotect and SIGSEGV: the tracker that works everywhere, for kernels and sandboxes without userfaultfd.
//!
//! How it works. Protections are mprotect's. A touch that is not allowed raises SIGSEGV; the signal
//! handler finds the region in a static table, queues the fault, and sleeps in the faulting thread until a handler
//! thread has resolved it; then it returns, and the access is retried. One handler thread never waits; the faults that have to
//! wait are for the others.
//!
//! Gotchas, all inherent to signals:
//! - A system call that reads or writes a page which is not accessible at that moment fails with `EFAULT`
//!   and nobody is told. Touch such memory first, or use userfaultfd.
//! - A thread that blocks SIGSEGV is killed by its first fault. Do not block it.
//! - Handlers installed before ours are called for faults that are not ours. A library that installs its handler
//!   later must do the same for us; [`Tracker::describe`] says if one did.
//! - Other signals are held back while a fault is being resolved, as they are during the kernel's own page faults.
//! - A thread that runs on a signal stack of `MINSIGSTKSZ` has room: the handler uses a few hundred bytes.
//! - Each change of protection between neighbouring pages is one more kernel mapping, and there may be `vm.max_map_count`
//!   of them. Near the budget, `plan` protects coarser units, and [`Tracker::unit`] says how coarse.
//! - What the program does to the app view by calls of its own (`munmap`, `mremap`, `mprotect`) is not noticed.
//! - A forked child has neither the app view nor handler threads: its touch goes to the earlier handler.
//!
//! Lock order: `plan` is a leaf; the signal handler takes no lock at all.
//!
//! Unsafe code: the signal handler (`signal`), its table (`region`), mprotect here.

mod plan;
mod region;
mod signal;

use super::choose::{TrackerOptions, TrackerUnavailable};
use super::process::ProcessId;
use super::threads::{HandlerThreads, resolve, resolve_at_once};
use super::{CpuFault, FaultHandler, FaultOutcome, Protection, TrackError, Tracker, TrackerKind, Views};
use crate::addr::{PageIndex, PageRange};
use crate::scarce::ask;
use parking_lot::Mutex;
use plan::{Allowed, Plan};
use region::{Answer, Region};
use rustix::io::Errno;
use rustix::mm::MprotectFlags;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAPPINGS_REMEDY: &str = "Raise the sysctl vm.max_map_count, or use userfaultfd, which needs no kernel mappings";
const WATCH_FIRST: &str = "Only pages that were passed to watch can be tracked; this is a bug in the caller";
const NOT_RUNNING: &str = "The tracker was stopped, or this is a forked child of the process that owns it";

/// Tracks accesses with mprotect and a SIGSEGV handler. See the module's page.
pub struct SigsegvTracker {
    core: Arc<Core>,
    threads: HandlerThreads,
    thread_count: usize,
    why: String,
}

/// What the handler threads share with the tracker.
struct Core {
    views: Views,
    process: ProcessId,
    region: &'static Region,
    plan: Mutex<Plan>,
    /// Set while a unit may be larger than a page, so that `unit` need not lock before.
    coarse: AtomicBool,
    stopping: AtomicBool,
    retire_at_exit: AtomicBool,
    faults: AtomicU64,
}

impl SigsegvTracker {
    /// Enters the app view in the signal handler's table, and installs the handler if it is not.
    /// `why` this tracker was chosen goes into the description.
    ///
    /// # Errors
    /// Too many trackers live at once, or the kernel refuses the signal handler.
    ///
    /// # Safety
    /// As for [`choose`](super::choose()).
    pub unsafe fn open(
        views: Views,
        options: &TrackerOptions,
        why: impl Into<String>,
    ) -> Result<Self, TrackerUnavailable> {
        let process = ProcessId::establish();
        signal::install().map_err(|error| TrackerUnavailable {
            kind: TrackerKind::Sigsegv,
            reason: format!("installing its signal handler: {}", std::io::Error::from(error)),
            remedy: "Allow sigaction in the sandbox",
        })?;
        let all = views.all();
        let addresses = views.app..views.app + all.bytes();
        let region = Region::claim(addresses, process).ok_or_else(|| TrackerUnavailable {
            kind: TrackerKind::Sigsegv,
            reason: format!("{} heaps are tracked with signals already", region::MAX_REGIONS),
            remedy: "Drop a heap that is no longer used, or use userfaultfd",
        })?;
        let core = Core {
            views,
            process,
            region,
            plan: Mutex::new(Plan::new(views.pages, options.budget())),
            coarse: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            retire_at_exit: AtomicBool::new(false),
            faults: AtomicU64::new(0),
        };
        let (core, threads) = (Arc::new(core), HandlerThreads::default());
        Ok(Self { core, threads, thread_count: options.threads(), why: why.into() })
    }

    /// Runs `change` on the plan for pages that are watched.
    fn change(
        &self,
        operation: &'static str,
        pages: PageRange,
        change: impl FnOnce(&mut Plan, plan::Protect<'_>) -> Result<(), Errno>,
    ) -> Result<(), TrackError> {
        self.core.admit(operation, pages)?;
        let mut plan = self.core.plan.lock();
        if !plan.is_watched(pages) {
            return Err(TrackError::new(operation, pages, Errno::NOENT, WATCH_FIRST));
        }
        if self.core.stopping.load(Ordering::Acquire) {
            // `release` came first; what it made accessible stays so.
            return Err(TrackError::new(operation, pages, Errno::SHUTDOWN, NOT_RUNNING));
        }
        let done = change(&mut plan, &|run, allowed| self.core.protect(run, allowed));
        self.core.coarse.store(plan.is_coarse(), Ordering::Release);
        done.map_err(|error| TrackError::new(operation, pages, error, MAPPINGS_REMEDY))
    }
}

impl Tracker for SigsegvTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Sigsegv
    }

    fn describe(&self) -> String {
        let plan = self.core.plan.lock();
        let (runs, budget) = plan.load();
        format!(
            "mprotect and SIGSEGV because userfaultfd was not taken ({}; {}; system calls on inaccessible pages return EFAULT; \
             1 + {} handler threads; {runs} of {budget} kernel mappings, {} coarse zone(s))",
            self.why,
            signal::standing(),
            self.thread_count,
            plan.coarse_zones(),
        )
    }

    fn start(&self, handler: Arc<dyn FaultHandler>) -> Result<(), TrackError> {
        let everything = self.core.views.all();
        self.core.admit("starting the fault handler", everything)?;
        let core = Arc::clone(&self.core);
        let body = move |index| core.serve(&*handler, index);
        self.threads.spawn(1 + self.thread_count, Arc::new(body)).map_err(|error| {
            self.stop();
            TrackError::new("starting the fault handler", everything, error, "Raise the limit of threads")
        })
    }

    fn watch(&self, pages: PageRange) -> Result<(), TrackError> {
        self.core.admit("watching", pages)?;
        self.core.plan.lock().watch(pages);
        Ok(())
    }

    fn write_protect(&self, pages: PageRange) -> Result<(), TrackError> {
        self.change("write-protecting", pages, |plan, protect| plan.forbid_stores(pages, protect))
    }

    fn unmap(&self, pages: PageRange) -> Result<(), TrackError> {
        self.change("unmapping", pages, |plan, protect| plan.set(pages, Allowed::Nothing, protect))
    }

    fn map(&self, pages: PageRange, protection: Protection) -> Result<(), TrackError> {
        let allowed = match protection {
            Protection::ReadOnly => Allowed::Load,
            Protection::ReadWrite => Allowed::LoadAndStore,
        };
        match self.change("mapping", pages, |plan, protect| plan.set(pages, allowed, protect)) {
            // Everything is accessible already, and a handler may be on its way out.
            Err(_) if self.core.is_stopped_here() => Ok(()),
            done => done,
        }
    }

    fn unit(&self, page: PageIndex) -> PageRange {
        if self.core.coarse.load(Ordering::Acquire) {
            self.core.plan.lock().unit(page)
        } else {
            PageRange::single(page)
        }
    }

    fn faults(&self) -> u64 {
        self.core.faults.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        // A forked child has no app view to make accessible and no threads to join.
        if self.core.process.is_other() {
            return;
        }
        let first = self.core.release();
        if !self.threads.join() {
            // Stopped from within a handler, whose toucher still waits: that thread retires the region.
            self.core.retire_at_exit.store(true, Ordering::Release);
        } else if first {
            self.core.region.retire();
        }
    }
}

impl Drop for SigsegvTracker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Core {
    fn is_stopped_here(&self) -> bool {
        !self.process.is_other() && self.stopping.load(Ordering::Acquire)
    }

    fn admit(&self, operation: &'static str, pages: PageRange) -> Result<(), TrackError> {
        if self.process.is_other() || self.stopping.load(Ordering::Acquire) {
            return Err(TrackError::new(operation, pages, Errno::SHUTDOWN, NOT_RUNNING));
        }
        if !self.views.all().contains_range(pages) {
            return Err(TrackError::new(operation, pages, Errno::RANGE, WATCH_FIRST));
        }
        Ok(())
    }

    fn protect(&self, pages: PageRange, allowed: Allowed) -> Result<(), Errno> {
        let start = with_exposed_provenance_mut(self.views.app_address(pages.start));
        let flags = match allowed {
            Allowed::Nothing => MprotectFlags::empty(),
            Allowed::Load => MprotectFlags::READ,
            Allowed::LoadAndStore => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        // SAFETY: the pages lie in the app view, whose protection `open`'s caller handed to the tracker;
        // accesses that this forbids wait in the signal handler.
        ask("protecting the app view", Errno::NOMEM)
            .and_then(|()| unsafe { rustix::mm::mprotect(start, pages.bytes(), flags) })
    }

    /// Resolves faults until the region closes: at once on thread 0, which never waits, and the rest on the others.
    fn serve(&self, handler: &dyn FaultHandler, thread: usize) {
        self.region.serve(thread, |fault, same_page| {
            let Some(page) = self.views.app_page(fault.address) else { return Some(Answer::Refused) };
            let access = same_page.fold(fault.access, |most, other| most.max(other.access));
            let fault = CpuFault { page, access, thread: fault.thread };
            let outcome = if thread == 0 {
                self.faults.fetch_add(1, Ordering::Relaxed);
                resolve_at_once(handler, fault)?
            } else {
                resolve(handler, fault)
            };
            Some(match outcome {
                FaultOutcome::Resolved => Answer::Retry,
                FaultOutcome::Refused => Answer::Refused,
                FaultOutcome::Later(_) => Answer::Later,
            })
        });
        if self.retire_at_exit.load(Ordering::Acquire) {
            self.region.retire();
        }
    }

    /// Makes everything accessible and sends whoever waits back to retry. Returns whether this was the first call.
    fn release(&self) -> bool {
        let mut plan = self.plan.lock();
        if self.stopping.swap(true, Ordering::AcqRel) {
            return false;
        }
        if plan.open_all(&|run, allowed| self.protect(run, allowed)).is_err() {
            // No mapping left to split: one call over everything merges instead.
            if let Err(error) = self.protect(self.views.all(), Allowed::LoadAndStore) {
                tracing::error!(%error, "memory could not be made accessible when its tracking ended");
            }
        }
        self.region.close();
        true
    }
}
