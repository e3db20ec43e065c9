#version 460
// One iteration of PageRank: each node collects from the nodes whose edges lead to it. It reads one of the two
// ranks and writes the other: idempotent.
#define VKSVM_ARGS uint64_t nodes; uint count; uint from; float base; float damping;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

// Offsets in samples/src/graph/node.rs's Node.
const uint64_t INCOMING = 8ul;
const uint64_t OUT_DEGREE = 16ul;
const uint64_t IN_DEGREE = 20ul;
const uint64_t RANK = 28ul;

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.count) {
        uint64_t node = vksvm_load_u64(args.nodes + 8ul * i);
        uint64_t incoming = vksvm_load_u64(node + INCOMING);
        uint degree = incoming != 0ul ? vksvm_load_u32(node + IN_DEGREE) : 0u;
        // Popular nodes have tens of thousands of small terms: Kahan's summation keeps what additions would lose.
        precise float sum = 0.0;
        precise float lost = 0.0;
        for (uint k = 0u; k < degree; k++) {
            uint64_t neighbour = vksvm_load_u64(incoming + 8ul * k);
            // Null only while its page is missing.
            if (neighbour == 0ul) continue;
            float rank = vksvm_load_f32(neighbour + RANK + 4ul * args.from);
            precise float term = rank / float(max(vksvm_load_u32(neighbour + OUT_DEGREE), 1u)) - lost;
            precise float total = sum + term;
            lost = (total - sum) - term;
            sum = total;
        }
        vksvm_store_f32(node + RANK + 4ul * (1u - args.from), args.base + args.damping * sum);
    }
    vksvm_end();
}
