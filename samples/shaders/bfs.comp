#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
// One level of a breadth-first search: nodes of this level put their unseen neighbours on the next. Run again over its
// own stores it finds those neighbours on the next level already and says `changed` again: idempotent.
layout(local_size_x = 64) in;

layout(buffer_reference) buffer Node;
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Nodes { Node at[]; };
// samples/src/graph/node.rs's Node.
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Node {
    Nodes outgoing;
    Nodes incoming;
    uint out_degree;
    uint in_degree;
    uint level;
};
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Word { uint value; };
layout(push_constant, scalar) uniform Args { Nodes nodes; Word changed; uint count; uint level; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= count) return;
    Node node = nodes.at[i];
    if (node.level != level) return;
    bool found = false;
    for (uint k = 0u; k < node.out_degree; k++) {
        Node neighbour = node.outgoing.at[k];
        if (neighbour.level > level) {
            atomicMin(neighbour.level, level + 1u);
            found = true;
        }
    }
    if (found) changed.value = 1u;
}
