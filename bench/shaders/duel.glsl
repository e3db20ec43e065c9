// One invocation and the CPU take turns, page after page: the CPU stores an odd number, the kernel reads what comes with it and answers
// with the next even one. All ones end the game.
#define ARGS uint64_t words; uint64_t answers; uint64_t result; uint stride; uint pages; uint payload; uint pad;
#include "access.glsl"
layout(local_size_x = 1) in;

void main() {
    if (!BEGIN()) return;
    uint sum = 0u;
    uint seen = 0u;
    for (uint turn = 0u; seen != 0xFFFFFFFFu; turn++) {
        uint64_t at = uint64_t(args.stride) * uint64_t(turn % args.pages);
        uint want = 2u * turn + 1u;
        // Bounded: about a minute.
        uint polls = 0u;
        do {
            seen = atomicOr(U32(ATOMIC(args.words + at)).value, 0u);
            if (POISONED() || ++polls > 1000000000u) seen = 0xFFFFFFFFu;
        } while (seen != want && seen != 0xFFFFFFFFu);
        if (seen == 0xFFFFFFFFu) break;
        memoryBarrierBuffer();
        for (uint i = 0u; i < args.payload; i++) sum += U32(READ(args.words + at + 4ul + 4ul * i)).value;
        atomicExchange(U32(ATOMIC(args.answers + at)).value, want + 1u);
    }
    U32(WRITE(args.result)).value = sum;
    END();
}
