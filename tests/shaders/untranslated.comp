#version 460
// Follows a heap pointer without translating it: works by accident where device addresses are host pointers.
#define VKSVM_ARGS uint64_t data; uint64_t out_;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    uint value = VksvmU32(args.data).value;
    vksvm_store_u32(args.out_, value);
    vksvm_end();
}
