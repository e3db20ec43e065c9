#version 460
// What the runtime links into a kernel that it rewrites (runtime/src/kernel/rewrite): the translation of
// vksvm.glsl behind functions whose parameters are values, and what only rewritten kernels need. main() is
// dropped; it calls every function, so that the compiler keeps them.
// Unoptimised, because optimising would inline the functions away:
// glslc: -O0
#define VKSVM_LIBRARY
#include "vksvm.glsl"
// Specialised, so that the compiler computes nothing from it; linking puts the kernel's size in its place.
layout(local_size_x_id = 1996, local_size_y_id = 1997, local_size_z_id = 1998) in;

// Set before a barrier by poisoned invocations; barriers take turns, so that none is read while an
// invocation that is ahead sets it for the next.
shared uint link_poison_[2];
uint link_turn_;
// Poisoned as of the last barrier: the same in the whole workgroup.
bool link_group_poisoned_;

bool link_begin() {
    link_turn_ = 0u;
    link_group_poisoned_ = false;
    return vksvm_start_();
}

void link_end() { vksvm_finish_(); }

// Before anything else in a kernel with barriers.
void link_begin_barriers() {
    if (vksvm_is_direct_()) return;
    if (gl_LocalInvocationIndex == 0u) {
        link_poison_[0] = 0u;
        link_poison_[1] = 0u;
    }
    barrier();
}

void link_before_barrier() {
    if (vksvm_poisoned()) atomicOr(link_poison_[link_turn_], 1u);
}

void link_after_barrier() {
    if (vksvm_is_direct_()) return;
    if (atomicOr(link_poison_[link_turn_], 0u) != 0u) {
        link_group_poisoned_ = true;
        if (!vksvm_poisoned()) vksvm_poison_();
    }
    link_turn_ ^= 1u;
}

bool link_poisoned() { return vksvm_poisoned(); }
bool link_group_poisoned() { return !vksvm_is_direct_() && link_group_poisoned_; }
uvec3 link_workgroup() { return vksvm_workgroup_id(); }
uvec3 link_global(const uvec3 size) { return vksvm_workgroup_id() * size + gl_LocalInvocationID; }
uvec3 link_grid() {
    return uvec3(vksvm_launch_.grid_x, vksvm_launch_.grid_y, VksvmControl_(vksvm_launch_.control).grid_z);
}

void link_site(const uint site) { vksvm_site_ = site; }
uint64_t link_read(const uint64_t va) { return vksvm_read(va); }
uint64_t link_write(const uint64_t va) { return vksvm_write(va); }
uint64_t link_atomic(const uint64_t va) { return vksvm_atomic(va); }
uint64_t link_read_object(const uint64_t va, const uint bytes) { return vksvm_read(va, bytes); }
uint64_t link_begin_write(const uint64_t va, const uint bytes) { return vksvm_begin_write(va, bytes); }
void link_end_write(const uint64_t va, const uint bytes, const uint64_t address) {
    vksvm_end_write(va, bytes, address);
}

bool link_is_whole_() { return (vksvm_variant_ & VKSVM_VARIANT_WHOLE) != 0u; }

// The device address `real`, `offset` bytes into a run that is all there is, or a miss.
uint64_t link_in_whole_(const uint64_t real, const uint64_t offset, const uint64_t in_bytes, const uint bytes, const bool write) {
    bool hit = offset < in_bytes && (bytes == 0u || in_bytes - offset >= uint64_t(bytes));
    vksvm_poisoned_ = vksvm_poisoned_ || !hit;
    if (write) hit = !vksvm_poisoned_;
    return hit ? real : vksvm_sink_(real, write);
}

