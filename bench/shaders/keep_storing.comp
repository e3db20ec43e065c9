#version 460
// Every invocation counts up a word of its own on each of `pages` pages in turn, until the host says stop.
#define VKSVM_ARGS uint64_t data; uint64_t stop; uint pages; uint turns;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Flag { volatile uint value; };

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    for (uint turn = 0u; turn < args.turns && !vksvm_poisoned(); turn++) {
        VksvmU32 word = VksvmU32(vksvm_write(args.data + 4096ul * (turn % args.pages) + 4ul * i));
        word.value = word.value + 1u;
        if (turn % 64u == 0u && Flag(vksvm_read(args.stop)).value != 0u) break;
    }
    vksvm_end();
}
