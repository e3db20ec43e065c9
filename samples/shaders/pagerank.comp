#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
// One iteration of PageRank: each node collects from the nodes whose edges lead to it. It reads one of the two
// ranks and writes the other: idempotent.
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
    float rank[2];
};
layout(push_constant, scalar) uniform Args { Nodes nodes; uint count; uint from; float base; float damping; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= count) return;
    Node node = nodes.at[i];
    Nodes incoming = node.incoming;
    uint degree = node.in_degree;
    // Popular nodes have tens of thousands of small terms: Kahan's summation keeps what additions would lose.
    precise float sum = 0.0;
    precise float lost = 0.0;
    for (uint k = 0u; k < degree; k++) {
        Node neighbour = incoming.at[k];
        precise float term = neighbour.rank[from] / float(max(neighbour.out_degree, 1u)) - lost;
        precise float total = sum + term;
        lost = (total - sum) - term;
        sum = total;
    }
    node.rank[1u - from] = base + damping * sum;
}
