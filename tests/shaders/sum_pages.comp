#version 460
// One workgroup reads one word of each of `pages` pages and stores the sum.
#define VKSVM_ARGS uint64_t data; uint64_t out_; uint pages; uint per_group;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    uint first = vksvm_workgroup_id().x * args.per_group;
    uint sum = 0u;
    for (uint i = 0u; i < args.per_group; i++) {
        uint page = (first + i) % args.pages;
        sum += vksvm_load_u32(args.data + 4096ul * page);
    }
    vksvm_store_u32(args.out_ + 4ul * vksvm_workgroup_id().x, sum);
    vksvm_end();
}
