// Every invocation adds up a row of `width` words: it stays on a page for many accesses, and its neighbours are on others.
#define ARGS ARRAY data; ARRAY result; uint n; uint width;
#include "access.glsl"
layout(local_size_x = 64) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint64_t row = 4ul * i * args.width;
        KEPT(kept)
        RANGE(range, args.data, row, 4ul * args.width)
        uint sum = 0u;
        for (uint k = 0u; k < args.width; k++) sum += U32(READ_ROW(range, kept, args.data, row, 4ul * k)).value;
        U32(WRITE_AT(args.result, 4ul * i)).value = sum;
    }
    END();
}
