#version 460
// What pointers lead to, plus one, is stored where other pointers lead to; most of both lies in two arrays.
#define VKSVM_ARGS VksvmArray data; VksvmArray result; uint64_t sources; uint64_t targets; uint n; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

void main() {
    uint i = vksvm_global_id().x;
    if (i >= args.n) return;
    uint64_t source = vksvm_load_u64(args.sources + 8ul * i);
    uint64_t target = vksvm_load_u64(args.targets + 8ul * i);
    VksvmU32(vksvm_near_write(args.result, target)).value = VksvmU32(vksvm_near_read(args.data, source)).value + 1u;
}
