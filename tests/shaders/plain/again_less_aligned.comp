#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Objects that are aligned to less than their type says, by default sixteen bytes: pages end within some.
layout(local_size_x = 32) in;
layout(buffer_reference, std430) buffer Item { uint a; uint b; uint c; uint d; };
layout(push_constant) uniform Push { uint64_t src; uint64_t dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Item from = Item(src + uint64_t(16u * i + 8u));
    Item to = Item(dst + uint64_t(16u * i + 8u));
    to.a = from.a + 1u;
    to.b = from.b + to.a;
    to.d = from.d + 2u;
    to.c = from.c + to.d;
}
