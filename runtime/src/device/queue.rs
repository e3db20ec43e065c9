//! The fault queue: a ring that kernels append to and the host drains after a dispatch.
//!
//! Kernels count `queue_head` up and write the entry if it has room. The head counts on when the ring is full;
//! the difference tells how many entries were lost. None of them loses work (I5): its workgroup is marked in the
//! replay map before the entry is written, and its pending bit is cleared again by the shader.

use super::layout::{Control, FaultEntry};
use super::{Device, DeviceError, SharedMemory, SharedUse};
use crate::addr::DeviceAddress;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, Ordering};

/// The fault queue's entries. The head lives in the control block.
pub struct FaultQueue {
    memory: Box<dyn SharedMemory>,
    capacity: u32,
}

/// What was drained.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Entries taken.
    pub entries: u32,
    /// Entries that found no room.
    pub lost: u32,
}

impl FaultQueue {
    /// A queue of `capacity` entries, at least one.
    pub fn new(device: &dyn Device, capacity: u32) -> Result<Self, DeviceError> {
        let capacity = capacity.max(1);
        let memory = device.shared_memory(capacity as usize * size_of::<FaultEntry>(), SharedUse::HostReads)?;
        Ok(Self { memory, capacity })
    }

    /// Entries it holds.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The entries' address on the device.
    pub fn address(&self) -> DeviceAddress {
        self.memory.address()
    }

    /// Appends the entries that kernels have finished writing to `into`, while they run. Kernels reserve places in order but finish
    /// in any; the first unfinished one ends the round. `tail` is the control block's count of drained entries.
    pub fn drain_live(&self, tail: &AtomicU32, into: &mut Vec<FaultEntry>) {
        let mut at = tail.load(Ordering::Relaxed);
        loop {
            // SAFETY: in bounds by the remainder; the ready word is accessed atomically by both sides.
            let entry = unsafe { self.memory.host().cast::<FaultEntry>().add((at % self.capacity) as usize) };
            // SAFETY: as above.
            let ready = unsafe { entry.cast::<u8>().add(offset_of!(FaultEntry, ready)).cast::<AtomicU32>().as_ref() };
            if ready.load(Ordering::Acquire) == 0 {
                return;
            }
            // SAFETY: ready says that its writer is done; nobody writes the place again before the tail has passed it.
            into.push(unsafe { entry.read() });
            ready.store(0, Ordering::Release);
            at = at.wrapping_add(1);
            tail.store(at, Ordering::Release);
        }
    }

    /// Appends all entries to `into` and empties the queue. No dispatch may be in flight.
    pub fn drain(&self, control: &dyn SharedMemory, into: &mut Vec<FaultEntry>) -> Drained {
        // SAFETY: the control block is at least `size_of::<Control>()` bytes, aligned, and accessed atomically here.
        let head = unsafe { control.host().add(offset_of!(Control, queue_head)).cast::<AtomicU32>().as_ref() };
        let appended = head.swap(0, Ordering::AcqRel);
        let entries = appended.min(self.capacity);
        // SAFETY: `entries` is within the capacity; no dispatch is in flight, so nobody writes; every byte pattern is
        // a valid FaultEntry.
        let slice =
            unsafe { std::slice::from_raw_parts(self.memory.host().cast::<FaultEntry>().as_ptr(), entries as usize) };
        into.extend_from_slice(slice);
        Drained { entries, lost: appended - entries }
    }
}
