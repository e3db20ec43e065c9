#version 460
// As keep_storing.comp, with a translation that the invocation keeps while it stays on a page for eight turns.
#define VKSVM_ARGS uint64_t data; uint64_t stop; uint64_t turns; uint pages; uint limit;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Flag { volatile uint value; };

void main() {
    uint i = vksvm_global_id().x;
    VksvmCached kept = vksvm_cached();
    uint turn = 0u;
    while (turn < args.limit && !vksvm_poisoned()) {
        uint64_t at = args.data + 4096ul * (turn / 8u % args.pages) + 4ul * i;
        // Some only follow after having looked.
        if (i % 3u == 0u) vksvm_cached_read(kept, at);
        VksvmU32 word = VksvmU32(vksvm_cached_write(kept, at));
        word.value = word.value + 1u;
        turn++;
        if (turn % 64u == 0u && Flag(vksvm_read(args.stop)).value != 0u) break;
    }
    vksvm_store_u32(args.turns + 4ul * i, turn);
}
