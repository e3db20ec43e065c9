#version 460
// c += a * b, for `depth` columns of a and as many rows of b; a and c have rows of `n` floats, b too. `a` points to the first of these
// columns, `b` to the first of these rows. n and depth are multiples of 16.
#define VKSVM_ARGS uint64_t a; uint64_t b; uint64_t c; uint n; uint depth;
#include "vksvm.glsl"
layout(local_size_x = 16, local_size_y = 16) in;

shared float tile_a[16][16];
shared float tile_b[16][16];

void main() {
    if (!vksvm_begin()) return;
    uint x = vksvm_global_id().x;
    uint y = vksvm_global_id().y;
    uvec2 local = gl_LocalInvocationID.xy;
    float sum = 0.0;
    for (uint k = 0u; k < args.depth; k += 16u) {
        tile_a[local.y][local.x] = vksvm_load_f32(args.a + 4ul * (uint64_t(y) * args.n + k + local.x));
        tile_b[local.y][local.x] = vksvm_load_f32(args.b + 4ul * (uint64_t(k + local.y) * args.n + x));
        barrier();
        for (uint i = 0u; i < 16u; i++) sum += tile_a[local.y][i] * tile_b[i][local.x];
        barrier();
    }
    uint64_t at = args.c + 4ul * (uint64_t(y) * args.n + x);
    vksvm_store_f32(at, vksvm_load_f32(at) + sum);
    vksvm_end();
}
