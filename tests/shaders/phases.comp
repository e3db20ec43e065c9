#version 460
// In each phase that the CPU begins, one invocation adds one to a word of each page of the phase, and says that it is done.
#define VKSVM_ARGS uint64_t words; uint64_t phase; uint pages; uint phases;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    for (uint done = 0u; done < args.phases && !vksvm_poisoned();) {
        if (vksvm_atomic_or_u32(args.phase, 0u) <= done) continue;
        for (uint page = 0u; page < args.pages; page++)
            vksvm_atomic_add_u32(args.words + 4096ul * uint64_t(done * args.pages + page), 1u);
        done++;
        memoryBarrierBuffer();
        vksvm_atomic_exchange_u32(args.phase + 64ul, done);
    }
    vksvm_end();
}
