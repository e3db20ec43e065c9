// vksvm: dereference the CPU's pointers in a compute kernel.
//
//     #version 460
//     #define VKSVM_ARGS uint64_t x; uint64_t y; float a; uint n;
//     #include "vksvm.glsl"
//     layout(local_size_x = 64) in;
//
//     void main() {
//         uint i = vksvm_global_id().x;
//         if (i < args.n)
//             vksvm_store_f32(args.y + 4ul * i, args.a * vksvm_load_f32(args.x + 4ul * i));
//     }
//
// VKSVM_ARGS lists the kernel's arguments, which appear as `args`; pointers are uint64_t. Every access
// to the heap goes through a translation:
//
//     vksvm_read(p)            address for loading one aligned scalar or vector (never straddles a page)
//     vksvm_write(p)           … for storing
//     vksvm_atomic(p)          … for an atomic read-modify-write
//     vksvm_read(p, bytes)     … for loading an object of up to a page at any address; where it straddles
//                              two pages that are not neighbours on the device, the address of a copy
//     vksvm_begin_write(p, bytes), vksvm_end_write(p, bytes, address)
//                              … for storing such an object; it must be 4-byte aligned if it straddles
//
//     vksvm_array_read(a, offset), vksvm_array_write(a, offset)
//                              … for an aligned scalar or vector `offset` bytes into an argument of type VksvmArray,
//                              which the host pushes with Launch::read_array() or write_array()
//     vksvm_near_read(a, p), vksvm_near_write(a, p)
//                              … for an aligned scalar, vector or structure that most likely lies in such an argument
//     vksvm_span_read(a, offset, bytes), vksvm_span_write(a, offset, bytes)
//                              a VksvmSpan: that part of such an argument, looked up once;
//     vksvm_in_span_read(s, at), vksvm_in_span_write(s, at)
//                              … for an aligned scalar or vector `at` bytes into it
//
//     vksvm_cached_read(c, p), vksvm_cached_write(c, p)
//                              as vksvm_read(p) and vksvm_write(p), with the translation kept in `c`, a VksvmCached of the
//                              invocation's own that began as vksvm_cached()
//     vksvm_uniform_read(c, p), vksvm_uniform_write(c, p)
//                              the same where the whole workgroup asks for the same address: one invocation translates
//
// and the typed short forms at the end of the file. What comes back is a device address; cast it to a
// `buffer_reference` of your own and use it at once: it is good until the next call of any function of this file by an
// invocation of the workgroup, or the next barrier. Copy what you need later into variables.
//
// Which to choose. A translation loads a page table entry and checks it: little beside a random access to memory, much
// beside streaming. From the cheapest on:
//
//   VksvmArray      for arrays that the kernel goes through or gathers from. The host brings the array to the device and checks it once,
//                   before the kernel starts. While its frames are contiguous, an access is an add, as with a raw address; if only a part
//                   of it is there, or is contiguous, an access compares its offset with that part and adds, and what lies outside is translated
//                   by the same call.
//   VksvmSpan       where an invocation goes through many elements of such an array one after the other, and not all of it may fit the
//                   device: the comparison is made once for all of them.
//   vksvm_near_…    for lists and trees whose nodes lie in one array: a comparison and an add instead of the load.
//   vksvm_cached_…  where an invocation makes several accesses to a page before it goes to another: rows, records, nodes with several
//                   fields. A hit compares page numbers and adds; in live mode it also loads a word that says whether translations were taken
//                   away, instead of three. It does not pay where every access is to another page, nor, where
//                   loads of neighbouring invocations are made together (GPUs, llvmpipe), for one or two accesses to a page.
//   vksvm_uniform_… where all invocations of a workgroup use the same page, many times: a tile, a block of coefficients. Costs a barrier,
//                   and must be called as one: by all invocations, in uniform control flow, with the same address. What follows are
//                   vksvm_cached_…() with the same `c`. A loop around barriers, these calls among them, must end for all invocations at once:
//                   on vksvm_uniform_poisoned(), which says the same to all, never on vksvm_poisoned(). Define VKSVM_SUBGROUPS before
//                   including this file for devices with ballot operations: compilers then see that the address is the same in all of a subgroup.
//   plain pointers  for all else, and for large arrays of which only a little is used (an array argument is copied whole).
//
// Offsets of array functions are not checked against the array's length: as everywhere in Vulkan, stay inside. To look for
// mistakes, open the runtime with `direct_arrays(false)` (VKSVM_ARRAYS=0): then every access is translated and checked.
//
// In *live* mode a missing page makes the invocation wait until the host has mapped it. vksvm_safe_point() lets the host take
// pages away in long stretches without an access. In *replay* mode, and where live waiting gives up, a missing page *poisons* the invocation: from then on its stores vanish and missing loads give zero, and
// its workgroup runs again from the start once the pages are there. A loop that waits for memory to change must
// therefore also end when vksvm_poisoned(). Barriers stay safe: a poisoned invocation runs on to its end.
#ifndef VKSVM_GLSL
#define VKSVM_GLSL

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_scalar_block_layout : require
#ifdef VKSVM_SUBGROUPS
#extension GL_KHR_shader_subgroup_ballot : require
#endif

#include "vksvm_layout.glsl"

layout(constant_id = VKSVM_SPEC_VARIANT) const uint vksvm_variant_ = 0u;

struct VksvmLaunch {
    uint64_t control;
    uint64_t heap_base;
    uint64_t table;
    uint pages;
    uint count;
    uint first;
    uint flags;
    uint grid_x;
    uint grid_y;
};

// An array argument: its address on the CPU and, in kernel variants made for it, on the device. The rest is the runtime's: its bytes
// where all of it is at `device`; where a part is, which: its first page, counted from the array's first (low word), and how many.
struct VksvmArray {
    uint64_t va;
    uint64_t device;
    uint64_t extent_;
};

// Where an argument's pages lie on the device, for kernels that were rewritten: `bytes` from `va` on are at `device`, contiguous
// and marked as used already. No bytes, if that is not so, and in variants other than the fast one.
struct VksvmRun {
    uint64_t va;
    uint64_t bytes;
    uint64_t device;
};

#ifdef VKSVM_ARGS
struct VksvmArgs { VKSVM_ARGS };
#endif

layout(push_constant, std430) uniform VksvmPush {
    layout(offset = 0) VksvmLaunch vksvm_launch_;
#ifdef VKSVM_ARGS
    layout(offset = VKSVM_LAUNCH_SIZE) VksvmArgs args;
#endif
};

