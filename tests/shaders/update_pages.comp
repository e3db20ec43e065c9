#version 460
// Every invocation changes a word of its own on every page, x to 5x + 7, and adds to the page's counter, its last word: neither may
// happen twice.
#define VKSVM_ARGS uint64_t data; uint pages; uint invocations;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    for (uint turn = 0u; turn < args.pages && i < args.invocations; turn++) {
        uint64_t page = args.data + 4096ul * ((turn * 7u + i) % args.pages);
        VksvmU32 word = VksvmU32(vksvm_write(page + 4ul * i));
        word.value = 5u * word.value + 7u;
        vksvm_atomic_add_u32(page + 4092ul, i + 1u);
    }
    vksvm_end();
}
