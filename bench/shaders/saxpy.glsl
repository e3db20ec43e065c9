// z = a * x + y, one element an invocation.
#define ARGS ARRAY x; ARRAY y; ARRAY z; float a; uint n;
#include "access.glsl"
layout(local_size_x = 256) in;

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.n) {
        uint64_t at = 4ul * i;
        F32(WRITE_AT(args.z, at)).value = args.a * F32(READ_AT(args.x, at)).value + F32(READ_AT(args.y, at)).value;
    }
    END();
}
