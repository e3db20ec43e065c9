#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Stores that no load decides, but the order in which invocations come: another one when a workgroup runs again.
layout(local_size_x = 32) in;
shared uint tickets;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (gl_LocalInvocationIndex == 0u) tickets = 0u;
    barrier();
    uint ticket = atomicAdd(tickets, 1u);
    if (i < n) dst.at[1024u * (ticket >> 3) + 32u * gl_WorkGroupID.x + ticket] = gl_WorkGroupID.x;
}
