#version 460
// Every invocation goes through `width` words of two arrays: result = data + 3.
#define VKSVM_ARGS VksvmArray data; VksvmArray result; uint width; uint n;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

void main() {
    uint first = vksvm_global_id().x * args.width;
    if (first >= args.n) return;
    uint count = min(args.width, args.n - first);
    VksvmSpan data = vksvm_span_read(args.data, 4ul * first, 4ul * count);
    VksvmSpan result = vksvm_span_write(args.result, 4ul * first, 4ul * count);
    for (uint i = 0u; i < count; i++) {
        uint value = VksvmU32(vksvm_in_span_read(data, 4ul * i)).value;
        VksvmU32(vksvm_in_span_write(result, 4ul * i)).value = value + 3u;
    }
}
