#version 460
// Runs a list of operations on words: 0 reads into `out`, 1 stores, 2 adds atomically, 3 takes the maximum atomically.
#define VKSVM_ARGS uint64_t ops; uint64_t out_; uint n;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Op { uint64_t address; uint kind; uint value; };

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.n) {
        Op op = Op(vksvm_read(args.ops + 16ul * i, 16u));
        uint64_t address = op.address;
        uint kind = op.kind;
        uint value = op.value;
        uint result = 0u;
        if (kind == 0u) result = vksvm_load_u32(address);
        else if (kind == 1u) vksvm_store_u32(address, value);
        else if (kind == 2u) result = vksvm_atomic_add_u32(address, value);
        else if (kind == 3u) result = vksvm_atomic_max_u32(address, value);
        vksvm_store_u32(args.out_ + 4ul * i, result);
    }
    vksvm_end();
}
