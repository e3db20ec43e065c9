//! What kernels and the runtime agree on, byte by byte.
//!
//! The numbers live in one place, `shaders/vksvm_layout.glsl`. Kernels include it; this module reads it at
//! compile time and checks the Rust structures against it, so that neither side can drift alone: the GLSL
//! side declares every member with `layout(offset = …)` from the same numbers.

use crate::addr::DeviceAddress;
use bytemuck::{Pod, Zeroable};
use std::mem::{offset_of, size_of};

/// The include that kernels use, `vksvm.glsl`.
pub const GLSL_INCLUDE: &str = include_str!("../../../shaders/vksvm.glsl");
/// The layouts that [`GLSL_INCLUDE`] includes in turn, `vksvm_layout.glsl`.
pub const GLSL_LAYOUT: &str = include_str!("../../../shaders/vksvm_layout.glsl");

/// The value of `#define NAME value` in the layout file. Fails the build if there is none.
const fn define(name: &str) -> u32 {
    let text = GLSL_LAYOUT.as_bytes();
    let key = b"#define ";
    let name = name.as_bytes();
    let mut line = 0;
    while line < text.len() {
        let mut at = line;
        let mut matches = true;
        let mut i = 0;
        while i < key.len() + name.len() {
            let want = if i < key.len() { key[i] } else { name[i - key.len()] };
            if at >= text.len() || text[at] != want {
                matches = false;
                break;
            }
            at += 1;
            i += 1;
        }
        if matches && at < text.len() && text[at] == b' ' {
            at += 1;
            let mut value = 0u32;
            let mut digits = 0;
            while at < text.len() && text[at] >= b'0' && text[at] <= b'9' {
                value = value * 10 + (text[at] - b'0') as u32;
                digits += 1;
                at += 1;
            }
            assert!(digits > 0, "a layout constant is not a plain decimal");
            return value;
        }
        while line < text.len() && text[line] != b'\n' {
            line += 1;
        }
        line += 1;
    }
    panic!("a layout constant is missing from vksvm_layout.glsl");
}

/// Flags of a page table entry; see the layout file for their meaning.
pub mod pte {
    use super::define;
    /// The entry translates.
    pub const VALID: u64 = define("VKSVM_PTE_VALID") as u64;
    /// Stores are allowed.
    pub const WRITABLE: u64 = define("VKSVM_PTE_WRITABLE") as u64;
    /// A kernel used the entry.
    pub const ACCESSED: u64 = define("VKSVM_PTE_ACCESSED") as u64;
    /// A kernel stored through the entry.
    pub const DIRTY: u64 = define("VKSVM_PTE_DIRTY") as u64;
    /// A kernel waits for the page to be readable.
    pub const PENDING_READ: u64 = define("VKSVM_PTE_PENDING_READ") as u64;
    /// A kernel waits for the page to be writable.
    pub const PENDING_WRITE: u64 = define("VKSVM_PTE_PENDING_WRITE") as u64;
    /// Either pending bit.
    pub const PENDING: u64 = PENDING_READ | PENDING_WRITE;
    /// The frame is the shared zero frame.
    pub const ZERO: u64 = define("VKSVM_PTE_ZERO") as u64;
    /// The frame is the home page itself.
    pub const HOME: u64 = define("VKSVM_PTE_HOME") as u64;
    /// The page is the last of its VMA.
    pub const LAST: u64 = define("VKSVM_PTE_LAST") as u64;
    /// Never set in an entry; see the layout file.
    pub const NEVER: u64 = define("VKSVM_PTE_NEVER") as u64;
    /// All flag bits.
    pub const FLAGS: u64 = define("VKSVM_PTE_FLAGS") as u64;
}

