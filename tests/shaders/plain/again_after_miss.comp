#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Stored to, then another page is missed, then stored to beside: what was poisoned since must not store.
layout(local_size_x = 32) in;
struct Pair { uint a; uint b; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Pairs { Pair at[]; };
layout(push_constant) uniform Push { Words src; Pairs dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    dst.at[i].a = i;
    uint far = src.at[(i * 37u) & 8191u];
    uint farther = src.at[far & 8191u];
    // Never, unless it was poisoned.
    if (farther == 0u) dst.at[i].b = 7u;
    dst.at[i].a = farther;
}
