// Every invocation looks a key up in a binary search tree of linked nodes.
#define ARGS uint64_t root; ARRAY nodes; ARRAY keys; ARRAY result; uint n; uint pad;
#include "access.glsl"
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 32) buffer Node {
    uint64_t left;
    uint64_t right;
    uint key;
    uint value;
};

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint key = U32(READ_AT(args.keys, 4ul * i)).value;
        uint64_t p = args.root;
        uint found = 0u;
        while (p != 0ul && !POISONED()) {
            Node node = Node(READ_NEAR(args.nodes, p));
            uint here = node.key;
            if (here == key) {
                found = node.value;
                break;
            }
            p = key < here ? node.left : node.right;
        }
        U32(WRITE_AT(args.result, 4ul * i)).value = found;
    }
    END();
}
