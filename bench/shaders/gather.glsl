// out[i] = data[index[i]]
#define ARGS ARRAY data; ARRAY index; ARRAY result; uint n; uint pad;
#include "access.glsl"
layout(local_size_x = 256) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint64_t at = 4ul * i;
        uint from = U32(READ_AT(args.index, at)).value;
        U32(WRITE_AT(args.result, at)).value = U32(READ_AT(args.data, 4ul * from)).value;
    }
    END();
}
