// What kernels and the runtime agree on, byte by byte. This file is the one place: GLSL includes it, and
// the runtime reads the same numbers out of it at compile time (runtime/src/device/layout.rs) and checks
// its structures against them. Every line is a plain `#define NAME decimal`.
#ifndef VKSVM_LAYOUT_GLSL
#define VKSVM_LAYOUT_GLSL

#define VKSVM_ABI 1

#define VKSVM_PAGE_SHIFT 12
#define VKSVM_PAGE_SIZE 4096

// Page table entry: 8 bytes, a 4 KiB aligned frame address with flags in the low twelve bits.
#define VKSVM_PTE_VALID 1
#define VKSVM_PTE_WRITABLE 2
#define VKSVM_PTE_ACCESSED 4
#define VKSVM_PTE_DIRTY 8
#define VKSVM_PTE_PENDING_READ 16
#define VKSVM_PTE_PENDING_WRITE 32
// The frame is the shared zero frame (host only).
#define VKSVM_PTE_ZERO 64
// The last page of its VMA: an object that straddles its end is out of bounds.
#define VKSVM_PTE_LAST 128
// The frame is the home page itself, in host memory (host only).
#define VKSVM_PTE_HOME 256
// Never set in an entry: a kernel that adds it to what it asks for always takes the slow path.
#define VKSVM_PTE_NEVER 2048
#define VKSVM_PTE_FLAGS 4095

// Launch block: the first bytes of the push constants; the kernel's own arguments follow.
#define VKSVM_LAUNCH_CONTROL 0
#define VKSVM_LAUNCH_HEAP_BASE 8
#define VKSVM_LAUNCH_TABLE 16
#define VKSVM_LAUNCH_PAGES 24
#define VKSVM_LAUNCH_COUNT 28
#define VKSVM_LAUNCH_FIRST 32
#define VKSVM_LAUNCH_FLAGS 36
#define VKSVM_LAUNCH_GRID_X 40
#define VKSVM_LAUNCH_GRID_Y 44
#define VKSVM_LAUNCH_SIZE 48

// Launch flags.
// Workgroup ids come from the work list; otherwise they count up from `first`.
#define VKSVM_LAUNCH_LISTED 1

// Control block: one per device, in memory that the host reads and writes.
#define VKSVM_CONTROL_QUEUE 0
#define VKSVM_CONTROL_LIST 8
#define VKSVM_CONTROL_BOUNCE 16
#define VKSVM_CONTROL_QUEUE_CAPACITY 24
#define VKSVM_CONTROL_BOUNCE_BYTES 28
#define VKSVM_CONTROL_KERNEL 32
// Live mode: how often an invocation looks for its page before it gives up.
#define VKSVM_CONTROL_POLL_LIMIT 36
// Live mode: four words a slot: the unit's epoch, never 0, whether it moved over, and how many of its invocations have ended.
#define VKSVM_CONTROL_UNITS 40
// The launch's grid in z, in workgroups.
#define VKSVM_CONTROL_GRID_Z 48
// Invocations of a workgroup.
#define VKSVM_CONTROL_GROUP_SIZE 52
// Counters, written by kernels, on a cache line of their own.
#define VKSVM_CONTROL_QUEUE_HEAD 128
#define VKSVM_CONTROL_BOUNCE_HEAD 132
#define VKSVM_CONTROL_TRANSLATIONS 136
// Live mode, written by the host while kernels run.
#define VKSVM_CONTROL_EPOCH 192
#define VKSVM_CONTROL_GIVE_UP 196
#define VKSVM_CONTROL_QUEUE_TAIL 200
// Live mode: units counted in even and in odd epochs.
#define VKSVM_CONTROL_COUNTS 256
#define VKSVM_CONTROL_SIZE 320
// Behind the control block, at fixed places, so that kernels need not load where they are: where loads come from that cannot be
// made (zeros) and stores go that must not be, and the maps with a bit for each slot.
#define VKSVM_CONTROL_ZEROS 4096
#define VKSVM_CONTROL_SINK 12288
#define VKSVM_CONTROL_REPLAY_MAP 20480
#define VKSVM_CONTROL_STORED_MAP 53248
#define VKSVM_CONTROL_AREA 86016

// Fault queue entry.
#define VKSVM_FAULT_ADDRESS 0
#define VKSVM_FAULT_BYTES 8
#define VKSVM_FAULT_FLAGS 12
#define VKSVM_FAULT_KERNEL 16
#define VKSVM_FAULT_WORKGROUP 20
#define VKSVM_FAULT_INVOCATION 24
// Live mode: nonzero once the entry is written; the host sets it back.
#define VKSVM_FAULT_READY 28
#define VKSVM_FAULT_SIZE 32

// Fault flags.
#define VKSVM_FAULT_WRITE 1
// The invocation was already poisoned: a hint of what it will need, never fatal.
#define VKSVM_FAULT_SPECULATIVE 2
// The object runs past the end of its VMA.
#define VKSVM_FAULT_OVERRUN 4
// The invocation's workgroup may have stored to real memory before (late fault).
#define VKSVM_FAULT_AFTER_STORE 8
// The address lies outside the heap.
#define VKSVM_FAULT_OUTSIDE 16
// The flags' upper bits: which of a rewritten kernel's accesses it was, counted from 1; 0 where that is not known.
#define VKSVM_FAULT_SITE_SHIFT 8

// Zero frame and write sink are this large, so that an object at any page offset fits.
#define VKSVM_SINK_BYTES 8192

// Variant bits of specialisation constant 1999.
#define VKSVM_SPEC_VARIANT 1999
// Stores go to the sink.
#define VKSVM_VARIANT_PROBE 1
// The kernel may be run again over its own stores: none is recorded.
#define VKSVM_VARIANT_IDEMPOTENT 2
// Count translations.
#define VKSVM_VARIANT_COUNT 4
// Wait for missing pages inside the kernel. Units are counted in epochs.
#define VKSVM_VARIANT_LIVE 8
// A unit is a workgroup, all of whose invocations run on one thread; otherwise an invocation.
#define VKSVM_VARIANT_LOCKSTEP 16
// Every VksvmArray among the arguments is contiguous and resident: `device` is filled in.
#define VKSVM_VARIANT_ARRAYS 32
// A part of every VksvmArray among the arguments, possibly none, is contiguous, resident and marked as used: `device` is filled in for
// that part, and `extent_` says which it is.
#define VKSVM_VARIANT_BOUNDS 1024
// The grid is one workgroup high and deep.
#define VKSVM_VARIANT_LINEAR 64
// All is expected to be there: a miss is not reported, it only marks the workgroup for replay, when the invocation ends. The
// dispatch is not listed.
#define VKSVM_VARIANT_FAST 128
// All that the kernel may touch is there and marked as used, and the kernel is confined to it: an address is translated by adding a
// constant to it. The launch block's `table` is that constant; for what is reached from an argument by arithmetic alone, its run's
// `device` is, or it was added to the argument already. The dispatch is not listed and has no more workgroups than `count`.
#define VKSVM_VARIANT_DIRECT 256
// With FAST and IDEMPOTENT: every run is whole, all of what its argument points to. What is reached from an argument by arithmetic alone lies
// in its run, or misses; arguments that nothing else is done with are device addresses.
#define VKSVM_VARIANT_WHOLE 512

#endif
