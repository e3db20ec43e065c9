#version 460
// A workgroup's tile is a page of words behind a pointer. The workgroup reverses the order of its first 64 words, `turns` times, and adds the
// word behind them, which says how many times it adds it, each time.
#define VKSVM_ARGS uint64_t tiles; uint turns; uint pad;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Pointer { uint64_t value; };

shared uint words[64];

void main() {
    uint i = gl_LocalInvocationIndex;
    VksvmCached directory = vksvm_cached();
    VksvmCached tile = vksvm_cached();
    uint64_t at = Pointer(vksvm_uniform_read(directory, args.tiles + 8ul * vksvm_workgroup_id().x)).value;
    for (uint turn = 0u; turn < args.turns && !vksvm_uniform_poisoned(); turn++) {
        uint added = VksvmU32(vksvm_uniform_read(tile, at + 256ul)).value;
        words[63u - i] = VksvmU32(vksvm_cached_read(tile, at + 4ul * i)).value;
        vksvm_uniform_write(tile, at);
        VksvmU32(vksvm_cached_write(tile, at + 4ul * i)).value = words[i] + added;
    }
}
