#version 460
// One invocation loads or stores an object of `bytes` at any address: for faults and straddling objects.
#define VKSVM_ARGS uint64_t at; uint64_t out_; uint bytes; uint store;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

layout(buffer_reference, scalar, buffer_reference_align = 1) buffer Word { uint value; };

void main() {
    if (!vksvm_begin()) return;
    if (args.store == 0u) {
        uint64_t object = vksvm_read(args.at, args.bytes);
        for (uint i = 0u; i < args.bytes; i += 4u)
            vksvm_store_u32(args.out_ + i, Word(object + i).value);
    } else {
        uint64_t object = vksvm_begin_write(args.at, args.bytes);
        for (uint i = 0u; i < args.bytes; i += 4u)
            Word(object + i).value = vksvm_load_u32(args.out_ + i);
        vksvm_end_write(args.at, args.bytes, object);
    }
    vksvm_end();
}
