#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A search tree of pointers is searched.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference) buffer Tree;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Tree { Tree child[2]; uint key; uint value; };
layout(push_constant) uniform Push { Tree src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Tree p = src;
    while (uint64_t(p) != 0ul && p.key != i) p = p.child[i > p.key ? 1 : 0];
    dst.at[i] = uint64_t(p) == 0ul ? 0u : p.value;
}
