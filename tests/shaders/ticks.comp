#version 460
// In each tick that the CPU counts, one invocation adds one to a word, and says which tick it has done. All ones end it.
#define VKSVM_ARGS uint64_t words; uint64_t ticks;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    uint last = 0u;
    while (last != 0xFFFFFFFFu && !vksvm_poisoned()) {
        uint now = vksvm_atomic_or_u32(args.ticks, 0u);
        if (now != last && now != 0xFFFFFFFFu) {
            vksvm_atomic_add_u32(args.words, 1u);
            memoryBarrierBuffer();
            vksvm_atomic_exchange_u32(args.ticks + 64ul, now);
        }
        last = now;
    }
    vksvm_end();
}
