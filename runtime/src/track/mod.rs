//! Trackers: how CPU accesses to the heap are caught before they happen.
//!
//! The heap's memory is a memfd mapped twice. The *app view* is what the program uses and what a
//! tracker protects; the *alias* is always read-write and is what the runtime copies through, so no
//! copy ever trips the tracker. A tracker changes what the app view allows, in bulk, and calls a
//! [`FaultHandler`] on a thread of its own when the program touches what it may not.
//!
//! A tracker knows nothing of page states or devices. Guarantees it gives:
//!
//! - after [`Tracker::watch`] returned, the operations below work on those pages; accesses to pages
//!   never watched are never reported and cost nothing;
//! - after [`Tracker::write_protect`] returned, no store to those pages completes through the app view
//!   before a fault was reported and a later [`Tracker::map`] allowed it (loads may or may not fault);
//! - after [`Tracker::unmap`] returned, no load or store completes before a fault was reported and a
//!   later [`Tracker::map`] allowed it; contents stay in the memfd;
//! - spurious faults are allowed: the handler must cope with a fault on a page that needs nothing;
//! - the faulting thread resumes, and retries its access, only after the handler returned.
//!
//! A program's signal handlers may touch tracked memory, unless they interrupted a call into the tracker (or
//! whatever else the [`FaultHandler`] needs a lock of): the fault would wait for the interrupted thread.
//!
//! **I1**: handler threads run with [`FaultPathGuard`] held: code on them neither allocates from, locks
//! around nor touches the app view.

mod choose;
mod guard;
mod process;
mod runs;
pub mod sigsegv;
#[cfg(test)]
mod tests;
mod threads;
pub mod uffd;

pub use choose::{TrackerOptions, TrackerUnavailable, choose};
pub use guard::{FaultPathGuard, on_fault_path};
pub(crate) use threads::HandlerThreads;

use crate::addr::{Access, PAGE_SHIFT, PageIndex, PageRange};
use std::sync::Arc;
use std::time::Duration;

/// The two mappings of one memfd. Lives as long as the heap; a tracker borrows it by copy.
#[derive(Clone, Copy, Debug)]
pub struct Views {
    /// Start of the app view (page 0), aligned to at least 2 MiB.
    pub app: usize,
    /// Start of the alias.
    pub alias: usize,
    /// Pages in the reservation of each.
    pub pages: u32,
    /// The memfd behind both.
    pub memfd: std::os::fd::RawFd,
}

impl Views {
    /// Every page of the reservation.
    pub fn all(self) -> PageRange {
        PageRange::of_len(PageIndex(0), self.pages)
    }

    /// Where `page` starts in the app view.
    pub fn app_address(self, page: PageIndex) -> usize {
        self.app + (page.index() << PAGE_SHIFT)
    }

    /// The page that `address` of the app view lies in, if it does.
    pub fn app_page(self, address: usize) -> Option<PageIndex> {
        let page = address.checked_sub(self.app)? >> PAGE_SHIFT;
        u32::try_from(page).ok().filter(|&page| page < self.pages).map(PageIndex)
    }
}

/// What the app view allows for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Loads succeed, stores fault.
    ReadOnly,
    /// Both succeed.
    ReadWrite,
}

/// A CPU access that was caught.
#[derive(Clone, Copy, Debug)]
pub struct CpuFault {
    /// The page touched.
    pub page: PageIndex,
    /// What the access wanted. A tracker that cannot tell reports `Write`.
    pub access: Access,
    /// Kernel thread id of the toucher, 0 if unknown.
    pub thread: u32,
}

/// Resolves CPU faults; called on tracker threads, several at a time if the tracker has several.
///
/// A tracker has one thread that reads faults and never waits, and others that may. So a fault that must wait (for a device,
/// for whoever holds the page) keeps no other fault waiting, which may be the one that it waits for.
pub trait FaultHandler: Send + Sync {
    /// Makes the access possible by calling [`Tracker::map`], or decides that it never will be. May wait.
    fn cpu_fault(&self, fault: CpuFault) -> FaultOutcome;

    /// As [`cpu_fault`](Self::cpu_fault), for the thread that reads faults: `None` if it would have to wait. Then
    /// nothing was decided, and the fault goes to `cpu_fault` on another thread.
    fn cpu_fault_at_once(&self, fault: CpuFault) -> Option<FaultOutcome> {
        let _ = fault;
        None
    }

    /// The program changed the app view by a system call of its own, which the tracker noticed. May wait.
    ///
    /// The call has been made, or is being made, when this is called; while it runs, touches of the pages wait.
    fn foreign_change(&self, change: ForeignChange) {
        let _ = change;
    }
}

/// A change of the app view that was not the tracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignChange {
    /// The pages are not in the app view any more, and what is mapped at their addresses is not ours (`munmap`, or `mmap` and
    /// `mremap` to there).
    Unmapped(PageRange),
    /// The pages' memory is now mapped elsewhere, where the program goes on using it untracked (`mremap`).
    Moved(PageRange),
}

