// Every invocation follows links through nodes of 16 bytes and adds up what they hold.
#define ARGS ARRAY heads; ARRAY result; uint n; uint hops;
#include "access.glsl"
layout(local_size_x = 64) in;

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Node { uint64_t next; uint value; uint pad; };

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint64_t p = START(args.heads) + 16ul * i;
        uint sum = 0u;
        for (uint hop = 0u; hop < args.hops && !POISONED(); hop++) {
            Node node = Node(READ_NEAR(args.heads, p));
            sum += node.value;
            p = node.next;
        }
        U32(WRITE_AT(args.result, 4ul * i)).value = sum;
    }
    END();
}
