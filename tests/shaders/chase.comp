#version 460
// Each invocation follows a linked list from its own head and adds up the values.
#define VKSVM_ARGS uint64_t heads; uint64_t sums; uint n;
#include "vksvm.glsl"
layout(local_size_x = 32) in;

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Node { uint64_t next; uint value; uint pad; };

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    if (i < args.n) {
        uint64_t p = vksvm_load_u64(args.heads + 8ul * i);
        uint sum = 0u;
        while (p != 0ul && !vksvm_poisoned()) {
            Node node = Node(vksvm_read(p, 16u));
            sum += node.value;
            p = node.next;
        }
        vksvm_store_u32(args.sums + 4ul * i, sum);
    }
    vksvm_end();
}
