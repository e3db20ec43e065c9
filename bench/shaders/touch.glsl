// Reads the first word of each page that the list names: one page an invocation.
#define ARGS uint64_t data; ARRAY list; ARRAY result; uint n; uint pad;
#include "access.glsl"
layout(local_size_x = 64) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint64_t page = U32(READ_AT(args.list, 4ul * i)).value;
        U32(WRITE_AT(args.result, 4ul * i)).value = U32(READ(args.data + (page << 12))).value;
    }
    END();
}
