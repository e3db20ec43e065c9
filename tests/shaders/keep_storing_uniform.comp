#version 460
// As keep_storing_cached.comp, with translations that workgroups make together; for `limit` turns, as all must agree on the end.
#define VKSVM_SUBGROUPS
#define VKSVM_ARGS uint64_t data; uint64_t stop; uint64_t turns; uint pages; uint limit;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

void main() {
    uint i = vksvm_global_id().x;
    VksvmCached kept = vksvm_cached();
    uint turn = 0u;
    while (turn < args.limit && !vksvm_uniform_poisoned()) {
        uint64_t page = args.data + 4096ul * (turn / 8u % args.pages);
        if (turn % 8u == 0u) vksvm_uniform_write(kept, page);
        VksvmU32 word = VksvmU32(vksvm_cached_write(kept, page + 4ul * i));
        word.value = word.value + 1u;
        turn++;
    }
    vksvm_store_u32(args.turns + 4ul * i, turn);
}