/// Flags of a fault queue entry; see the layout file for their meaning.
pub mod fault_flags {
    use super::define;
    /// The access was a store or an atomic.
    pub const WRITE: u32 = define("VKSVM_FAULT_WRITE");
    /// The invocation was poisoned before: a hint, never fatal.
    pub const SPECULATIVE: u32 = define("VKSVM_FAULT_SPECULATIVE");
    /// The object runs past the end of its VMA.
    pub const OVERRUN: u32 = define("VKSVM_FAULT_OVERRUN");
    /// The workgroup may have stored before.
    pub const AFTER_STORE: u32 = define("VKSVM_FAULT_AFTER_STORE");
    /// The address lies outside the heap.
    pub const OUTSIDE: u32 = define("VKSVM_FAULT_OUTSIDE");
    /// Above this bit: which of a rewritten kernel's accesses it was, from 1 on.
    pub const SITE_SHIFT: u32 = define("VKSVM_FAULT_SITE_SHIFT");
}

/// Bits of the specialisation constant that selects a kernel's variant.
pub mod variant {
    use super::define;
    /// Id of the specialisation constant.
    pub const CONSTANT_ID: u32 = define("VKSVM_SPEC_VARIANT");
    /// Stores go to the sink.
    pub const PROBE: u32 = define("VKSVM_VARIANT_PROBE");
    /// Stores are not recorded.
    pub const IDEMPOTENT: u32 = define("VKSVM_VARIANT_IDEMPOTENT");
    /// Translations are counted.
    pub const COUNT: u32 = define("VKSVM_VARIANT_COUNT");
    /// The grid has one dimension.
    pub const LINEAR: u32 = define("VKSVM_VARIANT_LINEAR");
    /// Array arguments carry device addresses.
    pub const ARRAYS: u32 = define("VKSVM_VARIANT_ARRAYS");
    /// Array arguments carry device addresses, each for a part of the array.
    pub const BOUNDS: u32 = define("VKSVM_VARIANT_BOUNDS");
    /// Missing pages are waited for inside the kernel.
    pub const LIVE: u32 = define("VKSVM_VARIANT_LIVE");
    /// Misses are not reported: for dispatches in which all is expected to be there.
    pub const FAST: u32 = define("VKSVM_VARIANT_FAST");
    /// Addresses are translated by adding a constant, and nothing is checked.
    pub const DIRECT: u32 = define("VKSVM_VARIANT_DIRECT");
    /// With [`FAST`] and [`IDEMPOTENT`]: every run is all of what its argument points to.
    pub const WHOLE: u32 = define("VKSVM_VARIANT_WHOLE");
    /// Workgroups move over as one.
    pub const LOCKSTEP: u32 = define("VKSVM_VARIANT_LOCKSTEP");
}

/// Launch flag: workgroup ids come from the work list.
pub const LAUNCH_LISTED: u32 = define("VKSVM_LAUNCH_LISTED");
/// What lies behind the control block, by its offset from it.
pub mod area {
    use super::define;
    /// [`SINK_BYTES`](super::SINK_BYTES) zeros.
    pub const ZEROS: usize = define("VKSVM_CONTROL_ZEROS") as usize;
    /// [`SINK_BYTES`](super::SINK_BYTES) that nobody reads.
    pub const SINK: usize = define("VKSVM_CONTROL_SINK") as usize;
    /// One bit a slot: the workgroup must run again.
    pub const REPLAY_MAP: usize = define("VKSVM_CONTROL_REPLAY_MAP") as usize;
    /// One bit a slot: the workgroup stored to real memory.
    pub const STORED_MAP: usize = define("VKSVM_CONTROL_STORED_MAP") as usize;
    /// Bytes of the control block and all behind it.
    pub const BYTES: usize = define("VKSVM_CONTROL_AREA") as usize;
    /// Slots that the maps have bits for.
    pub const SLOTS: usize = 8 * (STORED_MAP - REPLAY_MAP);
}
/// Bytes of zero frame and of write sink.
pub const SINK_BYTES: usize = define("VKSVM_SINK_BYTES") as usize;
/// Bytes of a run: address on the CPU, length, address on the device.
pub const RUN_BYTES: usize = 24;
/// Bytes that the launch block takes of the push constants.
pub const LAUNCH_BYTES: usize = size_of::<LaunchBlock>();

