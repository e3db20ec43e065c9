#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A loop around barriers, whose end memory decides.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint part[32];
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint lane = gl_LocalInvocationIndex;
    uint rounds = src.at[gl_WorkGroupID.x * 128u] % 5u + 1u;
    uint sum = 0u;
    for (uint k = 0u; k < rounds; k++) {
        part[lane] = src.at[(gl_WorkGroupID.x * 32u + lane + 1024u * k) % 8192u];
        barrier();
        sum += part[lane ^ 3u];
        barrier();
    }
    dst.at[gl_WorkGroupID.x * 32u + lane] = sum;
}
