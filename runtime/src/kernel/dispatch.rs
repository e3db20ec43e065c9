//! One dispatch: what it is told, its run, and what it left to do.

use super::arrays;
use super::error::LaunchError;
use super::execute::{BOUNCE_BYTES, Executor, Job, MAX_SLICE};
use super::worklist::WorkList;
use crate::addr::{PageIndex, VirtAddr};
use crate::device::Dispatch;
use crate::device::layout::{Control, LAUNCH_LISTED, LaunchBlock, area, variant};
use crate::observe::Counters;
use crate::service::GateGuard;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a dispatch should take at most; slices adapt to it.
const SLICE_TIME: Duration = Duration::from_millis(20);

/// Words of a map with a bit for each of `count` slots.
fn map_words(count: u32) -> usize {
    count.div_ceil(32) as usize
}

/// A dispatch, ready to run.
pub(super) struct Prepared {
    pub(super) push: Vec<u8>,
    pub(super) groups: [u32; 2],
}

/// What a pass left to do.
pub(super) struct Pass {
    pub(super) replay: Vec<u32>,
    /// A workgroup that was poisoned although it had stored.
    pub(super) late: Option<u32>,
    /// Straddling objects found no room for their copies.
    pub(super) bounce_full: bool,
}

impl Executor {
    /// Variant bits that hold for every dispatch of a job.
    pub(super) fn common_bits(&self, job: &Job) -> u32 {
        let count = if self.options.count_translations { variant::COUNT } else { 0 };
        let linear = if job.grid[1..] == [1, 1] { variant::LINEAR } else { 0 };
        count | linear
    }

