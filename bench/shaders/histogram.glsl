// Counts values in bins with atomics.
#define ARGS ARRAY data; uint64_t bins; uint n; uint mask;
#include "access.glsl"
layout(local_size_x = 256) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint bin = U32(READ_AT(args.data, 4ul * i)).value & args.mask;
        atomicAdd(U32(ATOMIC(args.bins + 4ul * bin)).value, 1u);
    }
    END();
}
