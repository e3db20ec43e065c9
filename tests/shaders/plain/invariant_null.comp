#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Pointers that a loop does not change and does not follow, being null or wild.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Word { uint value; };
struct Entry { Word p; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Table { Entry at[]; };
layout(push_constant) uniform Push { Table src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Word p = src.at[i].p;
    uint sum = 0u;
    for (uint k = 0u; k < (i & 15u); k++) {
        if (i % 3u == 0u) sum += p.value * k;
        dst.at[i] = sum + k;
    }
    dst.at[i] = sum;
}
