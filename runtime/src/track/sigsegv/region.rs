//! The static table of tracked regions, and the queues between signal handlers and handler threads.
//!
//! Everything that a signal handler reaches is static or on its own stack, so nothing can be freed under it, and all
//! of it is atomics and futexes: no lock, no allocation.
//!
//! Protocol. A region's `users` counts signal handlers inside; one counts itself in *before* it checks that the region
//! is open for its address (and is owned by this process), and out when done. `retire` waits for zero before the entry is reused.
//!
//! A fault is a node on the faulting thread's signal stack, pushed on a list. Who serves a list takes it whole,
//! so there is no ABA. The node is gone as soon as its answer is stored: from then on
//! only its address is used, for a futex wake that at worst wakes somebody for nothing.
//!
//! There are two lists, *posted* and *waiting*. One thread serves the first and never waits; a fault that would make it
//! wait it puts on the second, which the other threads serve.

use super::super::choose::TrackerOptions;
use super::super::process::ProcessId;
use crate::addr::{Access, PAGE_SIZE};
use rustix::thread::futex;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

/// Trackers that may live at once in a process.
pub(super) const MAX_REGIONS: usize = 64;
/// Handler threads of a region, the one that never waits included.
const MAX_THREADS: usize = TrackerOptions::MAX_HANDLER_THREADS + 1;
const SHORT: futex::Timespec = futex::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

static REGIONS: [Region; MAX_REGIONS] = [const { Region::new() }; MAX_REGIONS];

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const OPEN: u32 = 2;
const CLOSING: u32 = 3;

const PENDING: u32 = 0;
/// More than there will be threads on their way into the signal handler when a region retires.
const GRACE: u32 = 4096;

/// Where the next search for a free entry starts: the one retired longest ago is reused first.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// What becomes of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Answer {
    /// It is tried again.
    Retry = 1,
    /// It is not allowed: on to the previous handler.
    Refused = 2,
    /// It is tried again after a nap of the thread that wants it.
    Later = 3,
}

/// A fault in a list, on the stack of the thread that waits for the answer.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) address: usize,
    pub(super) access: Access,
    pub(super) thread: u32,
    next: *mut Posted,
    answer: AtomicU32,
}

/// One tracked app view.
pub(super) struct Region {
    state: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    owner: AtomicU64,
    /// Signal handlers inside.
    users: AtomicU32,
    /// Retries still granted to faults in a free region, which may be from when it was not.
    grace: AtomicU32,
    /// Faults that nobody has looked at yet.
    posted: Line,
    /// Faults whose resolution has to wait for something.
    waiting: Line,
    /// Kernel thread ids of the handler threads, 0 where there is none.
    threads: [AtomicU32; MAX_THREADS],
}

/// A list of faults, and those who sleep until there is one.
struct Line {
    /// Newest first.
    newest: AtomicPtr<Posted>,
    /// Counts posts; what handler threads sleep on.
    bell: AtomicU32,
    sleepers: AtomicU32,
}

