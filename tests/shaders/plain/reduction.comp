#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A sum through shared memory and barriers.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint part[32];
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    part[gl_LocalInvocationIndex] = i < n ? src.at[i * 8u] : 0u;
    barrier();
    for (uint step = 16u; step > 0u; step >>= 1) {
        if (gl_LocalInvocationIndex < step) part[gl_LocalInvocationIndex] += part[gl_LocalInvocationIndex + step];
        barrier();
    }
    if (gl_LocalInvocationIndex == 0u) dst.at[gl_WorkGroupID.x] = part[0];
}
