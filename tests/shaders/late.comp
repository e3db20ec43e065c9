#version 460
// Stores a pointer and follows what it stored: the miss depends on the store, so no probe can foresee it.
#define VKSVM_ARGS uint64_t cell; uint64_t target; uint64_t out_;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    uint64_t cell = args.cell;
    vksvm_store_u64(cell, args.target);
    uint64_t p = vksvm_load_u64(cell);
    if (p == args.target) vksvm_store_u32(args.out_, vksvm_load_u32(p));
    vksvm_end();
}
