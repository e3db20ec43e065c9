#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// The same words before and after a barrier, which neighbours have changed meanwhile.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Words { uint at[]; };
layout(push_constant) uniform Push { Words src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    uint next = i ^ 1u;
    uint before = dst.at[i];
    uint beside = dst.at[next];
    memoryBarrierBuffer();
    barrier();
    dst.at[next] = src.at[i] + before;
    memoryBarrierBuffer();
    barrier();
    uint after = dst.at[i];
    memoryBarrierBuffer();
    barrier();
    dst.at[i] = after * 3u + beside;
}
