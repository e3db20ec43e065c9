#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// One invocation a workgroup that stores twice: the second store may miss after the first, and both change what was there.
layout(local_size_x = 1) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_WorkGroupID.x;
    dst.at[i] += src.at[i];
    dst.at[i + 4096u] += 1u;
}
