#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A structure that holds a matrix is copied whole.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
struct Placed { mat3 turn; vec3 at; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Placeds { layout(row_major) Placed at[]; };
layout(push_constant) uniform Push { Placeds src; Placeds dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Placed p = src.at[i / 2u];
    if ((i & 1u) == 0u) dst.at[i / 2u] = Placed(transpose(p.turn), p.turn * p.at);
}
