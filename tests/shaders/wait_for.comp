#version 460
// Reads a word until it is not zero, `limit` times at most, and leaves what it found.
#define VKSVM_ARGS uint64_t flag; uint64_t out_; uint limit; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Flag { volatile uint value; };

void main() {
    uint found = 0u;
    for (uint turn = 0u; turn < args.limit && found == 0u && !vksvm_poisoned(); turn++)
        found = Flag(vksvm_read(args.flag)).value;
    vksvm_store_u32(args.out_ + 4ul * vksvm_global_id().x, found);
}
