#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Invocations return from many places.
// glslc: -O0
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };
uint f(uint v) {
    for (uint k = 0u; k < 20u; k++) {
        if (src.at[v + k] % 7u == 0u) return k;
    }
    return 99u;
}

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    if ((i & 3u) == 1u) return;
    uint k = f(i);
    if (k == 99u) return;
    dst.at[i] = k;
}
