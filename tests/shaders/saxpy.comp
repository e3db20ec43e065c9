#version 460
// y = a * x + y
#define VKSVM_ARGS uint64_t x; uint64_t y; float a; uint n;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.n) {
        uint64_t y = args.y + 4ul * i;
        vksvm_store_f32(y, args.a * vksvm_load_f32(args.x + 4ul * i) + vksvm_load_f32(y));
    }
    vksvm_end();
}
