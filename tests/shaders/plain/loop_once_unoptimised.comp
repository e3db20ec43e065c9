#version 460
// glslc: -O0
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A loop that asks at its end, in a function whose callers say whether it goes round at all: with a constant, the way back is never taken.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

uint walk(const uint i, const bool again) {
    uint k = 0u;
    uint sum = 0u;
    do {
        uint value = src.at[i + 32u * k];
        sum = sum * 3u + value;
        k++;
        if ((value & 64u) != 0u) break;
    } while (again && k < 4u);
    return sum;
}

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    dst.at[i] = walk(i, false) ^ walk(i, true);
}
