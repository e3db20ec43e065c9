//! What a kernel of the reference device sees: one invocation, and memory through translations.
//!
//! A transcription of `shaders/vksvm.glsl`, function by function and in the same order of atomics: the page table's flags,
//! pending bits and accessed/dirty bits, the fault queue, the replay and stored maps, the sinks and the variants mean the same.
//! Where this file and the shader differ, one of them is wrong. The one difference: an object that straddles two frames is
//! assembled in a local variable, so no bounce arena is needed.

use super::memory;
use super::run::Work;
use crate::addr::{DeviceAddress, PAGE_SHIFT, PAGE_SIZE};
use crate::device::layout::{Control, FaultEntry, LAUNCH_LISTED, area, fault_flags, pte, variant};
use bytemuck::Pod;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A kernel of the reference device: called once for every invocation.
///
/// Barriers do not exist: the invocations of a workgroup run one after the other on one thread.
pub type SoftFunction = dyn Fn(&mut SoftContext<'_>) + Send + Sync;

/// What a load asks of an entry to take the fast path.
const READ_WANT: u64 = pte::VALID | pte::ACCESSED;
/// What a store asks.
const WRITE_WANT: u64 = pte::VALID | pte::WRITABLE | pte::ACCESSED | pte::DIRTY;
/// Never set in an entry: added while stores must be looked at.
const NEVER: u64 = pte::NEVER;

/// One invocation of a kernel on the reference device.
pub struct SoftContext<'a> {
    work: &'a Work,
    slot: u32,
    workgroup: u32,
    workgroup_id: [u32; 3],
    local_id: [u32; 3],
    local_index: u32,
    poisoned: bool,
    write_want: u64,
}

impl<'a> SoftContext<'a> {
    /// `vksvm_begin`: nothing for a slot beyond the list. Gives the first invocation of the workgroup.
    pub(super) fn begin(work: &'a Work, slot: u32) -> Option<Self> {
        let launch = &work.launch;
        if slot >= launch.count {
            return None;
        }
        let mut workgroup = launch.first.wrapping_add(slot);
        if launch.flags & LAUNCH_LISTED != 0 {
            // SAFETY: the list has an id for each of `count` slots.
            workgroup = unsafe { memory::read(work.control.list.plus(4 * u64::from(slot))) };
        }
        let rows = workgroup / launch.grid_x;
        let workgroup_id = [workgroup - rows * launch.grid_x, rows % launch.grid_y, rows / launch.grid_y];
        let mut context = Self {
            work,
            slot,
            workgroup,
            workgroup_id,
            local_id: [0; 3],
            local_index: 0,
            poisoned: false,
            write_want: 0,
        };
        context.invocation(0);
        Some(context)
    }

    /// Becomes another invocation of the workgroup.
    pub(super) fn invocation(&mut self, index: u32) {
        let [x, y, _] = self.work.local_size;
        self.local_index = index;
        self.local_id = [index % x, index / x % y, index / x / y];
        self.poisoned = false;
        self.write_want = WRITE_WANT;
        if self.probing() || !self.idempotent() {
            self.write_want |= NEVER;
        }
    }

    /// The kernel's arguments: the structure that the launch pushed.
    ///
    /// # Panics
    /// If the structure is not as large as the kernel said when it was made.
    pub fn arguments<A: Pod>(&self) -> A {
        bytemuck::pod_read_unaligned(&self.work.arguments)
    }

    /// The workgroup's id in the launch's grid.
    pub fn workgroup_id(&self) -> [u32; 3] {
        self.workgroup_id
    }

    /// The invocation's id in its workgroup.
    pub fn local_id(&self) -> [u32; 3] {
        self.local_id
    }

    /// The invocation's id in the launch's grid.
    pub fn global_id(&self) -> [u32; 3] {
        std::array::from_fn(|axis| self.workgroup_id[axis] * self.work.local_size[axis] + self.local_id[axis])
    }

    /// Whether this invocation's work is void: a page was missing and the workgroup will run again. A loop that waits for memory
    /// to change must end when it is.
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// Loads the object at heap address `va`; all zeros if its page is missing. The object may straddle pages and may be
    /// unaligned; it is at most a page long.
    pub fn load<T: Pod>(&mut self, va: u64) -> T {
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        let size = object_bytes::<T>();
        match self.parts(va, size, reported_bytes::<T>(va), false) {
            // SAFETY: translations lead to live frames or sinks until the dispatch ends, and an object fits behind each.
            Parts::Whole(address) => unsafe { memory::load(address, bytes) },
            Parts::Split(first, second) => {
                let (head, tail) = bytes.split_at_mut(PAGE_SIZE - offset(va) as usize);
                // SAFETY: as above; each part lies in its page.
                unsafe {
                    memory::load(first, head);
                    memory::load(second, tail);
                }
            }
        }
        value
    }

