// z = a * x + y, sixteen elements an invocation, a grid apart.
#define ARGS ARRAY x; ARRAY y; ARRAY z; float a; uint n; uint stride; uint pad;
#include "access.glsl"
layout(local_size_x = 256) in;

void main() {
    if (!BEGIN()) return;
    for (uint i = GLOBAL_ID.x; i < args.n; i += args.stride) {
        uint64_t at = 4ul * i;
        F32(WRITE_AT(args.z, at)).value = args.a * F32(READ_AT(args.x, at)).value + F32(READ_AT(args.y, at)).value;
    }
    END();
}
