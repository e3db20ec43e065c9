// One invocation adds to words on several pages, as fast as it can, until it is told to stop; the result is how often.
#define ARGS uint64_t words; uint64_t stop; uint64_t result; uint stride; uint pages;
#include "access.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!BEGIN()) return;
    uint count = 0u;
    uint page = 0u;
    bool going = true;
    while (going) {
        for (uint i = 0u; i < 16u; i++) {
            atomicAdd(U32(ATOMIC(args.words + uint64_t(args.stride) * uint64_t(page))).value, 1u);
            page = page + 1u == args.pages ? 0u : page + 1u;
        }
        count += 16u;
        going = atomicOr(U32(ATOMIC(args.stop)).value, 0u) == 0u && !POISONED();
    }
    U32(WRITE(args.result)).value = count;
    END();
}