// The same for what comes from an argument by arithmetic alone, whose run follows: what `va`, `bytes` and `device` of it say, `in`.
uint64_t link_run_read(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + in_device;
    if (link_is_whole_()) return link_in_whole_(in_device + (va - in_va), va - in_va, in_bytes, 0u, false);
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_run_write(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + in_device;
    if (link_is_whole_()) return link_in_whole_(in_device + (va - in_va), va - in_va, in_bytes, 0u, true);
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_run_read_object(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                              const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + in_device;
    if (link_is_whole_()) return link_in_whole_(in_device + (va - in_va), va - in_va, in_bytes, bytes, false);
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}
uint64_t link_run_begin_write(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                              const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + in_device;
    if (link_is_whole_()) return link_in_whole_(in_device + (va - in_va), va - in_va, in_bytes, bytes, true);
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}

// The same for arguments that nothing else is done with, to which what is to be added was added before the launch.
uint64_t link_own_read(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va;
    if (link_is_whole_()) return link_in_whole_(va, va - in_device, in_bytes, 0u, false);
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_own_write(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va;
    if (link_is_whole_()) return link_in_whole_(va, va - in_device, in_bytes, 0u, true);
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_own_read_object(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                              const uint64_t in_device) {
    if (vksvm_is_direct_()) return va;
    if (link_is_whole_()) return link_in_whole_(va, va - in_device, in_bytes, bytes, false);
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}
uint64_t link_own_begin_write(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                              const uint64_t in_device) {
    if (vksvm_is_direct_()) return va;
    if (link_is_whole_()) return link_in_whole_(va, va - in_device, in_bytes, bytes, true);
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}

// The same for what most likely lies in a run, but need not.
uint64_t link_near_read(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_near_write(const uint64_t va, const uint64_t in_va, const uint64_t in_bytes, const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, 0u);
}
uint64_t link_near_read_object(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                               const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    return vksvm_run_read_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}
uint64_t link_near_begin_write(const uint64_t va, const uint bytes, const uint64_t in_va, const uint64_t in_bytes,
                               const uint64_t in_device) {
    if (vksvm_is_direct_()) return va + vksvm_launch_.table;
    return vksvm_run_write_(VksvmRun(in_va, in_bytes, in_device), va, bytes);
}

// Accesses on the page of one before them, which was translated to what `known` is as far from as `va` is from that one's address. While
// a replayed dispatch runs no page is taken away. Live, one may have been. That both are on one page the alignment says that the shader
// promises; `distance` bytes back is the one before, and if a page ends between them after all, the later is translated by itself.
bool link_page_ends_(const uint64_t va, const uint distance) {
    return !vksvm_is_direct_() && ((uint(va) ^ (uint(va) - distance)) >> VKSVM_PAGE_SHIFT) != 0u;
}
// Whether what is known may be used. Where a run is all there is, `va` may be no address to translate: there it misses.
bool link_is_known_(const uint64_t va, const uint distance) {
    if (vksvm_is_live_()) return false;
    bool ends = link_page_ends_(va, distance);
    if (!link_is_whole_()) return !ends;
    vksvm_poisoned_ = vksvm_poisoned_ || ends;
    return true;
}
uint64_t link_again_read(const uint64_t va, const uint64_t known, const uint distance) {
    if (!link_is_known_(va, distance)) return vksvm_read(va);
    return link_is_whole_() && link_page_ends_(va, distance) ? vksvm_sink_(va, false) : known;
}
// The one before was a store or an atomic: in a probe it went to the sink, and so it did if the invocation was poisoned.
uint64_t link_again_read_stored(const uint64_t va, const uint64_t known, const uint distance) {
    if (!link_is_known_(va, distance) || (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u) return vksvm_read(va);
    return vksvm_poisoned() ? vksvm_sink_(va, false) : known;
}
// An invocation that was poisoned since then must store nothing. In a probe, nothing was stored before either.
uint64_t link_again_write(const uint64_t va, const uint64_t known, const uint distance) {
    if (!link_is_known_(va, distance)) return vksvm_write(va);
    return vksvm_poisoned() ? vksvm_sink_(va, true) : known;
}
// In a probe, what an atomic finds must be what is there.
uint64_t link_again_atomic(const uint64_t va, const uint64_t known, const uint distance) {
    if (!link_is_known_(va, distance) || (vksvm_variant_ & VKSVM_VARIANT_PROBE) != 0u) return vksvm_atomic(va);
    return vksvm_poisoned() ? vksvm_sink_(va, true) : known;
}

// Where a load would find what it needs, ahead of a loop that may make it; 0 if its page is not there. Reports nothing.
uint64_t link_peek_read(const uint64_t va) {
    if (vksvm_is_live_() || vksvm_is_direct_()) return 0ul;
    uint64_t page = (va - vksvm_launch_.heap_base) >> VKSVM_PAGE_SHIFT;
    uint64_t at = vksvm_launch_.table + 8ul * (page & uint64_t(vksvm_launch_.pages - 1u));
    uint64_t entry = VksvmPte_(at).entry;
    bool marks = vksvm_is_fast_() && (vksvm_variant_ & (VKSVM_VARIANT_IDEMPOTENT | VKSVM_VARIANT_PROBE)) == 0u;
    // Fast passes that must not end in a late fault mark pages in passing, and probes of them let what is not marked pass.
    bool lax = vksvm_is_fast_() && (vksvm_variant_ & VKSVM_VARIANT_IDEMPOTENT) == 0u;
    uint64_t want = uint64_t(lax ? VKSVM_PTE_VALID : VKSVM_READ_WANT_);
    bool hit = page < uint64_t(vksvm_launch_.pages) && (entry & want) == want;
    if (marks && hit && (uint(entry) & VKSVM_PTE_ACCESSED) == 0u) atomicOr(VksvmWord_(at).value, VKSVM_PTE_ACCESSED);
    return hit ? vksvm_in_frame_(entry, va) : 0ul;
}
// A load whose page was peeked at.
uint64_t link_hoisted_read(const uint64_t va, const uint64_t peeked) {
    if (vksvm_is_live_() || vksvm_is_direct_()) return vksvm_read(va);
    if (vksvm_is_fast_()) {
        vksvm_poisoned_ = vksvm_poisoned_ || peeked == 0ul;
        return peeked != 0ul ? peeked : vksvm_sink_(va, false);
    }
    return peeked != 0ul ? peeked : vksvm_read(va);
}

void main() {
    if (!link_begin()) return;
    link_begin_barriers();
    link_before_barrier();
    link_after_barrier();
    link_site(0u);
    uint64_t all = uint64_t(link_workgroup().x + link_grid().x + link_global(uvec3(1u)).x);
    if (!link_poisoned() && !link_group_poisoned())
        all = link_read(all) + link_write(all) + link_atomic(all) + link_read_object(all, 8u);
    link_end_write(all, 8u, link_begin_write(all, 8u));
    all += link_run_read(all, all, all, all) + link_run_write(all, all, all, all);
    link_end_write(all, 8u, link_run_read_object(all, 8u, all, all, all) + link_run_begin_write(all, 8u, all, all, all));
    all += link_near_read(all, all, all, all) + link_near_write(all, all, all, all);
    all += link_near_read_object(all, 8u, all, all, all) + link_near_begin_write(all, 8u, all, all, all);
    all += link_own_read(all, all, all, all) + link_own_write(all, all, all, all);
    all += link_own_read_object(all, 8u, all, all, all) + link_own_begin_write(all, 8u, all, all, all);
    all += link_again_read(all, all, 8u) + link_again_read_stored(all, all, 8u) + link_again_write(all, all, 8u);
    all += link_again_atomic(all, all, 8u) + link_hoisted_read(all, link_peek_read(all));
    link_end();
}