/// The launch block: the first bytes of the push constants.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LaunchBlock {
    /// The device's [`Control`].
    pub control: DeviceAddress,
    /// CPU address of page 0.
    pub heap_base: u64,
    /// The page table's entry of page 0; in direct variants, what is to be added to CPU addresses.
    pub table: DeviceAddress,
    /// Entries in the page table.
    pub pages: u32,
    /// Workgroups in this dispatch; further ones end at once.
    pub count: u32,
    /// First linear workgroup id, unless listed.
    pub first: u32,
    /// [`LAUNCH_LISTED`].
    pub flags: u32,
    /// The launch's grid, in workgroups.
    pub grid_x: u32,
    /// The launch's grid, in workgroups.
    pub grid_y: u32,
}

/// The control block, one per device.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// The fault queue's entries.
    pub queue: DeviceAddress,
    /// The work list: linear workgroup ids, `u32`.
    pub list: DeviceAddress,
    /// Copies of straddling objects.
    pub bounce: DeviceAddress,
    /// Entries the fault queue holds.
    pub queue_capacity: u32,
    /// Bytes of the bounce arena.
    pub bounce_bytes: u32,
    /// The running kernel's id.
    pub kernel: u32,
    /// Live mode: polls before an invocation gives up waiting.
    pub poll_limit: u32,
    /// Live mode: four words a slot: the unit's epoch, whether it moved over, how many of its invocations have ended.
    pub units: DeviceAddress,
    /// The launch's grid in z, in workgroups.
    pub grid_z: u32,
    /// Invocations of a workgroup.
    pub group_size: u32,
    /// Up to the counters' cache line.
    pub reserved: [u32; 18],
    /// Entries appended, also those that found no room.
    pub queue_head: u32,
    /// Bytes of the bounce arena handed out.
    pub bounce_head: u32,
    /// Translations made, in variants that count.
    pub translations: u32,
    /// Up to the end of the cache line.
    pub reserved_counters: [u32; 13],
    /// Live mode: the epoch, counted up by the host.
    pub epoch: u32,
    /// Live mode: nonzero tells waiting invocations to stop waiting.
    pub give_up: u32,
    /// Live mode: entries drained from the fault queue.
    pub queue_tail: u32,
    /// Up to the end of the cache line.
    pub reserved_live: [u32; 13],
    /// Live mode: units counted in even and in odd epochs.
    pub counts: [u32; 2],
    /// Up to the end of the cache line.
    pub reserved_counts: [u32; 14],
}

/// An entry of the fault queue.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq)]
#[repr(C)]
pub struct FaultEntry {
    /// The address that was not translated.
    pub address: u64,
    /// Size of the object, 0 for an aligned scalar.
    pub bytes: u32,
    /// [`fault_flags`].
    pub flags: u32,
    /// Id of the kernel.
    pub kernel: u32,
    /// Linear id of the workgroup.
    pub workgroup: u32,
    /// Index of the invocation in its workgroup.
    pub invocation: u32,
    /// Live mode: nonzero once the entry is written.
    pub ready: u32,
}

