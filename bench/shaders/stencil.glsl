// One step of a five-point stencil on rows of `width` floats: to = average of from's neighbourhood.
#define ARGS uint64_t from; uint64_t to; uint width; uint height;
#include "access.glsl"
layout(local_size_x = 256) in;

float at(uint x, uint y) {
    return F32(READ(args.from + 4ul * (uint64_t(y) * args.width + x))).value;
}

void main() {
    if (!BEGIN()) return;
    uint i = GLOBAL_ID.x;
    if (i < args.width * args.height) {
        uint x = i % args.width;
        uint y = i / args.width;
        float sum = at(x, y) + at(max(x, 1u) - 1u, y) + at(min(x + 1u, args.width - 1u), y);
        sum += at(x, max(y, 1u) - 1u) + at(x, min(y + 1u, args.height - 1u));
        F32(WRITE(args.to + 4ul * i)).value = sum * 0.2;
    }
    END();
}
