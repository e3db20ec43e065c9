//! The safety net: what the program does to the app view by system calls of its own.
//!
//! Linux tells a userfaultfd of `munmap` and `mremap` on registered memory (events UNMAP and REMAP), after the fact, and the caller
//! waits until somebody has read it. While an event is unread the calls that change protections fail with `EAGAIN`. Two rules keep
//! that from being a deadlock:
//!
//! - the thread that reads never waits for anybody (`serve.rs`);
//! - whoever gets `EAGAIN` reads too. Events it notes itself; faults it hands to the reading thread.
//!
//! Noting an event marks its pages as *gone*, before anything else is done about it: from then on no operation of the tracker reaches them, since what
//! is at their addresses is somebody else's. Telling the handler, which takes the pages away from devices, is a job for a
//! thread that may wait.
//!
//! Memory that was moved keeps its registration, under the new address. It is let go of when the handler has
//! brought home what devices wrote; touches wait until then.
//!
//! What is not covered: between the program's call and the reading of its event, something else may be mapped at those addresses, and a drop of
//! entries there (`MADV_DONTNEED`) would empty it if it is private memory. It takes another thread that maps exactly there, and
//! a device that asks for exactly those pages, both within microseconds. And REMOVE events are not asked for, see ARCHITECTURE.md.

use super::super::runs::RunMap;
use super::Core;
use super::mail::Job;
use super::raw::{Message, Report, Span};
use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::track::ForeignChange;
use bytemuck::Zeroable;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Messages read at once by a thread that is after events.
const FEW: usize = 8;
/// How often an operation that failed looks whether an event explains it. The event is noted an instant after its caller was freed.
const LOOKS: usize = 8;
/// How long `stop` looks for calls that still wait for their event to be read.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Pages that are not in the app view any more.
pub(super) struct Gone {
    /// Set once there are any, so that nobody locks before.
    any: AtomicBool,
    pages: Mutex<RunMap<bool>>,
    /// Events noted so far.
    changes: AtomicU64,
    /// Where memory was moved to that is still registered.
    moved: Mutex<Vec<Span>>,
    /// Held while the descriptor is read and what was read is noted: events are noted in their order. A leaf.
    reading: Mutex<()>,
}

