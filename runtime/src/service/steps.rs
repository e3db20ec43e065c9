//! The steps of servicing a batch whose page locks are held: quiet the CPU side, plan, copy, commit (steps 2 to 5 of `fault.rs`).

use super::batch::{Part, Room, extend_runs};
use super::coalesce::PageFault;
use super::fault::{Service, ServiceError};
use super::mirror::MirrorState;
use crate::addr::{Access, DeviceAddress, FrameIndex, PageIndex, PageRange};
use crate::device::layout::pte;
use crate::device::{DeviceError, PageCopy};
use crate::hmm::{Blocking, Event, Invalidation, Range};
use crate::mm::pages::PageState;
use crate::mm::state::{Fill, Lose, Placement, Quiet, commit, fill, quiet};
use crate::mm::vma::Permission;
use crate::observe::Counters;
use crate::policy::Granule;
use std::panic::resume_unwind;
use std::time::Instant;

/// What a page of a batch needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It is mapped as asked.
    Nothing,
    /// The entry becomes writable where it stands.
    Upgrade,
    /// A frame is filled from home.
    Copy(FrameIndex),
    /// A frame is filled with zeros.
    Zero(FrameIndex),
    /// The shared zero frame.
    ZeroFrame,
    /// The home page itself, at this address.
    Home(DeviceAddress),
    /// No frame was left.
    Short,
    /// No frame was left that was not being changed by somebody else at the moment: the page is left to the next round.
    Busy,
}

/// What came of looking for a frame.
enum Taken {
    Frame(FrameIndex),
    Nothing,
    Busy,
}

/// Invalidations of other devices, to be kept until the entries are written.
pub(super) type Brackets<'r> = Vec<Invalidation<'r>>;

/// Copies from which on two threads share them, if they are not at work on different batches anyway.
const SHARED_COPIES: usize = 512;

/// Pages that begin to be watched together: 16 MiB.
const WATCH_PAGES: u32 = 4096;

/// What is watched along with `span`. Watching is a system call that splits and joins mappings of the kernel, and costs the pages around
/// nothing until they lose something: single pages all over a VMA must not pay for it one by one.
fn neighbourhood(span: PageRange, vma: PageRange) -> PageRange {
    let start = PageIndex(span.start.0 / WATCH_PAGES * WATCH_PAGES);
    let end = PageIndex(span.end.0.div_ceil(WATCH_PAGES).saturating_mul(WATCH_PAGES));
    PageRange::new(start.max(vma.start), end.min(vma.end))
}

/// What is write-protected along with `page`, for `pages` pages in all. Where threads run on other processors, as kernels do on devices that compute
/// on the CPU, each call that changes an entry interrupts them all, which costs ten times the call. The pages around, which the CPU
/// may be using, are not locked: it can only lose permission to store, which costs it a fault that gives it back.
fn widened(page: PageIndex, pages: u32, vma: PageRange) -> PageRange {
    PageRange::of_len(PageIndex(page.0 / pages * pages), pages).intersect(vma)
}

/// Adds `range` to ascending `runs`, the last of which it may follow or overlap.
fn cover(runs: &mut Vec<PageRange>, range: PageRange) {
    match runs.last_mut() {
        Some(run) if run.end >= range.start => run.end = run.end.max(range.end),
        _ => runs.push(range),
    }
}

