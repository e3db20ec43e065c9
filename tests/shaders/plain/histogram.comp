#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Shared atomics, added to memory in the end.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint bins[16];
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (gl_LocalInvocationIndex < 16u) bins[gl_LocalInvocationIndex] = 0u;
    barrier();
    if (i < n) atomicAdd(bins[src.at[i] & 15u], 1u);
    barrier();
    if (gl_LocalInvocationIndex < 16u) atomicAdd(dst.at[gl_LocalInvocationIndex], bins[gl_LocalInvocationIndex]);
}
