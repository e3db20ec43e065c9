// One level of a breadth-first search over nodes of 128 bytes: level, degree, pointers to neighbours. Nodes of this level put their
// unseen neighbours on the next. Run again over its own stores it comes to the same.
#define ARGS uint64_t nodes; uint64_t changed; uint count; uint level;
#include "access.glsl"
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Pointer { uint64_t value; };

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.count) {
        uint64_t node = args.nodes + 128ul * i;
        if (U32(READ(node)).value == args.level) {
            uint degree = U32(READ(node + 4ul)).value;
            bool changed = false;
            for (uint k = 0u; k < degree && !POISONED(); k++) {
                uint64_t neighbour = Pointer(READ(node + 8ul + 8ul * k)).value;
                // Null only while its page is missing.
                if (neighbour != 0ul && U32(READ(neighbour)).value > args.level) {
                    atomicMin(U32(ATOMIC(neighbour)).value, args.level + 1u);
                    changed = true;
                }
            }
            if (changed) U32(WRITE(args.changed)).value = 1u;
        }
    }
    END();
}