impl Line {
    const fn new() -> Self {
        Self { newest: AtomicPtr::new(null_mut()), bell: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    /// Forgets everything, without answering.
    fn reset(&self) {
        self.newest.store(null_mut(), SeqCst);
        self.sleepers.store(0, SeqCst);
    }

    /// The faults there are, oldest first; null if there is none.
    fn take(&self) -> *mut Posted {
        in_order(self.newest.swap(null_mut(), SeqCst))
    }

    /// Adds a fault. Async-signal-safe.
    ///
    /// # Safety
    /// The node lives until it is answered, and stands in no list.
    unsafe fn push(&self, node: *mut Posted) {
        let mut head = self.newest.load(SeqCst);
        loop {
            // SAFETY: the node is not published yet, so this thread alone has it.
            unsafe { (*node).next = head };
            match self.newest.compare_exchange_weak(head, node, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Sleeps until something is posted or `state` is no longer open. No wake-up is lost: a post after `bell` was read changes
    /// it, one before it shows in the list; and who rings after `sleepers` was raised sees that.
    fn sleep(&self, state: &AtomicU32) {
        self.sleepers.fetch_add(1, SeqCst);
        let bell = self.bell.load(SeqCst);
        if self.newest.load(SeqCst).is_null() && state.load(SeqCst) == OPEN {
            // Returns early on a signal or a changed bell: the caller looks again.
            let _ = futex::wait(&self.bell, futex::Flags::PRIVATE, bell, None);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn ring(&self, state: &AtomicU32) {
        self.bell.fetch_add(1, SeqCst);
        // While closing, everybody must hear it: handler threads, and `retire`, which is no sleeper.
        let closing = state.load(SeqCst) != OPEN;
        if closing || self.sleepers.load(SeqCst) > 0 {
            let count = if closing { i32::MAX as u32 } else { 1 };
            let _ = futex::wake(&self.bell, futex::Flags::PRIVATE, count);
        }
    }

    fn answer_all(&self, answer: Answer) {
        let mut node = self.take();
        while !node.is_null() {
            // SAFETY: an unanswered node's thread waits in `post`, so the node is live.
            let next = unsafe { (*node).next };
            give(node, answer);
            node = next;
        }
    }
}

impl Region {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            owner: AtomicU64::new(0),
            users: AtomicU32::new(0),
            grace: AtomicU32::new(0),
            posted: Line::new(),
            waiting: Line::new(),
            threads: [const { AtomicU32::new(0) }; MAX_THREADS],
        }
    }

    /// Takes an entry for `addresses`; none if all are in use. Entries that a forked child inherited are free to it.
    pub(super) fn claim(addresses: Range<usize>, owner: ProcessId) -> Option<&'static Self> {
        let first = NEXT.fetch_add(1, SeqCst);
        let region = (0..MAX_REGIONS).map(|step| &REGIONS[(first + step) % MAX_REGIONS]).find(|region| {
            let state = region.state.load(SeqCst);
            let inherited = matches!(state, OPEN | CLOSING) && region.owner.load(SeqCst) != owner.0;
            (state == FREE || inherited) && region.state.compare_exchange(state, CLAIMED, SeqCst, SeqCst).is_ok()
        })?;
        // Only an inherited entry has leftovers; the threads that they speak of are not in this process.
        if region.owner.swap(owner.0, SeqCst) != owner.0 {
            region.users.store(0, SeqCst);
            region.posted.reset();
            region.waiting.reset();
        }
        region.threads.iter().for_each(|thread| thread.store(0, SeqCst));
        region.start.store(addresses.start, SeqCst);
        region.end.store(addresses.end, SeqCst);
        region.state.store(OPEN, SeqCst);
        Some(region)
    }

    /// Lets no more faults wait: signal handlers return to retry, handler threads end. Everything must be accessible before.
    pub(super) fn close(&self) {
        self.state.store(CLOSING, SeqCst);
        self.posted.ring(&self.state);
        self.waiting.ring(&self.state);
    }

    /// Frees the entry when the last signal handler has left it. The handler threads have ended.
    pub(super) fn retire(&self) {
        while self.users.load(SeqCst) != 0 {
            let bell = self.posted.bell.load(SeqCst);
            self.posted.answer_all(Answer::Retry);
            self.waiting.answer_all(Answer::Retry);
            // A handler that is between counting itself in and posting rings when it does; the timeout
            // covers the one that leaves without posting.
            let _ = futex::wait(&self.posted.bell, futex::Flags::PRIVATE, bell, Some(&SHORT));
        }
        self.grace.store(GRACE, SeqCst);
        self.state.store(FREE, SeqCst);
    }

    /// Runs on handler thread number `thread` until the region closes: answers faults with what `resolve` says. The first thread serves new
    /// faults; those that `resolve` says nothing about are left to the others. `resolve` also gets the other faults at hand on
    /// the same page, which share the answer if it is to retry (whoever then is not satisfied faults again).
    pub(super) fn serve(
        &self,
        thread: usize,
        resolve: impl Fn(&Posted, &mut dyn Iterator<Item = &Posted>) -> Option<Answer>,
    ) {
        if let Some(id) = self.threads.get(thread) {
            id.store(current_thread(), SeqCst);
        }
        let line = if thread == 0 { &self.posted } else { &self.waiting };
        while self.state.load(SeqCst) == OPEN {
            let list = line.take();
            if list.is_null() {
                line.sleep(&self.state);
            } else {
                self.serve_list(list, &resolve);
            }
        }
        if let Some(id) = self.threads.get(thread) {
            id.store(0, SeqCst);
        }
    }

    /// Answers each fault of a taken list, or puts it among those that wait.
    fn serve_list(
        &self,
        list: *mut Posted,
        resolve: &dyn Fn(&Posted, &mut dyn Iterator<Item = &Posted>) -> Option<Answer>,
    ) {
        let mut rest = list;
        while !rest.is_null() {
            // SAFETY: unanswered nodes are live, and this thread alone has the list. The references end before
            // any of the nodes is answered.
            let (answer, page, mut next) = unsafe {
                let fault = &*rest;
                let page = fault.address / PAGE_SIZE;
                let mut same_page = nodes(fault.next).filter(|other| other.address / PAGE_SIZE == page);
                (resolve(fault, &mut same_page), page, fault.next)
            };
            match answer {
                None => {
                    // SAFETY: it is live and no longer in this list.
                    unsafe { self.waiting.push(rest) };
                    self.waiting.ring(&self.state);
                }
                Some(answer) => {
                    give(rest, answer);
                    if answer == Answer::Retry {
                        next = answer_page(next, page);
                    }
                }
            }
            rest = next;
        }
    }

    /// Posts a fault and sleeps until it is answered. Async-signal-safe. The caller is counted in.
    fn post(&self, address: usize, access: Access, thread: u32) -> Answer {
        let mut node = Posted { address, access, thread, next: null_mut(), answer: AtomicU32::new(PENDING) };
        let node_pointer: *mut Posted = &raw mut node;
        // SAFETY: this frame waits below until the node is answered.
        unsafe { self.posted.push(node_pointer) };
        self.posted.ring(&self.state);
        // SAFETY: the node lives until this function returns; others only touch its atomic from now on, or read.
        let answer = unsafe { &(*node_pointer).answer };
        loop {
            match answer.load(SeqCst) {
                PENDING => {
                    // EAGAIN: answered meanwhile; EINTR cannot be, all signals are blocked: look again anyway.
                    let _ = futex::wait(answer, futex::Flags::PRIVATE, PENDING, None);
                }
                retry if retry == Answer::Retry as u32 => return Answer::Retry,
                later if later == Answer::Later as u32 => {
                    nap();
                    return Answer::Retry;
                }
                _ => return Answer::Refused,
            }
        }
    }

    /// Has a fault resolved if this region is in use and covers its address.
    fn visit(&'static self, address: usize, access: Access) -> Option<Answer> {
        // First without counting: the common case is that the address is somebody else's.
        if !self.covers(address) {
            return None;
        }
        let _visit = Visit::new(self);
        match self.state.load(SeqCst) {
            // Counted in before it was seen open, so `retire` will wait: the range read from here on is stable.
            OPEN if self.covers(address) => {
                let thread = current_thread();
                if self.threads.iter().any(|handler| handler.load(Relaxed) == thread) {
                    // A handler thread broke I1. It would wait for itself: better a crash that shows where.
                    return Some(Answer::Refused);
                }
                Some(self.post(address, access, thread))
            }
            CLOSING => Some(Answer::Retry),
            _ => None,
        }
    }

    fn covers(&self, address: usize) -> bool {
        (self.start.load(SeqCst)..self.end.load(SeqCst)).contains(&address)
            && self.owner.load(SeqCst) == ProcessId::current().0
    }

    /// Whether a fault at `address` may stem from before this region's retirement, its signal handler having been
    /// late. Each such answer is one retry, so a bounded number of them cannot hide a real fault.
    fn lingers_over(&self, address: usize) -> bool {
        self.covers(address)
            && self.state.load(SeqCst) == FREE
            && self.grace.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// A signal handler's stay in a region.
struct Visit(&'static Region);

impl Visit {
    fn new(region: &'static Region) -> Self {
        region.users.fetch_add(1, SeqCst);
        Self(region)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, SeqCst);
    }
}

/// Has a fault at `address` resolved if a region covers it; `None` if none does. Async-signal-safe.
pub(super) fn resolve_in_region(address: usize, access: Access) -> Option<Answer> {
    REGIONS
        .iter()
        .find_map(|region| region.visit(address, access))
        .or_else(|| REGIONS.iter().any(|region| region.lingers_over(address)).then_some(Answer::Retry))
}

fn current_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// Sleeps for a tenth of a millisecond, by a system call alone.
fn nap() {
    let never = AtomicU32::new(0);
    let _ = futex::wait(&never, futex::Flags::PRIVATE, 0, Some(&futex::Timespec { tv_sec: 0, tv_nsec: 100_000 }));
}

/// Reverses a list that was just taken, so that the oldest fault comes first.
fn in_order(mut newest: *mut Posted) -> *mut Posted {
    let mut oldest = null_mut();
    while !newest.is_null() {
        // SAFETY: the list was taken whole, so this thread alone has it; its nodes are live until answered.
        let rest = unsafe { std::mem::replace(&mut (*newest).next, oldest) };
        oldest = newest;
        newest = rest;
    }
    oldest
}

/// Sends everybody in the list who waits for `page` to retry; returns the list of the others.
fn answer_page(list: *mut Posted, page: usize) -> *mut Posted {
    let mut kept: *mut Posted = null_mut();
    let mut node = list;
    while !node.is_null() {
        // SAFETY: as in `serve_list`; a node is linked into the kept list instead of being answered.
        unsafe {
            let next = (*node).next;
            if (*node).address / PAGE_SIZE == page {
                give(node, Answer::Retry);
            } else {
                (*node).next = kept;
                kept = node;
            }
            node = next;
        }
    }
    in_order(kept)
}

/// The nodes of a list.
///
/// # Safety
/// All of them stay unanswered as long as the iterator and its items are used.
unsafe fn nodes<'a>(list: *mut Posted) -> impl Iterator<Item = &'a Posted> {
    // SAFETY: unanswered nodes are live, which the caller promised; `next` is null at the end.
    let first = unsafe { list.as_ref() };
    // SAFETY: as above.
    std::iter::successors(first, |node| unsafe { node.next.as_ref() })
}

/// Answers a fault and wakes its thread. The node may be gone when this returns.
fn give(node: *mut Posted, answer: Answer) {
    // SAFETY: the node is live until the store; afterwards only its address is used, as the kernel's key of a
    // futex. If other data is there by then, a wake changes none of it, and futex users expect spurious wakes.
    unsafe {
        let word: *const AtomicU32 = &raw const (*node).answer;
        (*word).store(answer as u32, SeqCst);
        libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    }
}