layout(buffer_reference, scalar, buffer_reference_align = 64) buffer VksvmControl_ {
    layout(offset = VKSVM_CONTROL_QUEUE) uint64_t queue;
    layout(offset = VKSVM_CONTROL_LIST) uint64_t list;
    layout(offset = VKSVM_CONTROL_BOUNCE) uint64_t bounce;
    layout(offset = VKSVM_CONTROL_QUEUE_CAPACITY) uint queue_capacity;
    layout(offset = VKSVM_CONTROL_BOUNCE_BYTES) uint bounce_bytes;
    layout(offset = VKSVM_CONTROL_KERNEL) uint kernel;
    layout(offset = VKSVM_CONTROL_POLL_LIMIT) uint poll_limit;
    layout(offset = VKSVM_CONTROL_UNITS) uint64_t units;
    layout(offset = VKSVM_CONTROL_GRID_Z) uint grid_z;
    layout(offset = VKSVM_CONTROL_GROUP_SIZE) uint group_size;
    layout(offset = VKSVM_CONTROL_QUEUE_HEAD) uint queue_head;
    layout(offset = VKSVM_CONTROL_BOUNCE_HEAD) uint bounce_head;
    layout(offset = VKSVM_CONTROL_TRANSLATIONS) uint translations;
    layout(offset = VKSVM_CONTROL_EPOCH) uint epoch;
    layout(offset = VKSVM_CONTROL_GIVE_UP) uint give_up;
    layout(offset = VKSVM_CONTROL_QUEUE_TAIL) uint queue_tail;
};

