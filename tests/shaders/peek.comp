#version 460
// One invocation loads or stores an object of `bytes` at any address: for faults and straddling objects.
#define VKSVM_ARGS uint64_t at; uint64_t out_; uint bytes; uint store;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

layout(buffer_reference, scalar, buffer_reference_align = 1) buffer Word { uint value; };

void main() {
    if (!vksvm_begin()) return;
    // A translation is good until the next: what was read is kept here meanwhile.
    uint words[512];
    uint count = min(args.bytes / 4u, 512u);
    if (args.store == 0u) {
        uint64_t object = vksvm_read(args.at, args.bytes);
        for (uint i = 0u; i < count; i++) words[i] = Word(object + 4ul * i).value;
        for (uint i = 0u; i < count; i++) vksvm_store_u32(args.out_ + 4ul * i, words[i]);
    } else {
        for (uint i = 0u; i < count; i++) words[i] = vksvm_load_u32(args.out_ + 4ul * i);
        uint64_t object = vksvm_begin_write(args.at, args.bytes);
        for (uint i = 0u; i < count; i++) Word(object + 4ul * i).value = words[i];
        vksvm_end_write(args.at, args.bytes, object);
    }
    vksvm_end();
}
