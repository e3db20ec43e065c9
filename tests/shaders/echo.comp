#version 460
// Takes `n` numbers out of a ring that a CPU thread fills, and puts 3x + 1 of each into another, which a CPU thread empties. Each
// of the rings' four positions has a page of its own: `positions` + 0 and 4096 for the first ring (put, taken), 8192 and 12288 for the second.
#define VKSVM_ARGS uint64_t from; uint64_t to; uint64_t positions; uint capacity; uint n;
#include "vksvm.glsl"
layout(local_size_x = 1) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Position { volatile uint value; };

uint look(uint which) {
    uint value = Position(vksvm_read(args.positions + 4096ul * which)).value;
    memoryBarrierBuffer();
    return value;
}

void publish(uint which, uint value) {
    memoryBarrierBuffer();
    Position(vksvm_write(args.positions + 4096ul * which)).value = value;
}

void main() {
    if (!vksvm_begin()) return;
    uint done = 0u;
    while (done < args.n && !vksvm_poisoned()) {
        uint until = min(look(0u), look(3u) + args.capacity);
        if (until == done) continue;
        for (; done < until && !vksvm_poisoned(); done++) {
            uint64_t at = 4ul * (done % args.capacity);
            vksvm_store_u32(args.to + at, 3u * vksvm_load_u32(args.from + at) + 1u);
        }
        publish(1u, done);
        publish(2u, done);
    }
    vksvm_end();
}
