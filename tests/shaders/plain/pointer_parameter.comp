#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Pointers passed to functions.
// glslc: -O0
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
uint sum(Words p, uint count) {
    uint all = 0u;
    for (uint k = 0u; k < count; k++) all += p.at[k];
    return all;
}
void put(Words p, uint value) { p.at[0] = value; }
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    put(Words(uint64_t(dst) + 4ul * i), sum(Words(uint64_t(src) + 4ul * i), 5u));
}