    /// One dispatch of a list, with the gate closed. Drains the queue into `self.entries`.
    pub(super) fn dispatch(
        &mut self,
        job: &Job,
        list: &WorkList,
        bits: u32,
        gate: &GateGuard<'_>,
    ) -> Result<Pass, LaunchError> {
        let mut prepared = self.prepare(job, list, gate)?;
        let bits = bits | self.resolve_arrays(job, gate, &mut prepared);
        if bits & variant::FAST != 0 {
            Counters::add(&self.counters.fast_dispatches, 1);
            let whole = self.place_runs(job, gate, &mut prepared.push, bits);
            let pass = self.run_prepared(job, list, bits | whole, &prepared)?;
            if whole != 0 && !pass.replay.is_empty() {
                job.kernel.strays.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(pass);
        }
        self.run_prepared(job, list, bits, &prepared)
    }

    /// Fills the device addresses of arrays in; returns the variant that uses them, 0 if there are none.
    pub(super) fn resolve_arrays(&self, job: &Job, gate: &GateGuard<'_>, prepared: &mut Prepared) -> u32 {
        let arguments = &mut prepared.push[size_of::<LaunchBlock>()..];
        if !self.passes_arrays(job) {
            return 0;
        }
        let marked = self.parts.is_some() || !self.arrays_fit(job);
        arrays::resolve(&self.mirror, gate, &job.arrays, self.parts.as_deref(), marked, arguments)
    }

    /// Runs what was prepared, with the gate closed since.
    pub(super) fn run_prepared(
        &mut self,
        job: &Job,
        list: &WorkList,
        bits: u32,
        prepared: &Prepared,
    ) -> Result<Pass, LaunchError> {
        let bits = bits | self.common_bits(job);
        let dispatch = Dispatch { kernel: &job.kernel, variant: bits, push: &prepared.push, groups: prepared.groups };
        let time = match self.mirror.device().run(&dispatch) {
            Ok(time) => time,
            Err(error) => {
                // What it reported before it failed is nobody's: the pages must be able to be reported again.
                self.queue.drain(self.mirror.epochs().control(), &mut self.entries);
                let (views, entries) = (&self.space.home().views, self.entries.drain(..));
                self.service.abandon(entries.filter_map(|entry| views.page_of(VirtAddr(entry.address))));
                return Err(self.device_failed(job, error));
            }
        };
        let drained = self.queue.drain(self.mirror.epochs().control(), &mut self.entries);
        Counters::add(&self.counters.device_faults, u64::from(drained.entries));
        Counters::add(&self.counters.lost_faults, u64::from(drained.lost));
        self.missed |= drained.entries > 0;
        if drained.entries == 0 {
            self.adapt_slice(list.len(), time);
        }
        Ok(self.finish(list, bits, time))
    }

    /// A map with a bit for each slot, by its offset from the control block.
    fn map(&self, offset: usize) -> NonNull<u32> {
        // SAFETY: the offset is one of `area`, inside the control block's memory.
        unsafe { self.mirror.epochs().control().host().add(offset) }.cast()
    }

    /// Most workgroups of a dispatch side by side.
    pub(super) fn row(&self) -> u32 {
        self.mirror.device().info().dispatch[0].min(1 << 15)
    }

    /// Writes the work list and clears the maps and counters for a dispatch of `list`.
    pub(super) fn prepare(
        &mut self,
        job: &Job,
        list: &WorkList,
        gate: &GateGuard<'_>,
    ) -> Result<Prepared, LaunchError> {
        let count = list.len();
        let (table, pages) = self.mirror.table(gate).map_err(|error| self.device_failed(job, error))?;
        debug_assert!(pages.is_power_of_two(), "kernels mask page numbers");
        let mut block = LaunchBlock {
            control: self.mirror.epochs().control().address(),
            heap_base: self.space.home().views.addr_of(PageIndex(0)).0,
            table,
            pages,
            count,
            first: 0,
            flags: 0,
            grid_x: job.grid[0],
            grid_y: job.grid[1],
        };
        match list {
            WorkList::Span { first, .. } => block.first = *first,
            WorkList::Ids(ids) => {
                block.flags = LAUNCH_LISTED;
                // SAFETY: a list has at most MAX_SLICE ids, the memory's size; no dispatch is in flight.
                unsafe { self.list.host().cast::<u32>().as_ptr().copy_from_nonoverlapping(ids.as_ptr(), ids.len()) };
            }
        }
        for map in [area::REPLAY_MAP, area::STORED_MAP] {
            // SAFETY: the maps have a bit for each of MAX_SLICE slots; no dispatch is in flight.
            unsafe { self.map(map).write_bytes(0, map_words(count)) };
        }
        let epochs = self.mirror.epochs();
        epochs.word(offset_of!(Control, queue_head)).store(0, Ordering::Relaxed);
        epochs.word(offset_of!(Control, bounce_head)).store(0, Ordering::Relaxed);
        epochs.word(offset_of!(Control, grid_z)).store(job.grid[2], Ordering::Relaxed);
        let group_size = job.kernel.local_size.iter().product();
        epochs.word(offset_of!(Control, group_size)).store(group_size, Ordering::Relaxed);
        epochs.word(offset_of!(Control, kernel)).store(job.kernel.id, Ordering::Release);
        let mut push = bytemuck::bytes_of(&block).to_vec();
        push.extend_from_slice(&job.arguments);
        push.resize(job.kernel.push_bytes(), 0);
        let row = self.row();
        let groups = if count <= row { [count, 1] } else { [row, count.div_ceil(row)] };
        Ok(Prepared { push, groups })
    }

    /// Reads what a dispatch of `list` left: counters, and which workgroups must run again.
    pub(super) fn finish(&self, list: &WorkList, bits: u32, time: Duration) -> Pass {
        let epochs = self.mirror.epochs();
        Counters::add(&self.counters.dispatches, 1);
        Counters::add_time(&self.counters.kernel_nanos, time);
        let translations = epochs.word(offset_of!(Control, translations)).swap(0, Ordering::AcqRel);
        Counters::add(&self.counters.translations, u64::from(translations));
        let bounced = epochs.word(offset_of!(Control, bounce_head)).load(Ordering::Acquire);
        let mut pass = Pass { replay: Vec::new(), late: None, bounce_full: bounced > BOUNCE_BYTES };
        for word in 0..map_words(list.len()) {
            // SAFETY: in bounds as in `prepare`; the dispatch is done.
            let (replay, stored) =
                unsafe { (self.map(area::REPLAY_MAP).add(word).read(), self.map(area::STORED_MAP).add(word).read()) };
            if bits & variant::IDEMPOTENT == 0 && replay & stored != 0 {
                pass.late = Some(list.id(word as u32 * 32 + (replay & stored).trailing_zeros()));
            }
            let mut rest = replay;
            while rest != 0 {
                pass.replay.push(list.id(word as u32 * 32 + rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
        pass
    }

    /// Keeps dispatches without faults near the time a shootdown may wait.
    fn adapt_slice(&mut self, count: u32, time: Duration) {
        if time > SLICE_TIME {
            self.slice = (count / 2).max(64);
        } else if count == self.slice && time < SLICE_TIME / 4 {
            self.slice = (self.slice * 2).min(MAX_SLICE);
        }
    }
}
