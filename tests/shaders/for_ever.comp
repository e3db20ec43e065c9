#version 460
// Waits for a word that nobody changes.
#define VKSVM_ARGS uint64_t flag; uint64_t out_;
#include "vksvm.glsl"
layout(local_size_x = 8) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Flag { volatile uint value; };

void main() {
    if (!vksvm_begin()) return;
    while (!vksvm_poisoned() && Flag(vksvm_read(args.flag)).value == 0u) vksvm_safe_point();
    vksvm_store_u32(args.out_ + 4ul * vksvm_global_id().x, 1u);
    vksvm_end();
}
