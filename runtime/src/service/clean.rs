//! Cleaning: dirty pages are written home while kernels run, so that they can be evicted without a copy.
//!
//! A kernel that found its page dirty stores to it without telling anybody. So a page must not be taken for clean while anybody may store to what
//! is being copied:
//!
//! 1. page lock (tried), gate, update lock: the entry loses `WRITABLE`, and keeps `DIRTY`; shootdown. From here on nobody stores; who wants to
//!    faults, and waits for the page lock. The frame is held;
//! 2. gate and update lock are free again, kernels run. The frame is copied home. (In replay mode the gate stays closed if the host does not
//!    reach frames: the device's copy would wait for the dispatch in flight, and who needs the page for both.)
//! 3. update lock: if the entry is still dirty and not writable, nobody brought the page home meanwhile: it loses `DIRTY` and, after that, gets
//!    `WRITABLE` back. The frame is let go, the page unlocked. The next store sets `DIRTY`, as the first did.
//!
//! In between it counts among the invalidations that wait (`flying.rs`), so that those from outside, which take no page lock, wait for its end. And
//! the page is dirty for everybody: whoever takes it away all the same brings it home as ever, and its frame is free only once it is let go,
//! or what is put into it next would be copied to the wrong home. A copy that fails leaves the page as it was. The interleavings are searched
//! in `mm/state/search.rs`, where nobody waits for it.
//!
//! In replay mode a page loses `WRITABLE` between dispatches, when nothing is in flight, also not between a probe and its real pass; it is
//! copied beside the next. Cleaning takes no frame and evicts nothing. A page that a waiting workgroup needs (I7) is not chosen; one that is needed
//! just afterwards costs a fault, once, since each list is gone through once.

use super::batch::extend_runs;
use super::fault::Service;
use super::mirror::{CopyList, DeviceMirror};
use crate::addr::{FrameIndex, PAGE_SIZE, PageIndex, PageRange};
use crate::device::frame_of;
use crate::device::layout::pte;
use crate::mm::state::comes_home;
use crate::observe::Counters;
use crate::policy::Watermarks;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Pages cleaned together: whoever wants one of them waits for the copies of all.
const BATCH: usize = 64;

/// What cleaning goes through, kept between batches.
#[derive(Default)]
pub(super) struct Cleaning {
    /// Page, entry as it was, and frame.
    taken: Vec<(PageIndex, u64, FrameIndex)>,
    copies: CopyList,
    filled: CopyList,
    failed: Vec<PageIndex>,
}

/// Whether an entry is of a page that can be cleaned and was not used since accessed bits were collected.
fn may_be_cleaned(entry: u64) -> bool {
    const ALL: u64 = pte::VALID | pte::WRITABLE | pte::DIRTY | pte::ACCESSED | pte::ZERO | pte::HOME;
    entry & ALL == pte::VALID | pte::WRITABLE | pte::DIRTY
}

impl DeviceMirror {
    /// Cleans those of `pages` that can be and that nobody is changing. Waits for a dispatch in flight.
    pub(super) fn clean(&self, pages: &[PageIndex], cleaning: &mut Cleaning) {
        let Cleaning { taken, copies, filled, failed } = cleaning;
        taken.clear();
        copies.clear();
        failed.clear();
        let gate = self.gate.lock();
        let mut locked: Vec<_> =
            pages.iter().filter_map(|&page| Some((page, self.home.pages.try_lock(page)?))).collect();
        let mut state = self.lock();
        locked.retain(|&(page, _)| {
            let entry = state.table.load(page);
            let free = may_be_cleaned(entry) && !self.flying.overlaps(PageRange::single(page));
            let frame = free.then(|| state.frames.at(frame_of(entry))).flatten();
            if let Some(frame) = frame {
                taken.push((page, state.table.clear_flags(page, pte::WRITABLE), frame));
                state.frames.hold(frame);
            }
            frame.is_some()
        });
        if taken.is_empty() {
            return;
        }
        let mut runs: Vec<PageRange> = Vec::new();
        taken.iter().for_each(|&(page, ..)| extend_runs(&mut runs, page));
        let flight = self.flying.begin(runs.into_iter());
        self.outwait_kernels();
        taken.iter().for_each(|&(page, entry, _)| copies.add_home(self, &state, page, entry));
        // What the host cannot reach is copied by the device: where that is no copy beside kernels, it goes before the next dispatch, not behind it.
        let reached = self.device.host_frames(frame_of(taken[0].1), PAGE_SIZE).is_some();
        let _gate = (!reached && !self.epochs.running()).then_some(gate);
        drop(state);
        // SAFETY: the frames are held; nobody stores to them, since no entry is writable and no invocation uses one that was. The
        // pages are locked and in flight, so that nobody else takes them away, and the CPU has no access to them.
        unsafe {
            self.write_home(copies, filled, |pages, outcome| {
                if let Err(error) = outcome {
                    tracing::warn!(pages = pages.len(), "dirty pages stay so: {error}");
                    failed.extend(pages);
                }
            });
        }
        let mut state = self.lock();
        let mut cleaned = 0;
        for &(page, entry, frame) in taken.iter() {
            let now = state.table.load(page);
            let untouched = now & (pte::VALID | pte::WRITABLE | pte::DIRTY) == pte::VALID | pte::DIRTY
                && frame_of(now) == frame_of(entry);
            if untouched {
                if !failed.contains(&page) {
                    self.collect(page, state.table.clear_flags(page, pte::DIRTY) & pte::DIRTY);
                    cleaned += 1;
                }
                state.table.set_flags(page, pte::WRITABLE);
            }
            state.frames.let_go(frame);
        }
        drop(state);
        drop(flight);
        drop(locked);
        Counters::add(&self.counters.written_ahead, cleaned);
    }
}

