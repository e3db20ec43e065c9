#version 460
// Every invocation of a 3D grid leaves its mark at its own place.
#define VKSVM_ARGS uint64_t marks; uint nx; uint ny; uint nz; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 4, local_size_y = 2, local_size_z = 2) in;

void main() {
    if (!vksvm_begin()) return;
    uvec3 id = vksvm_global_id();
    if (id.x < args.nx && id.y < args.ny && id.z < args.nz) {
        uint64_t at = uint64_t(id.x) + uint64_t(args.nx) * (uint64_t(id.y) + uint64_t(args.ny) * uint64_t(id.z));
        vksvm_atomic_add_u32(args.marks + 4ul * at, 1u + id.x + 100u * id.y + 10000u * id.z);
    }
    vksvm_end();
}
