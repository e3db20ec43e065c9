#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// One invocation a workgroup, and its only store is the last thing it does: replayed without a probe.
layout(local_size_x = 1) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_WorkGroupID.x;
    uint sum = 0u;
    for (uint k = 0u; k < (src.at[i] & 7u); k++) sum += src.at[i + 1000u * k];
    if ((sum & 1u) != 0u) dst.at[i] += sum;
    else dst.at[i] = dst.at[i] * 3u;
}
