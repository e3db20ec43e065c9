#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
// A loop around barriers that ends when all invocations are done.
layout(local_size_x = 32) in;
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
shared uint busy;
layout(buffer_reference) buffer Node;
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Node { Node next; uint value; uint pad; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Nodes { Node at[]; };
layout(push_constant) uniform Push { Node src; Words dst; uint n; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    Node p = i < n ? src[i] : Node(0ul);
    uint sum = 0u;
    for (;;) {
        if (gl_LocalInvocationIndex == 0u) busy = 0u;
        barrier();
        if (uint64_t(p) != 0ul) {
            sum += p.value;
            p = p.next;
            atomicOr(busy, 1u);
        }
        barrier();
        uint more = busy;
        barrier();
        if (more == 0u) break;
    }
    if (i < n) dst.at[i] = sum;
}