impl Service {
    /// Steps 2 to 4. Nothing, with nothing left to undo, if frames are lacking and none are to be made free. To make `Room` is for single
    /// parts.
    pub(super) fn prepare<'r>(
        &mut self,
        parts: &[Part],
        faults: &[PageFault],
        range: &'r Range<'_>,
        room: Room,
    ) -> Result<Option<Brackets<'r>>, ServiceError> {
        self.want(parts, faults);
        self.place(parts);
        self.shed(parts);
        let brackets = self.quiet_cpu_side(parts, range)?;
        if !self.plan(parts, room)? {
            return Ok(None);
        }
        self.copy_in()?;
        Ok(Some(brackets))
    }

    /// Notes which access each page needs: holes are read.
    fn want(&mut self, parts: &[Part], faults: &[PageFault]) {
        self.access.clear();
        for part in parts {
            let base = self.access.len();
            self.access.resize(base + part.span.pages.len() as usize, None);
            for fault in &faults[part.span.faults.clone()] {
                self.access[base + (fault.page.0 - part.span.pages.start.0) as usize] = Some(fault.access);
            }
        }
    }

    /// Step 2: after this, neither the CPU nor another device changes the home pages.
    fn quiet_cpu_side<'r>(&mut self, parts: &[Part], range: &'r Range<'_>) -> Result<Brackets<'r>, ServiceError> {
        let Self { space, mirror, access, placements, lose_stores, lose_all, taking, live, guards, habit, .. } = self;
        let pages = &space.home().pages;
        let own = PageState::Device(mirror.number());
        let tracker = space.tracker();
        // What others are told, and of which pages: readers keep their copies unless somebody writes.
        let mut others: Vec<(Event, PageRange)> = Vec::new();
        let mut watched = PageRange::default();
        // Others would let the program see what the pages around have lost; see `widened`.
        let wide = *live && tracker.serves_system_calls();
        let mut index = 0;
        lose_stores.clear();
        lose_all.clear();
        for part in parts {
            let mut told: Option<(Event, PageRange)> = None;
            let mut loses = false;
            let mut width = None;
            for page in part.span.pages.iter() {
                let write = access[index] == Some(Access::Write);
                let state = pages.state(page);
                let Quiet { mut lose, others } = quiet(state, own, write, placements[index]);
                if habit.traps && placements[index] == Placement::Remote && state != PageState::Remote {
                    lose = Lose::All;
                }
                index += 1;
                if let Some(event) = others {
                    let (strongest, hull) = told.get_or_insert((event, PageRange::single(page)));
                    hull.end = page.plus(1);
                    if event == Event::Migrate {
                        *strongest = Event::Migrate;
                    }
                }
                // Most are protected already, along with one that was asked for before.
                let lose = if wide && lose == Lose::Stores && pages.is_guarded(page) { Lose::Nothing } else { lose };
                loses |= lose != Lose::Nothing;
                match lose {
                    Lose::Nothing => {}
                    Lose::Stores if wide && !space.thrash().is_contested(Granule::of(page)) => {
                        let width = width.get_or_insert_with(|| guards.width(part.vma.id.0, space.needless_guards()));
                        cover(lose_stores, widened(page, *width, part.vma.range));
                    }
                    Lose::Stores => cover(lose_stores, PageRange::single(page)),
                    Lose::All => extend_runs(lose_all, page),
                }
            }
            if loses && !watched.contains_range(part.span.pages) {
                watched = neighbourhood(part.span.pages, part.vma.range);
                tracker.watch(watched)?;
            }
            if *taking == Event::Exclusive {
                told = Some((Event::Exclusive, part.span.pages));
            }
            others.extend(told);
        }
        if wide && !lose_stores.is_empty() {
            space.guard(lose_stores)?;
        } else {
            tracker.write_protect_all(lose_stores)?;
        }
        tracker.unmap_all(lose_all)?;
        // This mirror's own callback is skipped, the other devices bring their data home.
        let bracket = |&(event, pages): &(Event, PageRange)| range.invalidate_others(pages, event, Blocking::Yes);
        let brackets: Result<Brackets<'r>, _> = others.iter().map(bracket).collect();
        brackets.map_err(|error| ServiceError::Range { pages: range.pages(), reason: error.to_string() })
    }

    /// Step 3: decides what each page needs and takes frames, under one hold of the update lock unless pages must be evicted. False,
    /// with nothing taken, if frames are lacking and none are to be made free.
    fn plan(&mut self, parts: &[Part], room: Room) -> Result<bool, ServiceError> {
        let home = self.space.home().clone();
        let mirror = self.mirror.clone();
        let own = PageState::Device(mirror.number());
        self.actions.clear();
        self.copies.clear();
        self.zeros.clear();
        self.contents.look(&home, parts);
        self.give_memory(parts)?;
        let mut state = mirror.lock();
        for part in parts {
            for page in part.span.pages.iter() {
                let index = self.actions.len();
                let has_data = self.contents.has(&home.pages, page);
                let access = self.access[index];
                let write = access == Some(Access::Write);
                let entry = state.table.load(page);
                let owned = home.pages.state(page) == own;
                let action = match fill(entry, owned, write, has_data, self.placements[index]) {
                    Fill::Nothing => Action::Nothing,
                    Fill::Upgrade => Action::Upgrade,
                    Fill::ZeroFrame => Action::ZeroFrame,
                    Fill::Home => match mirror.home_address(&mut state, page) {
                        Some(address) => Action::Home(address),
                        // It was there when the placement was chosen, and somebody forgot it: the page is left to the next round.
                        None => Action::Busy,
                    },
                    Fill::Frame => {
                        let placed = state.frames.place(mirror.device.as_ref(), part.vma.range, page);
                        let mut taken = placed.map(|frame| frame.map_or(Taken::Nothing, Taken::Frame));
                        if access.is_some() && matches!(taken, Ok(Taken::Nothing)) {
                            if room == Room::Find {
                                self.give_frames_back(&mut state);
                                return Ok(false);
                            }
                            // Evicting takes the update lock page by page.
                            drop(state);
                            taken = self.evict_for(part.vma.range, part.span.pages, page);
                            state = mirror.lock();
                        }
                        match taken {
                            Ok(Taken::Nothing) => Action::Short,
                            Ok(Taken::Busy) => Action::Busy,
                            Ok(Taken::Frame(frame)) => {
                                let address = state.frames.address(frame);
                                let list = if has_data { &mut self.copies } else { &mut self.zeros };
                                list.push(page, home.views.alias_ptr(page), address, &state.frames);
                                if has_data { Action::Copy(frame) } else { Action::Zero(frame) }
                            }
                            Err(error) => {
                                self.give_frames_back(&mut state);
                                return Err(error.into());
                            }
                        }
                    }
                };
                self.actions.push(action);
            }
        }
        Ok(true)
    }

    /// Undoes what planning took.
    pub(super) fn give_frames_back(&self, state: &mut MirrorState) {
        for action in &self.actions {
            if let Action::Copy(frame) | Action::Zero(frame) = action {
                state.frames.release(*frame);
            }
        }
    }

    /// A frame for `page` of `span`, whose page locks are held, from pages nobody waits for.
    fn evict_for(&mut self, vma: PageRange, span: PageRange, page: PageIndex) -> Result<Taken, DeviceError> {
        let first = (page.0 - span.start.0) as usize;
        let needed = self.access[first..].iter().flatten().count();
        let evicted = self.evict(needed, span);
        if evicted.pages > 0
            && let Some(frame) = self.mirror.lock().frames.place(self.mirror.device.as_ref(), vma, page)?
        {
            return Ok(Taken::Frame(frame));
        }
        let closing = self.mirror.lock().frames.is_closing();
        Ok(if evicted.busy || closing { Taken::Busy } else { Taken::Nothing })
    }

    /// Step 4.
    fn copy_in(&self) -> Result<(), ServiceError> {
        let start = Instant::now();
        let device = &self.mirror.device;
        let all = self.copies.copies.as_slice();
        let copy = |copies: &[PageCopy]| {
            // SAFETY: the alias is always readable; step 2 made the home pages quiet, the page locks keep them so. The frames were
            // just taken, so no kernel and no other copy uses them.
            unsafe { device.copy_in(copies) }
        };
        let copied = if all.len() >= SHARED_COPIES && self.helper.is_some() {
            let (own, other) = all.split_at(all.len() / 2);
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().name("vksvm-service".into());
                let helping = thread.spawn_scoped(scope, || copy(other));
                let own = copy(own);
                // Without the thread, this one does it all. A panic goes on here.
                let other = helping
                    .map_or_else(|_| copy(other), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                own.and(other)
            })
        } else {
            copy(all)
        };
        // SAFETY: as above.
        let result = copied.and_then(|()| unsafe { self.mirror.device.fill_zero(&self.zeros.copies) });
        Counters::add_time(&self.mirror.counters.copy_nanos, start.elapsed());
        if let Err(error) = result {
            self.give_frames_back(&mut self.mirror.lock());
            return Err(error.into());
        }
        Ok(())
    }

    /// Step 5: writes entries and states. Returns how many pages found no frame.
    pub(super) fn commit(&mut self, state: &mut MirrorState, parts: &[Part]) -> usize {
        let pages = &self.space.home().pages;
        let counters = &self.mirror.counters;
        let own = PageState::Device(self.mirror.number());
        let (mut short, mut faulted, mut filled, mut zero, mut remote) = (0, 0, 0, 0, 0);
        let mut index = 0;
        for part in parts {
            let last = part.ends.then_some(part.vma.range.end);
            let permitted = part.vma.permission() == Permission::ReadWrite;
            for page in part.span.pages.iter() {
                let (asked, mut action) = (self.access[index], self.actions[index]);
                // Other memory of its window may have been given back since the plan was made, and with it the window and the entries that led into
                // it. The next round finds the new one.
                let forgotten = match action {
                    Action::Home(address) => self.mirror.home_address(state, page) != Some(address),
                    Action::Upgrade | Action::Nothing => state.table.load(page) & pte::VALID == 0,
                    _ => false,
                };
                if forgotten {
                    action = Action::Busy;
                }
                let write = asked == Some(Access::Write);
                let (becomes, writable) = commit(pages.state(page), own, write, self.placements[index]);
                index += 1;
                let mut flags = pte::VALID;
                if writable && permitted {
                    flags |= pte::WRITABLE;
                }
                // No object may straddle the end of a mapping.
                if Some(page.plus(1)) == last {
                    flags |= pte::LAST;
                }
                match action {
                    Action::Short | Action::Busy => {
                        state.table.clear_flags(page, pte::PENDING);
                        short += usize::from(asked.is_some() && action == Action::Short);
                        // The CPU side was quieted, but no translation exists: its next touch finds the old state.
                        continue;
                    }
                    Action::Nothing => {
                        state.table.clear_flags(page, pte::PENDING);
                    }
                    Action::Upgrade => {
                        state.table.clear_flags(page, pte::PENDING);
                        state.table.set_flags(page, pte::WRITABLE);
                    }
                    Action::Copy(frame) | Action::Zero(frame) => {
                        // It may have been mapped to the zero frame, and read there. Live kernels may do so still, once each: an entry is replaced in one
                        // step, and the shader takes both words from one (`vksvm_live_entry_`).
                        self.mirror.collect(page, state.table.load(page));
                        state.table.store(page, state.frames.address(frame), flags);
                    }
                    Action::ZeroFrame => {
                        let zero_frame = self.mirror.zero_frame();
                        state.table.store(page, zero_frame, pte::ZERO | (flags & !pte::WRITABLE));
                        zero += 1;
                    }
                    Action::Home(address) => {
                        state.table.store(page, address, pte::HOME | flags);
                        remote += 1;
                    }
                }
                pages.settle(page, becomes, asked.is_some(), matches!(action, Action::Copy(_)));
                if asked.is_some() {
                    faulted += 1;
                    if self.tight || self.filling {
                        self.protected.insert(page);
                    }
                } else {
                    filled += 1;
                }
            }
        }
        Counters::add(&counters.pages_faulted, faulted);
        Counters::add(&counters.pages_filled, filled);
        Counters::add(&counters.pages_zero, zero);
        Counters::add(&counters.pages_remote, remote);
        Counters::add(&counters.pages_in, self.copies.pages.len() as u64);
        short
    }
}
