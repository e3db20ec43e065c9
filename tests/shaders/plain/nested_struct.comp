#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Members of structures in arrays in structures.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
struct Inner { uvec2 p; uint q[3]; };
struct Outer { uint head; Inner inner[2]; uint tail; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Outers { Outer at[]; };
layout(push_constant) uniform Push { Outers src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    uint k = i & 1u;
    dst.at[i] = src.at[i / 4u].inner[k].q[i % 3u] + src.at[i / 4u].inner[1u - k].p.y + src.at[i / 4u].tail;
}
