#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Nested structures are loaded whole and indexed afterwards.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
struct Inner { uvec2 p; uint q[3]; };
struct Outer { uint head; Inner inner[2]; uint tail; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Outers { Outer at[]; };
layout(push_constant) uniform Push { Outers src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Outer outer = src.at[i / 4u];
    dst.at[i] = outer.inner[i & 1u].q[i % 3u] + outer.head;
}