    /// Stores an object at heap address `va`; vanishes if its page is missing, or if this invocation is poisoned. As
    /// [`load`](Self::load) otherwise.
    pub fn store<T: Pod>(&mut self, va: u64, value: T) {
        let bytes = bytemuck::bytes_of(&value);
        let size = object_bytes::<T>();
        match self.parts(va, size, reported_bytes::<T>(va), true) {
            // SAFETY: as in `load`.
            Parts::Whole(address) => unsafe { memory::store(address, bytes) },
            Parts::Split(first, second) => {
                let (head, tail) = bytes.split_at(PAGE_SIZE - offset(va) as usize);
                // SAFETY: as in `load`.
                unsafe {
                    memory::store(first, head);
                    memory::store(second, tail);
                }
            }
        }
    }

    /// `vksvm_atomic_add_u32`: adds and returns what was there. `va` is aligned to 4 bytes, as for all atomics of 32 bits.
    pub fn atomic_add(&mut self, va: u64, value: u32) -> u32 {
        self.atomic(va).fetch_add(value, Ordering::Relaxed)
    }

    /// `vksvm_atomic_min_u32`.
    pub fn atomic_min(&mut self, va: u64, value: u32) -> u32 {
        self.atomic(va).fetch_min(value, Ordering::Relaxed)
    }

    /// `vksvm_atomic_max_u32`.
    pub fn atomic_max(&mut self, va: u64, value: u32) -> u32 {
        self.atomic(va).fetch_max(value, Ordering::Relaxed)
    }

    /// `vksvm_atomic_or_u32`.
    pub fn atomic_or(&mut self, va: u64, value: u32) -> u32 {
        self.atomic(va).fetch_or(value, Ordering::Relaxed)
    }

    /// `vksvm_atomic_exchange_u32`.
    pub fn atomic_exchange(&mut self, va: u64, value: u32) -> u32 {
        self.atomic(va).swap(value, Ordering::Relaxed)
    }

    /// `vksvm_atomic_cas_u32`: stores `value` if `expected` is there; returns what was there.
    pub fn atomic_cas(&mut self, va: u64, expected: u32, value: u32) -> u32 {
        match self.atomic(va).compare_exchange(expected, value, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(old) | Err(old) => old,
        }
    }