// Two words at a time: drivers may take as long for one as for two.
layout(buffer_reference, scalar, buffer_reference_align = 32) buffer VksvmFault_ {
    layout(offset = VKSVM_FAULT_ADDRESS) uint64_t address;
    layout(offset = VKSVM_FAULT_BYTES) uint64_t bytes_flags;
    layout(offset = VKSVM_FAULT_KERNEL) uint64_t kernel_workgroup;
    layout(offset = VKSVM_FAULT_INVOCATION) uint invocation;
    layout(offset = VKSVM_FAULT_READY) uint ready;
};

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer VksvmPte_ { uint64_t entry; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer VksvmWord_ { uint value; };
// An entry that the host may change while the kernel runs.
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer VksvmLivePte_ { volatile uint64_t entry; };
// A word that the host, or another workgroup, may change while the kernel runs.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer VksvmLiveWord_ { volatile uint value; };

// Slot of this workgroup in the dispatch: its bit in the replay and stored maps.
uint vksvm_slot_;
// Linear id of this workgroup in the launch's grid.
uint vksvm_workgroup_;
uvec3 vksvm_workgroup_id_;
bool vksvm_poisoned_;
// Which access the invocation is at, in rewritten kernels. Only used where a fault is reported.
uint vksvm_site_;
// What a store asks of an entry to take the fast path. VKSVM_PTE_NEVER is in it while stores must be
// looked at: in a probe, after poisoning, and until the first store has been put on record.
uint vksvm_write_want_;
// Fast variant: this invocation stored to real memory.
bool vksvm_stored_;
// Live mode: the epoch in which this invocation is counted, where each is counted on its own.
uint vksvm_epoch_;
// Live mode: translations since the last look at the epoch.
uint vksvm_hits_;
// Live mode, in lockstep: the unit's words: its epoch (0 before it is counted in), whether it moved over, invocations that ended.
uint64_t vksvm_unit_;
// Calls of vksvm_uniform_...() so far.
uint vksvm_turn_;
// Whether any invocation of the workgroup was poisoned when the last of them was made.
bool vksvm_group_poisoned_;

#define VKSVM_READ_WANT_ (VKSVM_PTE_VALID | VKSVM_PTE_ACCESSED)
#define VKSVM_WRITE_WANT_ (VKSVM_PTE_VALID | VKSVM_PTE_WRITABLE | VKSVM_PTE_ACCESSED | VKSVM_PTE_DIRTY)

bool vksvm_is_fast_() { return (vksvm_variant_ & VKSVM_VARIANT_FAST) != 0u; }
bool vksvm_is_direct_() { return (vksvm_variant_ & VKSVM_VARIANT_DIRECT) != 0u; }
bool vksvm_is_live_() { return (vksvm_variant_ & VKSVM_VARIANT_LIVE) != 0u; }
bool vksvm_is_lockstep_() { return (vksvm_variant_ & VKSVM_VARIANT_LOCKSTEP) != 0u; }

// The words with this workgroup's bits: it must run again; it stored to real memory.
uint64_t vksvm_replay_map_() { return vksvm_launch_.control + uint64_t(VKSVM_CONTROL_REPLAY_MAP + 4u * (vksvm_slot_ >> 5)); }
uint64_t vksvm_stored_map_() { return vksvm_launch_.control + uint64_t(VKSVM_CONTROL_STORED_MAP + 4u * (vksvm_slot_ >> 5)); }

VksvmWord_ vksvm_count_(const uint epoch) {
    return VksvmWord_(vksvm_launch_.control + VKSVM_CONTROL_COUNTS + 4ul * (epoch & 1u));
}

// Counts a unit into the current epoch and returns it. The second look makes sure that a host which saw the count at zero and went
// on is not joined behind its back.
uint vksvm_join_() {
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    uint epoch = atomicOr(control.epoch, 0u);
    for (uint tries = 0u; tries < 1000u; tries++) {
        atomicAdd(vksvm_count_(epoch).value, 1u);
        memoryBarrierBuffer();
        uint now = atomicOr(control.epoch, 0u);
        if (now == epoch) break;
        atomicAdd(vksvm_count_(epoch).value, 0xFFFFFFFFu);
        epoch = now;
    }
    // What was cached of frames that have been reused since must not be read again.
    memoryBarrierBuffer();
    return epoch;
}

// Counts a unit out; what it stored is available before.
void vksvm_leave_(const uint epoch) {
    memoryBarrierBuffer();
    atomicAdd(vksvm_count_(epoch).value, 0xFFFFFFFFu);
}

bool vksvm_poison_();

// A safe point: the unit moves over to the current epoch, and a launch that is cancelled poisons the invocation. In lockstep, one
// invocation moves the whole unit; the mark tells the others, which compare when they are together again.
void vksvm_move_() {
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    if (atomicOr(control.give_up, 0u) != 0u && !vksvm_poisoned_) vksvm_poison_();
    uint now = atomicOr(control.epoch, 0u);
    if (vksvm_is_lockstep_()) {
        uint64_t unit = vksvm_unit_;
        // An atomic, so that no compiler looks twice.
        uint old = atomicOr(VksvmWord_(unit).value, 0u);
        if (old == now) return;
        uint epoch = vksvm_join_();
        if (atomicCompSwap(VksvmWord_(unit).value, old, epoch) == old) {
            VksvmLiveWord_(unit + 4ul).value = 1u;
            vksvm_leave_(old);
        } else {
            vksvm_leave_(epoch);
        }
    } else if (vksvm_epoch_ != now) {
        uint old = vksvm_epoch_;
        vksvm_epoch_ = vksvm_join_();
        vksvm_leave_(old);
    }
}

bool vksvm_start_() {
    vksvm_slot_ = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (!vksvm_is_direct_() && vksvm_slot_ >= vksvm_launch_.count) return false;
    vksvm_workgroup_ = vksvm_launch_.first + vksvm_slot_;
    if (!vksvm_is_fast_() && !vksvm_is_direct_() && (vksvm_launch_.flags & VKSVM_LAUNCH_LISTED) != 0u)
        vksvm_workgroup_ = VksvmWord_(VksvmControl_(vksvm_launch_.control).list + 4ul * vksvm_slot_).value;
    // Divisions are dear: where every invocation does little, they would be most of it.
    if ((vksvm_variant_ & VKSVM_VARIANT_LINEAR) != 0u) {
        vksvm_workgroup_id_ = uvec3(vksvm_workgroup_, 0u, 0u);
    } else {
        uint rows = vksvm_workgroup_ / vksvm_launch_.grid_x;
        vksvm_workgroup_id_ = uvec3(vksvm_workgroup_ - rows * vksvm_launch_.grid_x, rows % vksvm_launch_.grid_y,
                                    rows / vksvm_launch_.grid_y);
    }
    vksvm_poisoned_ = false;
    vksvm_turn_ = 0u;
    vksvm_group_poisoned_ = false;
    if (vksvm_is_direct_()) return true;
    vksvm_stored_ = false;
    vksvm_site_ = 0u;
    vksvm_write_want_ = VKSVM_WRITE_WANT_;
    if ((vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u || (vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) == 0u)
        vksvm_write_want_ |= VKSVM_PTE_NEVER;
    if (vksvm_is_live_()) {
        vksvm_hits_ = 0u;
        vksvm_unit_ = VksvmControl_(vksvm_launch_.control).units + 16ul * vksvm_slot_;
        if (!vksvm_is_lockstep_()) vksvm_epoch_ = vksvm_join_();
        else if (VksvmLiveWord_(vksvm_unit_).value == 0u) {
            // The first subgroup to start, whichever it is, counts the unit in.
            uint epoch = vksvm_join_();
            if (atomicCompSwap(VksvmWord_(vksvm_unit_).value, 0u, epoch) != 0u) vksvm_leave_(epoch);
        }
    }
    return true;
}

void vksvm_finish_() {
    if (vksvm_is_direct_()) return;
    if (vksvm_is_fast_()) {
        uint bit = 1u << (vksvm_slot_ & 31u);
        if (vksvm_poisoned_) atomicOr(VksvmWord_(vksvm_replay_map_()).value, bit);
        if ((vksvm_variant_ & (VKSVM_VARIANT_PROBE | VKSVM_VARIANT_IDEMPOTENT)) == 0u) {
            // Looked at first: the others of the workgroup have stored too.
            VksvmWord_ stored = VksvmWord_(vksvm_stored_map_());
            if (vksvm_stored_ && (stored.value & bit) == 0u) atomicOr(stored.value, bit);
        }
    }
    if (vksvm_is_live_()) {
        if (!vksvm_is_lockstep_()) vksvm_leave_(vksvm_epoch_);
        else {
            // The last invocation counts the unit out. The host says how many there are: here, before the kernel has declared its
            // own, gl_WorkGroupSize is one.
            uint size = VksvmControl_(vksvm_launch_.control).group_size;
            if (atomicAdd(VksvmWord_(vksvm_unit_ + 8ul).value, 1u) == size - 1u)
                vksvm_leave_(VksvmLiveWord_(vksvm_unit_).value);
        }
    }
}

// Lets the host take pages away here. Device addresses obtained before are no longer good after it.
void vksvm_safe_point() {
    if (vksvm_is_live_()) vksvm_move_();
}

// Whether this invocation's work is void: a page was missing and the workgroup will run again.
bool vksvm_poisoned() {
    return !vksvm_is_direct_() && vksvm_poisoned_;
}

// The workgroup's id in the launch's grid; use it instead of gl_WorkGroupID.
uvec3 vksvm_workgroup_id() { return vksvm_workgroup_id_; }

// The invocation's id in the launch's grid; use it instead of gl_GlobalInvocationID.
#define vksvm_global_id() (vksvm_workgroup_id_ * gl_WorkGroupSize + gl_LocalInvocationID)

// Voids this invocation and puts its workgroup on the replay list. True for the workgroup's first.
bool vksvm_poison_() {
    vksvm_poisoned_ = true;
    vksvm_write_want_ |= VKSVM_PTE_NEVER;
    if (vksvm_is_fast_()) return false;
    uint bit = 1u << (vksvm_slot_ & 31u);
    VksvmWord_ word = VksvmWord_(vksvm_replay_map_());
    // Looked at first: a workgroup misses many times, and its bit is never taken away while it runs.
    if ((word.value & bit) != 0u) return false;
    return (atomicOr(word.value, bit) & bit) == 0u;
}

// Takes a place in the fault queue; in live mode it is a ring that the host drains meanwhile.
bool vksvm_reserve_(out uint index) {
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    if (!vksvm_is_live_()) {
        index = atomicAdd(control.queue_head, 1u);
        return index < control.queue_capacity;
    }
    for (uint tries = 0u; tries < 10000u; tries++) {
        uint head = atomicOr(control.queue_head, 0u);
        if (head - atomicOr(control.queue_tail, 0u) >= control.queue_capacity) return false;
        if (atomicCompSwap(control.queue_head, head, head + 1u) == head) {
            index = head % control.queue_capacity;
            return true;
        }
    }
    return false;
}

// Appends to the fault queue. False if it is full: the workgroup is marked for replay, or waits, all the same (I5).
bool vksvm_report_(const uint64_t va, const uint bytes, const uint asked) {
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    uint index;
    if (!vksvm_reserve_(index)) return false;
    uint flags = asked;
    if ((vksvm_variant_ & (VKSVM_VARIANT_PROBE | VKSVM_VARIANT_IDEMPOTENT)) == 0u) {
        uint stored = VksvmWord_(vksvm_stored_map_()).value;
        if (((stored >> (vksvm_slot_ & 31u)) & 1u) != 0u) flags |= VKSVM_FAULT_AFTER_STORE;
    }
    VksvmFault_ fault = VksvmFault_(control.queue + uint64_t(index) * VKSVM_FAULT_SIZE);
    fault.address = va;
    fault.bytes_flags = packUint2x32(uvec2(bytes, flags | vksvm_site_ << VKSVM_FAULT_SITE_SHIFT));
    fault.kernel_workgroup = packUint2x32(uvec2(control.kernel, vksvm_workgroup_));
    fault.invocation = gl_LocalInvocationIndex;
    if (vksvm_is_live_()) {
        memoryBarrierBuffer();
        atomicOr(fault.ready, 1u);
    }
    return true;
}

// Where a store goes that must not happen, and where a load comes from that cannot.
uint64_t vksvm_sink_(const uint64_t va, const bool write) {
    return vksvm_launch_.control + uint64_t((write ? VKSVM_CONTROL_SINK : VKSVM_CONTROL_ZEROS) + (uint(va) & 0xFFFu));
}

// Whether a store may happen, with the workgroup's first one put on record (I6).
bool vksvm_may_store_() {
    if (vksvm_poisoned_ || (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u) return false;
    if (vksvm_is_fast_()) {
        // The end puts it on record, and the host sees whether a neighbour was poisoned.
        vksvm_stored_ = true;
        return true;
    }
    if ((vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) == 0u && (vksvm_write_want_ & VKSVM_PTE_NEVER) != 0u) {
        // On record first, then look whether a neighbour was poisoned: one of the two sees the other.
        uint bit = 1u << (vksvm_slot_ & 31u);
        atomicOr(VksvmWord_(vksvm_stored_map_()).value, bit);
        if ((atomicOr(VksvmWord_(vksvm_replay_map_()).value, 0u) & bit) != 0u) {
            vksvm_poison_();
            return false;
        }
        vksvm_write_want_ &= ~VKSVM_PTE_NEVER;
    }
    return true;
}

// Where a store or atomic goes that may not happen at `real`. In a probe, what an atomic finds must be what is there: a loop around a
// compare and swap would not end.
uint64_t vksvm_not_stored_(const uint64_t va, const uint64_t real) {
    uint64_t sink = vksvm_sink_(va, true);
    if ((vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u && !vksvm_poisoned_)
        VksvmPte_(sink & ~7ul).entry = VksvmPte_(real & ~7ul).entry;
    return sink;
}

// The entry at `at`, while the host may replace it. It does so in one step, and devices that compute on the CPU load it in one. Of others that
// is not known: the words are taken as those of one entry if the low one, which has the flags, still has its address behind the high one.
uvec2 vksvm_live_entry_(const uint64_t at) {
    if (vksvm_is_lockstep_()) return unpackUint2x32(VksvmLivePte_(at).entry);
    uint low = VksvmLiveWord_(at).value;
    uint high = VksvmLiveWord_(at + 4ul).value;
    bool whole = ((VksvmLiveWord_(at).value ^ low) & ~VKSVM_PTE_FLAGS) == 0u;
    return whole ? uvec2(low, high) : uvec2(0u);
}

// Everything but the plain hit, where nothing waits: setting accessed and dirty, putting the first store on record, misses. Drivers put this
// in place for each translation, so there is one atomic operation on the entry, whichever bits it sets, and one report.
uint64_t vksvm_slow_(const uint64_t va, const uint bytes, const bool write) {
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    bool inside = page < uint64_t(vksvm_launch_.pages);
    // What a poisoned invocation computes from its zeros is not the program's doing.
    uint flags = (write ? VKSVM_FAULT_WRITE : 0u) | (vksvm_poisoned_ ? VKSVM_FAULT_SPECULATIVE : 0u);
    bool report = !vksvm_poisoned_;
    if (inside) {
        uint64_t at = vksvm_launch_.table + 8ul * page;
        VksvmWord_ low = VksvmWord_(at);
        uint entry = low.value;
        uint need = write ? (VKSVM_PTE_VALID | VKSVM_PTE_WRITABLE) : VKSVM_PTE_VALID;
        bool there = (entry & need) == need;
        uint64_t frame = uint64_t(entry & ~VKSVM_PTE_FLAGS) | uint64_t(VksvmWord_(at + 4ul).value) << 32;
        uint64_t real = frame + uint64_t(uint(va) & VKSVM_PTE_FLAGS);
        if (write && there && !vksvm_may_store_()) return vksvm_not_stored_(va, real);
        uint pending = VKSVM_PTE_PENDING_READ | VKSVM_PTE_PENDING_WRITE;
        // Of a missing page: if this or more was asked for, somebody reported it, and all that is left is to look, not to write.
        uint asked = write ? VKSVM_PTE_PENDING_WRITE : pending;
        uint marks = write ? (VKSVM_PTE_ACCESSED | VKSVM_PTE_DIRTY) : VKSVM_PTE_ACCESSED;
        bool sets = there ? (entry & marks) != marks : (entry & asked) == 0u;
        uint set = there ? marks : (write ? VKSVM_PTE_PENDING_WRITE : VKSVM_PTE_PENDING_READ);
        if (sets) entry = atomicOr(low.value, set);
        if (there) return real;
        report = sets && (entry & pending) == 0u;
    } else {
        flags |= VKSVM_FAULT_OUTSIDE;
    }
    bool first = vksvm_poison_();
    // Null or wild: once a workgroup.
    if (!inside) report = report && first;
    if (report && !vksvm_report_(va, bytes, flags) && inside)
        atomicAnd(VksvmWord_(vksvm_launch_.table + 8ul * page).value, ~(VKSVM_PTE_PENDING_READ | VKSVM_PTE_PENDING_WRITE));
    return vksvm_sink_(va, write);
}

// The same in live mode. The loop is the waiting: every turn is a safe point, and a report that was dropped is made again.
uint64_t vksvm_wait_(const uint64_t va, const uint bytes, const bool write) {
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    uint flags = (write ? VKSVM_FAULT_WRITE : 0u) | (vksvm_poisoned_ ? VKSVM_FAULT_SPECULATIVE : 0u);
    if (page >= uint64_t(vksvm_launch_.pages)) {
        // Null or wild. What a poisoned invocation computes from its zeros is not the program's doing.
        if (!vksvm_poisoned_) {
            if (vksvm_poison_()) vksvm_report_(va, bytes, flags | VKSVM_FAULT_OUTSIDE);
        }
        return vksvm_sink_(va, write);
    }
    uint64_t at = vksvm_launch_.table + 8ul * page;
    VksvmWord_ low = VksvmWord_(at);
    uint need = write ? (VKSVM_PTE_VALID | VKSVM_PTE_WRITABLE) : VKSVM_PTE_VALID;
    uint asked = write ? VKSVM_PTE_PENDING_WRITE : (VKSVM_PTE_PENDING_READ | VKSVM_PTE_PENDING_WRITE);
    uint limit = VksvmControl_(vksvm_launch_.control).poll_limit;
    for (uint polls = 0u; polls < limit; polls++) {
        vksvm_move_();
        uint entry = VksvmLiveWord_(at).value;
        if ((entry & need) == need) {
            if (write && !vksvm_may_store_()) {
                uint64_t frame = uint64_t(entry & ~VKSVM_PTE_FLAGS) | uint64_t(VksvmWord_(at + 4ul).value) << 32;
                return vksvm_not_stored_(va, frame + uint64_t(uint(va) & VKSVM_PTE_FLAGS));
            }
            uint set = write ? (VKSVM_PTE_ACCESSED | VKSVM_PTE_DIRTY) : VKSVM_PTE_ACCESSED;
            // The entry may have been taken away since; then the bits are collected by whoever took it.
            if ((entry & set) != set) entry = atomicOr(low.value, set);
            if ((entry & need) == need) {
                // Another frame may have come in place of the zero frame since: both words must be of the same entry.
                uvec2 whole = vksvm_live_entry_(at);
                if (((whole.x ^ entry) & ~VKSVM_PTE_FLAGS) == 0u) {
                    // What the host filled the frame with, while this invocation waited, is seen from here on.
                    if (polls > 0u) memoryBarrierBuffer();
                    return packUint2x32(uvec2((entry & ~VKSVM_PTE_FLAGS) | (uint(va) & VKSVM_PTE_FLAGS), whole.y));
                }
            }
        } else {
            if ((entry & asked) == 0u) {
                uint old = atomicOr(low.value, write ? VKSVM_PTE_PENDING_WRITE : VKSVM_PTE_PENDING_READ);
                if ((old & (VKSVM_PTE_PENDING_READ | VKSVM_PTE_PENDING_WRITE)) == 0u && !vksvm_report_(va, bytes, flags))
                    atomicAnd(low.value, ~(VKSVM_PTE_PENDING_READ | VKSVM_PTE_PENDING_WRITE));
            }
            if (vksvm_poisoned_) return vksvm_sink_(va, write);
        }
    }
    vksvm_poison_();
    return vksvm_sink_(va, write);
}

// Translates in live mode. In lockstep a neighbour that waited may have moved the unit over, and then what the others translated
// before is void: they meet again behind the slow path, read the mark together, and together translate again.
uint64_t vksvm_translate_live_(const uint64_t va, const uint bytes, const bool write) {
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    for (uint round = 0u; round < 1000u; round++) {
        uint want = write ? vksvm_write_want_ : VKSVM_READ_WANT_;
        // The table has a power of two of entries, so that nothing is compared before the load.
        uint64_t at = vksvm_launch_.table + 8ul * (page & uint64_t(vksvm_launch_.pages - 1u));
        uvec2 entry = vksvm_live_entry_(at);
        // Now and then the slow path is taken for its safe point alone.
        bool hit = page < uint64_t(vksvm_launch_.pages) && (entry.x & want) == want && (++vksvm_hits_ & 63u) != 0u;
        uint64_t result = packUint2x32(uvec2((entry.x & ~VKSVM_PTE_FLAGS) | (uint(va) & VKSVM_PTE_FLAGS), entry.y));
        if (!hit) result = vksvm_wait_(va, bytes, write);
        if (!vksvm_is_lockstep_()) return result;
        VksvmLiveWord_ moved = VksvmLiveWord_(vksvm_unit_ + 4ul);
        if (moved.value == 0u) return result;
        moved.value = 0u;
    }
    vksvm_poison_();
    return vksvm_sink_(va, write);
}

uint64_t vksvm_in_frame_(const uint64_t entry, const uint64_t va) {
    uvec2 parts = unpackUint2x32(entry);
    return packUint2x32(uvec2((parts.x & ~VKSVM_PTE_FLAGS) | (uint(va) & VKSVM_PTE_FLAGS), parts.y));
}

// Translates in the fast variant: a hit or a void invocation, and no more code than that. What the address waits for is kept short:
// the table has a power of two of entries, so that nothing is compared before the load, and no function is called whose branches
// compilers would keep. `entry` is the page's.
uint64_t vksvm_translate_fast_(const uint64_t va, const bool write, out uint64_t entry) {
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    uint64_t at = vksvm_launch_.table + 8ul * (page & uint64_t(vksvm_launch_.pages - 1u));
    entry = VksvmPte_(at).entry;
    uint need = write ? (VKSVM_PTE_VALID | VKSVM_PTE_WRITABLE) : VKSVM_PTE_VALID;
    uint set = write ? (VKSVM_PTE_ACCESSED | VKSVM_PTE_DIRTY) : VKSVM_PTE_ACCESSED;
    // A kernel that can be run again leaves setting them to the other variant. For others that would be a late fault where there
    // is none.
    bool again = (vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) != 0u;
    uint64_t want = uint64_t(again ? need | set : need);
    bool hit = page < uint64_t(vksvm_launch_.pages) && (entry & want) == want;
    vksvm_poisoned_ = vksvm_poisoned_ || !hit;
    if (write && (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u)
        return hit ? vksvm_not_stored_(va, vksvm_in_frame_(entry, va)) : vksvm_sink_(va, true);
    if (write) {
        hit = !vksvm_poisoned_;
        vksvm_stored_ = vksvm_stored_ || hit;
    }
    if (!again && (vksvm_variant_ & VKSVM_VARIANT_PROBE) == 0u && hit && (uint(entry) & set) != set)
        atomicOr(VksvmWord_(at).value, set);
    uint64_t start = hit ? entry & ~uint64_t(VKSVM_PTE_FLAGS) : vksvm_sink_(0ul, write);
    return start + (va & uint64_t(VKSVM_PTE_FLAGS));
}

uint64_t vksvm_translate_(const uint64_t va, const uint bytes, const uint want, const bool write) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    if ((vksvm_variant_ & VKSVM_VARIANT_COUNT) != 0u)
        atomicAdd(VksvmControl_(vksvm_launch_.control).translations, 1u);
    if (vksvm_is_fast_()) {
        uint64_t entry;
        return vksvm_translate_fast_(va, write, entry);
    }
    if (vksvm_is_live_()) return vksvm_translate_live_(va, bytes, write);
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    if (page < uint64_t(vksvm_launch_.pages)) {
        uint64_t entry = VksvmPte_(vksvm_launch_.table + 8ul * page).entry;
        if ((uint(entry) & want) == want) return vksvm_in_frame_(entry, va);
    }
    return vksvm_slow_(va, bytes, write);
}

// Device address for loading an aligned scalar or vector at `va`.
uint64_t vksvm_read(const uint64_t va) { return vksvm_translate_(va, 0u, VKSVM_READ_WANT_, false); }

// Device address for storing an aligned scalar or vector at `va`.
uint64_t vksvm_write(const uint64_t va) { return vksvm_translate_(va, 0u, vksvm_write_want_, true); }

// Device address for an atomic read-modify-write of an aligned scalar at `va`.
uint64_t vksvm_atomic(const uint64_t va) { return vksvm_translate_(va, 0u, vksvm_write_want_, true); }

// Where a part of every array is at `device`: whether `bytes` from `offset` on are in it.
bool vksvm_there_(VksvmArray array, uint64_t offset, uint64_t bytes) {
    uvec2 part = unpackUint2x32(array.extent_);
    // The same for all invocations; the array may begin inside its first page.
    uint64_t first = (uint64_t(part.x) << VKSVM_PAGE_SHIFT) - (array.va & uint64_t(VKSVM_PAGE_SIZE - 1));
    uint64_t end = uint64_t(part.y) << VKSVM_PAGE_SHIFT;
    return offset - first < end && (bytes <= 1ul || end - (offset - first) >= bytes);
}

bool vksvm_is_bounded_() { return (vksvm_variant_ & VKSVM_VARIANT_BOUNDS) != 0u; }

// Where a store to an array goes that is at `real`, whose page was marked as used beforehand.
uint64_t vksvm_store_at_(const uint64_t va, const uint64_t real) {
    bool looks = !vksvm_is_direct_() && (vksvm_is_fast_() || (vksvm_write_want_ & VKSVM_PTE_NEVER) != 0u);
    return looks && !vksvm_may_store_() ? vksvm_not_stored_(va, real) : real;
}

// Device address for loading an aligned scalar or vector `offset` bytes into `array`.
uint64_t vksvm_array_read(VksvmArray array, uint64_t offset) {
    // What a poisoned invocation computes from its zeros may lie anywhere. Kernels that use arrays only are never poisoned,
    // and compilers see that.
    if ((vksvm_variant_ & VKSVM_VARIANT_ARRAYS) != 0u)
        return vksvm_poisoned_ ? vksvm_sink_(offset, false) : array.device + offset;
    if (vksvm_is_bounded_() && vksvm_there_(array, offset, 1ul)) return array.device + offset;
    return vksvm_read(array.va + offset);
}

// Device address for storing, or for an atomic on, an aligned scalar or vector `offset` bytes into `array`.
uint64_t vksvm_array_write(VksvmArray array, uint64_t offset) {
    if ((vksvm_variant_ & VKSVM_VARIANT_ARRAYS) != 0u) return vksvm_store_at_(array.va + offset, array.device + offset);
    if (vksvm_is_bounded_() && vksvm_there_(array, offset, 1ul))
        return vksvm_store_at_(array.va + offset, array.device + offset);
    return vksvm_write(array.va + offset);
}

// Whether `va` is at the array's device address.
bool vksvm_near_(VksvmArray array, uint64_t va) {
    if ((vksvm_variant_ & VKSVM_VARIANT_ARRAYS) != 0u) return va - array.va < array.extent_;
    return vksvm_is_bounded_() && vksvm_there_(array, va - array.va, 1ul);
}

// Device address for loading an aligned scalar, vector or structure at `va`, which most likely lies in `array`.
uint64_t vksvm_near_read(VksvmArray array, uint64_t va) {
    if (vksvm_near_(array, va)) return array.device + (va - array.va);
    return vksvm_read(va);
}

// Device address for storing, or for an atomic on, an aligned scalar, vector or structure at `va`, which most likely lies in
// `array`; the host must have pushed that with write_array().
uint64_t vksvm_near_write(VksvmArray array, uint64_t va) {
    if (vksvm_near_(array, va)) return vksvm_store_at_(va, array.device + (va - array.va));
    return vksvm_write(va);
}

// A part of an array, looked up once. Good for the whole kernel.
struct VksvmSpan {
    uint64_t va;
    uint64_t device;
    bool there_;
};

VksvmSpan vksvm_span_(VksvmArray array, uint64_t offset, uint64_t bytes) {
    bool there = (vksvm_variant_ & VKSVM_VARIANT_ARRAYS) != 0u;
    if (vksvm_is_bounded_()) there = vksvm_there_(array, offset, bytes);
    return VksvmSpan(array.va + offset, array.device + offset, there);
}

// The `bytes` of `array` from `offset` on, for loading.
VksvmSpan vksvm_span_read(VksvmArray array, uint64_t offset, uint64_t bytes) { return vksvm_span_(array, offset, bytes); }

// The `bytes` of `array` from `offset` on, for storing and loading.
VksvmSpan vksvm_span_write(VksvmArray array, uint64_t offset, uint64_t bytes) { return vksvm_span_(array, offset, bytes); }

// Device address for loading an aligned scalar or vector `at` bytes into `span`.
uint64_t vksvm_in_span_read(VksvmSpan span, uint64_t at) {
    if (span.there_) return vksvm_poisoned_ ? vksvm_sink_(at, false) : span.device + at;
    return vksvm_read(span.va + at);
}

// Device address for storing, or for an atomic on, an aligned scalar or vector `at` bytes into `span`, made by vksvm_span_write().
uint64_t vksvm_in_span_write(VksvmSpan span, uint64_t at) {
    if (span.there_) return vksvm_store_at_(span.va + at, span.device + at);
    return vksvm_write(span.va + at);
}

// A translation that an invocation keeps. While a dispatch is replayed nothing is taken away, so it is good to its end. Live, it is
// good for the epoch that it was made in: the unit's moving over drops it (shootdown), whichever invocation or subgroup moved it, and every so often
// an access that hits is made a safe point all the same. Only what was translated for storing, and so marked dirty, is stored
// through; nothing is kept of what is missing, or of stores that must not happen.
struct VksvmCached {
    // Of the CPU's address; all ones for none.
    uint64_t page_;
    // From the CPU's address to the device's.
    uint64_t distance_;
    uint epoch_;
    bool writable_;
};

VksvmCached vksvm_cached() { return VksvmCached(~0ul, 0ul, 0u, false); }

// Live mode: the epoch in which translations were made.
uint vksvm_unit_epoch_() {
    if (!vksvm_is_live_()) return 0u;
    return vksvm_is_lockstep_() ? VksvmLiveWord_(vksvm_unit_).value : vksvm_epoch_;
}

// Whether `result` may be kept as the translation of `va`. The zero frame is not: while the kernel runs, a page gets a frame of its own when
// somebody stores to it, and nobody is told.
bool vksvm_may_keep_(uint64_t va, uint64_t result, bool write) {
    if (vksvm_poisoned_ || (write && (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u)) return false;
    if (write || !vksvm_is_live_()) return true;
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    if (page >= uint64_t(vksvm_launch_.pages)) return false;
    uint64_t entry = VksvmLivePte_(vksvm_launch_.table + 8ul * page).entry;
    return (uint(entry) & (VKSVM_PTE_VALID | VKSVM_PTE_ZERO)) == VKSVM_PTE_VALID && vksvm_in_frame_(entry, va) == result;
}

// Keeps the translation `result` of `va`, made in `epoch`, if it may be kept; otherwise what was kept before, if it was made in that epoch.
void vksvm_keep_(inout VksvmCached kept, uint64_t va, uint64_t result, bool write, uint epoch) {
    if (vksvm_may_keep_(va, result, write))
        kept = VksvmCached(va >> VKSVM_PAGE_SHIFT, result - va, epoch, write);
    else if (kept.epoch_ != epoch)
        kept = VksvmCached(~0ul, 0ul, epoch, false);
}

uint64_t vksvm_cached_(inout VksvmCached kept, uint64_t va, bool write) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    for (uint round = 0u; round < 1000u; round++) {
        // In lockstep all invocations that are here read the same, here and at the end, and so go on or return together: nobody is
        // gone with an address while another, which waits for its page, moves the unit over.
        uint epoch = vksvm_unit_epoch_();
        bool hit = kept.page_ == va >> VKSVM_PAGE_SHIFT && kept.epoch_ == epoch;
        hit = hit && (!write || (kept.writable_ && !vksvm_poisoned_));
        // A translation that is due for its safe point counts itself.
        if (vksvm_is_live_()) hit = hit && (vksvm_hits_ & 63u) != 63u;
        uint64_t result = kept.distance_ + va;
        if (hit) {
            if (vksvm_is_live_()) vksvm_hits_++;
        } else {
            result = vksvm_translate_(va, 0u, write ? vksvm_write_want_ : VKSVM_READ_WANT_, write);
            vksvm_keep_(kept, va, result, write, vksvm_unit_epoch_());
        }
        if (!vksvm_is_live_() || !vksvm_is_lockstep_() || vksvm_unit_epoch_() == epoch) return result;
    }
    vksvm_poison_();
    return vksvm_sink_(va, write);
}

// As vksvm_read(), with the translation kept in `kept`, or taken from there.
uint64_t vksvm_cached_read(inout VksvmCached kept, uint64_t va) { return vksvm_cached_(kept, va, false); }

// As vksvm_write(), with the translation kept in `kept`, or taken from there.
uint64_t vksvm_cached_write(inout VksvmCached kept, uint64_t va) { return vksvm_cached_(kept, va, true); }

#ifndef VKSVM_LIBRARY
// What the first invocation translated for its workgroup, in which epoch, and whether any is poisoned. Calls take turns, so that none is
// read while an invocation that is ahead writes it for the next.
shared uint64_t vksvm_shared_address_[2];
shared uint vksvm_shared_epoch_[2];
shared uint vksvm_shared_poison_[2];

uint64_t vksvm_uniform_(inout VksvmCached kept, uint64_t va, bool write) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    bool first = gl_LocalInvocationIndex == 0u;
    if (vksvm_turn_ == 0u) {
        if (first) {
            vksvm_shared_poison_[0] = 0u;
            vksvm_shared_poison_[1] = 0u;
        }
        barrier();
    }
    uint turn = vksvm_turn_ & 1u;
    vksvm_turn_ = 2u | (turn ^ 1u);
    if (first) {
        vksvm_shared_address_[turn] = vksvm_cached_(kept, va, write);
        vksvm_shared_epoch_[turn] = kept.epoch_;
    }
    if (vksvm_poisoned_) atomicOr(vksvm_shared_poison_[turn], 1u);
    barrier();
    // Poison is never taken back, so neither is the word; all read the same.
    vksvm_group_poisoned_ = vksvm_shared_poison_[turn] != 0u;
    if (vksvm_group_poisoned_ && !vksvm_poisoned_) vksvm_poison_();
    uint64_t result = vksvm_shared_address_[turn];
    uint epoch = vksvm_shared_epoch_[turn];
    if (write && vksvm_poisoned_) result = vksvm_sink_(va, true);
    vksvm_keep_(kept, va, result, write, epoch);
    // Live, an invocation that is counted in another epoch, or a unit that has moved over since, needs a translation of its own.
    if (vksvm_is_live_() && vksvm_unit_epoch_() != epoch) result = vksvm_cached_(kept, va, write);
#ifdef VKSVM_SUBGROUPS
    else result = packUint2x32(subgroupBroadcastFirst(unpackUint2x32(result)));
#endif
    return result;
}

// As vksvm_cached_read(), for the whole workgroup, which asks for the same address. A barrier.
uint64_t vksvm_uniform_read(inout VksvmCached kept, uint64_t va) { return vksvm_uniform_(kept, va, false); }

// As vksvm_cached_write(), for the whole workgroup, which asks for the same address. A barrier.
uint64_t vksvm_uniform_write(inout VksvmCached kept, uint64_t va) { return vksvm_uniform_(kept, va, true); }

// Whether the workgroup's work is void, as of the last of these calls: the same for all its invocations.
bool vksvm_uniform_poisoned() { return vksvm_group_poisoned_; }
#endif

// A piece of the bounce arena whose address agrees with `va` modulo 16; 0 if it is used up, and then the
// invocation is poisoned: the arena is empty again when its workgroup runs again.
uint64_t vksvm_bounce_(const uint64_t va, const uint bytes) {
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    uint room = (bytes + 31u) & ~15u;
    uint at = atomicAdd(control.bounce_head, room);
    if (at > control.bounce_bytes || room > control.bounce_bytes - at) {
        vksvm_poison_();
        return 0ul;
    }
    return control.bounce + uint64_t(at + (uint(va) & 15u));
}

// Copies the words that cover [0, bytes) between a straddling object, whose two parts are at `first` and
// `second`, and its copy.
void vksvm_copy_straddling_(const uint64_t va, const uint bytes, const uint64_t first, const uint64_t second, const uint64_t copy, const bool out_) {
    uint skew = uint(va) & 3u;
    uint head = VKSVM_PAGE_SIZE - ((uint(va) & 0xFFFu) - skew);
    for (uint i = 0u; i < bytes + skew; i += 4u) {
        uint64_t at = i < head ? first - skew + i : second + (i - head);
        if (out_) VksvmWord_(at).value = VksvmWord_(copy - skew + i).value;
        else VksvmWord_(copy - skew + i).value = VksvmWord_(at).value;
    }
}

// vksvm_object_() in the fast variant.
uint64_t vksvm_object_fast_(const uint64_t va, const uint bytes, const bool write) {
    uint head = VKSVM_PAGE_SIZE - (uint(va) & 0xFFFu);
    bool straddles = bytes > head;
    uint64_t entry;
    uint64_t unused;
    uint64_t first = vksvm_translate_fast_(va, write, entry);
    uint64_t second = vksvm_translate_fast_(straddles ? va + head : va, write, unused);
    if (!straddles) return first;
    if ((uint(entry) & VKSVM_PTE_LAST) != 0u) vksvm_poison_();
    if (vksvm_poisoned_) return vksvm_sink_(va, write);
    if (second == first + head) return first;
    if (write && (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u) return first;
    // Copies are dear also where none is made. What can be run again is left to the other variant; all else would be a late fault.
    uint64_t copy = 0ul;
    if ((vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) != 0u) vksvm_poison_();
    else copy = vksvm_bounce_(va, bytes);
    if (copy == 0ul) return vksvm_sink_(va, write);
    vksvm_copy_straddling_(va, bytes, first, second, copy, false);
    return copy;
}

// Translates an object that may straddle two pages.
uint64_t vksvm_object_(const uint64_t va, const uint bytes, const bool write) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    if (vksvm_is_fast_()) return vksvm_object_fast_(va, bytes, write);
    uint head = VKSVM_PAGE_SIZE - (uint(va) & 0xFFFu);
    bool straddles = bytes > head;
    bool overrun = false;
    uint64_t first = 0ul;
    uint64_t second = 0ul;
    // In lockstep a neighbour's wait for its second part may void what this invocation has, also if it has one part only. All go through the
    // outer loop together, and compare epochs where they have met.
    for (uint round = 0u;; round++) {
        uint epoch = vksvm_unit_epoch_();
        // One call of the translation for both parts: compilers put every call's code in place.
        uint parts = straddles ? 2u : 1u;
        for (uint part = 0u; part < parts; part++) {
            first = second;
            second = vksvm_translate_(part != 0u ? va + head : va, part != 0u ? bytes - head : bytes,
                                      write ? vksvm_write_want_ : VKSVM_READ_WANT_, write);
            if (straddles && part == 0u && !vksvm_poisoned_) {
                // The first page is there, so its entry says whether there is a second.
                uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
                if ((VksvmWord_(vksvm_launch_.table + 8ul * page).value & VKSVM_PTE_LAST) != 0u) {
                    if (vksvm_poison_())
                        vksvm_report_(va, bytes, VKSVM_FAULT_OVERRUN | (write ? VKSVM_FAULT_WRITE : 0u));
                    overrun = true;
                    parts = 1u;
                }
            }
        }
        if (!vksvm_is_live_() || vksvm_unit_epoch_() == epoch) break;
        if (round == 1000u) {
            vksvm_poison_();
            return vksvm_sink_(va, write);
        }
    }
    if (overrun) return vksvm_sink_(va, write);
    if (!straddles) return second;
    if (vksvm_poisoned_) return vksvm_sink_(va, write);
    if (second == first + head) return first;
    if (write && (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u) return vksvm_sink_(va, true);
    uint64_t copy = vksvm_bounce_(va, bytes);
    if (copy == 0ul) return vksvm_sink_(va, write);
    vksvm_copy_straddling_(va, bytes, first, second, copy, false);
    return copy;
}

// Device address for loading an object of `bytes` (at most a page) at any address.
uint64_t vksvm_read(const uint64_t va, const uint bytes) {
    return vksvm_object_(va, bytes, false);
}

// Device address under which an object of `bytes` (at most a page) may be changed; hand it to
// vksvm_end_write() when done. Two invocations must not change the same object at the same time.
uint64_t vksvm_begin_write(const uint64_t va, const uint bytes) {
    return vksvm_object_(va, bytes, true);
}

// Makes what was stored through vksvm_begin_write() part of the object.
void vksvm_end_write(const uint64_t va, const uint bytes, const uint64_t address) {
    if (vksvm_is_direct_()) return;
    if (vksvm_is_fast_() && (vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) != 0u) return;
    uint head = VKSVM_PAGE_SIZE - (uint(va) & 0xFFFu);
    if (bytes <= head) return;
    VksvmControl_ control = VksvmControl_(vksvm_launch_.control);
    if (address - control.bounce >= uint64_t(control.bounce_bytes)) return;
    uint64_t first = 0ul;
    uint64_t second = 0ul;
    for (uint round = 0u;; round++) {
        uint epoch = vksvm_unit_epoch_();
        for (uint part = 0u; part < 2u; part++) {
            first = second;
            second = vksvm_translate_(part != 0u ? va + head : va, bytes, vksvm_write_want_, true);
        }
        // The second wait may have voided the first part: both again.
        if (!vksvm_is_live_() || vksvm_unit_epoch_() == epoch) break;
        if (round == 1000u) {
            vksvm_poison_();
            return;
        }
    }
    vksvm_copy_straddling_(va, bytes, first, second, address, true);
}

// Fast variant: whether an object lies in a run; aligned ones of 0 bytes do not reach past their first.
bool vksvm_in_run_(const VksvmRun run, const uint64_t va, const uint bytes) {
    uint64_t offset = va - run.va;
    return offset < run.bytes && (bytes == 0u || run.bytes - offset >= uint64_t(bytes));
}

// As vksvm_object_(), or without `bytes` as vksvm_read() and vksvm_write(), for what most likely lies in a run: then it costs no load.
uint64_t vksvm_run_read_(const VksvmRun run, const uint64_t va, const uint bytes) {
    if (vksvm_is_fast_() && vksvm_in_run_(run, va, bytes)) return run.device + (va - run.va);
    return bytes == 0u ? vksvm_read(va) : vksvm_object_(va, bytes, false);
}

uint64_t vksvm_run_write_(const VksvmRun run, const uint64_t va, const uint bytes) {
    if (vksvm_is_fast_() && vksvm_in_run_(run, va, bytes)) {
        uint64_t real = run.device + (va - run.va);
        return vksvm_may_store_() ? real : vksvm_not_stored_(va, real);
    }
    return bytes == 0u ? vksvm_write(va) : vksvm_object_(va, bytes, true);
}

// The shader's main() is called by the one that stands here, which runs the launch protocol around it, so that no way out of it is
// forgotten. A shader may say where it begins and ends, `if (!vksvm_begin()) return;` and `vksvm_end();`, and need not.
bool vksvm_begin() { return true; }
void vksvm_end() {}
#ifndef VKSVM_LIBRARY
void vksvm_main_();
void main() {
    if (vksvm_start_()) {
        vksvm_main_();
        vksvm_finish_();
    }
}
#define main vksvm_main_
#endif

// Typed short forms. `p` must be aligned to the type's size.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer VksvmF32 { float value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer VksvmU32 { uint value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer VksvmI32 { int value; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer VksvmU64 { uint64_t value; };

float vksvm_load_f32(uint64_t p) { return VksvmF32(vksvm_read(p)).value; }
uint vksvm_load_u32(uint64_t p) { return VksvmU32(vksvm_read(p)).value; }
int vksvm_load_i32(uint64_t p) { return VksvmI32(vksvm_read(p)).value; }
uint64_t vksvm_load_u64(uint64_t p) { return VksvmU64(vksvm_read(p)).value; }
void vksvm_store_f32(uint64_t p, float v) { VksvmF32(vksvm_write(p)).value = v; }
void vksvm_store_u32(uint64_t p, uint v) { VksvmU32(vksvm_write(p)).value = v; }
void vksvm_store_i32(uint64_t p, int v) { VksvmI32(vksvm_write(p)).value = v; }
void vksvm_store_u64(uint64_t p, uint64_t v) { VksvmU64(vksvm_write(p)).value = v; }
float vksvm_array_load_f32(VksvmArray a, uint64_t i) { return VksvmF32(vksvm_array_read(a, 4ul * i)).value; }
uint vksvm_array_load_u32(VksvmArray a, uint64_t i) { return VksvmU32(vksvm_array_read(a, 4ul * i)).value; }
int vksvm_array_load_i32(VksvmArray a, uint64_t i) { return VksvmI32(vksvm_array_read(a, 4ul * i)).value; }
uint64_t vksvm_array_load_u64(VksvmArray a, uint64_t i) { return VksvmU64(vksvm_array_read(a, 8ul * i)).value; }
void vksvm_array_store_f32(VksvmArray a, uint64_t i, float v) { VksvmF32(vksvm_array_write(a, 4ul * i)).value = v; }
void vksvm_array_store_u32(VksvmArray a, uint64_t i, uint v) { VksvmU32(vksvm_array_write(a, 4ul * i)).value = v; }
void vksvm_array_store_i32(VksvmArray a, uint64_t i, int v) { VksvmI32(vksvm_array_write(a, 4ul * i)).value = v; }
void vksvm_array_store_u64(VksvmArray a, uint64_t i, uint64_t v) { VksvmU64(vksvm_array_write(a, 8ul * i)).value = v; }
uint vksvm_atomic_add_u32(uint64_t p, uint v) { return atomicAdd(VksvmU32(vksvm_atomic(p)).value, v); }
uint vksvm_atomic_min_u32(uint64_t p, uint v) { return atomicMin(VksvmU32(vksvm_atomic(p)).value, v); }
uint vksvm_atomic_max_u32(uint64_t p, uint v) { return atomicMax(VksvmU32(vksvm_atomic(p)).value, v); }
uint vksvm_atomic_or_u32(uint64_t p, uint v) { return atomicOr(VksvmU32(vksvm_atomic(p)).value, v); }
uint vksvm_atomic_exchange_u32(uint64_t p, uint v) { return atomicExchange(VksvmU32(vksvm_atomic(p)).value, v); }
uint vksvm_atomic_cas_u32(uint64_t p, uint expected, uint v) {
    return atomicCompSwap(VksvmU32(vksvm_atomic(p)).value, expected, v);
}

#endif