impl Gone {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            any: AtomicBool::new(false),
            pages: Mutex::new(RunMap::new(pages, false)),
            changes: AtomicU64::new(0),
            moved: Mutex::default(),
            reading: Mutex::default(),
        }
    }

    /// Whether `page` is gone.
    pub(super) fn has(&self, page: PageIndex) -> bool {
        self.any.load(Ordering::Acquire) && self.pages.lock().run(page).1
    }

    /// The parts of `pages` that are still there.
    pub(super) fn rest_of(&self, pages: PageRange) -> Vec<PageRange> {
        if !self.any.load(Ordering::Acquire) {
            return vec![pages];
        }
        self.pages.lock().iter(pages).filter(|&(_, gone)| !gone).map(|(run, _)| run).collect()
    }

    fn add(&self, pages: PageRange) {
        self.pages.lock().set(pages, true);
        self.any.store(true, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Core {
    /// Does `act` for the parts of `pages` that are still there; anew, if it fails because some no longer are.
    pub(super) fn on_present(
        &self,
        pages: PageRange,
        mut act: impl FnMut(PageRange) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        loop {
            let before = self.gone.changes.load(Ordering::Acquire);
            let done = if self.gone.any.load(Ordering::Acquire) {
                self.gone.rest_of(pages).into_iter().try_for_each(&mut act)
            } else {
                act(pages)
            };
            match done {
                Err(_) if self.has_changed_since(before) => {}
                done => return done,
            }
        }
    }

    fn has_changed_since(&self, before: u64) -> bool {
        (0..LOOKS).any(|_| {
            self.read_events();
            let changed = self.gone.changes.load(Ordering::Acquire) != before;
            if !changed {
                std::thread::yield_now();
            }
            changed
        })
    }

    /// Reads events so that their callers can go on, and with them whoever was told `EAGAIN`. For any thread, whatever it holds.
    pub(super) fn read_events(&self) {
        let mut messages = [Message::zeroed(); FEW];
        while let Ok(messages) = self.read(&mut messages) {
            for message in messages {
                if let Report::Fault(fault) = message.report() {
                    self.mail.hand_over(fault);
                }
            }
        }
    }

    /// Reads what there is and notes the events in it: their callers are free now, so nobody may act on those pages any more.
    pub(super) fn read<'a>(&self, messages: &'a mut [Message]) -> Result<&'a [Message], Errno> {
        let _in_order = self.gone.reading.lock();
        let messages = self.raw.read(messages)?;
        messages.iter().for_each(|message| self.note(message.report()));
        Ok(messages)
    }

    /// Takes note of an event; the rest is done later.
    fn note(&self, event: Report) {
        match event {
            Report::Unmapped(span) => {
                // What was moved is reported as unmapped too, afterwards: its memory lives on.
                let pages = self.pages_in(span);
                for pages in pages.map(|pages| self.gone.rest_of(pages)).unwrap_or_default() {
                    self.gone.add(pages);
                    self.mail.post(Job::Change(ForeignChange::Unmapped(pages), None));
                }
            }
            Report::Moved { from, to } => {
                let to = Span { start: to, bytes: from.bytes };
                self.gone.moved.lock().push(to);
                let job = match self.pages_in(from) {
                    Some(pages) => {
                        self.gone.add(pages);
                        Job::Change(ForeignChange::Moved(pages), Some(to))
                    }
                    None => Job::LetGo(to),
                };
                self.mail.post(job);
            }
            Report::Fault(_) | Report::Other => {}
        }
    }

    /// The pages of the app view in `span`, if any.
    fn pages_in(&self, span: Span) -> Option<PageRange> {
        let (first, end) = (self.views.app, self.views.app + self.views.all().bytes());
        let (from, to) = (span.start.max(first), (span.start + span.bytes).min(end));
        let page = |address: usize| PageIndex(((address - first) / PAGE_SIZE) as u32);
        (from < to).then(|| PageRange::new(page(from), page(to)))
    }

    /// A fault in registered memory that is not in the app view: it was moved there.
    pub(super) fn serve_stranger(&self, address: usize) {
        let page = Span { start: address, bytes: PAGE_SIZE };
        let holds = |span: &Span| (span.start..span.start + span.bytes).contains(&address);
        // One that was just moved waits until it is let go of. Others: what a call made larger while moving it.
        if !self.gone.moved.lock().iter().any(holds) {
            self.unregister(page);
            let _ = self.raw.wake(page);
        }
    }

    /// Moved memory is the program's alone from now on; who waits there goes on.
    pub(super) fn let_go(&self, span: Span) {
        self.unregister(span);
        self.gone.moved.lock().retain(|other| (other.start, other.bytes) != (span.start, span.bytes));
        let _ = self.raw.wake(span);
    }

    /// Ends the registration of what of `span` is registered; other mappings may be in between.
    fn unregister(&self, span: Span) {
        if self.raw.unregister(span).is_err() && span.bytes > PAGE_SIZE {
            let half = (span.bytes / 2).next_multiple_of(PAGE_SIZE);
            self.unregister(Span { start: span.start, bytes: half });
            self.unregister(Span { start: span.start + half, bytes: span.bytes - half });
        }
    }

    /// Nothing is registered any more, nobody reads any more: lets those calls return that began before.
    pub(super) fn read_last_events(&self) {
        let until = Instant::now() + LAST_CALLS;
        let first = self.span(PageRange::single(PageIndex(0)));
        loop {
            self.read_events();
            // Fails either way: because events are to come, or because nothing is registered.
            if self.raw.write_protect(first, false) != Err(Errno::AGAIN) || Instant::now() > until {
                return;
            }
            std::thread::yield_now();
        }
    }
}