    fn atomic(&mut self, va: u64) -> &'a AtomicU32 {
        let address = self.translate(va, 0, self.write_want, true);
        // SAFETY: as in `load`; the assertion in `word` checks the alignment, which page-aligned frames preserve.
        unsafe { memory::word(address) }
    }

    /// Device addresses of an object: `vksvm_read(p, bytes)` and `vksvm_begin_write(p, bytes)`.
    fn parts(&mut self, va: u64, size: u32, reported: u32, write: bool) -> Parts {
        if offset(va) + size > PAGE_SIZE as u32 {
            return self.straddle(va, size, write);
        }
        let want = if write { self.write_want } else { READ_WANT };
        Parts::Whole(self.translate(va, reported, want, write))
    }

    fn straddle(&mut self, va: u64, size: u32, write: bool) -> Parts {
        let want = if write { self.write_want } else { READ_WANT };
        let second_va = (va | (PAGE_SIZE as u64 - 1)).wrapping_add(1);
        if let Some(entry) = self.entry(va)
            && !self.poisoned
            && entry.load(Ordering::Relaxed) & pte::LAST != 0
        {
            if self.poison() {
                self.report(va, size, fault_flags::OVERRUN | if write { fault_flags::WRITE } else { 0 });
            }
            return Parts::Whole(self.sink(va, write));
        }
        let first = self.translate(va, size, want, write);
        let want = if write { self.write_want } else { READ_WANT };
        let second = self.translate(second_va, size - (PAGE_SIZE as u32 - offset(va)), want, write);
        if self.poisoned || (write && self.probing()) {
            return Parts::Whole(self.sink(va, write));
        }
        Parts::Split(first, second)
    }

    /// `vksvm_translate_`.
    fn translate(&mut self, va: u64, bytes: u32, want: u64, write: bool) -> DeviceAddress {
        if self.work.variant & variant::COUNT != 0 {
            self.control(offset_of!(Control, translations)).fetch_add(1, Ordering::Relaxed);
        }
        if let Some(entry) = self.entry(va) {
            let entry = entry.load(Ordering::Relaxed);
            if entry & want == want {
                return inside(entry, va);
            }
        }
        self.slow(va, bytes, write)
    }

    /// `vksvm_slow_`: everything but the plain hit.
    fn slow(&mut self, va: u64, bytes: u32, write: bool) -> DeviceAddress {
        let flags =
            if write { fault_flags::WRITE } else { 0 } | if self.poisoned { fault_flags::SPECULATIVE } else { 0 };
        let Some(table_entry) = self.entry(va) else {
            if !self.poisoned && self.poison() {
                self.report(va, bytes, flags | fault_flags::OUTSIDE);
            }
            return self.sink(va, write);
        };
        let entry = table_entry.load(Ordering::Relaxed);
        let need = if write { pte::VALID | pte::WRITABLE } else { pte::VALID };
        if entry & need == need {
            if write && !self.may_store() {
                return self.sink(va, true);
            }
            let set = if write { pte::ACCESSED | pte::DIRTY } else { pte::ACCESSED };
            if entry & set != set {
                table_entry.fetch_or(set, Ordering::Relaxed);
            }
            return inside(entry, va);
        }
        self.poison();
        let pending = if write { pte::PENDING_WRITE } else { pte::PENDING_READ };
        let old = table_entry.fetch_or(pending, Ordering::Relaxed);
        if old & pte::PENDING == 0 && !self.report(va, bytes, flags) {
            table_entry.fetch_and(!pte::PENDING, Ordering::Relaxed);
        }
        self.sink(va, write)
    }

    /// Whether a store may go to memory; puts the workgroup's first one on record.
    fn may_store(&mut self) -> bool {
        if self.poisoned || self.probing() {
            return false;
        }
        if !self.idempotent() && self.write_want & NEVER != 0 {
            // On record first, then look whether a neighbour was poisoned: one of the two sees the other.
            let bit = 1 << (self.slot & 31);
            self.map_word(area::STORED_MAP).fetch_or(bit, Ordering::SeqCst);
            if self.map_word(area::REPLAY_MAP).fetch_or(0, Ordering::SeqCst) & bit != 0 {
                self.poison();
                return false;
            }
            self.write_want &= !NEVER;
        }
        true
    }

    /// `vksvm_poison_`: true for the workgroup's first.
    fn poison(&mut self) -> bool {
        self.poisoned = true;
        self.write_want |= NEVER;
        let bit = 1 << (self.slot & 31);
        self.map_word(area::REPLAY_MAP).fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// `vksvm_report_`: false if the queue is full.
    fn report(&self, va: u64, bytes: u32, mut flags: u32) -> bool {
        let control = &self.work.control;
        let index = self.control(offset_of!(Control, queue_head)).fetch_add(1, Ordering::Relaxed);
        if index >= control.queue_capacity {
            return false;
        }
        if !self.probing() && !self.idempotent() {
            let stored = self.map_word(area::STORED_MAP).load(Ordering::SeqCst);
            if stored >> (self.slot & 31) & 1 != 0 {
                flags |= fault_flags::AFTER_STORE;
            }
        }
        let fault = FaultEntry {
            address: va,
            bytes,
            flags,
            kernel: control.kernel,
            workgroup: self.workgroup,
            invocation: self.local_index,
            ready: 0,
        };
        let at = control.queue.plus(u64::from(index) * size_of::<FaultEntry>() as u64);
        // SAFETY: the queue has `queue_capacity` entries, and the index is this invocation's alone.
        unsafe { memory::store(at, bytemuck::bytes_of(&fault)) };
        true
    }

    /// `vksvm_sink_`.
    fn sink(&self, va: u64, write: bool) -> DeviceAddress {
        let sink = if write { area::SINK } else { area::ZEROS };
        self.work.launch.control.plus(sink as u64 + u64::from(offset(va)))
    }

    fn probing(&self) -> bool {
        self.work.variant & variant::PROBE != 0
    }

    fn idempotent(&self) -> bool {
        self.work.variant & variant::IDEMPOTENT != 0
    }

    /// The page table's entry for an address; nothing outside the heap.
    fn entry(&self, va: u64) -> Option<&'a AtomicU64> {
        let launch = &self.work.launch;
        let page = va.wrapping_sub(launch.heap_base) >> PAGE_SHIFT;
        // SAFETY: the table has `pages` entries of 8 bytes and stays while the dispatch runs.
        (page < u64::from(launch.pages)).then(|| unsafe { memory::double_word(launch.table.plus(8 * page)) })
    }

    /// The word of a map (replay, stored) that holds this slot's bit.
    fn map_word(&self, map: usize) -> &'a AtomicU32 {
        let at = self.work.launch.control.plus(map as u64 + 4 * u64::from(self.slot >> 5));
        // SAFETY: the maps have a bit for every slot of a dispatch and stay while it runs.
        unsafe { memory::word(at) }
    }

    /// A counter of the control block.
    fn control(&self, member: usize) -> &'a AtomicU32 {
        // SAFETY: a 32-bit member of the control block, which stays while the dispatch runs.
        unsafe { memory::word(self.work.launch.control.plus(member as u64)) }
    }
}

/// Where an object lies on the device.
enum Parts {
    Whole(DeviceAddress),
    /// In two frames.
    Split(DeviceAddress, DeviceAddress),
}

fn offset(va: u64) -> u32 {
    va as u32 & (PAGE_SIZE as u32 - 1)
}

fn inside(entry: u64, va: u64) -> DeviceAddress {
    DeviceAddress((entry & !pte::FLAGS) | (va & pte::FLAGS))
}

fn object_bytes<T>() -> u32 {
    assert!(size_of::<T>() <= PAGE_SIZE, "objects are at most a page long");
    size_of::<T>() as u32
}

/// What a fault on the object says: 0 for an aligned scalar or vector.
fn reported_bytes<T>(va: u64) -> u32 {
    let size = size_of::<T>();
    if size <= 16 && va.is_multiple_of(align_of::<T>() as u64) { 0 } else { size as u32 }
}
