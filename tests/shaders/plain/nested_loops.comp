#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Loops in loops with breaks and continues.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    uint sum = 0u;
    for (uint a = 0u; a < 8u; a++) {
        if ((src.at[i + a] & 3u) == 0u) continue;
        uint b = 0u;
        while (true) {
            uint v = src.at[i + a * 8u + b];
            sum += v;
            if ((v & 1u) == 0u || ++b > 6u) break;
        }
    }
    dst.at[i] = sum;
}