impl Service {
    /// If frames are short and too few of them are ready to be taken without a copy, has dirty pages that would go next cleaned, while kernels go on.
    pub(super) fn write_ahead(&mut self) {
        let eviction = &self.eviction;
        let due = eviction.pressed && eviction.hand.is_none() && eviction.unlooked == 0;
        if !due || eviction.writer.as_ref().is_some_and(Writer::is_busy) {
            return;
        }
        let usage = self.mirror.frames();
        let (marks, free) = (Watermarks::of(usage.limit), usage.limit.saturating_sub(usage.used));
        // What was sent may have gone before the writer came to it, so it is counted again.
        if !eviction.sent && marks.to_clean(free + eviction.clean) == 0 {
            return;
        }
        let (mut found, mut dirty) = self.go_next(marks.high);
        if found < marks.high {
            self.fill_queue(0, PageRange::default());
            (found, dirty) = self.go_next(marks.high);
        }
        if self.live && found < marks.low {
            // As when pages are evicted.
            self.collect_uses();
            self.fill_queue(0, PageRange::default());
            (found, dirty) = self.go_next(marks.high);
        }
        let clean = found - dirty.len() as u32;
        dirty.truncate(marks.to_clean(free + clean) as usize);
        // What is sent is as good as clean.
        self.eviction.clean = clean + dirty.len() as u32;
        self.eviction.sent = !dirty.is_empty();
        if dirty.is_empty() {
            self.eviction.unlooked = if free + clean < marks.low { marks.high - marks.low } else { 0 };
            return;
        }
        if self.eviction.writer.is_none() {
            self.eviction.writer = Writer::start(self.mirror.clone());
        }
        if let Some(writer) = &self.eviction.writer {
            writer.clean(dirty);
        }
    }

    /// Looks again what is to be cleaned, if the writer has ended meanwhile: kernels may run long without asking for anything. Cheap if not.
    pub(crate) fn catch_up(&mut self) {
        if self.eviction.sent {
            self.write_ahead();
        }
    }

    /// How many of the next `pages` victims there are, and which of them are dirty.
    fn go_next(&self, pages: u32) -> (u32, Vec<PageIndex>) {
        let state = self.mirror.lock();
        let going = self.eviction.queue.pages().filter(|&page| self.may_go(&state, page, PageRange::default()));
        let mut next: Vec<PageIndex> = going.take(pages as usize).collect();
        let found = next.len() as u32;
        next.retain(|&page| comes_home(state.table.load(page)));
        (found, next)
    }
}

/// A thread that cleans pages of one device.
#[derive(Debug)]
pub(super) struct Writer {
    /// Gone when the thread is to end.
    lists: Option<Sender<Vec<PageIndex>>>,
    /// Lists that are not done.
    waiting: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts a writer; none if there is no thread to be had: then dirty pages are copied when they are evicted.
    pub(super) fn start(mirror: Arc<DeviceMirror>) -> Option<Self> {
        let (lists, work): (_, Receiver<Vec<PageIndex>>) = unbounded();
        let (waiting, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ends) = (waiting.clone(), stop.clone());
        let run = move || {
            let mut cleaning = Cleaning::default();
            for list in &work {
                for batch in list.chunks(BATCH).take_while(|_| !ends.load(Ordering::Acquire)) {
                    mirror.clean(batch, &mut cleaning);
                }
                count.fetch_sub(1, Ordering::AcqRel);
            }
        };
        let thread = std::thread::Builder::new().name("vksvm-writer".into()).spawn(run);
        let thread = thread.inspect_err(|error| tracing::warn!("no thread to clean pages: {error}")).ok()?;
        Some(Self { lists: Some(lists), waiting, stop, thread: Some(thread) })
    }

    /// Whether it has not done all it was given.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Has `pages` cleaned, in this order, as far as they still can be when their turn comes.
    pub(super) fn clean(&self, pages: Vec<PageIndex>) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if let Some(lists) = &self.lists {
            // The thread ends only when the sender is gone.
            let _ = lists.send(pages);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.lists = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported; nothing depends on it.
            let _ = thread.join();
        }
    }
}
