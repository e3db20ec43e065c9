#version 460
// One invocation of each workgroup adds to words on several pages, until it has done so `limit` times or is told to stop, and does
// `work` in between; the workgroup's result is how often.
#define VKSVM_ARGS uint64_t words; uint64_t stop; uint64_t results; uint stride; uint pages; uint limit; uint work;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!vksvm_begin()) return;
    uint count = 0u;
    uint page = 0u;
    uint noise = 1u;
    bool going = true;
    while (going) {
        vksvm_atomic_add_u32(args.words + uint64_t(args.stride) * uint64_t(page), 1u);
        page = page + 1u == args.pages ? 0u : page + 1u;
        count++;
        for (uint i = 0u; i < args.work; i++) noise = noise * 1664525u + 1013904223u;
        going = count < args.limit && !vksvm_poisoned();
        if ((count & 15u) == 0u && vksvm_load_u32(args.stop) != 0u) going = false;
    }
    vksvm_store_u32(args.results + 4ul * uint64_t(vksvm_global_id().x), count);
    // Kept, or the work would be left out.
    vksvm_store_u32(args.results + 2048ul + 4ul * uint64_t(vksvm_global_id().x), noise);
    vksvm_end();
}