const _: () = {
    assert!(offset_of!(LaunchBlock, control) == define("VKSVM_LAUNCH_CONTROL") as usize);
    assert!(offset_of!(LaunchBlock, heap_base) == define("VKSVM_LAUNCH_HEAP_BASE") as usize);
    assert!(offset_of!(LaunchBlock, table) == define("VKSVM_LAUNCH_TABLE") as usize);
    assert!(offset_of!(LaunchBlock, pages) == define("VKSVM_LAUNCH_PAGES") as usize);
    assert!(offset_of!(LaunchBlock, count) == define("VKSVM_LAUNCH_COUNT") as usize);
    assert!(offset_of!(LaunchBlock, first) == define("VKSVM_LAUNCH_FIRST") as usize);
    assert!(offset_of!(LaunchBlock, flags) == define("VKSVM_LAUNCH_FLAGS") as usize);
    assert!(offset_of!(LaunchBlock, grid_x) == define("VKSVM_LAUNCH_GRID_X") as usize);
    assert!(offset_of!(LaunchBlock, grid_y) == define("VKSVM_LAUNCH_GRID_Y") as usize);
    assert!(LAUNCH_BYTES == define("VKSVM_LAUNCH_SIZE") as usize);
    assert!(offset_of!(Control, queue) == define("VKSVM_CONTROL_QUEUE") as usize);
    assert!(offset_of!(Control, list) == define("VKSVM_CONTROL_LIST") as usize);
    assert!(offset_of!(Control, bounce) == define("VKSVM_CONTROL_BOUNCE") as usize);
    assert!(offset_of!(Control, queue_capacity) == define("VKSVM_CONTROL_QUEUE_CAPACITY") as usize);
    assert!(offset_of!(Control, bounce_bytes) == define("VKSVM_CONTROL_BOUNCE_BYTES") as usize);
    assert!(offset_of!(Control, kernel) == define("VKSVM_CONTROL_KERNEL") as usize);
    assert!(offset_of!(Control, grid_z) == define("VKSVM_CONTROL_GRID_Z") as usize);
    assert!(offset_of!(Control, group_size) == define("VKSVM_CONTROL_GROUP_SIZE") as usize);
    assert!(offset_of!(Control, queue_head) == define("VKSVM_CONTROL_QUEUE_HEAD") as usize);
    assert!(offset_of!(Control, bounce_head) == define("VKSVM_CONTROL_BOUNCE_HEAD") as usize);
    assert!(offset_of!(Control, translations) == define("VKSVM_CONTROL_TRANSLATIONS") as usize);
    assert!(offset_of!(Control, poll_limit) == define("VKSVM_CONTROL_POLL_LIMIT") as usize);
    assert!(offset_of!(Control, units) == define("VKSVM_CONTROL_UNITS") as usize);
    assert!(offset_of!(Control, epoch) == define("VKSVM_CONTROL_EPOCH") as usize);
    assert!(offset_of!(Control, give_up) == define("VKSVM_CONTROL_GIVE_UP") as usize);
    assert!(offset_of!(Control, queue_tail) == define("VKSVM_CONTROL_QUEUE_TAIL") as usize);
    assert!(offset_of!(Control, counts) == define("VKSVM_CONTROL_COUNTS") as usize);
    assert!(offset_of!(FaultEntry, ready) == define("VKSVM_FAULT_READY") as usize);
    assert!(size_of::<Control>() == define("VKSVM_CONTROL_SIZE") as usize);
    assert!(size_of::<Control>() <= area::ZEROS && area::ZEROS + SINK_BYTES == area::SINK);
    assert!(area::SINK + SINK_BYTES == area::REPLAY_MAP && area::STORED_MAP + area::SLOTS / 8 == area::BYTES);
    assert!(offset_of!(FaultEntry, address) == define("VKSVM_FAULT_ADDRESS") as usize);
    assert!(offset_of!(FaultEntry, bytes) == define("VKSVM_FAULT_BYTES") as usize);
    assert!(offset_of!(FaultEntry, flags) == define("VKSVM_FAULT_FLAGS") as usize);
    assert!(offset_of!(FaultEntry, kernel) == define("VKSVM_FAULT_KERNEL") as usize);
    assert!(offset_of!(FaultEntry, workgroup) == define("VKSVM_FAULT_WORKGROUP") as usize);
    assert!(offset_of!(FaultEntry, invocation) == define("VKSVM_FAULT_INVOCATION") as usize);
    assert!(size_of::<FaultEntry>() == define("VKSVM_FAULT_SIZE") as usize);
    assert!(define("VKSVM_PAGE_SIZE") as usize == crate::addr::PAGE_SIZE);
    assert!(define("VKSVM_PAGE_SHIFT") == crate::addr::PAGE_SHIFT);
};
