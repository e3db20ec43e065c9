//! The handler threads' loop: read faults, have them resolved, wake the touchers.

use super::super::threads::resolve;
use super::super::{CpuFault, FaultHandler, FaultOutcome};
use super::Core;
use super::raw::{Message, Span};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange};
use bytemuck::Zeroable;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mm::MprotectFlags;
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::Ordering;

/// Faults read at once by a lone thread.
pub(super) const MAX_BATCH: usize = 64;
/// Faults read at once where several threads share the work: few, lest one thread hoard them.
pub(super) const SHARED_BATCH: usize = 4;

impl Core {
    /// Resolves faults until the tracker stops.
    pub(super) fn serve(&self, handler: &dyn FaultHandler, batch: usize) {
        let mut messages = [Message::zeroed(); MAX_BATCH];
        while !self.stopping.load(Ordering::Acquire) {
            match self.raw.read(&mut messages[..batch]) {
                Ok(messages) => self.serve_batch(handler, messages),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for_faults(),
                Err(error) => {
                    // Never seen; but if the kernel takes no more questions, touchers must not wait for ever.
                    tracing::error!(%error, "reading the userfaultfd failed: memory is no longer tracked");
                    self.release();
                }
            }
        }
    }

    fn wait_for_faults(&self) {
        let mut sources = [PollFd::new(&self.raw, PollFlags::IN), PollFd::new(&self.stop_event, PollFlags::IN)];
        // An error (EINTR, ENOMEM) leads to another read, which is harmless.
        let _ = poll(&mut sources, None);
    }

    fn serve_batch(&self, handler: &dyn FaultHandler, messages: &[Message]) {
        for (index, message) in messages.iter().enumerate() {
            let Some(address) = message.address() else { continue };
            // Whoever waits for the same page was woken with the first: all of these were read before that wake.
            let same_page = |other: &&Message| other.address() == Some(address);
            if messages[..index].iter().any(|other| same_page(&other)) {
                continue;
            }
            let access = messages[index..].iter().filter(same_page).map(Message::access).max().unwrap_or(Access::Write);
            if let Some(page) = self.views.app_page(address) {
                self.serve_fault(handler, CpuFault { page, access, thread: message.thread() });
            }
            // Fails only if the process is going away.
            let _ = self.raw.wake(Span { start: address, bytes: PAGE_SIZE });
        }
    }

    fn serve_fault(&self, handler: &dyn FaultHandler, fault: CpuFault) {
        let page = PageRange::single(fault.page);
        if self.has_gaps.load(Ordering::Acquire) {
            // Held until the page is mapped, so that nobody watches and unmaps it in between.
            let registry = self.registry.lock();
            if !registry.is_watched(page) {
                // Nobody watches this page, it lies in a gap. If it cannot be mapped (no memory), the
                // touch is retried, as often as it takes or until the kernel finds a victim.
                let _ = self.populate(page, super::Protection::ReadWrite);
                return;
            }
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        if resolve(handler, fault) == FaultOutcome::Refused {
            self.refuse(fault.page, fault.access);
        }
    }

    /// Makes the retried access a SIGSEGV: no access left after a refused load, no store after a refused store.
    fn refuse(&self, page: PageIndex, access: Access) {
        let allowed = match access {
            Access::Read => MprotectFlags::empty(),
            Access::Write => MprotectFlags::READ,
        };
        let mut refused = self.refused.lock();
        if self.stopping.load(Ordering::Acquire) {
            return;
        }
        // Entered first, so that it is undone even if only half of it worked.
        refused.insert(page);
        self.refused_count.store(refused.len(), Ordering::Release);
        if let Err(error) = self.protect_mapping(page, allowed) {
            tracing::error!(%error, %page, "refusing an access failed: the toucher retries");
        }
    }

    /// Takes refusals in `pages` back, so that the next access is reported again.
    pub(super) fn lift_refusals(&self, pages: PageRange) -> Result<(), Errno> {
        if self.refused_count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let mut refused = self.refused.lock();
        while let Some(&page) = refused.range(pages.start..pages.end).next() {
            self.protect_mapping(page, MprotectFlags::READ | MprotectFlags::WRITE)?;
            refused.remove(&page);
            self.refused_count.store(refused.len(), Ordering::Release);
        }
        Ok(())
    }

    fn protect_mapping(&self, page: PageIndex, allowed: MprotectFlags) -> Result<(), Errno> {
        let start = with_exposed_provenance_mut(self.views.app_address(page));
        // SAFETY: the page lies in the app view, whose protection is the tracker's to change; what the
        // kernel allows natively only bounds what userfaultfd allows.
        unsafe { rustix::mm::mprotect(start, PAGE_SIZE, allowed) }
    }
}
