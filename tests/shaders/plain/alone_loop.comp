#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// One invocation a workgroup that stores in a loop: what one round stores another may load.
layout(local_size_x = 1) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_WorkGroupID.x;
    for (uint k = 0u; k < 4u; k++) dst.at[i + 1000u * k] = dst.at[i + 1000u * ((k + 1u) & 3u)] + 1u;
}
