#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// Linked lists in a loop that only a return ends.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference) buffer Node;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Node { Node next; uint value; uint pad; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Nodes { Node at[]; };
layout(push_constant) uniform Push { Node src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= n) return;
    Node p = src[i];
    uint sum = 0u;
    for (;;) {
        sum += p.value;
        if (uint64_t(p.next) == 0ul) {
            dst.at[i] = sum;
            return;
        }
        p = p.next;
    }
}
