#version 460
// Every invocation changes a row of `width` words of its own, x to 5x + 7, and adds a row of `more` to it, each through a translation that
// it keeps.
#define VKSVM_ARGS uint64_t data; uint64_t more; uint width; uint rows;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

void main() {
    uint row = vksvm_global_id().x;
    if (row >= args.rows) return;
    VksvmCached here = vksvm_cached();
    VksvmCached there = vksvm_cached();
    for (uint i = 0u; i < args.width && !vksvm_poisoned(); i++) {
        uint64_t at = 4ul * (uint64_t(row) * args.width + i);
        uint added = VksvmU32(vksvm_cached_read(there, args.more + at)).value;
        // First read, then stored to through the same translation.
        uint old = VksvmU32(vksvm_cached_read(here, args.data + at)).value;
        VksvmU32(vksvm_cached_write(here, args.data + at)).value = 5u * old + 7u + added;
    }
}
