#version 460
// Every invocation counts up a word of its own on each of `pages` pages in turn, until the host says stop; it leaves how often.
#define VKSVM_ARGS uint64_t data; uint64_t stop; uint64_t turns; uint pages; uint limit;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Flag { volatile uint value; };

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    uint turn = 0u;
    while (turn < args.limit && !vksvm_poisoned()) {
        VksvmU32 word = VksvmU32(vksvm_write(args.data + 4096ul * (turn % args.pages) + 4ul * i));
        word.value = word.value + 1u;
        turn++;
        if (turn % 64u == 0u && Flag(vksvm_read(args.stop)).value != 0u) break;
    }
    vksvm_store_u32(args.turns + 4ul * i, turn);
    vksvm_end();
}
