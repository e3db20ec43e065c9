#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
// glslc: -O
// A pointer that is made in a loop, not on every way round, and used after it too (once optimised, it is one pointer).
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    uint k = 8u * i;
    uint sum = src.at[i];
    for (;;) {
        k += 1u;
        if ((k & 1u) != 0u) continue;
        sum += dst.at[k];
        if (k > 8u * i + 5u) break;
    }
    dst.at[k] = sum;
}
