//! The tracker's threads: one reads faults and resolves those that need no waiting, the others do the rest.
//!
//! The reading thread never waits for anybody: neither for a lock that is held while a system call may wait for an event to be
//! read, nor for a device whose work may be a fault that is still to be read. So whatever it hands on may wait.

use super::super::threads::{resolve, resolve_at_once};
use super::super::{CpuFault, FaultHandler, FaultOutcome};
use super::Core;
use super::mail::Job;
use super::near::{self, Near};
use super::raw::{Fault, Message, Report, Span};
use crate::addr::{Access, PAGE_SIZE, PageIndex, PageRange};
use bytemuck::Zeroable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::MprotectFlags;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Messages read at once.
const MAX_BATCH: usize = 64;

impl Core {
    /// Reads faults until the tracker stops.
    pub(super) fn read_faults(&self, handler: &dyn FaultHandler) {
        let mut messages = [Message::zeroed(); MAX_BATCH];
        let mut near = Near::default();
        let mut slept = None;
        while !self.stopping.load(Ordering::Acquire) {
            for fault in self.mail.due() {
                self.serve_page(handler, fault, false);
            }
            match self.read(&mut messages) {
                Ok(messages) => {
                    self.serve_batch(handler, messages);
                    // After the answer: nobody waits for this.
                    if near.answered(slept.take())
                        && let Some(Report::Fault(fault)) = messages.first().map(Message::report)
                    {
                        near::move_to(fault.thread);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let asleep = Instant::now();
                    self.wait_for_messages();
                    slept = Some(asleep.elapsed());
                    for fault in self.mail.strays() {
                        self.serve_fault(handler, fault);
                    }
                }
                Err(error) => {
                    // Never seen; but if the kernel takes no more questions, touchers must not wait for ever.
                    tracing::error!(%error, "reading the userfaultfd failed: memory is no longer tracked");
                    self.release();
                }
            }
        }
    }

    fn wait_for_messages(&self) {
        let mut sources = [
            PollFd::new(&self.raw, PollFlags::IN),
            PollFd::from_borrowed_fd(self.mail.bell(), PollFlags::IN),
            PollFd::new(&self.stop_event, PollFlags::IN),
        ];
        let left = self.mail.next_due().map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        // An error (EINTR, ENOMEM) leads to another read, which is harmless.
        let _ = poll(&mut sources, left.as_ref());
    }

    fn serve_batch(&self, handler: &dyn FaultHandler, messages: &[Message]) {
        let fault = |message: &Message| match message.report() {
            Report::Fault(fault) => Some(fault),
            _ => None,
        };
        for (index, message) in messages.iter().enumerate() {
            let Some(first) = fault(message) else { continue };
            // Whoever waits for the same page is woken with the first: all of these were read before that wake.
            let same_page = |other: &Fault| other.address == first.address;
            if messages[..index].iter().filter_map(fault).any(|other| same_page(&other)) {
                continue;
            }
            let all = messages[index..].iter().filter_map(fault).filter(same_page);
            let access = all.map(|fault| fault.access).max().unwrap_or(first.access);
            self.serve_fault(handler, Fault { access, ..first });
        }
    }

    fn serve_fault(&self, handler: &dyn FaultHandler, fault: Fault) {
        let Fault { address, access, thread } = fault;
        let Some(page) = self.views.app_page(address).filter(|&page| !self.gone.has(page)) else {
            return self.serve_stranger(address);
        };
        // One question for all who wait for the page, or the answer to one would be undone for the next.
        let before = self.mail.withdraw(page).into_iter().map(|fault| fault.access).max();
        let access = before.map_or(access, |before| before.max(access));
        self.serve_page(handler, CpuFault { page, access, thread }, true);
    }

    /// A fault on a page of ours, for the first time or again.
    fn serve_page(&self, handler: &dyn FaultHandler, fault: CpuFault, first: bool) {
        let page = fault.page;
        if !first && self.gone.has(page) {
            return self.serve_stranger(self.views.app_address(page));
        }
        if self.has_gaps.load(Ordering::Acquire) {
            let page = PageRange::single(page);
            // Held until the page is mapped, so that nobody watches and unmaps it in between.
            let registry = self.registry.lock();
            if !registry.is_watched(page) {
                // Nobody watches this page, it lies in a gap. If it cannot be mapped (no memory), the
                // touch is retried, as often as it takes or until the kernel finds a victim.
                let _ = self.populate(page, super::Protection::ReadWrite);
                return self.wake(fault.page);
            }
        }
        self.faults.fetch_add(u64::from(first), Ordering::Relaxed);
        match resolve_at_once(handler, fault) {
            Some(outcome) => self.answer(fault, outcome),
            None => self.mail.post(Job::Fault(fault)),
        }
    }

    /// Does what may wait, until the tracker stops.
    pub(super) fn work(&self, handler: &dyn FaultHandler) {
        while let Some(job) = self.mail.next() {
            match job {
                Job::Fault(fault) => self.answer(fault, resolve(handler, fault)),
                Job::Change(change, moved_to) => {
                    if catch_unwind(AssertUnwindSafe(|| handler.foreign_change(change))).is_err() {
                        tracing::error!(?change, "a change of the app view by the program was not followed");
                    }
                    moved_to.into_iter().for_each(|span| self.let_go(span));
                }
                Job::LetGo(span) => self.let_go(span),
            }
        }
    }

    fn answer(&self, fault: CpuFault, outcome: FaultOutcome) {
        match outcome {
            FaultOutcome::Resolved => {}
            FaultOutcome::Refused => self.refuse(fault.page, fault.access),
            FaultOutcome::Later(time) => return self.mail.put_off(Instant::now() + time, fault),
        }
        self.wake(fault.page);
    }

    fn wake(&self, page: PageIndex) {
        // Fails only if the process is going away.
        let _ = self.raw.wake(Span { start: self.views.app_address(page), bytes: PAGE_SIZE });
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
        if self.gone.has(page) {
            return Ok(());
        }
        let start = with_exposed_provenance_mut(self.views.app_address(page));
        // SAFETY: the page lies in the app view, whose protection is the tracker's to change; what the
        // kernel allows natively only bounds what userfaultfd allows.
        unsafe { rustix::mm::mprotect(start, PAGE_SIZE, allowed) }
    }
}
