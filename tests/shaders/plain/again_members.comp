#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Members of one object, with stores and branches between them: all on the page of the first.
layout(local_size_x = 32) in;
struct Item { uint a; uint b; uint c; uint d; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Items { Item at[]; };
layout(push_constant) uniform Push { Items src; Items dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    dst.at[i].a = src.at[i].a + 1u;
    dst.at[i].b = src.at[i].b ^ dst.at[i].a;
    if ((src.at[i].c & 1u) != 0u) {
        dst.at[i].d = src.at[i].d * 3u;
    } else {
        dst.at[i].c = src.at[i].d + dst.at[i].b;
    }
}
