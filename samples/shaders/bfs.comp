#version 460
// One level of a breadth-first search: nodes of this level put their unseen neighbours on the next. Run again over its
// own stores it finds those neighbours on the next level already and says `changed` again: idempotent.
#define VKSVM_ARGS uint64_t nodes; uint64_t changed; uint count; uint level;
#include "vksvm.glsl"
layout(local_size_x = 64) in;

// Offsets in samples/src/graph/node.rs's Node.
const uint64_t OUTGOING = 0ul;
const uint64_t OUT_DEGREE = 16ul;
const uint64_t LEVEL = 24ul;

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.count) {
        uint64_t node = vksvm_load_u64(args.nodes + 8ul * i);
        if (node != 0ul && vksvm_load_u32(node + LEVEL) == args.level) {
            uint64_t next = vksvm_load_u64(node + OUTGOING);
            uint degree = next != 0ul ? vksvm_load_u32(node + OUT_DEGREE) : 0u;
            bool changed = false;
            for (uint k = 0u; k < degree; k++) {
                uint64_t neighbour = vksvm_load_u64(next + 8ul * k);
                // Null only while its page is missing.
                if (neighbour != 0ul && vksvm_load_u32(neighbour + LEVEL) > args.level) {
                    vksvm_atomic_min_u32(neighbour + LEVEL, args.level + 1u);
                    changed = true;
                }
            }
            if (changed) vksvm_store_u32(args.changed, 1u);
        }
    }
    vksvm_end();
}
