#version 460
// out[i] = data[i] + *extra[i], where extra is followed through pointers; counts itself in `calls`.
#define VKSVM_ARGS VksvmArray data; VksvmArray result; uint64_t extra; uint64_t calls; uint n; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.n) {
        uint value = vksvm_array_load_u32(args.data, i);
        if (args.extra != 0ul) value += vksvm_load_u32(vksvm_load_u64(args.extra + 8ul * i));
        vksvm_array_store_u32(args.result, i, value);
        if (args.calls != 0ul) vksvm_atomic_add_u32(args.calls, 1u);
    }
    vksvm_end();
}
