#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Workgroup ids and counts of a three-dimensional grid.
layout(local_size_x = 4, local_size_y = 2, local_size_z = 2) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uvec3 id = gl_WorkGroupID * uvec3(4, 2, 2) + gl_LocalInvocationID;
    uvec3 all = gl_NumWorkGroups * gl_WorkGroupSize;
    uint at = id.x + all.x * (id.y + all.y * id.z);
    dst.at[at] = src.at[at] + gl_GlobalInvocationID.x + 100u * gl_GlobalInvocationID.y + 10000u * gl_GlobalInvocationID.z + 1000000u * gl_NumWorkGroups.z;
}
