#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
// Members of one object, read together from the last to the first, and one more after a store.
layout(local_size_x = 32) in;
struct Item { uint a; uint b; uint c; uint d; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Items { Item at[]; };
layout(push_constant) uniform Push { Items src; Items dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    uint b = src.at[i].b;
    dst.at[i].a = b * 3u + src.at[i].a;
    dst.at[i].b = src.at[i].c;
}
