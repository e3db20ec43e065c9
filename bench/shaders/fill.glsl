// data[i] = i + seed
#define ARGS ARRAY data; uint n; uint seed;
#include "access.glsl"
layout(local_size_x = 256) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) U32(WRITE_AT(args.data, 4ul * i)).value = i + args.seed;
    END();
}