/// What the handler did about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The page is mapped as the access needs: the thread retries.
    Resolved,
    /// The access is not allowed (no such mapping, or a read-only one): the thread gets a
    /// SIGSEGV or SIGBUS as it would from the kernel.
    Refused,
    /// Not now: the thread goes on waiting, and the handler is asked again after about this time. Meanwhile other faults are
    /// resolved.
    Later(Duration),
}

/// A tracker's operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {pages:?} of the heap's app view failed: {source}. {remedy}")]
pub struct TrackError {
    /// What was attempted.
    pub operation: &'static str,
    /// Where.
    pub pages: PageRange,
    /// What the kernel said.
    pub source: std::io::Error,
    /// What can be done about it.
    pub remedy: &'static str,
}

impl TrackError {
    fn new(operation: &'static str, pages: PageRange, source: impl Into<std::io::Error>, remedy: &'static str) -> Self {
        Self { operation, pages, source: source.into(), remedy }
    }
}

/// Which mechanism catches CPU accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackerKind {
    /// Linux userfaultfd: missing, write-protect and minor faults.
    Userfaultfd,
    /// mprotect and a SIGSEGV handler.
    Sigsegv,
}

impl std::fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Userfaultfd => "userfaultfd",
            Self::Sigsegv => "sigsegv",
        })
    }
}

impl std::str::FromStr for TrackerKind {
    type Err = UnknownTracker;

    /// Accepts `userfaultfd`, `uffd` and `sigsegv`.
    fn from_str(name: &str) -> Result<Self, UnknownTracker> {
        match name {
            "userfaultfd" | "uffd" => Ok(Self::Userfaultfd),
            "sigsegv" => Ok(Self::Sigsegv),
            _ => Err(UnknownTracker(name.into())),
        }
    }
}

/// No tracker has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no tracker is called `{0}`: say `userfaultfd` (or `uffd`) or `sigsegv`")]
pub struct UnknownTracker(String);

/// Catches CPU accesses to the app view. See the module's page for what each call guarantees.
///
/// All operations take spans of any length and cost one system call, or few, per call.
pub trait Tracker: Send + Sync {
    /// Which mechanism this is.
    fn kind(&self) -> TrackerKind;

    /// One line on how it works here: privileges, features, limits in force.
    fn describe(&self) -> String;

    /// Whether the kernel's own accesses, in system calls, wait for permission as the program's do. Where they fail instead, or where
    /// protection is coarse, pages that nobody asked for keep what they may.
    fn serves_system_calls(&self) -> bool {
        false
    }

    /// Starts delivering faults to `handler`. Called once, before the first [`Tracker::watch`].
    fn start(&self, handler: Arc<dyn FaultHandler>) -> Result<(), TrackError>;

    /// Begins to track `pages`; those already tracked are left as they are. What is mapped stays mapped.
    fn watch(&self, pages: PageRange) -> Result<(), TrackError>;

    /// Makes stores to `pages` fault.
    fn write_protect(&self, pages: PageRange) -> Result<(), TrackError>;

    /// Makes every access to `pages` fault.
    fn unmap(&self, pages: PageRange) -> Result<(), TrackError>;

    /// [`write_protect`](Tracker::write_protect) of several ascending runs.
    fn write_protect_all(&self, runs: &[PageRange]) -> Result<(), TrackError> {
        runs.iter().try_for_each(|&run| self.write_protect(run))
    }

    /// [`unmap`](Tracker::unmap) of several ascending runs.
    fn unmap_all(&self, runs: &[PageRange]) -> Result<(), TrackError> {
        runs.iter().try_for_each(|&run| self.unmap(run))
    }

    /// Makes `pages` accessible as `protection` says, no less and no more, populating those that have
    /// no memory yet with zeros (at once, or as they are touched). Pages already accessible as asked are
    /// left alone. A page whose [`unit`](Tracker::unit) is larger becomes accessible when every page
    /// of the unit has been mapped.
    ///
    /// From within a [`FaultHandler`] this is also fine while another thread calls [`Tracker::stop`].
    fn map(&self, pages: PageRange, protection: Protection) -> Result<(), TrackError>;

    /// The pages that share a unit of protection with `page`: usually the page alone, more where a
    /// tracker had to coarsen (the SIGSEGV tracker near the kernel's limit of mappings). A handler makes
    /// the whole span accessible at once: the unit allows what its strictest page allows. Units may grow
    /// at any time; the fault that then follows is reported with the larger unit.
    fn unit(&self, page: PageIndex) -> PageRange;

    /// Faults reported so far.
    fn faults(&self) -> u64;

    /// Stops delivering faults and joins the threads; makes every watched page accessible again, so
    /// that no thread is left waiting. Idempotent. No call may follow except from `Drop`.
    fn stop(&self);
}
