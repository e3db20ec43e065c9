#version 460
// Walks every other of 2 * `pages` pages in steps that are the invocation's own, looking at a word of each and storing to one, until the host says stop
// or `turns` are over. A word is 0 or the number of its step, which is what is stored. Counts turns, and words that were neither.
#define VKSVM_ARGS uint64_t data; uint64_t stop; uint64_t out_; uint pages; uint turns;
#include "vksvm.glsl"
layout(local_size_x = 16) in;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Word { volatile uint value; };

void main() {
    if (!vksvm_begin()) return;
    uint i = vksvm_global_id().x;
    uint page = i;
    uint wrong = 0u;
    uint turn = 0u;
    while (turn < args.turns && !vksvm_poisoned()) {
        page = (page + 2u * i + 1u) % args.pages;
        uint64_t p = args.data + 8192ul * page + 4ul * i;
        uint found = Word(vksvm_read(p)).value;
        if (found != 0u && found != page) wrong++;
        if (turn % 4u == 0u) Word(vksvm_write(p)).value = page;
        turn++;
        if (Word(vksvm_read(args.stop)).value != 0u) break;
    }
    vksvm_store_u32(args.out_ + 8ul * i, turn);
    vksvm_store_u32(args.out_ + 8ul * i + 4ul, wrong);
    vksvm_end();
}
