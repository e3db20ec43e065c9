#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Vectors of bytes at odd addresses: some straddle pages and are taken apart.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 1) buffer Bytes { u8vec3 at[]; };
layout(push_constant) uniform Push { Bytes src; Bytes dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    dst.at[4u * i + 1u] = src.at[4u * i + 1u].zxy;
}
